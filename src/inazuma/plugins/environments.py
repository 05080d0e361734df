"""A door: `inazuma.plugins.environments`."""

from inazuma.strategies.cluster import SLURMEnvironment

__all__ = ["SLURMEnvironment"]

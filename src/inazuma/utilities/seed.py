"""A door: `inazuma.utilities.seed`."""

from inazuma.seed import isolate_rng, seed_everything

__all__ = [
    "isolate_rng",
    "seed_everything",
]

"""Names that users import from `utilities`. Everything here lives in another room."""

from inazuma.data.combined import CombinedLoader
from inazuma.hparams import AttributeDict
from inazuma.optim import GradClipAlgorithmType
from inazuma.ranks import rank_zero_deprecation, rank_zero_info, rank_zero_only, rank_zero_warn
from inazuma.tree import move_data_to_device

__all__ = [
    "AttributeDict",
    "CombinedLoader",
    "GradClipAlgorithmType",
    "move_data_to_device",
    "rank_zero_deprecation",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
]

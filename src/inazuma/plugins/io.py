"""How checkpoints are stored, under Lightning's names."""

from inazuma.checkpoint_io import AsyncCheckpointIO, CheckpointIO, TorchCheckpointIO

__all__ = ["AsyncCheckpointIO", "CheckpointIO", "TorchCheckpointIO"]

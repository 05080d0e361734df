"""What `Trainer(plugins=...)` takes, under Lightning's names."""

from inazuma.plugins.io import AsyncCheckpointIO, CheckpointIO, TorchCheckpointIO

__all__ = ["AsyncCheckpointIO", "CheckpointIO", "TorchCheckpointIO"]

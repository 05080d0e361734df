"""Change the number of batches per optimizer step as training goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inazuma.callbacks.callback import Callback
from inazuma.errors import MisconfigurationException

if TYPE_CHECKING:
    from inazuma.module import LightningModule
    from inazuma.trainer import Trainer


class GradientAccumulationScheduler(Callback):
    """Set `trainer.accumulate_grad_batches` by the epoch.

    Args:
        scheduling: the factor from each epoch on, counted from 0: `{0: 8, 4: 2}` accumulates 8 batches in the first
            four epochs and 2 in all others. Without a key 0, training begins with a factor of 1.

    Raises:
        TypeError: `scheduling` is empty.
        MisconfigurationException: a key is no epoch, or a value no number of batches.
    """

    def __init__(self, scheduling: dict[int, int]) -> None:
        super().__init__()
        if not scheduling:
            raise TypeError(
                "GradientAccumulationScheduler(scheduling={}): an empty dict schedules nothing. "
                "Give {epoch: factor}, such as {4: 2}."
            )
        if any(not isinstance(epoch, int) or epoch < 0 for epoch in scheduling):
            raise MisconfigurationException(
                f"GradientAccumulationScheduler(scheduling={scheduling}): the keys are epochs. "
                f"An epoch should be an int, 0 or more, but these are {list(scheduling)}."
            )
        if any(not isinstance(factor, int) or factor < 1 for factor in scheduling.values()):
            raise MisconfigurationException(
                f"GradientAccumulationScheduler(scheduling={scheduling}): the values are batches per optimizer step. "
                f"Such a factor should be an int, 1 or more, but these are {list(scheduling.values())}."
            )
        self.scheduling = {0: 1, **scheduling}
        self.epochs = sorted(self.scheduling)
        self._factor = 1  # that this callback set last

    def going_to_accumulate_grad_batches(self) -> bool:
        """Whether any epoch accumulates more than one batch."""
        return any(factor > 1 for factor in self.scheduling.values())

    def get_accumulate_grad_batches(self, epoch: int) -> int:
        """The factor of this epoch, counted from 0."""
        return self.scheduling[max(start for start in self.epochs if start <= epoch)]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what would contradict the schedule; a run resumed inside an epoch needs its factor here.

        Raises:
            RuntimeError: the module optimizes manually.
            ValueError: the Trainer has a factor of its own.
        """
        if not pl_module.automatic_optimization:
            raise RuntimeError(
                "GradientAccumulationScheduler: accumulation is not supported for manual optimization, where "
                f"`{type(pl_module).__name__}.training_step` decides itself when to step. Leave the callback out, or "
                "optimize automatically."
            )
        if trainer.accumulate_grad_batches not in (1, self._factor):
            raise ValueError(
                f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}) would be overwritten by the "
                "`GradientAccumulationScheduler`, which gives each epoch its factor. Remove one of the two."
            )
        self._set(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set(trainer)

    def _set(self, trainer: Trainer) -> None:
        self._factor = self.get_accumulate_grad_batches(trainer.current_epoch)
        trainer.accumulate_grad_batches = self._factor

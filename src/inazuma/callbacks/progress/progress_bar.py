"""The base of all progress bars: what there is to count, and what stands behind the bar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inazuma.callbacks.callback import Callback
from inazuma.ranks import WarningCache
from inazuma.weak import Weak

if TYPE_CHECKING:
    from inazuma.module import LightningModule
    from inazuma.trainer import Trainer

_said = WarningCache()


class ProgressBar(Callback):
    """Base class of progress bars. It shows nothing; subclass it to write a bar from scratch.

    Call `super().__init__()` in your constructor, and `super().setup(...)` if you override `setup`.

    Example::

        class Percent(ProgressBar):
            shown = True

            def enable(self): self.shown = True
            def disable(self): self.shown = False

            def on_train_batch_end(self, *args):
                done = 1 + args[-1]  # the last argument is the index of the batch
                print(f"{done / self.total_train_batches:.0%}", end="\\r" if self.shown else "")
    """

    _trainer: Weak[Trainer] = Weak()

    def __init__(self) -> None:
        self._current_eval_dataloader_idx: int | None = None

    @property
    def trainer(self) -> Trainer:
        """The Trainer whose progress is shown.

        Raises:
            TypeError: no run has begun yet.
        """
        if self._trainer is None:
            raise TypeError(f"The `{type(self).__name__}.trainer` reference has not been set yet: no run has begun.")
        return self._trainer

    @property
    def sanity_check_description(self) -> str:
        return "Sanity Checking"

    @property
    def train_description(self) -> str:
        return "Training"

    @property
    def validation_description(self) -> str:
        return "Validation"

    @property
    def test_description(self) -> str:
        return "Testing"

    @property
    def predict_description(self) -> str:
        return "Predicting"

    @property
    def total_train_batches(self) -> int | float:
        """Batches of this epoch; `inf` if the loader has no length and no step limit ends the run."""
        trainer = self.trainer
        if trainer.max_epochs == -1 and trainer.max_steps > 0:
            batches_left = (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches
            return min(trainer.num_training_batches, batches_left)
        return trainer.num_training_batches

    @property
    def total_val_batches(self) -> int | float:
        """Batches of one validation, over all loaders; 0 if this epoch has none, `inf` if a loader has no length."""
        trainer = self.trainer
        every_n_epochs = trainer.check_val_every_n_epoch
        due = every_n_epochs is None or (trainer.current_epoch + 1) % every_n_epochs == 0
        return sum(trainer.num_val_batches) if trainer.enable_validation and due else 0

    @property
    def total_val_batches_current_dataloader(self) -> int | float:
        """Batches of the validation loader in use; `inf` if it has no length."""
        trainer = self.trainer
        return self._of_current_dataloader(
            trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        )

    @property
    def total_test_batches_current_dataloader(self) -> int | float:
        """Batches of the test loader in use; `inf` if it has no length."""
        return self._of_current_dataloader(self.trainer.num_test_batches)

    @property
    def total_predict_batches_current_dataloader(self) -> int | float:
        """Batches of the predict loader in use; `inf` if it has no length."""
        return self._of_current_dataloader(self.trainer.num_predict_batches)

    def _of_current_dataloader(self, batches: list[int | float]) -> int | float:
        assert self._current_eval_dataloader_idx is not None, "no dataloader has begun"
        return batches[self._current_eval_dataloader_idx]

    def has_dataloader_changed(self, dataloader_idx: int) -> bool:
        """Whether this loader is another one than at the last call; remembers it."""
        before, self._current_eval_dataloader_idx = self._current_eval_dataloader_idx, dataloader_idx
        return before != dataloader_idx

    def reset_dataloader_idx_tracker(self) -> None:
        """Forget the loader, so that the next one counts as changed."""
        self._current_eval_dataloader_idx = None

    def disable(self) -> None:
        """Show nothing from now on. Called on all ranks but the first, and while a tuner tries things out."""
        raise NotImplementedError(f"{type(self).__name__} must override `disable()` to stop showing progress.")

    def enable(self) -> None:
        """Show progress again."""
        raise NotImplementedError(f"{type(self).__name__} must override `enable()` to show progress again.")

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Like the built-in `print`. Override it if that would break the bar; `trainer.print` comes here."""
        print(*args, **kwargs)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = trainer
        if not trainer.is_global_zero:
            self.disable()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands behind the training bar: the logger's version as `v_num`, and all logged with `prog_bar=True`.

        Reading it may wait for the GPU. Override it to change what is shown::

            def get_metrics(self, trainer, pl_module):
                items = super().get_metrics(trainer, pl_module)
                items.pop("v_num", None)
                return items
        """
        standard = get_standard_metrics(trainer)
        logged = trainer.progress_bar_metrics
        for name in standard.keys() & logged.keys():
            _said.warn(
                f"The progress bar shows a value of its own as {name!r}, and `self.log({name!r}, ..., prog_bar=True)` "
                "hides it. Log under another name, or override `get_metrics()` of the progress bar."
            )
        return {**standard, **logged}


def get_standard_metrics(trainer: Trainer) -> dict[str, int | str]:
    """`v_num`, the version of the logger: an int, or the last 4 characters of a string. Empty if there is none."""
    versions = list(dict.fromkeys(logger.version for logger in trainer.loggers))
    version = versions[0] if len(trainer.loggers) == 1 else "_".join(str(version) for version in versions)
    if version is None or version == "":
        return {}
    return {"v_num": version if isinstance(version, int) else version[-4:]}

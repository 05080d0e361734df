"""Which files are written, what they are called, what is in them, and how a run goes on from them."""

from __future__ import annotations

from typing import Any

import torch
from tests.parity.recorder import Lab, loader, scenario

# How inazuma differs, in the words of docs/differences.md
LAST = "`last.ckpt` is the newest state"
LAST_PATH = "names the `last.ckpt` that is written with it"
LOGGED = "logged values are there again after a resume"
BATCHES = "the batches that the run had not seen yet"
INSIDE = {"metrics": LOGGED, **dict.fromkeys(("args", "csv", "checkpoints", "weights"), BATCHES)}
PLATEAU = "steps the plateau schedule of that epoch"
PARTIAL = "starts the next epoch"

MOVED = "saved by a ModelCheckpoint in"  # a warning: each run has a directory of its own

LOSSES = [3.0, 1.0, 2.0, 0.5, 4.0]


def _scripted(lab: Lab, values: list[float] = LOSSES) -> Any:
    """A net whose metrics of each epoch are given."""

    class Net(lab.Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", values[self.current_epoch])
            self.log("val/score", -values[self.current_epoch])

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    return Net()


def _fit(lab: Lab, values: list[float] = LOSSES, fit: dict[str, Any] | None = None, **arguments: Any) -> Any:
    checkpoint = lab.callbacks.ModelCheckpoint(**arguments)
    lab.fit(_scripted(lab, values), callbacks=[checkpoint], **{"max_epochs": len(values), **(fit or {})})
    paths = (checkpoint.best_model_path, checkpoint.last_model_path, checkpoint.kth_best_model_path)
    score = None if checkpoint.best_model_score is None else float(checkpoint.best_model_score)
    return [*(str(path).rsplit("/", 1)[-1] for path in paths), score]


@scenario()
def top_one(lab: Lab) -> Any:
    return _fit(lab, monitor="val_loss")


@scenario()
def top_two_with_max(lab: Lab) -> Any:
    return _fit(lab, monitor="val_loss", mode="max", save_top_k=2, filename="{epoch}-{val_loss:.2f}")


@scenario()
def top_all(lab: Lab) -> Any:
    return _fit(lab, monitor="val_loss", save_top_k=-1, filename="{epoch:02d}-{step}-{val_loss}")


@scenario()
def top_none(lab: Lab) -> Any:
    return _fit(lab, save_top_k=0)


@scenario()
def top_two_with_nan(lab: Lab) -> Any:
    return _fit(lab, [float("nan"), 2.0, float("nan"), 1.0], monitor="val_loss", save_top_k=2)


@scenario()
def names_with_a_slash(lab: Lab) -> Any:
    name = "score={val/score:.1f}-{epoch}"
    return _fit(lab, monitor="val/score", mode="max", filename=name, auto_insert_metric_name=False, save_top_k=-1)


@scenario()
def one_name_for_all(lab: Lab) -> Any:
    return _fit(lab, filename="same", save_top_k=-1)


@scenario()
def one_name_for_all_without_versions(lab: Lab) -> Any:
    return _fit(lab, filename="same", monitor="val_loss", save_top_k=2, enable_version_counter=False)


@scenario()
def every_second_epoch(lab: Lab) -> Any:
    return _fit(lab, every_n_epochs=2, save_top_k=-1)


@scenario()
def every_n_steps(lab: Lab) -> Any:
    return _fit(lab, every_n_train_steps=4, save_top_k=-1)


@scenario()
def every_n_steps_with_accumulation(lab: Lab) -> Any:
    return _fit(lab, fit={"accumulate_grad_batches": 2, "max_epochs": 2}, every_n_train_steps=2, save_top_k=-1)


@scenario()
def every_n_steps_with_a_train_metric(lab: Lab) -> Any:
    return _fit(lab, every_n_train_steps=4, monitor="train_loss", save_top_k=2, filename="{step}-{train_loss:.4f}")


@scenario()
def every_n_steps_with_validation_inside(lab: Lab) -> Any:
    fit = {"val_check_interval": 2, "max_epochs": 3}
    return _fit(lab, fit=fit, every_n_train_steps=2, monitor="val_loss", save_top_k=-1)


@scenario()
def by_time_at_once(lab: Lab) -> Any:
    from datetime import timedelta

    return _fit(lab, fit={"max_epochs": 1}, train_time_interval=timedelta(seconds=0), save_top_k=-1)


@scenario()
def at_validation_end(lab: Lab) -> Any:
    fit = {"val_check_interval": 0.5, "max_epochs": 3}
    return _fit(lab, fit=fit, monitor="val_loss", save_top_k=-1)


@scenario()
def on_train_epoch_end_in_spite_of_validation_inside(lab: Lab) -> Any:
    fit = {"val_check_interval": 0.5, "max_epochs": 3}
    return _fit(lab, fit=fit, save_on_train_epoch_end=True, save_top_k=-1)


@scenario()
def not_on_train_epoch_end(lab: Lab) -> Any:
    return _fit(lab, save_on_train_epoch_end=False, monitor="val_loss")


@scenario()
def a_metric_that_is_missing(lab: Lab) -> Any:
    return _fit(lab, monitor="nothing")


@scenario()
def save_last_with_the_newest_always_best(lab: Lab) -> Any:
    return _fit(lab, [3.0, 2.0, 1.0], monitor="val_loss", save_last=True)


@scenario()
def save_last_without_a_monitor(lab: Lab) -> Any:
    return _fit(lab, save_last=True)


@scenario(deviates={"hooks": LAST, "checkpoints": LAST})
def save_last_every_n_steps(lab: Lab) -> Any:
    return _fit(lab, every_n_train_steps=4, save_last=True)


@scenario(deviates={"checkpoints": LAST_PATH})
def save_last_link(lab: Lab) -> Any:
    return _fit(lab, save_last="link", save_top_k=-1)


@scenario(deviates={"hooks": LAST, "checkpoints": LAST})
def save_last_after_a_worse_epoch(lab: Lab) -> Any:
    return _fit(lab, monitor="val_loss", save_last=True)


@scenario(deviates={"hooks": LAST, "checkpoints": LAST})
def save_last_alone(lab: Lab) -> Any:
    return _fit(lab, save_last=True, save_top_k=0)


@scenario()
def weights_only(lab: Lab) -> Any:
    return _fit(lab, save_weights_only=True, fit={"max_epochs": 1})


@scenario()
def two_checkpoint_callbacks(lab: Lab) -> Any:
    first = lab.callbacks.ModelCheckpoint(monitor="val_loss", dirpath=lab.root / "first")
    second = lab.callbacks.ModelCheckpoint(every_n_train_steps=5, dirpath=lab.root / "second", save_top_k=-1)
    trainer = lab.fit(_scripted(lab), callbacks=[second, first], max_epochs=3)
    return [type(callback).__name__ for callback in trainer.callbacks]


@scenario(deviates={"checkpoints": LAST_PATH}, warns=["exists and is not empty"], draws=True)
def two_fits_into_one_directory(lab: Lab) -> None:
    for _ in range(2):
        checkpoint = lab.callbacks.ModelCheckpoint(dirpath=lab.root / "same", save_last=True)
        lab.fit(_scripted(lab), callbacks=[checkpoint], max_epochs=1)


@scenario()
def without_a_logger(lab: Lab) -> Any:
    return _fit(lab, fit={"logger": False, "max_epochs": 1})


@scenario(deviates={"checkpoints": LAST_PATH})
def save_on_exception(lab: Lab) -> None:
    class Net(lab.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.global_step == 8:
                raise ValueError("a bad batch")
            return super().training_step(batch, batch_idx)

    lab.fit(Net(), callbacks=[lab.callbacks.ModelCheckpoint(save_on_exception=True, save_last=True)])


@scenario(warns=["goes on from the last checkpoint", "no last checkpoint available"])
def on_exception_checkpoint(lab: Lab) -> None:
    class Net(lab.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.global_step == 8:
                raise ValueError("a bad batch")
            return super().training_step(batch, batch_idx)

    lab.fit(Net(), callbacks=[lab.callbacks.OnExceptionCheckpoint(lab.root / "rescue")], enable_checkpointing=True)


@scenario()
def saved_by_hand(lab: Lab) -> None:
    trainer = lab.fit(_scripted(lab), enable_checkpointing=False)
    trainer.save_checkpoint(lab.root / "whole.ckpt")
    trainer.save_checkpoint(lab.root / "weights.ckpt", weights_only=True)


# --- going on from a file


def _saver(lab: Lab, hook: str, at: int) -> Any:
    """A callback that saves `saved.ckpt` in this hook when this many optimizer steps are done."""

    class Saver(lab.pl.Callback):
        pass

    def save(self: Any, trainer: Any, *_: Any) -> None:
        if trainer.global_step == at and not trainer.sanity_checking:
            trainer.save_checkpoint(lab.root / "saved.ckpt")

    setattr(Saver, hook, save)
    return Saver()


def _go_on(lab: Lab, hook: str, at: int, net: Any = None, **arguments: Any) -> None:
    net = net or (lambda: _scripted(lab))
    lab.fit(net(), callbacks=[_saver(lab, hook, at)], **arguments)
    lab.fit(net(), ckpt_path=lab.root / "saved.ckpt", **{**arguments, "max_epochs": 4})


@scenario(deviates={"metrics": LOGGED}, warns=[MOVED])
def resume_from_the_end_of_an_epoch(lab: Lab) -> None:
    _go_on(lab, "on_train_epoch_end", 6, max_epochs=3)


@scenario(deviates={"metrics": LOGGED}, warns=[MOVED])
def resume_from_the_end_of_training(lab: Lab) -> None:
    _go_on(lab, "on_train_epoch_end", 12)


@scenario(deviates=dict.fromkeys(("hooks", "csv", "checkpoints", "weights"), PLATEAU), warns=[MOVED])
def resume_from_the_end_of_an_epoch_with_plateau(lab: Lab) -> None:
    class Net(lab.Net):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}

    _go_on(lab, "on_train_epoch_end", 12, net=Net, max_epochs=3)


@scenario(deviates={"metrics": LOGGED}, warns=[MOVED])
def resume_from_the_end_of_an_epoch_with_accumulation(lab: Lab) -> None:
    _go_on(lab, "on_train_epoch_end", 3, train=loader(10), accumulate_grad_batches=2)


@scenario(deviates={"metrics": LOGGED}, warns=[MOVED])
def resume_from_the_last_validation_of_an_epoch(lab: Lab) -> None:
    _go_on(lab, "on_validation_end", 6)


@scenario(deviates=INSIDE, warns=[MOVED])
def resume_from_the_middle_of_an_epoch(lab: Lab) -> None:
    _go_on(lab, "on_train_batch_end", 8)


@scenario(deviates=INSIDE, warns=[MOVED])
def resume_from_a_validation_inside_an_epoch(lab: Lab) -> None:
    _go_on(lab, "on_validation_end", 9, val_check_interval=3)


@scenario(deviates=INSIDE, warns=[MOVED])
def resume_from_the_middle_of_an_accumulation_window(lab: Lab) -> None:
    _go_on(lab, "on_train_batch_end", 4, accumulate_grad_batches=2)


@scenario(deviates=dict.fromkeys(("hooks", "csv", "files", "checkpoints", "weights"), PARTIAL), warns=[MOVED])
def resume_by_max_steps(lab: Lab) -> None:
    lab.fit(_scripted(lab), max_steps=8, callbacks=[_saver(lab, "on_train_end", 8)])
    lab.fit(_scripted(lab), max_steps=14, max_epochs=5, ckpt_path=lab.root / "saved.ckpt")


@scenario(deviates={"metrics": LOGGED}, warns=[MOVED])
def resume_a_finished_run(lab: Lab) -> None:
    lab.fit(_scripted(lab), callbacks=[_saver(lab, "on_train_epoch_end", 12)])
    lab.fit(_scripted(lab), ckpt_path=lab.root / "saved.ckpt")


@scenario(warns=[MOVED])
def resume_beyond_max_epochs(lab: Lab) -> None:
    lab.fit(_scripted(lab), callbacks=[_saver(lab, "on_train_epoch_end", 18)], max_epochs=3)
    lab.fit(_scripted(lab), max_epochs=1, ckpt_path=lab.root / "saved.ckpt")


@scenario(deviates={"metrics": LOGGED}, warns=["no last checkpoint available"])
def resume_from_last(lab: Lab) -> Any:
    for epochs in (1, 3):
        checkpoint = lab.callbacks.ModelCheckpoint(dirpath=lab.root / "kept", save_last=True)
        trainer = lab.fit(_scripted(lab), callbacks=[checkpoint], ckpt_path="last", max_epochs=epochs)
    return trainer.current_epoch


@scenario()
def resume_from_a_missing_file(lab: Lab) -> None:
    lab.fit(ckpt_path=lab.root / "nothing.ckpt")


@scenario()
def resume_from_weights_only(lab: Lab) -> None:
    trainer = lab.fit(_scripted(lab), max_epochs=1)
    trainer.save_checkpoint(lab.root / "weights.ckpt", weights_only=True)
    lab.fit(_scripted(lab), ckpt_path=lab.root / "weights.ckpt")


@scenario(deviates={"metrics": LOGGED})
def resume_with_early_stopping_and_top_k(lab: Lab) -> Any:
    values = [3.0, 2.0, 2.5, 2.6, 1.0]
    path = None
    for epochs in (2, 5):
        stop = lab.callbacks.EarlyStopping("val_loss", patience=2)
        checkpoint = lab.callbacks.ModelCheckpoint(monitor="val_loss", dirpath=lab.root / "kept", save_top_k=2)
        lab.fit(_scripted(lab, values), callbacks=[stop, checkpoint], max_epochs=epochs, ckpt_path=path)
        path = checkpoint.best_model_path
    scores = sorted(float(score) for score in checkpoint.best_k_models.values())
    return [stop.wait_count, stop.stopped_epoch, float(stop.best_score), scores]


@scenario(deviates={"metrics": LOGGED}, warns=[MOVED])
def resume_manual_optimization(lab: Lab) -> None:
    class Net(lab.Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.05)

    _go_on(lab, "on_train_epoch_end", 6, net=Net)


@scenario(deviates={"metrics": LOGGED}, warns=[MOVED])
def resume_with_hooks_of_the_module(lab: Lab) -> Any:
    class Net(lab.Net):
        extra = 0

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["extra"] = 5

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            self.extra = checkpoint["extra"]

    net = Net()
    lab.fit(Net(), callbacks=[_saver(lab, "on_train_epoch_end", 6)])
    lab.fit(net, ckpt_path=lab.root / "saved.ckpt")
    return net.extra


@scenario(warns=[MOVED])
def evaluation_of_a_file(lab: Lab) -> Any:
    lab.fit(_scripted(lab), callbacks=[_saver(lab, "on_train_epoch_end", 6)])
    net = lab.watch(lab.Net())
    path = lab.root / "saved.ckpt"
    return [
        lab.trainer().test(net, loader(4), ckpt_path=path),
        lab.trainer().validate(net, loader(4), ckpt_path=path),
        lab.trainer().predict(net, loader(4), ckpt_path=path),
    ]


@scenario(warns=["no last checkpoint available"])
def evaluation_of_the_best(lab: Lab) -> Any:
    net = _scripted(lab)
    checkpoint = lab.callbacks.ModelCheckpoint(monitor="val_loss")
    trainer = lab.fit(net, callbacks=[checkpoint], max_epochs=3)
    return [trainer.test(net, loader(4), ckpt_path="best"), trainer.test(net, loader(4), ckpt_path="last")]


@scenario()
def loading_into_a_module(lab: Lab) -> Any:
    class Net(lab.Net):
        def __init__(self, width: int = 2, rate: float = 0.1) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.extra = torch.nn.Linear(1, width)

    trainer = lab.fit(Net(width=5))
    trainer.save_checkpoint(lab.root / "saved.ckpt")
    loaded = Net.load_from_checkpoint(lab.root / "saved.ckpt", rate=0.7)
    return [dict(loaded.hparams), {name: value.clone() for name, value in torch.nn.Module.state_dict(loaded).items()}]

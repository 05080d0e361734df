"""Runs that end by an exception or a signal, and programs that are refused."""

from __future__ import annotations

import os
import signal
from typing import Any

from tests.parity.recorder import Lab, loader, scenario

EARLIER = "refused before the first hook it would have run in"
SAVES = "a signal ends the run with a checkpoint"
STOP = "`StopIteration` out of a step is an error like any other"


def _raises(lab: Lab, hook: str, error: BaseException, at: int = 3) -> Any:
    """A net that raises in this hook once `at` optimizer steps are done."""
    own = getattr(lab.Net, hook)

    def raising(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.trainer.global_step >= at:
            raise error
        return own(self, *args, **kwargs)

    return type("Net", (lab.Net,), {hook: raising})()


@scenario()
def an_exception_in_training(lab: Lab) -> None:
    lab.fit(_raises(lab, "on_train_batch_end", ValueError("wrong")))


@scenario()
def an_exception_in_backward(lab: Lab) -> None:
    lab.fit(_raises(lab, "on_after_backward", ZeroDivisionError("wrong")), accumulate_grad_batches=2)


@scenario()
def an_exception_in_validation(lab: Lab) -> None:
    lab.fit(_raises(lab, "on_validation_epoch_end", ValueError("wrong")))


@scenario()
def an_exception_in_the_sanity_check(lab: Lab) -> None:
    lab.fit(_raises(lab, "on_validation_start", ValueError("wrong"), at=0))


@scenario()
def an_exception_in_setup(lab: Lab) -> None:
    lab.fit(_raises(lab, "setup", ValueError("wrong"), at=0))


@scenario()
def an_exception_in_teardown(lab: Lab) -> None:
    lab.fit(_raises(lab, "teardown", ValueError("wrong")))


@scenario()
def an_exception_in_test(lab: Lab) -> None:
    lab.trainer().test(lab.watch(_raises(lab, "on_test_batch_end", ValueError("wrong"), at=0)), loader(4))


@scenario()
def fit_again_after_an_exception(lab: Lab) -> None:
    net = _raises(lab, "on_train_batch_end", ValueError("wrong"))
    trainer = None
    try:
        lab.watch(net)
        trainer = lab.trainer()
        trainer.fit(net, loader(), loader(6))
    except ValueError:
        pass
    assert trainer is not None
    trainer.fit(lab.watch(lab.Net()), loader(), loader(6))


@scenario(deviates=dict.fromkeys(("hooks", "raised", "csv", "files", "checkpoints", "weights"), STOP))
def stop_iteration_in_the_step(lab: Lab) -> None:
    class Net(lab.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 3:
                raise StopIteration
            return super().training_step(batch, batch_idx)

    lab.fit(Net())


@scenario()
def keyboard_interrupt(lab: Lab) -> None:
    lab.fit(_raises(lab, "on_train_batch_end", KeyboardInterrupt()))


@scenario(deviates=dict.fromkeys(("hooks", "files", "checkpoints"), SAVES))
def sigterm(lab: Lab) -> None:
    class Net(lab.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.global_step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().training_step(batch, batch_idx)

    before = signal.signal(signal.SIGTERM, lambda *_: None)  # who does not handle the signal lives on, and is found out
    try:
        lab.fit(Net())
    finally:
        signal.signal(signal.SIGTERM, before)


@scenario()
def no_training_step(lab: Lab) -> None:
    class Net(lab.pl.LightningModule):
        def configure_optimizers(self) -> Any:
            return None

    lab.fit(Net())


@scenario()
def no_configure_optimizers(lab: Lab) -> None:
    class Net(lab.pl.LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None

    lab.fit(Net())


@scenario(deviates={"hooks": EARLIER})
def no_train_loader(lab: Lab) -> None:
    lab.fit(train=False)


@scenario()
def a_loader_that_is_none(lab: Lab) -> None:
    lab.fit(train=3)


@scenario(warns=["no `validation_step`"])
def no_validation_step(lab: Lab) -> None:
    class Net(lab.pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = lab.Net()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.net.loss(batch)

        def configure_optimizers(self) -> Any:
            return self.net.configure_optimizers()

    lab.fit(Net())


@scenario()
def a_hook_of_the_past(lab: Lab) -> None:
    class Net(lab.Net):
        def training_epoch_end(self, outputs: Any) -> None:
            pass

    lab.fit(Net())


@scenario()
def a_loss_without_graph(lab: Lab) -> None:
    class Net(lab.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch).detach()

    lab.fit(Net())


@scenario()
def arguments_that_are_refused(lab: Lab) -> Any:
    refused = []
    arguments: list[dict[str, Any]] = [
        {"max_epochs": -2},
        {"max_steps": -2},
        {"limit_train_batches": 1.5},
        {"limit_val_batches": -1},
        {"val_check_interval": 1.5},
        {"val_check_interval": "soon"},
        {"check_val_every_n_epoch": None, "val_check_interval": 0.5},
        {"overfit_batches": 1.2},
        {"fast_dev_run": -1},
        {"gradient_clip_val": "much"},
        {"gradient_clip_algorithm": "sphere"},
        {"precision": 12},
        {"reload_dataloaders_every_n_epochs": -1},
        {"max_time": "soon"},
        {"barebones": True, "detect_anomaly": True},
        {"profiler": "magic"},
        {"enable_checkpointing": False, "callbacks": [lab.callbacks.ModelCheckpoint()]},
    ]
    for each in arguments:
        try:
            lab.trainer(**each)
        except Exception as error:
            refused.append([str(sorted(each)), type(error).__name__])
        else:
            refused.append([str(sorted(each)), "accepted"])
    return refused

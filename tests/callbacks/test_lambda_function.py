"""LambdaCallback: a callback made of functions."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest

from inazuma import Callback, Trainer
from inazuma.callbacks import LambdaCallback
from inazuma.callbacks.lambda_function import HOOKS
from inazuma.testing import BoringModel

LIGHTNINGS = list(inspect.signature(lightning.pytorch.callbacks.LambdaCallback).parameters)


def recording(calls: list[tuple[Any, ...]]) -> dict[str, Any]:
    """A function for each hook, which notes its call: the hook, whom it speaks to, how many arguments it got."""

    def noting(name: str) -> Any:
        def note(trainer: Any, pl_module: Any, *args: Any) -> None:
            calls.append((name, type(trainer).__name__, type(pl_module).__name__, len(args)))

        return note

    return {name: noting(name) for name in HOOKS}


def written_out(calls: list[tuple[Any, ...]]) -> Callback:
    """The same as a class with methods."""
    methods = {
        name: lambda self, *args, _note=note, **kwargs: _note(*args, **kwargs)
        for name, note in recording(calls).items()
    }
    made: Callback = type("WrittenOut", (Callback,), methods)()
    return made


def use_all_verbs(callback: Callback, folder: Path) -> None:
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=2,
        limit_val_batches=1,
        limit_test_batches=1,
        limit_predict_batches=1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    model = BoringModel()
    trainer.fit(model)
    trainer.save_checkpoint(folder / "a.ckpt")
    trainer.validate(model, verbose=False)
    trainer.test(model, ckpt_path=folder / "a.ckpt", verbose=False)
    trainer.predict(model)
    model.training_step = lambda batch, batch_idx: 1 / 0  # type: ignore[method-assign]
    trainer.fit_loop.max_epochs = 2
    with pytest.raises(ZeroDivisionError):
        trainer.fit(model)


def test_it_knows_the_hooks_that_lightnings_knows() -> None:
    assert set(HOOKS) == set(LIGHTNINGS)


def test_every_function_is_called_like_the_method_of_its_name(tmp_path: Path) -> None:
    expected: list[tuple[Any, ...]] = []
    use_all_verbs(written_out(expected), tmp_path)
    got: list[tuple[Any, ...]] = []
    use_all_verbs(LambdaCallback(**recording(got)), tmp_path)
    assert got == expected
    assert {name for name, *_ in got} == set(HOOKS)


def test_a_function_may_be_none() -> None:
    callback = LambdaCallback(on_fit_end=None, on_fit_start=None)
    assert vars(callback) == vars(Callback())


@pytest.mark.parametrize(
    ("name", "near"),
    [("on_train_batch_ends", "on_train_batch_end"), ("on_epoch_start", "on_test_epoch_start"), ("set_up", "setup")],
)
def test_an_unknown_hook_is_refused_with_the_nearest_name(name: str, near: str) -> None:
    with pytest.raises(
        TypeError, match=rf"LambdaCallback\({name}=...\): no hook has this name. Did you mean '{near}'\?"
    ):
        LambdaCallback(**{name: print})


@pytest.mark.parametrize("name", ["state_dict", "state_key", "log", "load_state_dict"])
def test_what_is_no_hook_cannot_be_replaced(name: str) -> None:
    with pytest.raises(TypeError, match="no hook has this name"):
        LambdaCallback(**{name: print})


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match=r"LambdaCallback\(on_fit_end=3\): give a function; this cannot be called"):
        LambdaCallback(on_fit_end=3)  # type: ignore[arg-type]

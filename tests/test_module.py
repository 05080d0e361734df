"""LightningModule without and after a Trainer: device, weights, copies, export."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inazuma import LightningModule, Trainer
from inazuma.testing import BoringModel


class NoParameters(LightningModule):
    pass


class Child(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.inner = NoParameters()
        self.layer = nn.Linear(2, 2)


class Net(LightningModule):
    """What TorchScript can compile."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.dropout = nn.Dropout(0.5)
        self.example_input_array = torch.ones(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.layer(x))
        return out


@pytest.fixture
def fitted() -> Iterator[BoringModel]:
    net = BoringModel()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=2,
        limit_val_batches=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(net)
    yield net
    del trainer  # it lives as long as the test


def test_a_module_without_parameters_knows_where_it_was_sent() -> None:
    net = NoParameters()
    assert (net.device, net.dtype) == (torch.device("cpu"), torch.float32)
    net.to("meta", torch.float64)
    assert (net.device, net.dtype) == (torch.device("meta"), torch.float64)


@pytest.mark.parametrize(
    ("send", "dtype"),
    [
        (lambda net: net.half(), torch.float16),
        (lambda net: net.double(), torch.float64),
        (lambda net: net.type(torch.bfloat16), torch.bfloat16),
        (lambda net: net.to(torch.float64), torch.float64),
        (lambda net: net.double().float(), torch.float32),
    ],
)
def test_modules_in_it_are_sent_with_it_and_it_is_returned(send: Any, dtype: torch.dtype) -> None:
    net = Child()
    assert send(net) is net
    assert net.dtype == net.inner.dtype == net.layer.weight.dtype == dtype


def test_its_weights_are_only_those_of_the_user() -> None:
    net = Child()
    assert sorted(net.state_dict()) == ["layer.bias", "layer.weight"]
    assert len(list(net.buffers())) == 0


def test_freezing_stops_gradients_and_unfreezing_undoes_it() -> None:
    net = Net()
    assert net.freeze() is net
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert net.unfreeze() is net
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_it_works_without_a_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    net = BoringModel()
    assert net.training_step(torch.ones(1, 32), 0)["loss"].requires_grad
    assert (net.current_epoch, net.global_step, net.global_rank, net.local_rank) == (0, 0, 0, 0)
    assert (net.logger, net.loggers) == (None, [])
    net.print("hello")
    assert capsys.readouterr().out == "hello\n"
    with pytest.raises(RuntimeError, match="BoringModel is not attached to a `Trainer`"):
        net.trainer  # noqa: B018


def test_modules_in_it_are_given_the_trainer() -> None:
    net, trainer = Child(), Trainer(accelerator="cpu", barebones=True, max_epochs=1)
    net.trainer = trainer
    assert net.inner.trainer is trainer


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_after_fit_has_the_weights_and_no_trainer(duplicate: Any, fitted: BoringModel) -> None:
    twin = duplicate(fitted)
    assert torch.equal(twin.layer.weight, fitted.layer.weight)
    assert twin.layer.weight is not fitted.layer.weight
    with pytest.raises(RuntimeError, match="not attached"):
        twin.trainer  # noqa: B018
    assert fitted.trainer.lightning_module is fitted
    trainer = Trainer(accelerator="cpu", barebones=True, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(twin)
    assert trainer.global_step == 1


def test_torch_saves_a_whole_module_after_fit(fitted: BoringModel, tmp_path: Path) -> None:
    torch.save(fitted, tmp_path / "net.pt")
    twin = torch.load(tmp_path / "net.pt", weights_only=False)
    assert torch.equal(twin.layer.weight, fitted.layer.weight)


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.filterwarnings("ignore:.*TorchScript")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("method", ["script", "trace"])
@pytest.mark.parametrize("with_trainer", [False, True])
def test_torchscript_computes_the_same_in_evaluation_mode(method: Any, with_trainer: bool, tmp_path: Path) -> None:
    net = Net()
    if with_trainer:
        net.trainer = Trainer(accelerator="cpu", barebones=True, max_epochs=1)
    compiled = net.to_torchscript(tmp_path / "net.pt", method=method)
    assert net.training  # as it was
    x = torch.randn(3, 2)
    wanted = net.eval()(x)
    torch.testing.assert_close(compiled(x), wanted)
    torch.testing.assert_close(torch.jit.load(tmp_path / "net.pt")(x), wanted)


def test_an_export_says_what_it_needs() -> None:
    net = Net()
    net.example_input_array = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="method='compile'. is neither 'script' nor 'trace'"):
            net.to_torchscript(method="compile")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="Could not export with `to_torchscript`: it needs an example input"):
            net.to_torchscript(method="trace")


def test_an_export_passes_its_input_through_the_hooks_of_a_batch() -> None:
    class Notes(Net):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            seen.append(batch)
            return batch

    seen: list[Any] = []
    net = Notes()
    net.trainer = Trainer(accelerator="cpu", barebones=True, max_epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net.to_torchscript(method="trace")
    assert seen == [net.example_input_array]


def test_logging_without_a_trainer_only_warns() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        NoParameters().log("x", 1.0)
        NoParameters().log_dict({"y": 2.0})
    assert all("`self.trainer` reference is not registered" in str(warning.message) for warning in said)
    assert len(said) <= 1  # once in a process


def test_log_dict_takes_a_dict() -> None:
    with pytest.raises(TypeError, match=r"`self.log_dict\(1.0\)` needs a dict"):
        NoParameters().log_dict(1.0)  # type: ignore[arg-type]

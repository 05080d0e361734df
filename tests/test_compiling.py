"""`Trainer(compile=...)`: the same training, with fewer graphs than one fears."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import shutil
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, RAdam, RMSprop
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from inazuma import Callback, LightningModule, Trainer
from inazuma.errors import MisconfigurationException

# Warnings of torch's own doings: how it looks at inputs when it traces, and what inductor imports.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
]

BATCHES = 6
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Classifier(LightningModule):
    """Two layers and a schedule; logs five values in each step. Remembers its losses."""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU())
        self.head = nn.Linear(8, 3)
        self.optimizer_name = optimizer
        self.losses: list[float] = []

    def loss(self, batch: list[Tensor]) -> Tensor:
        return F.cross_entropy(self.head(self.encoder(batch[0])), batch[1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("number", 0.5, on_epoch=True)
        self.log("sum", loss * 2, on_step=False, on_epoch=True, reduce_fx="sum")
        self.log_dict({"weighted": loss, "max": loss}, on_epoch=True, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))

    def configure_optimizers(self) -> Any:
        make: dict[str, Any] = {
            "sgd": lambda p: SGD(p, lr=0.1),
            "momentum": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
            "adam": lambda p: Adam(p, lr=0.01),
            "fused": lambda p: AdamW(p, lr=0.01, fused=True),
            "rmsprop": lambda p: RMSprop(p, lr=0.01),
            "radam": lambda p: RAdam(p, lr=0.01),
        }
        optimizer = make[self.optimizer_name](self.parameters())
        return [optimizer], [{"scheduler": StepLR(optimizer, 1, 0.9), "interval": "step"}]


def data(samples: int = 8 * BATCHES) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(samples, 4, generator=generator), torch.randint(3, (samples,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=8)


def fit(compile: Any, module: Any = None, loader: Any = None, ckpt_path: Any = None, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(1)
    module = (module or Classifier)()
    torch.manual_seed(1)
    trainer = Trainer(**{**QUIET, "max_epochs": 2, "limit_val_batches": 0, "compile": compile, **options})
    trainer.fit(module, data() if loader is None else loader, data(16), ckpt_path=ckpt_path)
    return module, trainer


class Counting(CompileCounterWithBackend):
    """A backend that counts the graphs that it compiles."""

    def __init__(self, backend: str = "eager") -> None:
        super().__init__(backend)

    @property
    def count(self) -> int:
        """How many there were, without those of torch that compute nothing."""
        return sum(any("call" in node.op for node in graph.graph.nodes) for graph in self.graphs)


def assert_same(one: Any, other: Any) -> None:
    """The same losses, weights and logged values, to the precision of a float."""
    (module, trainer), (expected, reference) = one, other
    torch.testing.assert_close(module.losses, expected.losses, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(module.state_dict(), expected.state_dict(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(trainer.callback_metrics, reference.callback_metrics, rtol=1e-4, atol=1e-5)
    assert trainer.global_step == reference.global_step


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    before = torch._dynamo.config.trace_autograd_ops
    yield
    assert torch._dynamo.config.trace_autograd_ops == before


# What is computed


@pytest.mark.parametrize(("what", "samples"), [(True, 48), ("step", 44), (["encoder", "head"], 44)])
def test_training_is_the_same_as_without(what: Any, samples: int) -> None:
    compiled = fit({"what": what, "backend": "aot_eager"}, loader=data(samples), limit_val_batches=2)
    assert_same(compiled, fit(False, loader=data(samples), limit_val_batches=2))


@pytest.mark.parametrize(
    "name", ["momentum", "adam", *(pytest.param(n, marks=pytest.mark.slow) for n in ("fused", "rmsprop", "radam"))]
)
def test_the_whole_step_updates_as_the_optimizer_does(name: str) -> None:
    compiled = fit({"what": "step", "backend": "eager"}, lambda: Classifier(name))
    expected = fit(False, lambda: Classifier(name))
    assert_same(compiled, expected)
    assert_same_files(compiled[1], expected[1])


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 4},
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"precision": "64-true"},
        {"barebones": True},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:`self.log:UserWarning")
def test_the_whole_step_accumulates_clips_and_converts(options: dict[str, Any]) -> None:
    if "barebones" in options:
        options = {**options, **dict.fromkeys(QUIET, None), "accelerator": "cpu"}
    counting = Counting()
    assert_same(fit({"what": "step", "backend": counting}, **options), fit(False, **options))
    assert counting.count


@pytest.mark.filterwarnings("ignore:.*bf16:UserWarning")
def test_the_whole_step_computes_in_mixed_precision() -> None:
    module, _ = fit({"what": "step", "backend": "eager"}, precision="bf16-mixed")
    expected, _ = fit(False, precision="bf16-mixed")
    torch.testing.assert_close(module.losses, expected.losses, rtol=0.02, atol=0.02)


def test_dropout_draws_from_the_generators_of_the_run_and_buffers_follow() -> None:
    class Dropping(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.encoder.append(nn.BatchNorm1d(8))

        def loss(self, batch: list[Tensor]) -> Tensor:
            return F.cross_entropy(F.dropout(self.head(self.encoder(batch[0])), 0.3), batch[1])

    assert_same(fit({"what": "step", "backend": "eager"}, Dropping), fit(False, Dropping))


def test_gradients_are_there_when_the_batch_ends() -> None:
    class Norms(Classifier):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            assert self.head.weight.grad is not None
            self.losses.append(float(self.head.weight.grad.norm()))

    assert_same(fit({"what": "step", "backend": "eager"}, Norms), fit(False, Norms))


def test_a_step_may_return_more_than_the_loss() -> None:
    class More(Classifier):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            logits = self.head(self.encoder(batch[0]))
            return {"loss": F.cross_entropy(logits, batch[1]), "logits": logits, "text": "x"}

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            assert outputs["logits"].shape == (8, 3)
            assert outputs["text"] == "x"
            assert not outputs["loss"].requires_grad
            super().on_train_batch_end(outputs, batch, batch_idx)

    assert_same(fit({"what": "step", "backend": "eager"}, More), fit(False, More))


@pytest.mark.parametrize("function", ["validate", "test", "predict"])
def test_evaluation_is_compiled_too(function: str) -> None:
    class Evaluated(Classifier):
        def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("val_loss", self.loss(batch))

        def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.head(self.encoder(batch[0]))

    counting, module = Counting(), Evaluated()
    results = [
        getattr(Trainer(**QUIET, compile=wish), function)(module, data(16)) for wish in ({"backend": counting}, False)
    ]
    assert counting.count == 1
    torch.testing.assert_close(results[0], results[1])


# How often torch compiles


@pytest.mark.parametrize("what", [True, "step"])
def test_nothing_is_compiled_again_behind_the_second_step(what: Any) -> None:
    counting = Counting("aot_eager")
    graphs: list[int] = []

    class Watching(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            graphs.append(counting.count)

    fit({"what": what, "backend": counting}, callbacks=Watching(), num_sanity_val_steps=1, limit_val_batches=1)
    assert len(set(graphs[1:])) == 1, graphs
    assert counting.count == 2  # training and validation


def test_a_smaller_last_batch_costs_one_graph_more() -> None:
    counting = Counting()
    fit({"what": "step", "backend": counting}, loader=data(44), max_epochs=4)
    assert counting.count == 2


def test_global_step_and_batch_idx_become_inputs() -> None:
    class Annealed(Classifier):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            return self.loss(batch) * (1 + 0.01 * self.global_step + 0.01 * batch_idx)

    counting = Counting()
    compiled = fit({"what": "step", "backend": counting}, Annealed, max_epochs=3)
    assert_same(compiled, fit(False, Annealed, max_epochs=3))
    assert counting.count <= 4


@torch._dynamo.config.patch(recompile_limit=1)
def test_many_runs_in_one_program_do_not_use_up_what_torch_compiles_again() -> None:
    for _ in range(3):
        counting = Counting()
        fit({"what": "step", "backend": counting}, max_steps=3)
        assert counting.count == 1


# What is left behind


def assert_same_files(trainer: Trainer, reference: Trainer) -> None:
    """The same keys, kinds and shapes in all of a checkpoint; and what torch writes of each tensor is the same."""

    def outline(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: outline(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [outline(item) for item in value]
        return (value.shape, value.dtype, len(pickled(value))) if isinstance(value, Tensor) else type(value)

    def pickled(tensor: Tensor) -> bytes:
        buffer = io.BytesIO()
        torch.save(tensor.clone() if not vars(tensor) else tensor, buffer)
        return buffer.getvalue()

    files = []
    for index, each in enumerate((trainer, reference)):
        each.save_checkpoint(f"{index}.ckpt")
        checkpoint = torch.load(f"{index}.ckpt", weights_only=True)
        files.append(outline({k: v for k, v in checkpoint.items() if k != "inazuma"}))
    assert files[0] == files[1]


@pytest.mark.parametrize("what", ["step", ["encoder"]])
def test_files_are_the_same_and_load_either_way(what: Any, tmp_path: Path) -> None:
    wish = {"what": what, "backend": "aot_eager"}
    compiled = fit(wish, lambda: Classifier("adam"), max_epochs=1)
    plain = fit(False, lambda: Classifier("adam"), max_epochs=1)
    assert_same_files(compiled[1], plain[1])  # 0.ckpt is compiled, 1.ckpt is not
    straight = fit(False, lambda: Classifier("adam"))
    for path, next_wish in (("0.ckpt", False), ("1.ckpt", wish)):
        module, _ = fit(next_wish, lambda: Classifier("adam"), ckpt_path=path)
        torch.testing.assert_close(module.losses, straight[0].losses[BATCHES:], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(module.state_dict(), straight[0].state_dict(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("what", "at"), [(True, 2), ("step", 1), ("step", 6)])
def test_a_resumed_run_ends_with_the_bits_of_the_straight_run(what: Any, at: int) -> None:
    class Saving(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == at:
                trainer.save_checkpoint("at.ckpt")

    wish = {"what": what, "backend": "aot_eager"}
    straight, _ = fit(wish, lambda: Classifier("momentum"), callbacks=Saving())
    resumed, _ = fit(wish, lambda: Classifier("momentum"), ckpt_path="at.ckpt")
    assert resumed.losses == straight.losses[at:]
    torch.testing.assert_close(resumed.state_dict(), straight.state_dict(), rtol=0, atol=0)


def test_the_module_is_as_it_was_when_the_run_is_over() -> None:
    counting = Counting()
    module, trainer = fit({"what": ["encoder"], "backend": counting})
    compiled = counting.count
    assert compiled
    assert "_compiled_call_impl" not in vars(module.encoder)
    module.loss([torch.randn(5, 4), torch.zeros(5, dtype=torch.long)])
    assert counting.count == compiled
    pickle.dumps(module.encoder)
    copy.deepcopy(module)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, data(), data(16))
    assert len(module.losses) == 3 * BATCHES


def test_a_second_fit_begins_with_an_optimizer_without_state() -> None:
    module, trainer = fit({"what": "step", "backend": "eager"}, lambda: Classifier("adam"), max_epochs=1)
    expected, reference = fit(False, lambda: Classifier("adam"), max_epochs=1)
    for each, one in ((trainer, module), (reference, expected)):
        each.fit_loop.max_epochs = 2
        each.fit(one, data(), data(16))
    assert_same((module, trainer), (expected, reference))


def test_a_module_is_copied_inside_a_run_without_what_is_compiled() -> None:
    class Copying(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            pickle.loads(pickle.dumps(copy.deepcopy(pl_module).encoder))

    fit({"what": ["encoder"], "backend": "eager"}, callbacks=Copying())


def test_nothing_keeps_the_module_alive() -> None:
    module, trainer = fit({"what": "step", "backend": "eager"})
    reference = weakref.ref(module)
    del module, trainer
    gc.collect()
    assert reference() is None


# What cannot be compiled


class Items(Classifier):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        torch._dynamo.graph_break()
        return self.loss(batch)


class Listening(Classifier):
    def on_after_backward(self) -> None:
        self.heard = True


class Clipping(Classifier):
    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        pass


class OwnOptimizer(Classifier):
    def configure_optimizers(self) -> Any:
        class Own(SGD):
            pass

        return Own(self.parameters(), lr=0.1)


class LBFGSModule(Classifier):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.01, max_iter=2)


class Hooked(Classifier):
    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1)
        optimizer.register_step_post_hook(lambda *_: None)
        return optimizer


class NoLoss(Classifier):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return self.loss(batch) if batch_idx % 2 == 0 else None

    def on_train_batch_end(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("module", "options", "reason"),
    [
        (Items, {}, "Unsupported at test_compiling.py:.*graph_break"),
        (Listening, {}, "listens to `on_after_backward`"),
        (Clipping, {}, "`Clipping` overrides `configure_gradient_clipping`"),
        (OwnOptimizer, {}, "`Own` is not known to step"),
        (LBFGSModule, {}, "`LBFGS` is not known to step"),
        (Hooked, {}, "`SGD` is not known to step"),
        (Classifier, {"bad_steps": "skip"}, r"Trainer\(bad_steps=...\) looks at gradients"),
        (Classifier, {"profiler": "simple"}, "a profiler times"),
    ],
)
def test_where_the_whole_step_cannot_be_compiled_its_forward_pass_is(
    module: Any, options: dict[str, Any], reason: str
) -> None:
    counting = Counting()
    with pytest.warns(UserWarning, match=f"{reason}.*so the steps of the module are compiled") as said:
        compiled = fit({"what": "step", "backend": counting}, module, **options)
    assert len([warning for warning in said if "compile=" in str(warning.message)]) == 1
    assert counting.count
    assert_same(compiled, fit(False, module, **options))


def test_manual_optimization_compiles_layers_and_evaluation_only() -> None:
    class Manual(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            loss = self.loss(batch)
            self.manual_backward(loss)
            optimizer.step()
            return loss

    counting = Counting()
    with pytest.warns(UserWarning, match="`Manual` optimizes manually, so `training_step` runs as it is"):
        compiled = fit({"what": "step", "backend": counting}, Manual, limit_val_batches=1)
    assert counting.count == 1
    assert_same(compiled, fit(False, Manual, limit_val_batches=1))
    assert_same(fit({"what": ["encoder"], "backend": counting}, Manual), fit(False, Manual))
    assert counting.count


@pytest.mark.filterwarnings("ignore:`NoLoss.training_step` returned None:UserWarning")
def test_a_step_without_a_loss_goes_the_long_way() -> None:
    with pytest.warns(UserWarning, match="so the steps of the module are compiled"):
        compiled = fit({"what": "step", "backend": "eager"}, NoLoss)
    assert_same(compiled, fit(False, NoLoss))


@pytest.mark.parametrize("what", [True, "step", ["encoder", "head"]])
def test_a_backend_that_fails_costs_no_more_than_a_line(what: Any) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler on this machine")

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        compiled = fit({"what": what, "backend": broken})
    lines = [str(warning.message) for warning in said if "no compiler on this machine" in str(warning.message)]
    assert len(lines) == len(set(lines))
    assert any("runs as it is" in line for line in lines)
    assert_same(compiled, fit(False))


@pytest.mark.parametrize("what", [True, "step"])
def test_an_error_of_the_user_comes_through(what: Any) -> None:
    class Failing(Classifier):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            raise ArithmeticError("mine")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ArithmeticError, match="mine"):
            fit({"what": what, "backend": "eager"}, Failing)


def test_with_anomaly_detection_nothing_is_compiled() -> None:
    counting = Counting()
    with pytest.warns(UserWarning, match="anomaly detection names, so nothing is compiled"):
        fit({"what": "step", "backend": counting}, detect_anomaly=True)
    assert counting.count == 0


# Arguments


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("steps", "compile='steps'.* is no known wish"),
        ([], "is no known wish"),
        ([1], "is no known wish"),
        (3.5, "is no known wish"),
        ({"what": "step", "backed": "eager"}, "unknown key 'backed'.*Did you mean 'backend'"),
        ({"mode": "fast"}, "the mode 'fast' is none of"),
        ({"mode": "default", "options": {"x": 1}}, "a mode or options, not both"),
        ({"backend": "inductr"}, "no backend 'inductr'.*Did you mean 'inductor'"),
    ],
)
def test_a_wish_that_cannot_be_fulfilled_is_refused(value: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        Trainer(**QUIET, compile=value)


def test_an_unknown_submodule_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(MisconfigurationException, match="no submodule 'encodr'. Did you mean 'encoder'"):
        fit(["encodr"])


@pytest.mark.parametrize("value", [False, None, {"what": False, "backend": "eager"}])
def test_no_wish_compiles_nothing(value: Any) -> None:
    assert Trainer(**QUIET, compile=value).compile is None


# With the real thing


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C compiler")
@pytest.mark.parametrize("what", [True, "step", ["encoder"]])
def test_inductor_trains_the_same(what: Any) -> None:
    compiled = fit(what, lambda: Classifier("adam"), loader=data(44))
    assert_same(compiled, fit(False, lambda: Classifier("adam"), loader=data(44)))


@pytest.mark.slow
def test_a_machine_without_a_compiler_trains() -> None:
    with (
        inductor.patch({"cpp.cxx": ("/no/such/compiler",), "force_disable_caches": True}),
        warnings.catch_warnings(record=True) as said,
    ):
        warnings.simplefilter("always")
        compiled = fit("step")
    assert any("`training_step` runs as it is" in str(warning.message) for warning in said)
    assert_same(compiled, fit(False))

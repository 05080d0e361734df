"""What configure_optimizers may return, the proxy a module sees, toggling and clipping."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

from inazuma.errors import MisconfigurationException
from inazuma.module import LightningModule
from inazuma.optim import (
    GradClipAlgorithmType,
    LightningOptimizer,
    LRSchedulerConfig,
    NoOptimizer,
    clip_by_norm,
    clip_by_value,
    configure,
    monitored_metric,
    optimizer_to,
    toggle_optimizer,
    untoggle_optimizer,
)


class Module(LightningModule):
    def __init__(self, answer: Callable[[Optimizer], Any], automatic: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.answer, self.automatic_optimization = answer, automatic

    def configure_optimizers(self) -> Any:
        return self.answer(SGD(self.parameters(), lr=0.1))


class OwnScheduler:
    """Enough to be saved, not enough to be stepped."""

    def __init__(self, optimizer: Optimizer | None = None) -> None:
        if optimizer is not None:
            self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


def step_lr(optimizer: Optimizer) -> StepLR:
    return StepLR(optimizer, 1)


# --- configure_optimizers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("automatic", [True, False])
@pytest.mark.parametrize(
    ("answer", "schedulers"),
    [
        pytest.param(lambda o: o, 0, id="optimizer"),
        pytest.param(lambda o: [o], 0, id="list"),
        pytest.param(lambda o: (o,), 0, id="tuple"),
        pytest.param(lambda o: ([o], []), 0, id="no schedulers"),
        pytest.param(lambda o: ([o], [step_lr(o)]), 1, id="two lists"),
        pytest.param(lambda o: [[o], [step_lr(o), step_lr(o)]], 2, id="list of two lists"),
        pytest.param(lambda o: ([o], step_lr(o)), 1, id="bare scheduler"),
        pytest.param(lambda o: ([o], (step_lr(o),)), 1, id="tuple of schedulers"),
        pytest.param(lambda o: ([o], [{"scheduler": step_lr(o)}]), 1, id="scheduler dict"),
        pytest.param(lambda o: {"optimizer": o}, 0, id="dict"),
        pytest.param(lambda o: {"optimizer": o, "lr_scheduler": step_lr(o)}, 1, id="dict with scheduler"),
        pytest.param(lambda o: {"optimizer": o, "lr_scheduler": {"scheduler": step_lr(o)}}, 1, id="dict in dict"),
        pytest.param(lambda o: [{"optimizer": o, "lr_scheduler": step_lr(o)}], 1, id="list of dicts"),
    ],
)
def test_every_documented_form_gives_one_optimizer_and_its_schedulers(
    answer: Callable[[Optimizer], Any], schedulers: int, automatic: bool
) -> None:
    optimizers, configs = configure(Module(answer, automatic))
    assert [type(optimizer) for optimizer in optimizers] == [SGD]
    assert len(configs) == schedulers
    for config in configs:
        assert config == LRSchedulerConfig(config.scheduler)
        assert config.scheduler.optimizer is optimizers[0]


def test_manual_optimization_takes_several_optimizers_in_order() -> None:
    module = Module(lambda o: [o, Adam([nn.Parameter(torch.ones(1))])], automatic=False)
    assert [type(optimizer) for optimizer in configure(module)[0]] == [SGD, Adam]


def test_dictionaries_in_a_list_keep_the_order_of_their_schedulers() -> None:
    def answer(o: Optimizer) -> Any:
        other = Adam([nn.Parameter(torch.ones(1))])
        return {"optimizer": o}, {"optimizer": other, "lr_scheduler": step_lr(other)}

    optimizers, configs = configure(Module(answer, automatic=False))
    assert [type(optimizer) for optimizer in optimizers] == [SGD, Adam]
    assert configs[0].scheduler.optimizer is optimizers[1]


def test_automatic_optimization_refuses_several_optimizers() -> None:
    with pytest.raises(RuntimeError, match="2 optimizers, but multiple optimizers are only supported with manual"):
        configure(Module(lambda o: [o, o]))


@pytest.mark.parametrize("nothing", [None, [], ([], [])])
def test_no_optimizer_warns_and_gives_one_that_does_nothing(nothing: Any) -> None:
    with pytest.warns(UserWarning, match="will run with no optimizer"):
        optimizers, configs = configure(Module(lambda o: nothing))
    (optimizer,) = optimizers
    assert isinstance(optimizer, NoOptimizer)
    assert configs == []
    assert optimizer.step(lambda: 3) == 3
    assert optimizer.step() is None
    assert optimizer.state_dict() == {}
    optimizer.load_state_dict({})
    optimizer.zero_grad()
    assert repr(optimizer) == "No Optimizer"


def test_manual_optimization_may_have_an_empty_list() -> None:
    assert configure(Module(lambda o: [], automatic=False)) == ([], [])


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (lambda o: (o, step_lr(o)), r"\(SGD, StepLR\)"),
        (lambda o: 3, "3"),
        (lambda o: ["a"], r"\['a'\]"),
        (lambda o: [o, {"optimizer": o}], r"\[SGD, {'optimizer': SGD}\]"),
        (lambda o: ((o,), [step_lr(o)]), r"\(\(SGD\), \[StepLR\]\)"),
        (lambda o: ([3], [step_lr(o)]), r"\(\[3\], \[StepLR\]\)"),
        (lambda o: {"optimizer": [o]}, r'{"optimizer": \[SGD\]}'),
    ],
)
def test_any_other_form_is_refused_and_shown(answer: Callable[[Optimizer], Any], shown: str) -> None:
    with pytest.raises(
        MisconfigurationException, match=f"Unknown configuration for model optimizers.*returned {shown}"
    ):
        configure(Module(answer))


def test_a_dictionary_needs_an_optimizer() -> None:
    with pytest.raises(KeyError, match=r"optimizer .*Module.configure_optimizers.*'lr_scheduler'"):
        configure(Module(lambda o: {"lr_scheduler": step_lr(o)}))


def test_unknown_keys_of_a_dictionary_are_named() -> None:
    with pytest.warns(RuntimeWarning, match="configure_optimizers` returned a dict with unsupported keys: {'foo'}"):
        configure(Module(lambda o: {"optimizer": o, "foo": 1}))


def test_unknown_keys_of_a_scheduler_dictionary_are_named() -> None:
    with pytest.warns(RuntimeWarning, match="lr scheduler has unsupported keys: {'foo'}"):
        _, configs = configure(Module(lambda o: ([o], [{"scheduler": step_lr(o), "foo": 1, "name": "lr"}])))
    assert configs[0].name == "lr"


def test_a_scheduler_dictionary_keeps_what_it_says() -> None:
    given = {
        "interval": "step",
        "frequency": 3,
        "monitor": "loss",
        "strict": False,
        "name": "x",
        "reduce_on_plateau": True,
    }
    _, configs = configure(Module(lambda o: ([o], [{"scheduler": step_lr(o), **given}])))
    assert {key: getattr(configs[0], key) for key in given} == given


def test_monitor_next_to_a_bare_plateau_scheduler_is_taken_over() -> None:
    module = Module(lambda o: {"optimizer": o, "lr_scheduler": ReduceLROnPlateau(o), "monitor": "loss"})
    (config,) = configure(module)[1]
    assert (config.monitor, config.reduce_on_plateau) == ("loss", True)


def test_monitor_next_to_another_scheduler_is_ignored() -> None:
    module = Module(lambda o: {"optimizer": o, "lr_scheduler": step_lr(o), "monitor": "loss"})
    assert configure(module)[1][0].monitor is None


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda o: ([o], [ReduceLROnPlateau(o)]), "`configure_optimizers` must include a monitor for its `Reduce"),
        (lambda o: ([o], [{"scheduler": ReduceLROnPlateau(o)}]), 'must include a monitor.*{"scheduler": scheduler'),
        (lambda o: {"optimizer": o, "lr_scheduler": {"scheduler": ReduceLROnPlateau(o)}, "monitor": "x"}, "monitor"),
        (lambda o: [{"optimizer": o, "lr_scheduler": ReduceLROnPlateau(o), "monitor": "x"}], "must include a monitor"),
    ],
)
def test_a_plateau_scheduler_needs_a_metric(answer: Callable[[Optimizer], Any], hint: str) -> None:
    with pytest.raises(MisconfigurationException, match=hint):
        configure(Module(answer))


def test_a_plateau_scheduler_in_manual_optimization_is_left_to_the_user() -> None:
    (config,) = configure(Module(lambda o: ([o], [ReduceLROnPlateau(o)]), automatic=False))[1]
    assert config == LRSchedulerConfig(config.scheduler)


def test_manual_optimization_drops_what_would_step_a_scheduler_and_says_so() -> None:
    given = {"monitor": "loss", "strict": False, "reduce_on_plateau": True, "interval": "step"}
    module = Module(lambda o: ([o], [{"scheduler": step_lr(o), **given}]), automatic=False)
    with pytest.warns(
        RuntimeWarning, match=r"\['monitor', 'strict', 'reduce_on_plateau'\], which mean nothing in manual"
    ):
        (config,) = configure(module)[1]
    assert config == LRSchedulerConfig(config.scheduler, interval="step")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"interval": "month"}, 'The "interval" of an lr scheduler is \'month\'. Use "step" or "epoch"'),
        ({"interval": None}, 'The "interval" of an lr scheduler is None'),
        ({"frequency": 0}, '"frequency" key in lr scheduler dict must be a whole number, 1 or more, but is 0'),
        ({"frequency": 0.5}, "but is 0.5"),
    ],
)
def test_a_scheduler_dictionary_with_an_impossible_value_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        configure(Module(lambda o: ([o], [{"scheduler": step_lr(o), **given}])))


def test_a_scheduler_dictionary_needs_a_scheduler() -> None:
    with pytest.raises(
        MisconfigurationException, match=r'must hold it under the key "scheduler".* has \[\'interval\'\]'
    ):
        configure(Module(lambda o: ([o], [{"interval": "step"}])))


def test_one_cycle_by_epoch_is_probably_a_mistake() -> None:
    with pytest.warns(RuntimeWarning, match="It is made to step after each batch: 'interval': 'step'"):
        configure(Module(lambda o: ([o], [OneCycleLR(o, 0.1, total_steps=3)])))
    configure(Module(lambda o: ([o], [{"scheduler": OneCycleLR(o, 0.1, total_steps=3), "interval": "step"}])))


@pytest.mark.parametrize("scheduler", [3, None, [1]])
def test_a_scheduler_that_cannot_be_saved_is_refused(scheduler: Any) -> None:
    with pytest.raises(TypeError, match=f"provided lr scheduler `{type(scheduler).__name__}` is invalid"):
        configure(Module(lambda o: {"optimizer": o, "lr_scheduler": scheduler}))


def test_a_scheduler_of_a_foreign_optimizer_is_refused() -> None:
    foreign = SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(MisconfigurationException, match="`StepLR` belongs to an optimizer that .* did not return"):
        configure(Module(lambda o: ([o], [step_lr(foreign)])))


def test_a_scheduler_of_unknown_kind_needs_lr_scheduler_step() -> None:
    class Steps(Module):
        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None: ...

    for answer in (lambda o: ([o], [OwnScheduler(o)]), lambda o: ([o], [OwnScheduler()])):
        with pytest.raises(MisconfigurationException, match="OwnScheduler` is used as an lr scheduler but is no"):
            configure(Module(answer))
        assert len(configure(Steps(answer))[1]) == 1
        assert len(configure(Module(answer, automatic=False))[1]) == 1


def test_a_missing_metric_is_an_error_or_skips_the_scheduler() -> None:
    optimizer = SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    config = LRSchedulerConfig(ReduceLROnPlateau(optimizer), monitor="loss", reduce_on_plateau=True)
    assert monitored_metric(config, {"loss": 1.5}) == 1.5
    with pytest.raises(
        MisconfigurationException,
        match=r"ReduceLROnPlateau conditioned on metric loss cannot step, .*\. Known are: \['acc'\]",
    ):
        monitored_metric(config, {"acc": 1.0})
    config.strict = False
    with pytest.warns(RuntimeWarning, match="metric loss did not step, .* and .strict. is False"):
        assert monitored_metric(config, {"acc": 1.0}) is None


# --- LightningOptimizer ----------------------------------------------------------------------------------------------


class Toggles:
    """What `toggle_model` needs of a module."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def toggle_optimizer(self, optimizer: Any) -> None:
        self.calls.append(f"toggle {type(optimizer).__name__}")

    def untoggle_optimizer(self, optimizer: Any) -> None:
        self.calls.append(f"untoggle {type(optimizer).__name__}")


def proxy_of(optimizer: Optimizer, module: Any = None, **kwargs: Any) -> tuple[LightningOptimizer, list[Any]]:
    steps: list[Any] = []

    def step(raw: Optimizer, closure: Callable[[], Any], **options: Any) -> Any:
        steps.append((raw, options))
        return raw.step(closure=closure, **options)

    return LightningOptimizer(optimizer, step, module, **kwargs), steps


def sgd() -> SGD:
    return SGD([nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.9)


def test_the_proxy_is_an_instance_of_the_class_of_the_optimizer() -> None:
    optimizer = sgd()
    proxy, _ = proxy_of(optimizer)
    assert isinstance(proxy, LightningOptimizer)
    assert isinstance(proxy, SGD)
    assert type(proxy).__name__ == "LightningSGD"
    assert type(proxy) is type(proxy_of(sgd())[0])
    assert proxy.optimizer is optimizer
    assert repr(proxy) == f"Lightning{optimizer!r}"


def test_what_changes_on_one_changes_on_the_other() -> None:
    optimizer = sgd()
    proxy, _ = proxy_of(optimizer)
    optimizer.param_groups[0]["lr"] = 0.5
    assert proxy.param_groups[0]["lr"] == 0.5
    proxy.mark = 1
    assert optimizer.mark == 1
    trained = sgd()
    trained.param_groups[0]["params"][0].sum().backward()
    trained.step()
    for loader in (optimizer, proxy):
        loader.load_state_dict(trained.state_dict())
        assert proxy.state is optimizer.state
        assert proxy.param_groups is optimizer.param_groups
        assert len(optimizer.state) == 1
        optimizer.state.clear()


def test_a_step_goes_through_the_given_function_once() -> None:
    optimizer = sgd()
    proxy, steps = proxy_of(optimizer)
    assert proxy.step() is None
    assert proxy.step(lambda: 7) == 7
    assert proxy.step(closure=lambda: 8) == 8
    assert steps == [(optimizer, {})] * 3


def test_keyword_arguments_of_a_step_reach_the_optimizer() -> None:
    class Greedy(SGD):
        def step(self, closure: Any = None, *, speed: int = 0) -> Any:
            return speed

    proxy, _ = proxy_of(Greedy([nn.Parameter(torch.ones(2))], lr=0.1))
    assert proxy.step(speed=4) == 4


def test_a_closure_has_to_be_callable() -> None:
    proxy, _ = proxy_of(sgd())
    with pytest.raises(
        MisconfigurationException, match=r"`optimizer.step\(closure=3\)`: the closure should be callable"
    ):
        proxy.step(3)


@pytest.mark.parametrize("load", [False, True])
@pytest.mark.parametrize("scheduled_on", ["optimizer", "proxy", "both"])
def test_schedulers_on_either_count_the_steps_of_the_proxy(scheduled_on: str, load: bool) -> None:
    optimizer = sgd()
    if scheduled_on in ("optimizer", "both"):
        schedulers = [step_lr(optimizer)]
        proxy, steps = proxy_of(optimizer)
    else:
        proxy, steps = proxy_of(optimizer)
        schedulers = []
    if scheduled_on in ("proxy", "both"):
        schedulers.append(step_lr(proxy))
    if load:
        proxy.load_state_dict(copy.deepcopy(proxy.state_dict()))
    proxy.step()
    assert len(steps) == 1
    for scheduler in schedulers:
        scheduler.step()  # warns if it saw no step
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.1 ** len(schedulers))


@pytest.mark.parametrize("load", [False, True])
def test_step_hooks_run_once_per_step(load: bool) -> None:
    optimizer = sgd()
    proxy, _ = proxy_of(optimizer)
    calls: list[str] = []
    proxy.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    if load:
        proxy.load_state_dict(proxy.state_dict())
    proxy.step()
    assert calls == ["before", "after"]


def test_the_optimizers_own_finalizer_runs_once() -> None:
    ends: list[int] = []

    class Ends(SGD):
        def __del__(self) -> None:
            ends.append(id(self))

    optimizer = Ends([nn.Parameter(torch.ones(2))], lr=0.1)
    proxy, _ = proxy_of(optimizer)
    del proxy
    assert ends == []
    del optimizer
    assert len(ends) == 1


def test_toggle_model_toggles_around_the_body_even_when_it_fails() -> None:
    module = Toggles()
    proxy, _ = proxy_of(sgd(), module)
    with pytest.raises(ZeroDivisionError), proxy.toggle_model():
        assert module.calls == ["toggle LightningSGD"]
        1 / 0  # noqa: B018
    assert module.calls == ["toggle LightningSGD", "untoggle LightningSGD"]


@pytest.mark.parametrize(("sync_grad", "expected"), [(True, []), (False, ["enter", "exit"])])
def test_toggle_model_without_sync_enters_the_context(sync_grad: bool, expected: list[str]) -> None:
    calls: list[str] = []

    @contextmanager
    def no_sync() -> Any:
        calls.append("enter")
        yield
        calls.append("exit")

    proxy, _ = proxy_of(sgd(), Toggles(), no_sync=no_sync)
    with proxy.toggle_model(sync_grad=sync_grad):
        assert calls == expected[:1]
    assert calls == expected


# --- toggling --------------------------------------------------------------------------------------------------------


def flags(*params: nn.Parameter) -> list[bool]:
    return [param.requires_grad for param in params]


def test_toggling_freezes_what_only_other_optimizers_have() -> None:
    shared, mine, other, frozen = (nn.Parameter(torch.ones(1)) for _ in range(4))
    frozen.requires_grad_(False)
    a, b, c = SGD([shared, mine, frozen], lr=0.1), SGD([shared, other], lr=0.1), SGD([other], lr=0.1)
    changed = toggle_optimizer([a, b, c], a)
    assert flags(shared, mine, other, frozen) == [True, True, False, False]
    mine.requires_grad_(False)  # what the user changes inside stays changed
    untoggle_optimizer(changed)
    assert flags(shared, mine, other, frozen) == [True, False, True, False]


def test_toggling_inside_toggling_comes_back_step_by_step() -> None:
    x, y, z = (nn.Parameter(torch.ones(1)) for _ in range(3))
    a, b, c = SGD([x], lr=0.1), SGD([y], lr=0.1), SGD([z], lr=0.1)
    toggled = [toggle_optimizer([a, b, c], a)]
    toggled.append(toggle_optimizer([a, b, c], b, toggled))
    assert flags(x, y, z) == [False, True, False]
    toggled.append(toggle_optimizer([a, b, c], c, toggled))
    assert flags(x, y, z) == [False, False, True]
    untoggle_optimizer(toggled.pop())
    assert flags(x, y, z) == [False, True, False]
    untoggle_optimizer(toggled.pop())
    assert flags(x, y, z) == [True, False, False]
    untoggle_optimizer(toggled.pop())
    assert flags(x, y, z) == [True, True, True]


def test_toggling_accepts_proxies() -> None:
    x, y = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    a, b = SGD([x], lr=0.1), SGD([y], lr=0.1)
    changed = toggle_optimizer([a, b], proxy_of(a)[0])
    assert flags(x, y) == [True, False]
    untoggle_optimizer(changed)
    assert flags(x, y) == [True, True]


# --- state and clipping ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fused", "counter_moves"), [(False, False), (True, True)])
def test_optimizer_state_moves_but_the_step_counter_stays_where_torch_reads_it(
    fused: bool, counter_moves: bool
) -> None:
    param = nn.Parameter(torch.ones(2))
    optimizer = Adam([param], fused=fused)
    param.sum().backward()
    optimizer.step()
    optimizer_to(optimizer, torch.device("meta"))
    state = optimizer.state[param]
    assert state["exp_avg"].device.type == "meta"
    assert (state["step"].device.type == "meta") is counter_moves


def test_optimizer_state_in_lists_moves_too() -> None:
    param = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.LBFGS([param], max_iter=3)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (param**4).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer_to(optimizer, torch.device("meta"))
    assert {tensor.device.type for tensor in optimizer.state[param]["old_dirs"]} == {"meta"}


def test_clipping_by_norm_returns_the_norm_from_before() -> None:
    params = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    params[0].grad, params[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip_by_norm(params, 1.0) == pytest.approx(5.0)
    assert [param.grad.item() for param in params] == pytest.approx([0.6, 0.8], rel=1e-4)


def test_clipping_by_value_limits_each_entry() -> None:
    param = nn.Parameter(torch.zeros(3))
    param.grad = torch.tensor([-3.0, 0.5, 3.0])
    clip_by_value([param], 1.0)
    assert param.grad.tolist() == [-1.0, 0.5, 1.0]


@pytest.mark.parametrize("name", ["norm", "NORM", "Norm", GradClipAlgorithmType.NORM])
def test_clip_algorithms_ignore_case(name: str) -> None:
    assert GradClipAlgorithmType.parse(name) is GradClipAlgorithmType.NORM
    assert GradClipAlgorithmType(name) == "norm"


@pytest.mark.parametrize("name", ["norms", "", 3])
def test_an_unknown_clip_algorithm_is_refused(name: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"is invalid. Allowed algorithms: \['value', 'norm'\]"):
        GradClipAlgorithmType.parse(name)

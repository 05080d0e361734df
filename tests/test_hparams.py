import argparse
import datetime
import enum
import inspect
import queue
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from lightning.pytorch.core.mixins import HyperparametersMixin as Reference
from omegaconf import DictConfig, OmegaConf
from torch import nn

from inazuma import files
from inazuma.hparams import AttributeDict, HyperparametersMixin, dump_hparams, init_arguments


class Mode(enum.Enum):
    FAST = "fast"
    SLOW = "slow"


class Size(enum.IntEnum):
    SMALL = 1


@dataclass
class Config:
    depth: int = 2
    folder: Path = Path("data")
    late: int = field(init=False)


def through_a_file(obj: HyperparametersMixin, folder: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = {}
    dump_hparams(obj, checkpoint)
    files.atomic_save(checkpoint, folder / "a.ckpt")
    return dict(torch.load(folder / "a.ckpt", weights_only=True))


def build_again(obj: HyperparametersMixin, folder: Path, **overrides: Any) -> Any:
    args, kwargs = init_arguments(type(obj), through_a_file(obj, folder), overrides)
    return type(obj)(*args, **kwargs)


# What is collected, compared with Lightning. Each function gets the mixin and returns an object that saved something.


def all_arguments(Base: Any) -> Any:
    class Model(Base):
        def __init__(self, a: int, b: str = "x", *, c: float = 0.5) -> None:
            super().__init__()
            self.save_hyperparameters()

    return Model(1, c=2.0)


def without_arguments(Base: Any) -> Any:
    class Model(Base):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters()

    return Model()


def extra_arguments(Base: Any) -> Any:
    class Model(Base):
        def __init__(self, a: int, *args: int, **kwargs: Any) -> None:
            super().__init__()
            self.save_hyperparameters()

    return Model(1, 2, 3, x=4, y={"z": 5})


def changed_before_saving(Base: Any) -> Any:
    class Model(Base):
        def __init__(self, a: int | None = None) -> None:
            super().__init__()
            a = a or 7
            self.save_hyperparameters()

    return Model()


def named_arguments(Base: Any) -> Any:
    class Model(Base):
        def __init__(self, a: int, b: int, c: int) -> None:
            super().__init__()
            self.save_hyperparameters("c", "a")

    return Model(1, 2, 3)


def one_ignored(Base: Any) -> Any:
    class Model(Base):
        def __init__(self, a: int, b: int) -> None:
            super().__init__()
            self.save_hyperparameters(ignore="b")

    return Model(1, 2)


def several_ignored(Base: Any) -> Any:
    class Model(Base):
        def __init__(self, a: int, b: int, **kwargs: Any) -> None:
            super().__init__()
            self.save_hyperparameters(ignore=["b", "x", "unknown"])

    return Model(1, 2, x=3, y=4)


def saved_by_the_base(Base: Any) -> Any:
    class Parent(Base):
        def __init__(self, a: int = 1, b: int = 2) -> None:
            super().__init__()
            self.save_hyperparameters()

    class Child(Parent):
        def __init__(self, c: int, a: int = 5) -> None:
            super().__init__(a=a * 10)

    return Child(3)


def saved_by_base_and_child(Base: Any) -> Any:
    class Parent(Base):
        def __init__(self, a: int = 1, **kwargs: Any) -> None:
            super().__init__()
            self.save_hyperparameters()

    class Child(Parent):
        def __init__(self, c: int = 4, **kwargs: Any) -> None:
            super().__init__(d=5, **kwargs)
            self.save_hyperparameters()

    return Child(a=2, e=6)


def dropped_by_the_child(Base: Any) -> Any:
    class Parent(Base):
        def __init__(self, a: int = 1, b: int = 2) -> None:
            super().__init__()
            self.save_hyperparameters()

    class Child(Parent):
        def __init__(self, a: int = 1, b: int = 2) -> None:
            super().__init__(a, b)
            self.save_hyperparameters(ignore=["a"])

    return Child()


def saved_by_a_helper(Base: Any) -> Any:
    class Model(Base):
        def __init__(self, a: int) -> None:
            super().__init__()
            self.helper()

        def helper(self) -> None:
            self.save_hyperparameters()

    return Model(1)


def saved_with_a_frame(Base: Any) -> Any:
    class Model(Base):
        def __init__(self, a: int) -> None:
            super().__init__()
            save_for(self, inspect.currentframe())

    def save_for(model: Any, frame: Any) -> None:
        model.save_hyperparameters(frame=frame)

    return Model(1)


def saved_before_the_base_is_ready(Base: Any) -> Any:
    class Model(Base):
        def __init__(self, a: int) -> None:
            self.save_hyperparameters()
            super().__init__()

    return Model(1)


def one_dictionary(Base: Any) -> Any:
    class Model(Base):
        def __init__(self, conf: Any, other: int = 1) -> None:
            super().__init__()
            self.save_hyperparameters(conf)

    return Model({"lr": 0.1, "depth": 2})


def a_copy_of_a_dictionary(Base: Any) -> Any:
    class Model(Base):
        def __init__(self, conf: Any) -> None:
            super().__init__()
            self.save_hyperparameters(dict(conf))

    return Model({"lr": 0.1})


def another_dictionary(Base: Any) -> Any:
    class Model(Base):
        def __init__(self, a: int) -> None:
            super().__init__()
            self.save_hyperparameters({"b": a})

    return Model(1)


def one_namespace(Base: Any) -> Any:
    class Model(Base):
        def __init__(self, args: Any) -> None:
            super().__init__()
            self.save_hyperparameters(args)

    return Model(argparse.Namespace(lr=0.1, layers=[1, 2]))


def a_namespace_among_arguments(Base: Any) -> Any:
    class Model(Base):
        def __init__(self, args: Any, b: int = 1) -> None:
            super().__init__()
            self.save_hyperparameters()

    return Model(argparse.Namespace(lr=0.1))


def an_empty_dictionary(Base: Any) -> Any:
    class Model(Base):
        def __init__(self, conf: Any) -> None:
            super().__init__()
            self.save_hyperparameters(conf)

    return Model({})


def one_omegaconf(Base: Any) -> Any:
    class Model(Base):
        def __init__(self, conf: Any) -> None:
            super().__init__()
            self.save_hyperparameters(conf)

    return Model(OmegaConf.create({"a": 1, "b": "${a}"}))


def twice(Base: Any) -> Any:
    class Model(Base):
        def __init__(self, a: int, b: int) -> None:
            super().__init__()
            self.save_hyperparameters("a", logger=False)
            self.save_hyperparameters({"more": b})

    return Model(1, 2)


def not_for_loggers(Base: Any) -> Any:
    class Model(Base):
        def __init__(self, a: int) -> None:
            super().__init__()
            self.save_hyperparameters(logger=False)

    return Model(1)


def in_a_dataclass(Base: Any) -> Any:
    @dataclass
    class Model(Base):  # type: ignore[misc]
        a: int
        layers: list[int] = field(default_factory=lambda: [1, 2])
        late: int = field(init=False, default=3)

        def __post_init__(self) -> None:
            super().__init__()
            self.save_hyperparameters()

    return Model(1)


SAVERS = [
    all_arguments,
    without_arguments,
    extra_arguments,
    changed_before_saving,
    named_arguments,
    one_ignored,
    several_ignored,
    saved_by_the_base,
    saved_by_base_and_child,
    dropped_by_the_child,
    saved_by_a_helper,
    saved_with_a_frame,
    saved_before_the_base_is_ready,
    one_dictionary,
    a_copy_of_a_dictionary,
    another_dictionary,
    one_namespace,
    a_namespace_among_arguments,
    an_empty_dictionary,
    one_omegaconf,
    twice,
    not_for_loggers,
    in_a_dataclass,
]


@pytest.mark.parametrize("save", SAVERS)
def test_what_is_collected_is_what_lightning_collects(save: Callable[[Any], Any]) -> None:
    ours, theirs = save(HyperparametersMixin), save(Reference)
    assert dict(ours.hparams) == dict(theirs.hparams)
    assert dict(ours.hparams_initial) == dict(theirs.hparams_initial)
    assert ours._hparams_name == getattr(theirs, "_hparams_name", None)
    if save is not saved_before_the_base_is_ready:  # there Lightning forgets the choice
        assert ours._log_hyperparams == theirs._log_hyperparams


def test_a_module_made_inside_another_saves_its_own_arguments_only() -> None:
    class Inner(HyperparametersMixin):
        def __init__(self, a: int) -> None:
            self.save_hyperparameters()

    class Outer(HyperparametersMixin):
        def __init__(self, b: int) -> None:
            self.inner = Inner(1)

    assert Outer(2).inner.hparams == {"a": 1}


def test_a_base_called_by_name_is_collected_too() -> None:
    class Model(HyperparametersMixin):
        def __init__(self, a: int) -> None:
            HyperparametersMixin.__init__(self)
            self.save_hyperparameters()

    assert Model(1).hparams == {"a": 1}


def test_a_dataclass_gives_its_fields() -> None:
    @dataclass
    class Settings:
        lr: float = 0.1

    class Model(HyperparametersMixin):
        def __init__(self, settings: Settings) -> None:
            self.save_hyperparameters(settings)

    model = Model(Settings())
    assert model.hparams == {"lr": 0.1}
    assert model._hparams_name == "settings"


def test_hparams_can_change_and_hparams_initial_cannot() -> None:
    class Model(HyperparametersMixin):
        def __init__(self, layers: list[int], args: Any, lr: float = 0.1) -> None:
            self.save_hyperparameters()

    args = argparse.Namespace(depth=1)
    model = Model([1], args)
    model.hparams.lr = 0.2
    model.hparams.layers.append(2)
    args.depth = 3
    model.hparams_initial.lr = 9
    model.hparams_initial.layers.append(9)
    assert model.hparams == {"layers": [1, 2], "args": argparse.Namespace(depth=3), "lr": 0.2}
    assert model.hparams_initial == {"layers": [1], "args": argparse.Namespace(depth=1), "lr": 0.1}


def test_leaves_are_not_copied() -> None:
    class Model(HyperparametersMixin):
        def __init__(self, big: Any) -> None:
            self.save_hyperparameters()

    big = torch.zeros(10)
    assert Model(big).hparams_initial.big is big


def test_a_module_among_the_arguments_is_warned_of() -> None:
    class Model(HyperparametersMixin):
        def __init__(self, net: nn.Module) -> None:
            self.save_hyperparameters()

    with pytest.warns(UserWarning, match=r"'net' is an instance of `nn.Module`.*ignore=\['net'\]") as record:
        Model(nn.Linear(1, 1))
    assert record[0].filename == __file__


@pytest.mark.parametrize("value", [1, 0.5, True, [1, 2], object()])
def test_an_object_without_named_entries_is_refused(value: Any) -> None:
    class Model(HyperparametersMixin):
        def __init__(self, value: Any) -> None:
            self.save_hyperparameters(value)

    with pytest.raises(ValueError, match=f"a {type(value).__name__} has no names for its values"):
        Model(value)


def test_several_objects_are_refused() -> None:
    class Model(HyperparametersMixin):
        def __init__(self, a: int, b: int) -> None:
            self.save_hyperparameters(a, b)

    with pytest.raises(ValueError, match="got 2 arguments that are not all names"):
        Model(1, 2)


def test_a_name_that_is_no_argument_is_refused() -> None:
    class Model(HyperparametersMixin):
        def __init__(self, lr: float) -> None:
            self.save_hyperparameters("rl")

    with pytest.raises(KeyError, match="no argument of this name. It has: lr"):
        Model(0.1)


# AttributeDict


def test_an_attribute_dict_is_a_dictionary_with_attributes() -> None:
    entries = AttributeDict(a=1)
    entries.b = 2
    entries["my-key"] = 3.5
    assert entries == {"a": 1, "b": 2, "my-key": 3.5}
    assert entries.b == 2
    assert repr(entries) == '"a":      1\n"b":      2\n"my-key": 3.5'
    del entries.a
    with pytest.raises(AttributeError, match=r"Missing attribute 'a': there are \['b', 'my-key'\]"):
        print(entries.a)
    with pytest.raises(AttributeError, match="Missing attribute 'a'"):
        del entries.a
    assert repr(AttributeDict()) == ""


# Storing and building again


class Anything(HyperparametersMixin):
    def __init__(self, value: Any = None, mode: Mode = Mode.FAST, size: Size | None = None) -> None:
        self.save_hyperparameters()


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        2**70,
        0.5,
        1j,
        "text",
        b"bytes",
        [1, [2, "x"]],
        (1, (2,)),
        {1, 2},
        frozenset({1}),
        {"a": {"b": [None]}},
        {1: 2},
        torch.float16,
        torch.device("cpu"),
        torch.Size([2]),
        Path("/a/b"),
        [Path("a")],
        datetime.datetime(2020, 1, 2, 3, 4, 5, 6, datetime.timezone.utc),
        datetime.date(2020, 1, 2),
        datetime.time(3, 4),
        datetime.timedelta(days=-1, microseconds=5),
        argparse.Namespace(a=1, b=argparse.Namespace(c=Path("d"))),
        AttributeDict(a=AttributeDict(b=1)),
        Size.SMALL,
        OmegaConf.create({"a": [1, {"b": 2}], "c": "${a}"}),
        OmegaConf.create([1, 2]),
    ],
    ids=repr,
)
def test_plain_data_comes_back_as_it_was(value: Any, tmp_path: Path) -> None:
    again = build_again(Anything(value), tmp_path).hparams.value
    assert again == value
    if not isinstance(value, Size):
        assert type(again) is type(value)


def test_an_object_is_described_by_what_stands_in_it_for_readers_of_the_file() -> None:
    checkpoint: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dump_hparams(Anything(nn.Linear(3, 1)), checkpoint)
    (described,) = checkpoint["hparams_notes"]["missing"].values()
    assert described == "torch.nn.modules.linear.Linear(in_features=3, out_features=1)"


def test_tensors_and_arrays_come_back(tmp_path: Path) -> None:
    values = [torch.arange(3), nn.Parameter(torch.ones(2)), numpy.arange(3), numpy.ones((2, 2))[::-1]]
    again = build_again(Anything(values), tmp_path).hparams.value
    assert [type(item) for item in again] == [torch.Tensor, torch.Tensor, numpy.ndarray, numpy.ndarray]
    for item, value in zip(again, values, strict=True):
        assert numpy.array_equal(
            numpy.asarray(item),
            numpy.asarray(torch.as_tensor(value.copy() if isinstance(value, numpy.ndarray) else value.detach())),
        )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (numpy.float64(0.5), 0.5),
        (numpy.int32(3), 3),
        (numpy.bool_(True), True),
        (defaultdict(list, a=[1]), {"a": [1]}),
        (OrderedDict(a=1), {"a": 1}),
        (type("MyStr", (str,), {})("x"), "x"),
        (Config(), {"depth": 2, "folder": Path("data")}),
    ],
)
def test_near_relatives_of_plain_data_become_plain(value: Any, expected: Any, tmp_path: Path) -> None:
    again = build_again(Anything(value), tmp_path).hparams.value
    assert again == expected


def test_enums_come_back_where_the_signature_names_them(tmp_path: Path) -> None:
    again = build_again(Anything(mode=Mode.SLOW, size=Size.SMALL), tmp_path)
    assert again.hparams.mode is Mode.SLOW
    assert again.hparams.size is Size.SMALL


def test_an_enum_that_the_signature_does_not_name_has_to_be_passed(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="does not hold value .the member of an enum with the value 'slow'.*value=..."):
        again = build_again(Anything(Mode.SLOW), tmp_path)
    assert again.hparams.value is None
    assert build_again(Anything(Mode.SLOW), tmp_path, value=Mode.SLOW).hparams.value is Mode.SLOW


def test_a_checkpoint_opens_without_inazuma_and_says_what_was_what(tmp_path: Path) -> None:
    stored = through_a_file(Anything(Path("a")), tmp_path)
    assert stored["hparams_name"] == "kwargs"
    assert stored["hyper_parameters"] == {"value": "a", "mode": "fast", "size": None}
    assert stored["hparams_notes"] == {"forms": {("value",): "Path", ("mode",): "Enum"}, "missing": {}}


def test_without_hyper_parameters_nothing_is_stored(tmp_path: Path) -> None:
    assert through_a_file(HyperparametersMixin(), tmp_path) == {}


class Needs(HyperparametersMixin):
    def __init__(self, net: Any, lr: float = 0.1) -> None:
        self.save_hyperparameters()


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (lambda x: x, "<lambda>"),
        (print, "builtins.print"),
        (queue.Queue(), "queue.Queue"),
        (Config, "Config"),
        ([object()], "builtins.object"),
        ({"a": (1, {"b": [object()]})}, r"net\.a"),
        (numpy.array(["a"]), "numpy.ndarray of <U1"),
        ({(1, 2): 3}, "a dictionary with a builtins.tuple as key"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_objects_are_not_stored_and_have_to_be_passed(value: Any, what: str, tmp_path: Path) -> None:
    from inazuma import hparams

    hparams._warned.clear()
    with pytest.warns(UserWarning, match=rf"not stored: net.*{what}|not stored: {what}.*ignore=\['net'\]"):
        checkpoint = through_a_file(Needs(value), tmp_path)
    assert (tmp_path / "a.ckpt").stat().st_size < 3000
    assert init_arguments(Needs, checkpoint, {"net": value})[1] == {"net": value, "lr": 0.1}
    through_a_file(Needs(value), tmp_path)  # warns once
    if not isinstance(value, dict) or (1, 2) in value:
        with pytest.raises(TypeError, match="'net' was not stored, as it is no plain data"):
            init_arguments(Needs, checkpoint, {})


def test_a_missing_argument_is_explained() -> None:
    class Model(HyperparametersMixin):
        def __init__(self, a: int, b: int, *, c: int = 1) -> None:
            pass

    with pytest.raises(TypeError) as caught:
        init_arguments(Model, {}, {})
    assert str(caught.value) == (
        "Model.__init__() missing 2 required positional arguments: 'a' and 'b'. "
        "'a' is not among the hyper-parameters in the checkpoint (self.save_hyperparameters() keeps them); "
        "'b' is not among the hyper-parameters in the checkpoint (self.save_hyperparameters() keeps them). "
        "Pass what is missing: Model.load_from_checkpoint(..., a=..., b=...)"
    )


def test_what_init_does_not_take_is_dropped() -> None:
    class Model(HyperparametersMixin):
        def __init__(self, a: int) -> None:
            pass

    class Greedy(HyperparametersMixin):
        def __init__(self, a: int, **kwargs: Any) -> None:
            pass

    checkpoint = {"hyper_parameters": {"a": 1, "old": 2}, "hparams_name": "kwargs"}
    assert init_arguments(Model, checkpoint, {"new": 3}) == ((), {"a": 1})
    assert init_arguments(Greedy, checkpoint, {"new": 3}) == ((), {"a": 1, "old": 2, "new": 3})


def test_positional_only_parameters_are_passed_by_position(tmp_path: Path) -> None:
    class Model(HyperparametersMixin):
        def __init__(self, a: int, b: int, /, c: int) -> None:
            self.save_hyperparameters()

    assert build_again(Model(1, 2, 3), tmp_path).hparams == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize("conf", [{"lr": 0.1}, argparse.Namespace(lr=0.1), AttributeDict(lr=0.1)])
def test_one_dictionary_comes_back_as_one_argument_with_overrides_in_it(conf: Any, tmp_path: Path) -> None:
    class Model(HyperparametersMixin):
        def __init__(self, conf: Any, other: int = 1) -> None:
            self.save_hyperparameters(conf)
            self.other = other
            self.lr = conf["lr"] if isinstance(conf, dict) else conf.lr

    assert build_again(Model(conf), tmp_path).hparams == {"lr": 0.1}
    again = build_again(Model(conf), tmp_path, lr=0.2, other=3)
    assert (again.lr, again.other) == (0.2, 3)
    assert build_again(Model(conf), tmp_path, conf={"lr": 0.3}).lr == 0.3


def test_an_omegaconf_container_comes_back_as_one(tmp_path: Path) -> None:
    class Model(HyperparametersMixin):
        def __init__(self, conf: DictConfig) -> None:
            self.save_hyperparameters(conf)

    again = build_again(Model(OmegaConf.create({"a": 1, "b": "${a}"})), tmp_path, a=5)
    assert isinstance(again.hparams, DictConfig)
    assert again.hparams.b == 5


def test_nothing_that_a_file_names_is_called() -> None:
    class Model(HyperparametersMixin):
        def __init__(self, a: int) -> None:
            pass

    stored = {"a": 1, "_instantiator": "os.system", "_class_path": "os.Evil"}
    with pytest.warns(UserWarning, match="does not import or call what a file names"):
        assert init_arguments(Model, {"hyper_parameters": stored}, {}) == ((), {"a": 1})


def test_old_files_with_a_namespace_are_read() -> None:
    assert init_arguments(Needs, {"hyper_parameters": argparse.Namespace(net=1)}, {})[1] == {"net": 1}


def test_real_checkpoints_of_lightning_are_read(tmp_path: Path) -> None:
    import lightning.pytorch as pl
    from lightning.pytorch.utilities import AttributeDict as Theirs

    class Model(pl.LightningModule):
        def __init__(self, net: Any, lr: float = 0.1) -> None:
            super().__init__()
            self.save_hyperparameters()

    trainer = pl.Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    trainer.strategy.connect(Model({"ns": argparse.Namespace(q=1), "ad": Theirs(z=2)}, lr=0.5))
    trainer.save_checkpoint(tmp_path / "theirs.ckpt", weights_only=True)
    for weights_only in (True, False):
        checkpoint = files.load(tmp_path / "theirs.ckpt", weights_only=weights_only)
        _, kwargs = init_arguments(Needs, checkpoint, {})
        assert kwargs == {"net": {"ns": argparse.Namespace(q=1), "ad": {"z": 2}}, "lr": 0.5}


# hparams_file


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("h.yaml", "net: [1, 2]\nlr: 0.5\n"),
        ("h.yml", "net:\n- 1\n- 2\nlr: 0.5\nunknown: 1\n"),
        ("h.csv", 'key,value\nnet,"[1, 2]"\nlr,0.5\n'),
    ],
)
def test_a_file_replaces_the_stored_hyper_parameters(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    checkpoint = {"hyper_parameters": {"net": 0, "lr": 0}}
    assert init_arguments(Needs, checkpoint, {}, tmp_path / name)[1] == {"net": [1, 2], "lr": 0.5}
    assert init_arguments(Needs, checkpoint, {"lr": 1}, tmp_path / name)[1]["lr"] == 1


def test_files_that_lightning_wrote_are_read(tmp_path: Path) -> None:
    from lightning.pytorch.core.saving import save_hparams_to_tags_csv, save_hparams_to_yaml

    hparams = {"net": (1, 2), "lr": 0.5}
    save_hparams_to_yaml(tmp_path / "h.yaml", hparams, use_omegaconf=False)  # which has no tuples
    save_hparams_to_tags_csv(tmp_path / "h.csv", hparams)
    for name in ("h.yaml", "h.csv"):
        assert init_arguments(Needs, {}, {}, tmp_path / name)[1] == hparams


def test_a_yaml_file_builds_no_objects(tmp_path: Path) -> None:
    import yaml

    (tmp_path / "h.yaml").write_text("net: !!python/object/apply:os.mkdir [made]\n")
    with pytest.raises(yaml.constructor.ConstructorError, match=r"python/object/apply:os\.mkdir"):
        init_arguments(Needs, {}, {}, tmp_path / "h.yaml")
    assert not Path("made").exists()


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is .*h\.txt', but its ending has to be \.csv, \.yml or \.yaml"):
        init_arguments(Needs, {}, {}, tmp_path / "h.txt")
    (tmp_path / "h.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="holds a list, not names with values"):
        init_arguments(Needs, {}, {}, tmp_path / "h.yaml")

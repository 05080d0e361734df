"""Checkpoints that want more than to be read: 200 of them, for tests/test_hostile_files.py.

`craft(folder, trap)` writes them. `trap` is a folder that their code would write into, if any of it ran.
"""

from __future__ import annotations

import argparse
import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch


class Call:
    """Pickled, it is a call of a function by name: what a pickle of an attacker holds."""

    def __init__(self, name: str, *args: Any) -> None:
        self.name, self.args = name, args


class Pickler(pickle._Pickler):  # type: ignore[name-defined, misc]  # the one written in Python can be extended
    def save(self, obj: Any, save_persistent_id: bool = True) -> Any:
        if not isinstance(obj, Call):
            return super().save(obj, save_persistent_id)
        module, _, name = obj.name.rpartition(".")
        self.write(f"c{module}\n{name}\n".encode())
        super().save(obj.args)
        self.write(pickle.REDUCE)
        return None


def dumps(obj: Any, protocol: int = 2) -> bytes:
    """Without memo marks between calls, since `Call` objects are written by hand."""
    buffer = io.BytesIO()
    pickler = Pickler(buffer, protocol)
    pickler.fast = True
    pickler.dump(obj)
    return buffer.getvalue()


def torch_zip(path: Path, data: bytes, extra: dict[str, bytes] | None = None, name: str = "archive") -> None:
    """A file as `torch.save` lays it out, around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in {"data.pkl": data, "byteorder": b"little", "version": b"3\n", **(extra or {})}.items():
            archive.writestr(f"{name}/{member}", content)


def calls(trap: Path) -> list[Call]:
    """Functions that write into the trap, start something there, or import `hostile_canary`, which writes there."""
    file, code = str(trap / "made"), f"open({str(trap / 'made')!r}, 'w').close()"
    shell = f"touch {file}"
    canary = "import hostile_canary"
    inner = dumps(Call("posix.system", shell))
    return [
        Call("posix.system", shell),
        Call("os.system", shell),
        Call("os.popen", shell),
        Call("os.mkdir", file),
        Call("os.remove", str(trap / "victim")),
        Call("os.rename", str(trap / "victim"), file),
        Call("os.symlink", str(trap / "victim"), file),
        Call("os.execv", "/bin/touch", ["touch", file]),
        Call("os.posix_spawn", "/bin/touch", ["touch", file], {}),
        Call("os.fork"),
        Call("os.putenv", "HOSTILE", "1"),
        Call("subprocess.Popen", ["touch", file]),
        Call("subprocess.call", ["touch", file]),
        Call("subprocess.check_output", shell),
        Call("builtins.eval", code),
        Call("builtins.exec", code),
        Call("builtins.exec", canary),
        Call("builtins.__import__", "hostile_canary"),
        Call("builtins.open", file, "w"),
        Call("builtins.compile", code, "x", "exec"),
        Call("builtins.getattr", {}, "__class__"),
        Call("builtins.setattr", {}, "x", 1),
        Call("builtins.globals"),
        Call("builtins.breakpoint"),
        Call("__builtin__.eval", code),  # the name of Python 2, which unpicklers translate
        Call("io.open", file, "w"),
        Call("importlib.import_module", "hostile_canary"),
        Call("hostile_canary.touch"),
        Call("hostile_canary"),
        Call("pathlib.Path.touch", Call("pathlib.Path", file)),
        Call("pathlib.PosixPath", file),
        Call("shutil.copy", str(trap / "victim"), file),
        Call("shutil.rmtree", str(trap)),
        Call("tempfile.mkstemp", "", "", str(trap)),
        Call("logging.FileHandler", file),
        Call("logging.config.dictConfig", {"version": 1}),
        Call("socket.create_connection", ("127.0.0.1", 9)),
        Call("urllib.request.urlopen", f"file://{trap}/victim"),
        Call("webbrowser.open", "http://127.0.0.1:9"),
        Call("ctypes.CDLL", "libc.so.6"),
        Call("runpy.run_path", str(trap / "hostile_canary.py")),
        Call("timeit.timeit", code),
        Call("cProfile.run", code),
        Call("pdb.run", code),
        Call("code.InteractiveInterpreter"),
        Call("types.FunctionType", None, {}),
        Call("operator.attrgetter", "__class__"),
        Call("operator.methodcaller", "system", shell),
        Call("functools.partial", Call("builtins.eval", code)),
        Call("functools.reduce", Call("builtins.eval", code), [1]),
        Call("pickle.loads", inner),
        Call("_pickle.loads", inner),
        Call("numpy.load", str(trap / "pickled.npy")),
        Call("numpy.core.multiarray._reconstruct", Call("builtins.eval", code), (0,), b"b"),
        Call("torch.load", str(trap / "pickled.pt")),
        Call("torch.save", {}, file),
        Call("torch.hub.load", str(trap), "hostile_canary"),
        Call("torch.jit.load", str(trap / "pickled.pt")),
        Call("torch.storage._load_from_bytes", inner),
        Call("torch.classes.load_library", str(trap / "x.so")),
        Call("torch.ops.load_library", str(trap / "x.so")),
        Call("torch.utils.data.DataLoader", []),
        Call("torch._utils._rebuild_from_type_v2", Call("builtins.eval", code), dict, (), {}),
        Call("torch.nn.Module"),
        Call("multiprocessing.Process"),
        Call("yaml.unsafe_load", f"!!python/object/apply:os.system ['{shell}']"),
        Call("inazuma.files.atomic_save", {}, file),
        Call("inazuma.callbacks.OnExceptionCheckpoint", file),
        Call("inazuma.loggers.CSVLogger", str(trap)),
        Call("lightning.pytorch.utilities.migration.migrate_checkpoint", {}),
    ]


def opcodes(trap: Path) -> dict[str, bytes]:
    """Pickles by hand: one for each way in which a pickle names, makes or changes something."""
    shell = f"touch {trap / 'made'}".encode()
    text = b"X" + struct.pack("<I", len(shell)) + shell
    state = b"}X\x01\x00\x00\x00x" + text + b"s"
    return {
        "GLOBAL REDUCE": b"\x80\x02cos\nsystem\n" + text + b"\x85R.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + text + b"\x85R.",
        "INST": b"\x80\x02(" + text + b"ios\nsystem\n.",
        "OBJ": b"\x80\x02(cos\nsystem\n" + text + b"o.",
        "NEWOBJ": b"\x80\x02cpathlib\nPosixPath\n" + text + b"\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04\x8c\x07pathlib\x8c\x04Path\x93)}\x92.",
        "BUILD on a class": b"\x80\x02ctorch.nn.modules.module\nModule\n" + state + b"b.",
        "BUILD on Tensor": b"\x80\x02ctorch\nTensor\n" + state + b"b.",
        "BUILD on Namespace": b"\x80\x02cargparse\nNamespace\n)\x81}X\x09\x00\x00\x00__class__cos\nsystem\nsb.",
        "BUILD on a dict": b"\x80\x02}" + state + b"b.",
        "EXT1": b"\x80\x02\x82\x01.",
        "EXT2": b"\x80\x02\x83\x01\x00.",
        "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
        "PERSID": b"\x80\x02P" + shell + b"\n.",
        "BINPERSID of another kind": b"\x80\x02(X\x06\x00\x00\x00systemt" + b"Q.",
        "BINPERSID that is a path": b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x09\x00\x00\x00../victimX\x03"
        b"\x00\x00\x00cpuK\x04tQ.",
        "a location that is code": b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x0c\x00\x00\x00"
        b"__import__()K\x04tQ.",
        "dots in a name": b"\x80\x04\x8c\x05torch\x8c\x0ahub.os.system\x93)R.",
        "a module of torch that imports os": b"\x80\x02ctorch.serialization\nos.system\n" + text + b"\x85R.",
        "a dict subclass": b"\x80\x02ccollections\nUserDict\n)R.",
        "OrderedDict with state": b"\x80\x02ccollections\nOrderedDict\n)R" + state + b"b.",
        "memo bombs": b"\x80\x02]q\x00"
        + b"".join(b"]q" + bytes([i]) + b"h" + bytes([i - 1]) * 1 + b"a" for i in range(1, 60))
        + b".",
        "a list in itself": b"\x80\x02]q\x00h\x00a.",
        "no STOP": b"\x80\x02}",
        "nothing on the stack": b"\x80\x02.",
        "a huge text": b"\x80\x02X\xff\xff\xff\x7fx.",
        "a huge frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.",
        "protocol 200": b"\x80\xc8}.",
    }


PLAIN = (None, 7, -1.5, "text", b"bytes", [1, "x"], (1,), {"a": {"b": 1}}, {1, 2}, torch.ones(3), True, 10**30)


def wrong_types(good: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """A good checkpoint with one entry of a wrong type, by turns of all types."""
    places = [(key,) for key in good] + [("inazuma", key) for key in good["inazuma"]]
    places += [("callbacks", key) for key in good["callbacks"]] + [("optimizer_states", 0), ("lr_schedulers", 0)]
    places += [("hyper_parameters", "width"), ("state_dict", "layer.weight"), ("loops", "fit_loop")]
    places += [("inazuma", "rng", "torch"), ("inazuma", "rng", "python"), ("inazuma", "progress", "next")]
    places += [("inazuma", "logbook", "entries"), ("inazuma", "logbook", "moment"), ("inazuma", "logbook", "shown")]
    for turn, place in enumerate(places):
        yield f"{'.'.join(map(str, place))} = {PLAIN[turn % len(PLAIN)]!r}", put(good, place, PLAIN[turn % len(PLAIN)])


def put(tree: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of nested dictionaries and lists, with another value at one place."""
    key, *rest = place
    copied = list(tree) if isinstance(tree, list) else dict(tree)
    copied[key] = put(tree[key], tuple(rest), value) if rest else value
    return copied


def named_classes(good: dict[str, Any], trap: Path) -> Iterator[tuple[str, Any]]:
    """Plain data that names classes, hooks, files and attributes."""
    made, victim = str(trap / "made"), str(trap / "victim")
    system = "os.system"

    def hparams(**more: Any) -> Any:
        return {**good, "hyper_parameters": {**good["hyper_parameters"], **more}}

    def state(key: str, value: Any) -> Any:
        return {**good, "callbacks": {**good["callbacks"], key: value}}

    yield "_instantiator", hparams(_instantiator="hostile_canary.touch")
    yield "_instantiator of Lightning", hparams(_instantiator="lightning.pytorch.cli.instantiate_module")
    yield "_class_path", hparams(_class_path="hostile_canary.Touch")
    yield "both of the CLI", hparams(_class_path=system, _instantiator="lightning.pytorch.cli.instantiate_module")
    yield "class_path", hparams(class_path=system, init_args={"command": f"touch {made}"})
    yield "class_path inside", hparams(width={"class_path": "hostile_canary.Touch", "init_args": {}})
    yield "_target_", hparams(_target_=system, width=4)
    yield "hparams_type", {**good, "hparams_type": "hostile_canary.Touch"}
    yield "hparams_type of omegaconf", {**good, "hparams_type": "omegaconf.DictConfig"}
    yield (
        "an interpolation",
        {**good, "hyper_parameters": {"width": "${oc.env:HOME}"}, "hparams_type": "omegaconf.DictConfig"},
    )
    yield "hparams_name", {**good, "hparams_name": "__class__"}
    yield "hparams_name as a list", {**good, "hparams_name": ["width"]}
    yield "hparams named self", hparams(self=1)
    yield "hparams named cls", hparams(cls=1, __class__="x", __init__="y", __reduce__="os.system")
    yield "hparams with hooks", hparams(training_step="x", setup="y", on_load_checkpoint="z", forward=1)
    yield "keys that are no names", {**good, "hyper_parameters": {1: 2, None: 3, ("a",): 4, "a b": 5, "": 6}}
    for form in (
        "Path",
        "Namespace",
        "AttributeDict",
        "OmegaConf",
        "ndarray",
        "frozenset",
        "Enum",
        "PlainEnum",
        "Evil",
    ):
        notes = {"forms": {("width",): form, ("no", "such"): form}, "missing": {}}
        yield f"notes that call an int a {form}", {**good, "hparams_notes": notes}
    yield "notes of another shape", {**good, "hparams_notes": {"forms": [1], "missing": 3}}
    yield "notes without parts", {**good, "hparams_notes": {"x": 1}}
    yield "notes with other places", {**good, "hparams_notes": {"forms": {"width": "Path"}, "missing": {1: 2, (): "x"}}}
    yield "hooks as keys", {**good, "setup": system, "on_load_checkpoint": system, "configure_optimizers": system}
    yield "a callback by its path", state("hostile_canary.Touch", {"x": 1})
    yield "a callback with a call", state("ModelCheckpoint(dirpath=__import__('hostile_canary'))", {"x": 1})
    yield "a callback of dunders", state("__class__", {"__init__": system})
    yield "attributes of a callback", state("Counter", {"__class__": "x", "on_train_start": system, "n": 1})
    yield "state_dict keys", {**good, "state_dict": {"__class__": torch.ones(1), "layer.__init__.x": torch.ones(1)}}
    yield (
        "state_dict with dots",
        {**good, "state_dict": {".": torch.ones(1), "..": torch.ones(1), "/etc": torch.ones(1)}},
    )
    yield "state_dict with other keys", {**good, "state_dict": {1: torch.ones(1), None: 2, ("a",): 3}}
    yield "state_dict of huge shapes", {**good, "state_dict": {"layer.weight": torch.ones(1).expand(2**30)}}
    yield "a scheduler's attributes", put(good, ("lr_schedulers", 0), {"step": system, "optimizer": 1, "__class__": 2})
    yield (
        "an optimizer's attributes",
        put(good, ("optimizer_states", 0), {"state": {}, "param_groups": [], "step": system}),
    )
    yield (
        "an optimizer of many groups",
        put(good, ("optimizer_states", 0), {"state": {0: {"step": system}}, "param_groups": [{"params": [0, 1]}] * 9}),
    )
    yield "the position's methods", put(good, ("inazuma", "progress", "state_dict"), system)
    yield "the position far away", put(good, ("inazuma", "progress", "batch"), 10**12)
    yield "the position before the start", put(good, ("inazuma", "progress", "epoch"), -5)
    entry = {"key": ["training_step", "x", None], "flags": {}, "values": {"add": system}, "metric": {"x": 1}}
    yield "a logged entry's methods", put(good, ("inazuma", "logbook", "entries"), [entry])
    yield "the logbook's moment", put(good, ("inazuma", "logbook", "moment"), {"reset": system, "entries": 1})
    yield "gradients of other shapes", put(good, ("inazuma", "gradients"), {"layer.weight": torch.ones(2**10)})
    yield "gradients that are text", put(good, ("inazuma", "gradients"), {"layer.weight": system})
    yield "datamodule state", {**good, "Data": {"load": system, "__class__": 1}}
    yield "datamodule state that is text", {**good, "Data": system}
    yield (
        "datamodule class path",
        {**good, "datamodule_hyper_parameters": {"_class_path": system, "_instantiator": made}},
    )
    yield "a precision", {**good, "Precision": {"scale": system}, "MixedPrecision": system}
    yield "an old version", {**good, "pytorch-lightning_version": "0.0.1", "loops": None}
    yield "no version", {k: v for k, v in good.items() if k != "pytorch-lightning_version"}
    yield "a version that is code", {**good, "pytorch-lightning_version": f"open('{victim}', 'w')"}
    yield "a namespace", {**good, "hyper_parameters": argparse.Namespace(width=4, train=1)}
    yield "many keys", {**good, **{f"key{i}": i for i in range(2000)}}
    yield "nested deeply", {**good, "hyper_parameters": {"width": nested(400)}}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"x": value}
    return value


def archives(folder: Path, good: bytes, trap: Path) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Zip files and old formats that are not what they seem."""
    data = dumps({"state_dict": {}})
    evil = dumps(Call("posix.system", f"touch {trap / 'made'}"))

    def zipped(**members: bytes) -> Callable[[Path], None]:
        return lambda path: torch_zip(path, data, members)

    yield "a member above the folder", zipped(**{"../../../made": b"x"})
    yield "an absolute member", zipped(**{str(trap / "made"): b"x"})
    yield "a constants.pkl", zipped(**{"constants.pkl": evil})
    yield "code of TorchScript", zipped(**{"code/__torch__.py": b"import hostile_canary", "constants.pkl": evil})
    yield "a second data.pkl", lambda path: path.write_bytes(good + zip_of({"archive/data.pkl": evil}))
    yield (
        "two archives",
        lambda path: path.write_bytes(zip_of({"a/data.pkl": data, "a/version": b"3\n", "b/data.pkl": evil})),
    )
    yield "no version", lambda path: path.write_bytes(zip_of({"archive/data.pkl": data}))
    yield "version 10**9", lambda path: torch_zip(path, data, {"version": b"1000000000\n"})
    yield "another byte order", lambda path: torch_zip(path, data, {"byteorder": b"middle"})
    yield (
        "a bomb of zeros",
        lambda path: path.write_bytes(zip_of({"archive/data.pkl": bytes(8 * 2**20)}, deflate=True)),
    )
    yield (
        "a bomb beside it",
        lambda path: path.write_bytes(
            zip_of(
                {"archive/data.pkl": data, "archive/version": b"3\n", "archive/data/0": bytes(8 * 2**20)}, deflate=True
            )
        ),
    )
    yield "a bomb of names", lambda path: path.write_bytes(zip_of({f"archive/{i}": b"" for i in range(3000)}))
    yield "an empty zip", lambda path: path.write_bytes(zip_of({}))
    yield "a wrong size in the directory", lambda path: path.write_bytes(good[:-60] + b"\xff" * 38 + good[-22:])
    yield "a cut zip", lambda path: path.write_bytes(good[: len(good) // 2])
    yield "a plain pickle", lambda path: path.write_bytes(evil)
    yield "a plain pickle of protocol 0", lambda path: path.write_bytes(b"cos\nsystem\n(Vtouch made\ntR.")
    yield "a pickle of protocol 4", lambda path: path.write_bytes(b"\x80\x04\x8c\x02os\x8c\x06system\x93.")
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    head = magic + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    yield "the old format", lambda path: path.write_bytes(head + evil + pickle.dumps([], 2))
    yield "the old format with a hostile list of storages", lambda path: path.write_bytes(head + data + evil)
    yield "the old format with a hostile head", lambda path: path.write_bytes(magic + evil)
    yield "a tar file", lambda path: path.write_bytes(tar_of({"storages": evil, "tensors": evil, "pickle": evil}))
    yield "numpy's format", lambda path: path.write_bytes(b"\x93NUMPY\x01\x00" + evil)
    yield "an empty file", lambda path: path.write_bytes(b"")
    yield "random bytes", lambda path: path.write_bytes(bytes(range(256)) * 20)
    yield "a script", lambda path: path.write_text("import hostile_canary\n")


def zip_of(members: dict[str, bytes], deflate: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tar_of(members: dict[str, bytes]) -> bytes:
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


CANARY = """
import pathlib
def touch(*_, **__):
    pathlib.Path(__file__).with_name("made").touch()
class Touch:
    def __init__(self, *_, **__):
        touch()
touch()
"""


def craft(folder: Path, trap: Path, good: dict[str, Any]) -> dict[str, Path]:
    """Write the files, and what they name in the trap. Returns their paths by what they are."""
    trap.mkdir()
    (trap / "victim").write_text("keep")
    (trap / "hostile_canary.py").write_text(CANARY)
    torch.save({}, trap / "pickled.pt")
    (trap / "pickled.pt").write_bytes(dumps(Call("posix.system", f"touch {trap / 'made'}")))
    made: dict[str, Path] = {}

    def path(name: str) -> Path:
        assert name not in made, name
        made[name] = folder / f"{len(made):03}.ckpt"
        return made[name]

    places: list[tuple[Any, ...]] = [
        (),
        ("state_dict",),
        ("state_dict", "layer.weight"),
        ("hyper_parameters",),
        ("hyper_parameters", "width"),
        ("callbacks",),
        ("callbacks", "Counter"),
        ("optimizer_states", 0),
        ("lr_schedulers",),
        ("loops",),
        ("inazuma",),
        ("inazuma", "rng"),
        ("datamodule_hyper_parameters",),
        ("Data",),
        ("no such key",),
    ]
    plain = {
        **{name: {} for name in ("state_dict", "hyper_parameters", "callbacks", "loops", "inazuma")},
        "optimizer_states": [{}],
        "lr_schedulers": [],
        "epoch": 0,
        "global_step": 0,
    }
    for turn, call in enumerate(calls(trap)):
        place = places[turn % len(places)]
        tree = put(plain, place, call) if place else call
        torch_zip(path(f"{call.name} {turn} in {'.'.join(map(str, place)) or 'the root'}"), dumps(tree))
    for name, data in opcodes(trap).items():
        torch_zip(path(name), data)
    for name, tree in [*wrong_types(good), *named_classes(good, trap)]:
        torch.save(tree, path(name))
    buffer = io.BytesIO()
    torch.save(good, buffer)
    for name, write in archives(folder, buffer.getvalue(), trap):
        write(path(f"archive: {name}"))
    return made

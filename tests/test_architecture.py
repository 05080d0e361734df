"""Imports point down. The table is the house plan; every file is read with `ast` and the offending line is named.

A file imports from lower floors, from its own room, and on floors 0, 1, 3 and 4 from what stands left of it. What is
under `if TYPE_CHECKING:` is exempt: annotations may name what stands above. An import inside a function is for optional
third-party packages only.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "inazuma"

# A name is a file or a folder (a room, with all that is in it); the longest match counts. "" is inazuma/__init__.py.
FLOORS: dict[int, str] = {
    7: "__main__",
    6: "",
    5: "cli tuner report testing plugins accelerators utilities",
    4: "views arguments attributes trainer",
    3: "bad_steps compiling loop run",
    2: "data strategies precision checkpoint callbacks loggers profilers",
    1: "callbacks.callback loggers.logger checkpoint_io progress hparams optim logbook hooks datahooks summary module"
    " datamodule",
    0: "errors states duration ranks signals seed tables tree fingerprints snapshot devices container saving files"
    " modes weak timing",
}
LEFT_TO_RIGHT = (0, 1, 3, 4)  # floors whose files may import what stands left of them
DOORS = ("plugins", "accelerators", "utilities")  # they open on other rooms and hold nothing of their own
PLACES = {name: (floor, place) for floor, names in FLOORS.items() for place, name in enumerate(names.split() or [""])}

FILES = sorted(SOURCE.rglob("*.py"))


@dataclass(frozen=True)
class Import:
    """One `import` line: the module it names, where it stands, and whether that is inside a function."""

    module: str  # absolute
    line: int
    in_function: bool


def module_of(path: Path) -> str:
    """The name below `inazuma`: "callbacks.timer"; a package is its folder, inazuma/__init__.py is ""."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str | None:
    """The entry of the table that holds `module`; None when it has no place there."""
    if module == "":
        return ""
    words = module.split(".")
    candidates = (".".join(words[:n]) for n in range(len(words), 0, -1))
    return next((name for name in candidates if name in PLACES), None)


def imports_of(tree: ast.AST, in_function: bool = False) -> Iterator[Import]:
    """Every import that runs, in order of the file; what stands under `if TYPE_CHECKING:` does not run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(name.name, node.lineno, in_function)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for name in node.names:
                full = f"{node.module}.{name.name}"
                is_file = full.startswith("inazuma.") and is_module(full)
                yield Import(full if is_file else node.module, node.lineno, in_function)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for branch in node.orelse:
                yield from imports_of(ast.Module([branch], []), in_function)
        else:
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports_of(node, in_function or function)


def is_module(name: str) -> bool:
    path = SOURCE.joinpath(*name.split(".")[1:])
    return path.with_suffix(".py").exists() or path.is_dir()


def fault(importer: str, found: Import) -> str | None:
    """Why `importer` (a name below inazuma) must not have this import; None when it may."""
    package, _, target = found.module.partition(".")
    if package != "inazuma":
        if found.in_function:
            optional = package not in sys.stdlib_module_names
            return None if optional else f"imports {found.module} inside a function; it belongs to the top of the file"
        known = package in sys.stdlib_module_names or package == "torch"
        return None if known else f"imports {found.module} when it is imported itself; only torch is a dependency"
    if found.in_function:
        return f"imports {found.module} inside a function; a file that needs that stands on the wrong floor"
    here, there = room_of(importer), room_of(target)
    if here is None or there is None:
        return f"imports {found.module}, and one of the two has no place in the table of this test"
    if here == there:
        return None
    (floor, place), (target_floor, target_place) = PLACES[here], PLACES[there]
    if target_floor < floor or (target_floor == floor and floor in LEFT_TO_RIGHT and target_place < place):
        return None
    return (
        f"imports {found.module}: floor {floor} ({here or 'inazuma'}) from floor {target_floor} ({there or 'inazuma'})"
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    importer = module_of(path)
    assert room_of(importer) is not None, f"{path} has no place in the table of this test"
    faults = [
        f"{path.relative_to(SOURCE.parent)}:{found.line} {why}"
        for found in imports_of(ast.parse(path.read_text()))
        if (why := fault(importer, found))
    ]
    assert not faults, "\n".join(faults)


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        module_of(path): {
            found.module.removeprefix("inazuma.")
            for found in imports_of(ast.parse(path.read_text()))
            if found.module.startswith("inazuma.")
        }
        for path in FILES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("door", DOORS)
def test_doors_open_on_other_rooms_and_hold_nothing(door: str) -> None:
    for path in sorted((SOURCE / door).rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            is_import = isinstance(node, ast.Import | ast.ImportFrom | ast.If)
            is_docstring_or_list = isinstance(node, ast.Expr | ast.Assign | ast.AnnAssign)
            assert is_import or is_docstring_or_list, f"{path}:{node.lineno} defines something; a door only re-exports"


@pytest.mark.parametrize("readme", ["README.md", "README.ja.md"])
def test_the_tree_in_the_readme_is_the_tree(readme: str) -> None:
    block = (SOURCE.parents[1] / readme).read_text().split("src/inazuma/\n")[1].split("```")[0]
    drawn = {name for line in block.splitlines() for name in re.findall(r"\b\w+(?:\.py|/)", line.partition("     ")[0])}
    standing = {path.name for path in SOURCE.glob("*.py")} | {f"{path.parent.name}/" for path in SOURCE.glob("*/*.py")}
    assert drawn == standing - {"__init__.py"}


@pytest.mark.parametrize(
    ("importer", "line", "reason"),
    [
        ("progress", "from inazuma.loop import fit", "floor 1 (progress) from floor 3 (loop)"),
        ("callbacks.timer", "from inazuma.loggers.csv import CSVLogger", "floor 2 (callbacks) from floor 2 (loggers)"),
        ("module", "from inazuma.datamodule import X", "floor 1 (module) from floor 1 (datamodule)"),
        ("errors", "from inazuma import Trainer", "floor 0 (errors) from floor 6 (inazuma)"),
        ("loop", "def f():\n    from inazuma.errors import X", "inside a function"),
        ("loop", "def f():\n    import json", "top of the file"),
        ("loop", "import rich", "only torch is a dependency"),
    ],
)
def test_the_test_finds_an_import_that_points_up(importer: str, line: str, reason: str) -> None:
    faults = [fault(importer, found) for found in imports_of(ast.parse(line))]
    assert len(faults) == 1
    assert reason in str(faults[0])


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("trainer", "from inazuma.loop import fit"),
        ("datamodule", "from inazuma.module import X"),
        ("callbacks.timer", "from inazuma.callbacks.callback import Callback"),
        ("callbacks.timer", "def f():\n    import rich"),
        ("errors", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from inazuma.trainer import Trainer"),
    ],
)
def test_the_test_lets_pass_what_may_stand(importer: str, line: str) -> None:
    assert [why for found in imports_of(ast.parse(line)) if (why := fault(importer, found))] == []

"""`import inazuma` needs torch alone, is small, and touches nothing outside the process."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

# Runs after `import torch`: names what the code below adds, and what it does to the world outside.
WATCH = """
import json, sys, threading
import torch

before = set(sys.modules)
deeds = []

def watch(event, args):
    if event == "open":
        path, mode, flags = args
        if (mode and set(mode) & set("wax+")) or (not mode and flags & 3):
            deeds.append(f"open {path} {mode}")
    elif event in ("subprocess.Popen", "os.system", "os.fork", "os.posix_spawn", "socket.connect", "socket.bind",
                   "_thread.start_new_thread", "os.mkdir", "os.remove", "os.rename"):
        deeds.append(event)

sys.addaudithook(watch)
import inazuma
print(json.dumps({"modules": sorted(set(sys.modules) - before), "deeds": deeds}))
"""

# Hides every installed package but torch and what torch itself asks for: what `pip install inazuma` alone gives.
TORCH_ALONE = """
import importlib.machinery, sys, warnings

VISIBLE = {"torch", "torchgen", "functorch", "inazuma"} | sys.stdlib_module_names
VISIBLE |= {"filelock", "typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec"}

class TorchAlone(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        package = name.partition(".")[0]
        visible = package in VISIBLE or package.startswith("_sysconfigdata")
        return super().find_spec(name, path, target) if visible else None

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = TorchAlone
warnings.simplefilter("ignore")
"""


def run(code: str, *, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], cwd=cwd, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return json.loads(run(WATCH, cwd=tmp_path_factory.mktemp("import")))


def test_importing_needs_nothing_but_torch_and_the_standard_library(watched: dict[str, Any]) -> None:
    packages = {name.partition(".")[0] for name in watched["modules"]}
    assert packages - sys.stdlib_module_names <= {"inazuma", "torch"}


def test_importing_adds_few_modules_to_those_of_torch(watched: dict[str, Any]) -> None:
    assert len(watched["modules"]) < 120


def test_importing_starts_no_process_or_thread_and_writes_no_file(watched: dict[str, Any]) -> None:
    assert watched["deeds"] == []


def test_a_fit_with_default_settings_works_where_only_torch_is_installed(tmp_path: Path) -> None:
    fit = """
from inazuma import Trainer
from inazuma.testing import BoringModel
trainer = Trainer(max_epochs=1, accelerator="cpu")
trainer.fit(BoringModel())
print("steps:", trainer.global_step, [name for name in ("numpy", "rich", "tqdm", "yaml") if name in sys.modules])
"""
    assert "steps: 64 []" in run(TORCH_ALONE + fit, cwd=tmp_path)


def test_every_extra_that_an_error_names_can_be_installed() -> None:
    section = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    named = {
        extra.strip()
        for path in (ROOT / "src").rglob("*.py")
        for group in re.findall(r"inazuma\[([\w, ]+)\]", path.read_text())
        for extra in group.split(",")
    }
    assert named <= set(re.findall(r"^(\w+) =", section, re.MULTILINE))

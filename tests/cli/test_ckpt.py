import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer as TheirTrainer
from lightning.pytorch.demos.boring_classes import BoringModel as TheirBoringModel

from inazuma import LightningModule, Trainer, files
from inazuma.cli.main import main
from inazuma.testing import BoringModel

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


class Model(BoringModel):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def saved(path: str = "a.ckpt", steps: int = 2, module: LightningModule | None = None) -> str:
    trainer = Trainer(max_steps=steps, **QUIET)
    trainer.fit(module or Model())
    trainer.save_checkpoint(path)
    return path


def damage(path: str, at: int) -> None:
    content = bytearray(Path(path).read_bytes())
    content[at] ^= 1
    Path(path).write_bytes(content)


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    """Exit code, and what went to the terminal."""
    capsys.readouterr()
    code = main(["ckpt", *argv])
    out, err = capsys.readouterr()
    return code, out + err


def rows(text: str) -> dict[str, str]:
    return dict(re.split(r"  +", line, maxsplit=1) for line in text.splitlines())  # type: ignore[arg-type]


# info


def test_info_tells_what_a_file_holds(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = printed(capsys, "info", saved())
    told = rows(text)
    assert code == 0
    assert told["verified"] == "whole"
    assert (told["epoch"], told["global_step"], told["note: global_step"]) == ("1", "2", "2")
    assert told["written by"] == "inazuma, format 1, in the layout of Lightning 2.6.6"
    assert told["weights"] == "2 tensors, 66 numbers, 264 bytes, float32"
    assert told["optimizer 0"].startswith("lr 0.02; 6 tensors, 134 numbers, 536 bytes")
    assert told["schedule 0"] == "last_epoch 0, last_lr [0.02]"
    assert told["hyper-parameters"] == "width"
    assert "state_dict" in told["keys"]


def test_info_tells_of_files_of_lightning_and_of_bare_weights(capsys: pytest.CaptureFixture[str]) -> None:
    theirs = TheirTrainer(max_steps=1, **QUIET)
    theirs.strategy.connect(TheirBoringModel())
    theirs.save_checkpoint("theirs.ckpt", weights_only=True)
    code, text = printed(capsys, "info", "theirs.ckpt")
    assert code == 0
    assert rows(text)["written by"].startswith("Lightning 2.6.6")
    torch.save(BoringModel().state_dict(), "weights.pt")
    code, text = printed(capsys, "info", "weights.pt")
    assert code == 0
    assert rows(text)["weights"] == "2 tensors, 66 numbers, 264 bytes, float32"


def test_info_says_that_a_file_is_damaged(capsys: pytest.CaptureFixture[str]) -> None:
    damage(saved(), 3000)
    code, text = printed(capsys, "info", "a.ckpt")
    assert code == 1
    assert "a.ckpt is damaged: its checksum is" in rows(text)["verified"]


class Hostile:
    def __reduce__(self) -> Any:
        return os.mkdir, ("hacked",)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer_states": None},
        {"optimizer_states": {"a": 1}},
        {"optimizer_states": [3]},
        {"optimizer_states": [{"param_groups": [3], "state": 4}]},
        {"lr_schedulers": [None]},
        {"callbacks": [1]},
        {"hyper_parameters": 3},
        {"inazuma": [1]},
    ],
)
def test_info_tells_what_it_can_of_a_file_with_odd_contents(
    changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(saved(), weights_only=True)
    torch.save(content | changes, "odd.ckpt")
    code, text = printed(capsys, "info", "odd.ckpt")
    assert code == 0
    assert rows(text)["weights"].startswith("2 tensors")


def test_info_wants_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "info", "gone.ckpt") == (2, "inazuma: Checkpoint file not found: gone.ckpt\n")
    Path("run").mkdir()
    code, text = printed(capsys, "info", "run")
    assert (code, text[:37]) == (2, "inazuma: run is a directory. Name a f")


@pytest.mark.parametrize("command", [["info", "a.ckpt"], ["slim", "a.ckpt", "-o", "b"], ["diff", "a.ckpt", "a.ckpt"]])
def test_nothing_in_a_file_is_run(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {}, "evil": Hostile()}, "a.ckpt")
    code, text = printed(capsys, *command)
    assert code == 2
    assert "a.ckpt holds posix.mkdir, which is neither a tensor nor plain data" in text
    assert not Path("hacked").exists()


# verify


def test_verify_tells_the_whole_from_the_damaged(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run/checkpoints").mkdir(parents=True)
    files.atomic_save({"epoch": 1}, "run/checkpoints/a.ckpt")
    files.atomic_save({"epoch": 2}, "run/checkpoints/b.ckpt")
    torch.save({"epoch": 3}, "run/c.pt")
    Path("run/.hidden.ckpt").touch()
    Path("run/metrics.csv").touch()
    code, text = printed(capsys, "verify", "run")
    assert code == 0
    assert sorted(line.split("/")[-1] for line in text.splitlines()) == ["a.ckpt", "b.ckpt", "c.pt"]
    damage("run/checkpoints/b.ckpt", 700)
    code, text = printed(capsys, "verify", "run/checkpoints/a.ckpt", "run/checkpoints/b.ckpt", "gone.ckpt")
    assert code == 1
    verdicts = [line.split()[0] for line in text.splitlines() if not line.startswith(" ")]
    assert verdicts == ["whole", "DAMAGED", "MISSING"]
    assert "its checksum is" in text
    assert text.endswith("MISSING  gone.ckpt\n")


def test_verify_of_a_directory_without_checkpoints_is_no_good_answer(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = printed(capsys, "verify", ".")
    assert code == 2
    assert "There are no files ending with .ckpt" in text


# slim


class Wide(Model):
    def __init__(self, width: int = 3) -> None:
        super().__init__(width)
        self.wide = torch.nn.Linear(500, 200, bias=False)
        self.tied = torch.nn.Linear(500, 200, bias=False)
        self.tied.weight = self.wide.weight


def test_slim_keeps_the_weights_alone_in_a_file_that_torch_opens(capsys: pytest.CaptureFixture[str]) -> None:
    module = Wide()
    saved(module=module)
    code, text = printed(capsys, "slim", "a.ckpt", "-o", "slim.pt")
    assert (code, text.split(":")[0]) == (0, "slim.pt")
    weights = torch.load("slim.pt", weights_only=True)
    assert list(weights) == list(module.state_dict())
    assert all(torch.equal(weights[key], value) for key, value in module.state_dict().items())
    assert weights["tied.weight"].data_ptr() == weights["wide.weight"].data_ptr()
    assert os.path.getsize("slim.pt") <= 1.01 * (100_000 + 66) * 4
    Wide().load_state_dict(weights)
    files.verify("slim.pt")


def test_slim_takes_a_part_of_the_model_under_its_own_names(capsys: pytest.CaptureFixture[str]) -> None:
    module = BoringModel()
    saved(module=module)
    assert printed(capsys, "slim", "a.ckpt", "-o", "layer.pt", "--prefix", "layer.")[0] == 0
    module.layer.load_state_dict(torch.load("layer.pt"))
    code, text = printed(capsys, "slim", "a.ckpt", "-o", "head.pt", "--prefix", "head.")
    assert code == 2
    assert "a.ckpt has no weights under 'head.', but ['layer.weight', 'layer.bias']" in text


def test_slim_leaves_out_memory_that_no_weight_uses(capsys: pytest.CaptureFixture[str]) -> None:
    big = torch.randn(100, 1000)
    files.atomic_save({"state_dict": {"row": big[3], "same": big[3]}}, "a.ckpt")
    assert printed(capsys, "slim", "a.ckpt", "-o", "b.pt")[0] == 0
    weights = torch.load("b.pt")
    assert torch.equal(weights["row"], big[3])
    assert weights["row"].data_ptr() == weights["same"].data_ptr()
    assert os.path.getsize("b.pt") < 6000


def test_slim_overwrites_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    saved()
    code, text = printed(capsys, "slim", "a.ckpt", "-o", "a.ckpt")
    assert code == 2
    assert "a.ckpt is there already" in text
    files.verify("a.ckpt")


# diff


def test_equal_files_are_equal(capsys: pytest.CaptureFixture[str]) -> None:
    for path in ("a.ckpt", "b.ckpt"):
        files.atomic_save({"x": torch.tensor([float("nan"), 1.0]), "n": float("nan"), "empty": {}}, path)
    assert printed(capsys, "diff", "a.ckpt", "b.ckpt") == (0, "equal\n")


def test_diff_names_what_differs_and_by_how_much(capsys: pytest.CaptureFixture[str]) -> None:
    one = {"w": torch.zeros(2, 3), "z": torch.zeros(1), "o": [{"lr": 0.1}], "s": torch.zeros(2), "a": 1, "same": (1, 2)}
    two = {
        "w": torch.tensor([[0, 0, 0.5], [0, -2, 0]]),
        "z": -torch.zeros(1),
        "o": [{"lr": 0.2}],
        "s": torch.zeros(3),
        "same": (1, 2),
        "b": 2,
    }
    files.atomic_save(one, "a.ckpt")
    files.atomic_save(two, "b.ckpt")
    code, text = printed(capsys, "diff", "a.ckpt", "b.ckpt")
    assert code == 1
    assert text.splitlines() == [
        "w: float32 [2, 3]: 2 of 6 numbers differ, by 2 at most",
        "z: float32 [1]: 1 of 1 numbers differ, by 0 at most",
        "o.0.lr: 0.1 and 0.2",
        "s: float32 [2] and float32 [3]",
        "a: only in a.ckpt",
        "b: only in b.ckpt",
    ]
    assert printed(capsys, "diff", "a.ckpt", "b.ckpt", "--lines", "1")[1].splitlines()[1:] == ["... and 5 more"]


def test_long_lists_of_numbers_are_one_difference(capsys: pytest.CaptureFixture[str]) -> None:
    for path, words in (("a.ckpt", range(600)), ("b.ckpt", range(1, 601))):
        torch.save({"rng": list(words), "short": [1, 2]}, path)
    code, text = printed(capsys, "diff", "a.ckpt", "b.ckpt")
    assert code == 1
    assert re.fullmatch(r"rng: \[0, 1, 2, .*\.\.\. and \[1, 2, 3, .*\.\.\.\n", text)


@pytest.mark.skipif(os.name != "posix", reason="a pipe that is closed sends SIGPIPE")
def test_a_reader_that_has_enough_ends_the_command_quietly() -> None:
    for path, value in (("a.ckpt", 0), ("b.ckpt", 1)):
        torch.save({f"key {i}" * 10: value for i in range(3000)}, path)
    command = f"{sys.executable} -m inazuma ckpt diff a.ckpt b.ckpt --lines 3000 | head -n 1; echo ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert run.stdout.splitlines()[1:] == ["141"]
    assert run.stderr == ""


def test_two_states_of_a_run_differ_in_their_weights(capsys: pytest.CaptureFixture[str]) -> None:
    saved("a.ckpt", steps=1)
    saved("b.ckpt", steps=2)
    code, text = printed(capsys, "diff", "a.ckpt", "b.ckpt")
    assert code == 1
    assert "global_step: 1 and 2" in text
    assert "state_dict.layer.weight: float32 [2, 32]: 64 of 64 numbers differ" in text


# the command


def test_what_is_missing_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = printed(capsys, "diff", "gone.ckpt", "gone.ckpt")
    assert (code, text) == (2, "inazuma: Checkpoint file not found: gone.ckpt\n")


def test_the_command_works_in_a_process_without_the_users_code() -> None:
    saved()
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    command = [sys.executable, "-m", "inazuma", "ckpt", "info", "a.ckpt"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert "66 numbers" in done.stdout

"""The base, and the profilers that need nothing but Python."""

from __future__ import annotations

import logging
import math
import pickle
import pstats
import re
from pathlib import Path

import pytest

from inazuma.errors import MisconfigurationException
from inazuma.profilers import AdvancedProfiler, PassThroughProfiler, Profiler, SimpleProfiler, XLAProfiler
from inazuma.ranks import rank_zero_only


class Diary(Profiler):
    """What somebody would write: notes what begins and ends."""

    def __init__(self, dirpath: Path | None = None, filename: str | None = None) -> None:
        super().__init__(dirpath, filename)
        self.notes: list[str] = []

    def start(self, action_name: str) -> None:
        self.notes.append(f"+{action_name}")

    def stop(self, action_name: str) -> None:
        self.notes.append(f"-{action_name}")

    def summary(self) -> str:
        return " ".join(self.notes) + "\n"

    def teardown(self, stage: str | None) -> None:
        self.notes.append(f"teardown {stage}")


def work() -> None:
    sum(range(100))


def test_an_action_is_stopped_also_when_it_raises() -> None:
    diary = Diary()
    with pytest.raises(ZeroDivisionError), diary.profile("outer"), diary.profile("inner"):
        _ = 1 / 0
    assert diary.notes == ["+outer", "+inner", "-inner", "-outer"]


def test_the_report_is_appended_to_a_file_named_by_stage_and_rank(tmp_path: Path) -> None:
    for stage, rank in [("fit", None), ("fit", None), ("validate", 1)]:
        diary = Diary(filename="times")
        diary.setup(stage, local_rank=rank, log_dir=str(tmp_path / "logs"))
        with diary.profile(stage):
            pass
        diary.describe()
        assert diary.notes[-1] == f"teardown {stage}"
    assert {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()} == {
        "fit-times.txt": "+fit -fit\n+fit -fit\n",
        "validate-times-1.txt": "+validate -validate\n",
    }


def test_the_directory_of_the_profiler_comes_before_that_of_the_trainer(tmp_path: Path) -> None:
    diary = Diary(tmp_path / "own", "times")
    diary.setup("fit", log_dir=str(tmp_path / "logs"))
    diary.start("a")
    diary.describe()
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_without_a_filename_the_first_rank_logs_the_report(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = Diary()
    diary.start("a")
    with caplog.at_level(logging.INFO, "inazuma"):
        diary.describe()
        monkeypatch.setattr(rank_zero_only, "rank", 1)
        diary.describe()
    assert caplog.messages == ["+a\n"]


def test_file_names_are_safe_and_keep_the_name_of_the_hook(tmp_path: Path) -> None:
    profiler = PassThroughProfiler(tmp_path, 'a:b/c\\d*"e')
    profiler.setup("fit", local_rank=2)
    assert profiler.file_name("[Callback]X?.on_y", ".prof") == "fit-a_b_c_d_e-2-[Callback]X_.on_y.prof"
    assert profiler.file_name("x" * 300 + ".on_train_start").endswith("x.on_train_start.txt")
    assert len(profiler.file_name("x" * 300)) < 210
    assert PassThroughProfiler().file_name() == "profile.txt"
    assert profiler.local_rank == 2


def test_a_report_can_go_to_a_remote_directory() -> None:
    import fsspec

    diary = Diary(filename="times")
    diary.setup("fit", log_dir="memory://bucket/logs")
    diary.start("a")
    diary.describe()
    with fsspec.open("memory://bucket/logs/fit-times.txt", "r") as file:
        assert file.read() == "+a\n"


def test_the_pass_through_profiler_measures_nothing(caplog: pytest.LogCaptureFixture) -> None:
    profiler = PassThroughProfiler()
    with caplog.at_level(logging.INFO, "inazuma"), profiler.profile("a"):
        profiler.stop("b")
    profiler.describe()
    assert profiler.summary() == ""
    assert caplog.messages == []


def cells(report: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in report.splitlines() if line.startswith("|")
    ]


def test_the_simple_profiler_counts_calls_and_time() -> None:
    profiler = SimpleProfiler()
    profiler.setup("fit")
    with profiler.profile("outer"):
        for _ in range(3):
            with profiler.profile("[Callback]Inner.on_x"):
                work()
    report = profiler.summary()
    assert report.startswith("FIT Profiler Report\n")
    header, total, outer, inner = cells(report)
    assert header == ["Action", "Mean duration (s)", "Num calls", "Total time (s)", "Percentage %"]
    assert (total[0], total[2], total[4]) == ("Total", "4", "100 %")
    assert (outer[0], outer[2], inner[0], inner[2]) == ("outer", "1", "[Callback]Inner.on_x", "3")
    durations = profiler.recorded_durations["[Callback]Inner.on_x"]
    assert len(durations) == 3
    assert float(inner[3]) == pytest.approx(math.fsum(durations), rel=1e-3)
    assert float(inner[1]) == pytest.approx(math.fsum(durations) / 3, rel=1e-3)
    assert float(inner[3]) <= float(outer[3]) <= float(total[3])
    assert len({len(line) for line in report.splitlines() if line.startswith(("|", "-"))}) == 1


def test_the_short_table_has_three_columns_and_the_slowest_call_first() -> None:
    profiler = SimpleProfiler(extended=False)
    with profiler.profile("slow"):
        for _ in range(50):
            with profiler.profile("fast"):
                work()
    assert [row[0] for row in cells(profiler.summary())] == ["Action", "slow", "fast"]
    assert cells(profiler.summary())[0] == ["Action", "Mean duration (s)", "Total time (s)"]


@pytest.mark.parametrize("extended", [True, False])
def test_a_simple_profiler_that_saw_nothing_still_reports(extended: bool) -> None:
    assert SimpleProfiler(extended=extended).summary().startswith("Profiler Report\n")


def test_the_simple_profiler_refuses_what_does_not_pair() -> None:
    profiler = SimpleProfiler()
    profiler.start("a")
    with pytest.raises(ValueError, match="'a' was started while it was already running"):
        profiler.start("a")
    with pytest.raises(ValueError, match="'b' was stopped, but never started"):
        profiler.stop("b")
    assert pickle.loads(pickle.dumps(profiler)).current_actions == profiler.current_actions


def inner_work() -> None:
    work()


def calls_of(function: str, report: str) -> dict[str, str]:
    """How often each section of the report saw a function."""
    sections = dict(re.findall(r"Profile stats for: (.*)\n((?:(?!Profile stats).*\n?)*)", report))
    return {
        action: row.split()[0]
        for action, text in sections.items()
        for row in text.splitlines()
        if f"({function})" in row
    }


def test_the_advanced_profiler_shows_functions_and_goes_on_after_an_inner_action() -> None:
    profiler = AdvancedProfiler()
    with profiler.profile("outer"):
        work()
        for _ in range(2):
            with profiler.profile("inner"):
                inner_work()
        work()
    report = profiler.summary()
    assert calls_of("work", report) == {"outer": "2", "inner": "2"}
    assert calls_of("inner_work", report) == {"inner": "2"}


def test_the_advanced_profiler_takes_an_action_inside_itself() -> None:
    profiler = AdvancedProfiler()
    with profiler.profile("a"):
        with profiler.profile("a"):
            work()
        work()
    work()
    assert calls_of("work", profiler.summary()) == {"a": "2"}


def test_the_advanced_profiler_limits_lines_and_starts_anew_after_a_report(tmp_path: Path) -> None:
    profiler = AdvancedProfiler(tmp_path, "adv", line_count_restriction=1)
    profiler.setup("fit", local_rank=0)
    with profiler.profile("a"):
        inner_work()
    profiler.describe()
    report = (tmp_path / "fit-adv-0.txt").read_text()
    assert report.startswith("FIT Profiler Report\nProfile stats for: a rank: 0\n")
    assert "due to restriction <1>" in report
    assert profiler.profiled_actions == {}


def test_the_advanced_profiler_dumps_what_pstats_reads(tmp_path: Path) -> None:
    profiler = AdvancedProfiler(tmp_path, dump_stats=True)
    with profiler.profile("[A]b.c"):
        work()
    profiler.describe()
    stats = pstats.Stats(str(tmp_path / "[A]b.c.prof"))
    assert any(function == "work" for _, _, function in stats.stats)  # type: ignore[attr-defined]


def test_the_advanced_profiler_says_what_is_missing() -> None:
    profiler = AdvancedProfiler(dump_stats=True)
    with pytest.raises(ValueError, match="'b' was stopped, but never started"):
        profiler.stop("b")
    with profiler.profile("a"):
        work()
    with pytest.raises(MisconfigurationException, match=r"AdvancedProfiler\(dump_stats=True\) has no directory"):
        profiler.summary()


def test_a_running_advanced_profiler_can_be_sent_to_a_process() -> None:
    profiler = AdvancedProfiler(line_count_restriction=5)
    profiler.start("a")
    twin = pickle.loads(pickle.dumps(profiler))
    profiler.stop("a")
    with twin.profile("b"):
        work()
    assert twin.line_count_restriction == 5
    assert calls_of("work", twin.summary()) == {"b": "1"}


def test_the_profiler_for_tpus_says_why_it_is_not_there() -> None:
    with pytest.raises(ModuleNotFoundError, match="torch_xla"):
        XLAProfiler(port=9012)

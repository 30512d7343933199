"""The display of a sweep that several processes train: counts, progress, and what they print above it."""

import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from qohort.runs.directory import RunDirectory
from qohort.runs.interruption import SWEEP
from qohort.runs.summary import _print_at_once
from qohort.runs.sweep_display import (
    SHOWN,
    SweepDisplay,
    display_directory,
    end_progress,
    output_for_display,
    write_progress,
)


@pytest.fixture
def cohorts(tmp_path: Path) -> list[list[SimpleNamespace]]:
    """Three cohorts of two members; the directories of their runs exist."""
    made = [[SimpleNamespace(directory=RunDirectory(tmp_path / f"{c}-{m}")) for m in range(2)] for c in range(3)]
    for cohort in made:
        for member in cohort:
            member.directory.path.mkdir()
    return made


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory in which the workers of a sweep register."""
    (tmp_path / "sweep").mkdir()
    monkeypatch.setenv(SWEEP, str(tmp_path / "sweep"))
    return tmp_path / "sweep"


def rendered(display: SweepDisplay, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(display.render(width))
    return console.file.getvalue().splitlines()


def write(member: SimpleNamespace, name: str) -> None:
    (member.directory.path / f"{name}.json").write_text("{}")


def test_cohorts_are_counted_and_a_line_fits_in_80_columns(cohorts, directory: Path) -> None:
    write(cohorts[0][0], "failed")  # by an earlier sweep
    display = SweepDisplay(cohorts, live=True)
    assert display.counts() == {"done": 0, "failed": 0}
    for member in cohorts[1]:
        write(member, "result")
    write(cohorts[2][0], "failed")
    assert display.counts() == {"done": 1, "failed": 0}  # the other member of 2 is still trained
    words = "return 123.4, eval 200.0, 950/s × 2"
    write_progress(directory, "CartPole-v1/dqn-9817f200", 0.45, words)
    summary, line = rendered(display, 80)
    assert summary.startswith("3 cohorts: 1 done, 1 running, 1 waiting, 0 failed; 00:0")
    assert summary.endswith(" left")
    assert (line.split(), len(line) <= 80) == (["CartPole-v1/dqn-9817f200", "45%", *words.split()], True)
    assert "█████████·" in rendered(display, 120)[1]
    end_progress(directory)
    write(cohorts[2][1], "result")
    assert display.counts() == {"done": 1, "failed": 1}
    assert len(rendered(display, 80)) == 1


def test_a_killed_process_trains_nothing(cohorts, directory: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (directory / f"progress-{gone.pid}").write_text('{"name": "a", "done": 0.5, "words": ""}')
    assert SweepDisplay(cohorts, live=True).running() == []


def test_what_workers_print_is_shown_once_in_whole_lines(
    cohorts, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert display_directory() is None
    (directory / SHOWN).write_text(str(os.getpid()))
    assert display_directory() is None  # the sweep itself
    (directory / SHOWN).write_text("1")
    display = SweepDisplay(cohorts, live=True)
    with output_for_display():
        print("seed 3 is finished already")
        print("half a line", end="", file=sys.stderr)
    assert list(display.new_output()) == ["seed 3 is finished already\n"]
    with output_for_display():
        print(", and its end")
    assert list(display.new_output()) == ["half a line, and its end\n"]
    assert list(display.new_output()) == []
    assert capsys.readouterr().out == ""


def test_without_a_terminal_a_line_is_printed_when_a_cohort_is_done(cohorts, directory: Path, capsys) -> None:
    display = SweepDisplay(cohorts, live=False)
    with display:
        assert not (directory / SHOWN).exists()
        for member in cohorts[0]:
            write(member, "result")
        display._end.wait(0.8)
    assert capsys.readouterr().out == "sweep: 1 of 3 cohorts done, 0 failed\n"


def test_lines_of_a_process_are_one_write(monkeypatch):
    written = []
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=written.append, flush=lambda: written.append("flushed")))
    _print_at_once(["a", "b"])
    assert [text for text in written if text] == ["a\nb\n", "flushed"]

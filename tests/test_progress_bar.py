"""What the progress bar shows in a terminal of 80 and of 160 columns, and what it counts."""

import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time
from types import SimpleNamespace

import numpy as np
import pytest

from qohort.runs.progress_bar import CohortProgress, fitting

PARTS = ["recent return 123.4", "evaluation -1234.5", "12,345 env_steps/s of each of 5 members"]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (100, "recent return 123.4, evaluation -1234.5, 12,345 env_steps/s of each of 5 members"),
        (42, "return 123.4, eval -1234.5, 12,345/s × 5"),
        (34, "return 123.4, eval -1234.5"),
        (5, "return 123.4"),
    ],
)
def test_a_narrow_terminal_keeps_return_and_evaluation(columns: int, expected: str) -> None:
    assert fitting(PARTS, columns) == expected


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def module() -> SimpleNamespace:
    """What the bar reads of a learner: five members at 0 of 100,000 env_steps."""
    return SimpleNamespace(
        members=range(5),
        progress=SimpleNamespace(env_steps=0, budget=100_000),
        compiler=SimpleNamespace(seconds=0.0),
        evaluated_at=0,
        last_evaluation=np.full(5, np.nan),
        recent_returns=np.full(5, np.nan),
    )


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch):
    """Standard error becomes a terminal of so many columns; `read` returns what was written to it."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:

        def resize(columns: int) -> None:
            monkeypatch.setattr(sys, "stderr", stream)  # here, since pytest sets it before a test's call
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

        def read() -> str:
            stream.flush()
            text = b""
            while select.select([ours], [], [], 0.2)[0]:
                text += os.read(ours, 1 << 16)
            return text.decode()

        yield SimpleNamespace(resize=resize, read=read)
    os.close(ours)


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (80, "return 20.0, eval 55.5, 250/s × 5"),
        (160, "recent return 20.0, evaluation 55.5, 250 env_steps/s of each of 5 members"),
    ],
)
def test_speed_and_time_left_do_not_count_what_compiling_took(
    columns: int, shown: str, module, terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr("tqdm.std.time", clock)
    terminal.resize(columns)
    bar = CohortProgress()
    bar.on_train_start(None, module)
    clock.now += 1
    module.compiler.on_start("the update")
    assert "compiling the update" in terminal.read()
    clock.now += 60
    module.compiler.seconds = 60.0
    module.compiler.on_end()
    clock.now += 39
    module.progress.env_steps, module.evaluated_at = 10_000, 10_000
    module.recent_returns[:], module.last_evaluation[:] = 20.0, 55.5
    bar.on_env_step(None, module)
    last = terminal.read().split("\r")[-1]
    # 10,000 of 100,000 env_steps in 40 seconds, and so 360 seconds more.
    assert last.startswith(" 10% |")
    assert "10.0k/100k [00:40<06:00], " in last
    assert last.rstrip().endswith(shown)
    assert len(last) <= columns
    bar._bar.close()


def test_without_a_terminal_there_is_a_line_for_each_evaluation(module, capsys) -> None:
    bar = CohortProgress()
    bar.on_train_start(None, module)
    for name in ("the update", "the evaluation"):
        module.compiler.on_start(name)
        module.compiler.on_end()
    for steps, evaluated in ((500, 0), (1_000, 1_000), (1_500, 1_000), (1_600, 1_500)):
        module.progress.env_steps, module.evaluated_at = steps, evaluated
        module.last_evaluation[:] = 9.0
        bar.on_env_step(None, module)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "compiling ..."
    assert len(said) == 3
    assert said[2].startswith("1,600/100,000 env_steps, evaluation 9.0 at 1,500, ")
    assert said[1].startswith("1,000/100,000 env_steps, evaluation 9.0, ")


def test_a_run_that_is_too_short_for_its_compilation_is_told_what_is_faster(module, capsys) -> None:
    module.progress.budget = 2_000
    bar = CohortProgress()
    bar.on_train_start(None, module)
    for name in ("the update", "the evaluation"):
        module.compiler.on_start(name)
    assert capsys.readouterr().out.count("experiment=debug") == 1

"""The display of a sweep whose cohorts are trained by several processes of this machine: one for all of them.

The processes write their progress and what they print to files in the directory in which they register
(`qohort.runs.interruption`). The sweep shows the progress in its terminal and prints the rest above it, so that nothing
is overwritten. Without a terminal, the sweep prints a line when a cohort is done, and the processes print theirs.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from qohort.runs.interruption import SWEEP
from qohort.runs.members import Member

SHOWN = "display"
"""The file that says to the processes that the sweep shows their progress."""
EVERY = 0.5
"""Seconds between two looks at the files."""
LINES = 12
"""The display has at most so many running cohorts; the others are counted."""


def display_directory() -> Path | None:
    """Return the directory for the progress of this process; None if no sweep shows it."""
    directory = os.environ.get(SWEEP)
    if directory is None or not (Path(directory) / SHOWN).exists():
        return None
    return Path(directory) if (Path(directory) / SHOWN).read_text() != str(os.getpid()) else None


@contextlib.contextmanager
def output_for_display() -> Iterator[None]:
    """Within this context, what this process prints goes to the sweep that shows its progress, if there is one."""
    directory = display_directory()
    if directory is None:
        yield
        return
    with (
        (directory / f"output-{os.getpid()}").open("a", buffering=1) as stream,
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
    ):
        yield


def write_progress(directory: Path, name: str, done: float, words: str) -> None:
    """Write the progress of the cohort that this process trains.

    Args:
        directory: The directory of the sweep.
        name: The cohort.
        done: The fraction of its budget.
        words: Its counts, returns and speed.
    """
    file = directory / f"progress-{os.getpid()}"
    unfinished = file.with_suffix(".new")
    with contextlib.suppress(OSError):  # the sweep has ended
        unfinished.write_text(json.dumps({"name": name, "done": done, "words": words}))
        unfinished.replace(file)


def end_progress(directory: Path) -> None:
    """Say that this process trains no cohort any more."""
    (directory / f"progress-{os.getpid()}").unlink(missing_ok=True)


class SweepDisplay:
    """Shows the progress of a sweep as long as its context lasts.

    Args:
        cohorts: The members of each cohort that is not finished.
        live: Whether there is a terminal.
    """

    def __init__(self, cohorts: Sequence[Sequence[Member]], live: bool) -> None:
        self._cohorts, self._live = cohorts, live
        self._before = {id(member): _stamp(member) for cohort in cohorts for member in cohort}
        self._directory = Path(os.environ[SWEEP])
        self._began = time.monotonic()
        self._read: dict[Path, int] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._show_live if live else self._print_counts, daemon=True)

    def __enter__(self) -> SweepDisplay:
        if self._live:
            (self._directory / SHOWN).write_text(str(os.getpid()))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _show_live(self) -> None:
        console = Console(file=sys.stderr)
        with Live(console=console, auto_refresh=False, transient=True) as live:
            ended = False
            while not ended:
                ended = self._end.wait(EVERY)  # afterwards, what was printed last is read
                for text in self.new_output():
                    live.console.print(Text(text), end="")
                live.update(self.render(console.width), refresh=True)
        console.print(self.summary())

    def _print_counts(self) -> None:
        said = ""
        while not self._end.wait(EVERY):
            counts = self.counts()
            words = f"sweep: {counts['done']} of {len(self._cohorts)} cohorts done, {counts['failed']} failed"
            if counts["done"] + counts["failed"] and words != said:
                said = words
                print(words, flush=True)

    def counts(self) -> dict[str, int]:
        """Return how many cohorts are done, and how many have failed members and are not trained any more."""
        done = sum(all(self._has(member, "result") for member in cohort) for cohort in self._cohorts)
        failed = sum(
            any(self._has(member, "failed") for member in cohort)
            and all(self._has(member, "result") or self._has(member, "failed") for member in cohort)
            for cohort in self._cohorts
        )
        return {"done": done, "failed": failed}

    def _has(self, member: Member, name: str) -> bool:
        """Return whether a member has a result or a failure that this sweep wrote."""
        stamp = _stamp(member)[name]
        return stamp is not None and stamp != self._before[id(member)][name]

    def running(self) -> list[Mapping[str, Any]]:
        """Return what the processes have written about their cohorts, those that are furthest first."""
        found = []
        for file in self._directory.glob("progress-*"):
            if file.suffix:
                continue
            with contextlib.suppress(OSError, ValueError):  # it has ended meanwhile
                os.kill(int(file.name.partition("-")[2]), 0)
                found.append(json.loads(file.read_text()))
        return sorted(found, key=lambda one: -float(one["done"]))

    def new_output(self) -> Iterator[str]:
        """Yield the whole lines that processes have printed since the last call."""
        for file in sorted(self._directory.glob("output-*")):
            with contextlib.suppress(OSError), file.open("rb") as stream:
                stream.seek(self._read.get(file, 0))
                text = stream.read()
                whole = text[: text.rfind(b"\n") + 1]
                self._read[file] = self._read.get(file, 0) + len(whole)
                if whole:
                    yield whole.decode(errors="replace")

    def summary(self) -> str:
        """Return the counts and the times in one line."""
        counts, running = self.counts(), self.running()
        total = len(self._cohorts)
        finished = counts["done"] + counts["failed"] + sum(float(one["done"]) for one in running)
        seconds = time.monotonic() - self._began
        left = f", about {_time(seconds * (total - finished) / finished)} left" if 0 < finished < total else ""
        waiting = total - counts["done"] - counts["failed"] - len(running)
        return (
            f"{total} cohorts: {counts['done']} done, {len(running)} running, {max(waiting, 0)} waiting, "
            f"{counts['failed']} failed; {_time(seconds)}{left}"
        )

    def render(self, width: int) -> Group:
        """Return the display.

        Args:
            width: The columns of the terminal.
        """
        running = self.running()
        table = Table.grid(padding=(0, 1))
        for _ in range(3):
            table.add_column(no_wrap=True, overflow="ellipsis")
        bar = max(0, min(20, width - 90))  # none in 80 columns
        for one in running[:LINES]:
            full = round(bar * float(one["done"]))
            done = f"{100 * one['done']:3.0f}% {'█' * full}{'·' * (bar - full)}".rstrip()
            table.add_row(one["name"], done, one["words"])
        more = [Text(f"and {len(running) - LINES} more")] if len(running) > LINES else []
        return Group(Text(self.summary(), no_wrap=True, overflow="ellipsis"), table, *more)


def _stamp(member: Member) -> dict[str, int | None]:
    """Return when the result and the failure of a run were written; None if there is none."""
    files = {name: member.directory.path / f"{name}.json" for name in ("result", "failed")}
    return {name: file.stat().st_mtime_ns if file.exists() else None for name, file in files.items()}


def _time(seconds: float) -> str:
    """Return a time as in `1:02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"

"""Being asked to stop: a signal is noted, and training ends at the next step, saved, with an ordinary exception."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from qohort.config.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What asks for a stop: Ctrl-C, a kill, and what SLURM sends before the time is up."""


class StopRequest:
    """Notes the first signal that asks this process to stop, and hands it to the processes it has started.

    A second Ctrl-C works as ever. One instance a process, `STOP`, since a signal is the process's.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._before: dict[int, Any] = {}
        self._earlier: Any = None
        self._holders = 0
        self._waits = False

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """As `with STOP`, around jobs that run here or elsewhere: a signal that none of them can get ends the wait."""
        with self:
            self._waits = True
            try:
                yield
            finally:
                self._waits = False

    def __enter__(self) -> StopRequest:
        self._holders += 1
        self.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holders -= 1
        if self._holders == 0:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._before.clear()

    def listen(self) -> None:
        """Take the signals, also from whoever took them since (Lightning does when it starts)."""
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may; a launcher that trains elsewhere stops its workers by itself
        for number in SIGNALS:
            handler = signal.signal(number, self._note)
            self._before.setdefault(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
        self._earlier = self._before.get(number)
        workers = [child for child in _descendants(os.getpid()) if _is_worker(child)]
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGTERM)
        if self._waits and self._holders == 1 and not workers:
            raise Interrupted(f"interrupted by {self.signal}: what a cluster's queue holds goes on there")

    def hand_on(self) -> None:
        """Give the signal to the handler that was there before, now that everything is saved."""
        if self.signal is not None and callable(self._earlier):
            self._earlier(signal.Signals[self.signal], None)


STOP = StopRequest()


def _descendants(pid: int) -> list[int]:
    """The processes that a process has started, and theirs, on Linux."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # gone, or another system
        return []
    return children + [one for child in children for one in _descendants(child)]


def _is_worker(pid: int) -> bool:
    """Whether a process runs jobs for a launcher: joblib's, Ray's (busy ones) or submitit's on this machine."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return any(name in command for name in (b"loky", b"ray::_run_job", b"submitit.core._submit"))

"""Being asked to stop: a signal is noted, and training ends at the next step, saved, with an ordinary exception."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What asks for a stop: Ctrl-C, a kill, and what SLURM sends before the time is up."""


class StopRequest:
    """Notes the first signal that asks this process to stop, and hands it to the processes it has started.

    A second Ctrl-C works as ever. One instance a process, `STOP`, since a signal is the process's.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._before: dict[int, Any] = {}
        self._holders = 0

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
        for child in _children(os.getpid()):
            try:
                os.kill(child, signal.SIGTERM)
            except ProcessLookupError:
                continue


STOP = StopRequest()


def _children(pid: int) -> list[int]:
    """The workers of joblib's launcher, on Linux; other launchers see to their own."""
    try:
        found = [
            int(one) for task in Path(f"/proc/{pid}/task").iterdir() for one in (task / "children").read_text().split()
        ]
        return [child for child in found if b"loky" in Path(f"/proc/{child}/cmdline").read_bytes()]
    except OSError:
        return []

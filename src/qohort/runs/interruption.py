"""Stopping: a signal is noted, and training ends at the next step, saved, with an ordinary exception.

A sweep passes signals on to its workers. Each process that trains for it registers in a directory that the sweep names
in the environment, whatever launcher has started it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from qohort.config.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""What asks for a stop: Ctrl-C, a kill, a closed terminal, and what SLURM sends before the time is up."""
SWEEP = "QOHORT_SWEEP"
"""The environment variable with the directory in which the workers of a sweep register."""
RUNNING = "sweep"
"""The file there on which the sweep has a lock as long as it runs."""
STOPPED = "stopped"
"""The file there that says by which signal the sweep was stopped, for workers that register later."""


class StopRequest:
    """Notes the first signal that asks this process to stop, and passes it on to the workers of its sweep.

    A second Ctrl-C raises KeyboardInterrupt as usual. There is one instance per process, `STOP`, since signals belong
    to the process.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._before: dict[int, Any] = {}
        self._earlier: Any = None
        self._holders = 0
        self._workers: Path | None = None
        self._registration: int | None = None
        self._watching = False

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Like `with STOP`, around a sweep whose jobs run in this process or in others.

        A signal is passed on to the workers on this machine. If there are none, it ends the wait: what a cluster's
        queue holds goes on there.
        """
        with self, tempfile.TemporaryDirectory(prefix="qohort-sweep-") as directory:
            self._workers = Path(directory)
            os.environ[SWEEP] = directory
            running = os.open(self._workers / RUNNING, os.O_RDWR | os.O_CREAT)
            fcntl.flock(running, fcntl.LOCK_EX)
            try:
                yield
            finally:
                os.close(running)
                del os.environ[SWEEP]
                self._workers = None

    def __enter__(self) -> StopRequest:
        self._holders += 1
        if self._holders == 1:
            self._register()
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
            if self._registration is not None:
                os.close(self._registration)  # which gives the lock back
                self._registration = None

    def listen(self) -> None:
        """Take the signals, also from whoever took them since (Lightning does when it starts)."""
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may; a launcher that trains elsewhere stops its workers by itself
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # started by nohup
            handler = signal.signal(number, self._note)
            self._before.setdefault(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
        self._earlier = self._before.get(number)
        if self._workers is None:
            return
        (self._workers / STOPPED).write_text(self.signal)
        running = list(_registered(self._workers))
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
        if self._holders == 1 and not running:
            raise Interrupted(f"interrupted by {self.signal}: what a cluster's queue holds goes on there")

    def _register(self) -> None:
        """Make this process known to the sweep that it trains for, if there is one on this machine."""
        directory = os.environ.get(SWEEP)
        if directory is None:
            return
        try:
            self._registration = os.open(Path(directory) / str(os.getpid()), os.O_RDWR | os.O_CREAT)
        except OSError:  # the sweep is on another machine, or has ended
            return
        fcntl.flock(self._registration, fcntl.LOCK_EX)
        if self._workers is None and not self._watching:
            self._watching = True
            threading.Thread(target=self._outlive_no_sweep, args=(Path(directory),), daemon=True).start()
        with contextlib.suppress(FileNotFoundError):
            self.signal = self.signal or (Path(directory) / STOPPED).read_text()

    def _outlive_no_sweep(self, directory: Path) -> None:
        """End this worker, saved, if its sweep was killed, since nobody waits for its results any more."""
        while True:
            time.sleep(1)
            try:
                with (directory / RUNNING).open() as handle:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
            except BlockingIOError:  # the sweep runs
                continue
            except FileNotFoundError:  # it has ended
                self._watching = False
                return
        os.kill(os.getpid(), signal.SIGTERM)
        while self._holders:
            time.sleep(0.1)
        os._exit(1)

    def forget(self) -> None:
        """Give a forked process its signals back, and take from it the locks that are this process's."""
        with contextlib.suppress(ValueError):  # not in the main thread
            for number, handler in self._before.items():
                signal.signal(number, handler)
        self._before.clear()
        self._holders = 0
        if self._registration is not None:
            os.close(self._registration)
            self._registration = None

    def hand_on(self) -> None:
        """Give the signal to the handler that was there before, now that everything is saved."""
        if self.signal is not None and callable(self._earlier):
            self._earlier(signal.Signals[self.signal], None)


STOP = StopRequest()
os.register_at_fork(after_in_child=STOP.forget)


def _registered(directory: Path) -> Iterator[int]:
    """The processes that have registered and run: each holds a lock, which the system gives back when it ends."""
    for file in directory.iterdir():
        if not file.name.isdigit():
            continue
        with file.open() as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield int(file.name)

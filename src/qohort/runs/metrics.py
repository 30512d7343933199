"""Metrics: the definition of each one, and `metrics.jsonl`, whose rows all loggers get."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qohort.cohort.schedules import Progress
from qohort.config.errors import ConfigError
from qohort.runs.loggers import Sink, VideoSink

METRICS = {
    "env_steps": "environment steps of this member so far, summed over its environments; the x-axis of every plot",
    "gradient_steps": "updates of this member so far",
    "episodes": "training episodes of this member that have ended so far",
    "wall_s": "seconds of training so far, those of the whole cohort; over all sessions of a resumed run",
    "train/return": "undiscounted return of a training episode, exploration included; one row per episode, at its end",
    "train/length": "env_steps of that episode",
    "train/loss": "mean TD loss over the newest batch; logged with the next five metrics every `log_every` env_steps",
    "train/q_mean": "mean value of the actions in the newest batch, before its update",
    "train/grad_norm": "2-norm of the gradient of the newest update, before clipping",
    "train/epsilon": "current probability of a random action, with epsilon-greedy exploration",
    "train/temperature": "current temperature, with Boltzmann exploration",
    "env_steps_per_s": "env_steps per second of this member since the previous row of this kind",
    "eval/return": "mean undiscounted return of the episodes of an evaluation",
    "eval/length": "mean env_steps of those episodes",
}
"""The definition of every metric."""


RETURN = "eval/return"
"""The metric that every evaluation has."""


def read_evaluations(metrics: Path, name: str = RETURN) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the env_steps of a run's evaluations and one of their metrics, `[evaluations]` each.

    Args:
        metrics: The run's `metrics.jsonl`.
        name: The metric. It is NaN where an evaluation does not have it.
    """
    rows = _evaluation_rows(metrics)
    env_steps = np.array([row["env_steps"] for row in rows], dtype=np.int64)
    return env_steps, np.array([row.get(name) for row in rows], dtype=np.float64)


def check_metric(key: str, name: str) -> None:
    """Check that a metric is one of evaluations.

    Args:
        key: The key that has it, for the message.
        name: The metric.

    Raises:
        ConfigError: If it is not.
    """
    prefix = "eval/"
    if not name.startswith(prefix) or name == prefix:
        raise ConfigError(
            f"{key}={name} is not a metric of evaluations: give {RETURN}, eval/length, or eval/NAME with a NAME of "
            "info_metrics"
        )


def evaluation_metrics(metrics: Path) -> list[str]:
    """Return the names of the metrics that a run's evaluations have.

    Args:
        metrics: The run's `metrics.jsonl`.
    """
    return list(dict.fromkeys(key for row in _evaluation_rows(metrics) for key in row if key.startswith("eval/")))


def _evaluation_rows(metrics: Path) -> list[dict[str, Any]]:
    with metrics.open() as file:  # most rows are of training episodes: not worth parsing
        return [json.loads(line) for line in file if f'"{RETURN}"' in line]


def video_file(directory: Path, env_steps: int) -> Path:
    """Return the path of the video of an evaluation in a run directory, `.mp4` or, without ffmpeg, `.gif`."""
    return directory / "videos" / f"evaluation-{env_steps:012d}.mp4"


class MemberLog:
    """Writes one member's rows to `metrics.jsonl` and to its loggers.

    Args:
        file: Path of `metrics.jsonl`. Rows are appended if it exists.
    """

    def __init__(self, file: Path) -> None:
        self._path = file
        self._file = file.open("a")
        self.sinks: list[Sink] = []

    def log(self, row: Mapping[str, Any]) -> None:
        """Write one row. Values that are not finite become null."""
        try:
            line = json.dumps(row, allow_nan=False)
        except ValueError:  # JSON has no NaN and no infinity
            row = {key: value if math.isfinite(value) else None for key, value in row.items()}
            line = json.dumps(row)
        self._file.write(line + "\n")
        for sink in list(self.sinks):
            with self._or_without(sink):
                sink.log(row)

    @contextlib.contextmanager
    def _or_without(self, sink: Sink) -> Iterator[None]:
        """Go on without a logger that raises an error: training does not depend on it, and the file has every row."""
        try:
            yield
        except Exception as error:
            self.sinks.remove(sink)
            print(
                f"qohort: {type(sink).__name__} of {self._path.parent} failed and gets no more rows "
                f"({type(error).__name__}: {' '.join(str(error).split())}); metrics.jsonl has them all",
                file=sys.stderr,
            )

    def offset(self) -> int:
        """Flush the file to disk and return its length in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def cut(self, offset: int) -> None:
        """Truncate the file to `offset` bytes."""
        self._file.truncate(offset)
        self._file.seek(offset)

    def video(self, file: Path) -> None:
        """Hand the video of the newest evaluation to the loggers that take videos."""
        for sink in list(self.sinks):
            if isinstance(sink, VideoSink):
                with self._or_without(sink):
                    sink.video(file)

    def open_sink(self, sink: Sink) -> None:
        """Add a logger. It gets all rows and videos so far and all later ones."""
        self.sinks.append(sink)
        self._file.flush()
        with self._or_without(sink), self._path.open() as file:
            for line in file:
                row = json.loads(line)
                sink.log(row)
                if isinstance(sink, VideoSink) and "eval/return" in row:
                    made = video_file(self._path.parent, row["env_steps"])
                    for video in (made, made.with_suffix(".gif")):
                        if video.exists():
                            sink.video(video)

    def finish(self, failed: bool) -> None:
        """Close the file and all loggers, even if one of them raises an error.

        Args:
            failed: Whether the run failed or was interrupted.
        """
        with contextlib.ExitStack() as endings:
            endings.callback(self._file.close)
            for sink in list(self.sinks):
                with self._or_without(sink):
                    sink.finish(failed)


class CohortRecorder:
    """Writes the metric rows of all members of a cohort.

    Args:
        files: Path of `metrics.jsonl` of each member.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.logs = [MemberLog(file) for file in files]
        self._began = time.perf_counter()
        self._before = [0.0] * len(files)
        self._last_speed = (self._began, 0)  # seconds, without those of compiling, and env_steps

    def row(self, member: int, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Write one row of a member, with the counters first.

        Args:
            member: Index of the member.
            progress: The counters.
            metrics: Values by metric.
        """
        self.logs[member].log(
            {
                "env_steps": progress.env_steps,
                "gradient_steps": progress.gradient_steps,
                "episodes": int(progress.episodes[member]),
                "wall_s": round(self.wall_s(member), 3),
                **metrics,
            }
        )

    def wall_s(self, member: int) -> float:
        """Return a member's seconds of training, including those before a resume."""
        return self._before[member] + time.perf_counter() - self._began

    def speed(self, env_steps: int, compiling_s: float) -> float:
        """Return the env_steps per second of each member since the last call, without what compiling took.

        Args:
            env_steps: The current env_steps.
            compiling_s: The seconds of compiling so far in this process.
        """
        now, (then, before) = time.perf_counter() - compiling_s, self._last_speed
        self._last_speed = (now, env_steps)
        return round((env_steps - before) / (now - then), 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the length of each file and the wall time of each member."""
        return {
            "members": [
                {"offset": log.offset(), "wall_s": self.wall_s(member)} for member, log in enumerate(self.logs)
            ],
            "speed_from": self._last_speed[1],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the wall times, and truncate the files to their length when `state` was saved."""
        for log, member in zip(self.logs, state["members"], strict=True):
            log.cut(member["offset"])
        self._before = [member["wall_s"] for member in state["members"]]
        self._began = time.perf_counter()
        self._last_speed = (self._began, int(state["speed_from"]))

    def finish(self, failed: Container[int]) -> None:
        """Close all files and loggers, even if one of them raises an error.

        Args:
            failed: Indices of the members that failed or were interrupted.
        """
        with contextlib.ExitStack() as endings:
            for m, log in enumerate(self.logs):
                endings.callback(log.finish, m in failed)

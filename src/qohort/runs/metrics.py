"""Metrics: what each one means, `metrics.jsonl` as the source of truth, and the loggers fed from it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from qohort.cohort.schedules import Progress
from qohort.runs.loggers import Sink

METRICS = {
    "env_steps": "environment steps of this member so far, summed over its environments; the x-axis of every plot",
    "gradient_steps": "updates of this member so far",
    "episodes": "training episodes of this member that have ended so far",
    "wall_s": "seconds of training so far, those of its whole cohort, of all its sessions where it was resumed",
    "train/return": "the undiscounted return of a training episode, exploration included; a row an episode, at its end",
    "train/length": "the env_steps of that episode",
    "train/loss": "the mean TD loss over the newest batch; this and the next five every `log_every` env_steps",
    "train/q_mean": "the mean value of the actions in the newest batch, before its update",
    "train/grad_norm": "the 2-norm of all gradients of the newest update, before clipping",
    "train/epsilon": "the probability of a random action now, under epsilon-greedy exploration",
    "train/temperature": "the temperature now, under Boltzmann exploration",
    "env_steps_per_s": "env_steps a second of this member since the row before",
    "eval/return": "the mean undiscounted return of the greedy episodes of an evaluation",
    "eval/length": "the mean env_steps of those episodes",
}
"""Every metric in words."""


class MemberLog:
    """One member's `metrics.jsonl`, and the sinks that get the same rows.

    Args:
        file: `metrics.jsonl`.
    """

    def __init__(self, file: Path) -> None:
        self._path = file
        self._file = file.open("a")
        self.sinks: list[Sink] = []

    def log(self, row: Mapping[str, Any]) -> None:
        """Take one row."""
        try:
            line = json.dumps(row, allow_nan=False)
        except ValueError:  # JSON has no NaN and no infinity
            row = {key: value if math.isfinite(value) else None for key, value in row.items()}
            line = json.dumps(row)
        self._file.write(line + "\n")
        for sink in self.sinks:
            sink.log(row)

    def offset(self) -> int:
        """The length of the file in bytes, with everything so far on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def cut(self, offset: int) -> None:
        """Cut the file back to `offset` bytes."""
        self._file.truncate(offset)
        self._file.seek(offset)

    def open_sink(self, sink: Sink) -> None:
        """Give a new sink the rows so far, and all that follow."""
        self.sinks.append(sink)
        self._file.flush()
        with self._path.open() as file:
            for line in file:
                sink.log(json.loads(line))

    def finish(self, failed: bool) -> None:
        """Close the file and the sinks, each of them also where another one raises."""
        with contextlib.ExitStack() as endings:
            for sink in self.sinks:
                endings.callback(sink.finish, failed)
            endings.callback(self._file.close)


class CohortRecorder:
    """The metrics of a cohort.

    Args:
        files: Each member's `metrics.jsonl`.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.logs = [MemberLog(file) for file in files]
        self._began = time.perf_counter()
        self._before = [0.0] * len(files)
        self._last_speed = (self._began, 0)

    def row(self, member: int, progress: Progress, metrics: Mapping[str, float]) -> None:
        """One row of one member, with the counters in front."""
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
        """Seconds of training of a member, those before a resume included."""
        return self._before[member] + time.perf_counter() - self._began

    def speed(self, env_steps: int) -> float:
        """env_steps a second of each member since the last call."""
        now, (then, before) = time.perf_counter(), self._last_speed
        self._last_speed = (now, env_steps)
        return round((env_steps - before) / (now - then), 1)

    def state_dict(self) -> dict[str, Any]:
        """How far each file is written, and each member's seconds."""
        return {
            "members": [
                {"offset": log.offset(), "wall_s": self.wall_s(member)} for member, log in enumerate(self.logs)
            ],
            "speed_from": self._last_speed[1],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Cut the files back to where `state` was taken."""
        for log, member in zip(self.logs, state["members"], strict=True):
            log.cut(member["offset"])
        self._before = [member["wall_s"] for member in state["members"]]
        self._began = time.perf_counter()
        self._last_speed = (self._began, int(state["speed_from"]))

    def finish(self, failed: Container[int]) -> None:
        """Close every file and every sink, also where one raises; those of `failed` members as failed."""
        with contextlib.ExitStack() as endings:
            for m, log in enumerate(self.logs):
                endings.callback(log.finish, m in failed)

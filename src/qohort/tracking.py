"""Metrics: what each one means, `metrics.jsonl` as the source of truth, and the loggers fed from it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from qohort.exploration import Progress
from qohort.interruption import STOP

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


class Run:
    """What a logger may want to know of a run.

    Args:
        name: What tells it from the others of its group, as `seed-3`.
        group: What its cohort's runs have in common, as `CartPole-v1/dqn-0123abcd`.
        job_type: The agent.
        config: The resolved configuration.
    """

    def __init__(self, name: str, group: str, job_type: str, config: Mapping[str, Any]) -> None:
        self.name, self.group, self.job_type, self.config = name, group, job_type, config


class Sink(Protocol):
    """A logger of one member."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Take one row."""

    def finish(self, failed: bool) -> None:
        """Close; no row follows."""


WANDB_MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")
"""What `WANDB_MODE` may be; the last two are older names of the first two."""


class WandbSink:
    """A W&B run, with `env_steps` as its x-axis. Offline unless `WANDB_MODE` says otherwise; keys come from there too.

    Rows are handed on some at a time: waking W&B's service for each one costs as much as several updates.

    Args:
        directory: The run directory; W&B writes to `wandb/` in it.
        run: What it is of.
        project: The W&B project.
        entity: The W&B user or team, None for the account's own.
        group: The W&B group, None for that of the run. A sweep gives its own name.
        tags: The run's tags.
    """

    def __init__(
        self,
        directory: Path,
        run: Run,
        project: str = "qohort",
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        import wandb

        shutil.rmtree(directory / "wandb", ignore_errors=True)
        self._run = wandb.init(
            project=project,
            entity=entity,
            name=f"{run.group}/{run.name}",
            group=group or run.group,
            job_type=run.job_type,
            tags=list(tags),
            config=dict(run.config),
            dir=directory,
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            reinit="create_new",
            # A cohort's members share one machine and one terminal: its load and its output are not theirs.
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )
        self._run.define_metric("env_steps")
        self._run.define_metric("*", step_metric="env_steps")
        self._waiting: list[dict[str, Any]] = []
        self._handed_on = time.monotonic()

    def log(self, row: Mapping[str, Any]) -> None:
        """Take one row; it is with W&B after 100 rows or at the first one after 5 seconds."""
        self._waiting.append(dict(row))
        if len(self._waiting) >= 100 or time.monotonic() - self._handed_on > 5:
            self._hand_on()

    def _hand_on(self) -> None:
        with _unless_stopped():
            for row in self._waiting:
                self._run.log(row)
        self._waiting.clear()
        self._handed_on = time.monotonic()

    def finish(self, failed: bool) -> None:
        """Hand on what is left and finish the run."""
        with _unless_stopped():
            try:
                self._hand_on()
            finally:
                self._run.finish(exit_code=int(failed))


@contextlib.contextmanager
def _unless_stopped() -> Iterator[None]:
    """Raise errors of W&B's, but not while training stops: SLURM's signal ends W&B's service as it asks us to end.

    Nothing is lost: the run that goes on makes its W&B run anew.
    """
    try:
        yield
    except Exception:
        if STOP.signal is None:
            raise


class LightningSink:
    """One of Lightning's own loggers, by env_steps.

    Args:
        directory: The run directory.
        run: What it is of.
        name: `csv` or `tensorboard`; also the folder in the run directory.
    """

    def __init__(self, directory: Path, run: Run, name: Literal["csv", "tensorboard"]) -> None:
        from pytorch_lightning import loggers

        shutil.rmtree(directory / name, ignore_errors=True)
        kind = {"csv": loggers.CSVLogger, "tensorboard": loggers.TensorBoardLogger}[name]
        self._logger = kind(save_dir=directory, name=name, version="")

    def log(self, row: Mapping[str, Any]) -> None:
        """Take one row."""
        self._logger.log_metrics(dict(row), step=row["env_steps"])

    def finish(self, failed: bool) -> None:
        """Write what is left."""
        self._logger.finalize("failed" if failed else "success")


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

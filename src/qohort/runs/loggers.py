"""Loggers: W&B, CSV and TensorBoard. They get the same rows as `metrics.jsonl`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

from qohort.runs.interruption import STOP
from qohort.runs.wandb_runs import note_rows, start_wandb


class RunInfo:
    """Information about a run for its loggers.

    Args:
        name: Name of the run within its group, as `seed-3`.
        group: Name that all runs of the experiment share, as `CartPole-v1/dqn-0123abcd`.
        job_type: The agent.
        config: The resolved configuration.
        alone: Whether the command trains this run only.
        id: An id that the run keeps for life, also when it is resumed or moved; empty if it has none.
    """

    def __init__(
        self, name: str, group: str, job_type: str, config: Mapping[str, Any], alone: bool = True, id: str = ""
    ) -> None:
        self.name, self.group, self.job_type, self.config, self.alone = name, group, job_type, config, alone
        self.id = id


class Sink(Protocol):
    """A logger of one member."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Log one row.

        Args:
            row: Values by metric; see `qohort.runs.metrics.METRICS`.
        """

    def finish(self, failed: bool) -> None:
        """Close the logger after the last row.

        Args:
            failed: Whether the run failed or was interrupted.
        """


@runtime_checkable
class VideoSink(Protocol):
    """A logger of one member that takes videos, too."""

    def video(self, file: Path) -> None:
        """Log a video that belongs to the newest row.

        Args:
            file: An `.mp4` or `.gif` file.
        """


class WandbSink:
    """Logs to a W&B run with `env_steps` as the x-axis. It is offline unless `WANDB_MODE` is set.

    A member has one W&B run for life. The index of a row in `metrics.jsonl` is its step in W&B, so a resumed run sends
    only the rows that W&B does not have yet. Rows are sent in batches, since waking W&B's service for each row costs as
    much as several updates.

    Args:
        directory: The run directory; W&B writes to `wandb/` in it.
        run: Information about the run.
        project: The W&B project.
        entity: The W&B user or team; None for the account's default.
        group: The W&B group; None for the run's group. A sweep passes its name.
        tags: The run's tags.
    """

    def __init__(
        self,
        directory: Path,
        run: RunInfo,
        project: str = "qohort",
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        identity = f"{run.group}/{run.name}"
        id = os.environ.get("WANDB_RUN_ID") or run.id or None
        if id is not None and id != run.id and not run.alone:  # one id for several runs, which would mix their rows
            id += "-" + hashlib.sha256(identity.encode()).hexdigest()[:8]
        self._run, self._known = start_wandb(
            directory,
            id,
            project=project,
            entity=entity,
            name=identity,
            group=group or run.group,
            job_type=run.job_type,
            tags=list(tags),
            config=dict(run.config),
        )
        self._next = 0
        self._waiting: list[tuple[int, dict[str, Any]]] = []
        self._handed_on = time.monotonic()

    def log(self, row: Mapping[str, Any]) -> None:
        """Log one row. Rows are sent to W&B after 100 rows, or with the first row after 5 seconds."""
        if self._next >= self._known:
            self._waiting.append((self._next, dict(row)))
        self._next += 1
        if len(self._waiting) >= 100 or time.monotonic() - self._handed_on > 5:
            self._hand_on()

    def video(self, file: Path) -> None:
        """Log a video of the newest row's evaluation as `eval/video`."""
        import wandb

        if self._next > self._known:
            self._waiting.append((self._next - 1, {"eval/video": wandb.Video(str(file))}))

    def _hand_on(self) -> None:
        with _unless_stopped():
            for step, row in self._waiting:
                self._run.log(row, step=step)
        self._waiting.clear()
        self._handed_on = time.monotonic()

    def finish(self, failed: bool) -> None:
        """Send the remaining rows and finish the W&B run."""
        with _unless_stopped():
            try:
                self._hand_on()
                note_rows(self._run, max(self._next, self._known))
            finally:
                self._run.finish(exit_code=int(failed))


@contextlib.contextmanager
def _unless_stopped() -> Iterator[None]:
    """Suppress errors of W&B if training was asked to stop, since SLURM's signal also ends W&B's service.

    Nothing is lost: the resumed run sends the rows that W&B does not have.
    """
    try:
        yield
    except Exception:
        if STOP.signal is None:
            raise


class LightningSink:
    """Logs to one of Lightning's loggers, with env_steps as the step.

    Args:
        directory: The run directory.
        run: Information about the run.
        name: `csv` or `tensorboard`; also the name of the folder in the run directory.
    """

    def __init__(self, directory: Path, run: RunInfo, name: Literal["csv", "tensorboard"]) -> None:
        from pytorch_lightning import loggers
        from pytorch_lightning.utilities import rank_zero_only

        cast(
            Any, rank_zero_only
        ).rank = 0  # a single process, whatever SLURM_PROCID or RANK say; other ranks would write nothing
        shutil.rmtree(directory / name, ignore_errors=True)
        kind = {"csv": loggers.CSVLogger, "tensorboard": loggers.TensorBoardLogger}[name]
        self._logger = kind(save_dir=directory, name=name, version="")

    def log(self, row: Mapping[str, Any]) -> None:
        """Log one row."""
        numbers = {key: value for key, value in row.items() if value is not None}  # null: it was not finite
        self._logger.log_metrics(numbers, step=row["env_steps"])

    def finish(self, failed: bool) -> None:
        """Write the remaining rows and close the logger."""
        self._logger.finalize("failed" if failed else "success")

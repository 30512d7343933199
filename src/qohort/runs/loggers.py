"""Loggers: where the rows of a member go besides its `metrics.jsonl`."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from qohort.runs.interruption import STOP


class RunInfo:
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
        run: RunInfo,
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

    def __init__(self, directory: Path, run: RunInfo, name: Literal["csv", "tensorboard"]) -> None:
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

"""The callback that saves checkpoints during training, and a last one when training is asked to stop."""

from __future__ import annotations

import time
from typing import Any, cast

import pytorch_lightning as pl

from qohort.agent.callbacks import CohortCallback, Learner
from qohort.cohort.schedules import Intervals
from qohort.config.errors import Interrupted
from qohort.config.schema import TrainConfig
from qohort.runs.checkpoints import step_name
from qohort.runs.interruption import STOP


class Checkpointing(CohortCallback):
    """Saves a checkpoint at intervals of env_steps and of minutes, and at a signal that asks to stop.

    Args:
        config: The first member's configuration.
    """

    by_rounds = True

    def __init__(self, config: TrainConfig) -> None:
        self._config = config

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the intervals at the current step and time."""
        progress = cast(Any, pl_module).progress
        self._intervals = Intervals(progress)
        self._intervals.last = dict.fromkeys(("checkpoint", "clock"), progress.env_steps)
        self._saved = time.monotonic()

    def on_env_step(self, trainer: pl.Trainer, module: Learner) -> None:
        """Save a checkpoint if one is due. `qohort.runs.training` saves the final one.

        Raises:
            Interrupted: If a signal asked to stop; a checkpoint was saved.
        """
        if module.finished and (STOP.signal is None or module.evaluated_at == module.progress.env_steps):
            return
        checkpoint = self._config.checkpoint
        by_clock = self._intervals.due("clock", 100) and time.monotonic() - self._saved > 60 * checkpoint.minutes
        if self._intervals.due("checkpoint", checkpoint.every) or by_clock:
            self._save(trainer, module)
        if STOP.signal is not None:
            self._stop(trainer, module, STOP.signal)

    def _save(self, trainer: pl.Trainer, module: Learner) -> None:
        trainer.save_checkpoint(step_name(module.progress.env_steps))
        self._saved = time.monotonic()

    def _stop(self, trainer: pl.Trainer, module: Learner, reason: str) -> None:
        env_steps = module.progress.env_steps
        at = f"interrupted by {reason} at {env_steps:,} of {self._config.budget:,} env_steps"
        if env_steps == 0:
            raise Interrupted(f"{at}: the same command starts over")
        self._save(trainer, module)
        command = "the same command" + (" without overwrite=true" if self._config.overwrite else "")
        raise Interrupted(f"{at} and saved: {command} resumes the run")

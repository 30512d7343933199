"""Hooks for callbacks besides Lightning's own: what happens between updates.

A callback named in the group `callbacks` of a configuration is any `pytorch_lightning.Callback`. One that derives from
`CohortCallback` is also called at the moments below. `module.log(name, value)` in any hook writes a metric to every
member's rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray

from qohort.agent.evaluation import EpisodeScores
from qohort.cohort.schedules import Progress
from qohort.cohort.stacking import CohortNetwork
from qohort.config.schema import TrainConfig


class Learner(Protocol):
    """What a callback may read of the learner, `qohort.agent.learner.QLearning`."""

    members: Sequence[TrainConfig]
    """Each member's configuration."""
    progress: Progress
    """env_steps, gradient_steps and each member's episodes so far."""
    online: CohortNetwork
    """The networks that learn; parameters `[M, ...]`."""
    failed: set[int]
    """The members that have failed."""
    last_evaluation: NDArray[np.float64]
    """The mean return of each member's newest evaluation, `[M]`; NaN before the first."""

    @property
    def recent_returns(self) -> NDArray[np.float64]:
        """A moving average of the returns of each member's training episodes, `[M]`; NaN before the first has ended."""

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""

    @property
    def evaluated_at(self) -> int:
        """The env_steps of the newest evaluation; 0 before the first."""

    def log(self, name: str, value: Any) -> None:
        """Log a metric: a number for all members, or one of each, `[M]`."""


class CohortCallback(pl.Callback):
    """A Lightning callback that is also called while environments step, with or without updates."""

    def on_env_step(self, trainer: pl.Trainer, module: Learner) -> None:
        """Called before each step of the environments, after what was due (target copy, evaluation) was done."""

    def on_evaluation_end(self, trainer: pl.Trainer, module: Learner, scores: EpisodeScores) -> None:
        """Called after each evaluation.

        Args:
            trainer: Lightning's Trainer.
            module: The learner.
            scores: Returns and lengths of the evaluation's episodes, `[M, episodes]`.
        """


class ParameterNorm(CohortCallback):
    """Logs the 2-norm of each member's online parameters at each evaluation, as `train/parameter_norm`."""

    def on_evaluation_end(self, trainer: pl.Trainer, module: Learner, scores: EpisodeScores) -> None:
        """Log it."""
        squares = [parameter.detach().square().flatten(1).sum(1) for parameter in module.online.parameters()]
        module.log("train/parameter_norm", torch.stack(squares).sum(0).sqrt())

"""Callbacks: hooks for what happens between updates, in addition to Lightning's own.

The group `callbacks` of the configuration takes any `pytorch_lightning.Callback`. A callback that derives from
`CohortCallback` also gets the hooks below. In any hook, `module.log(name, value)` writes a metric to every member's
rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray

from qohort.agent.evaluation import EpisodeScores
from qohort.cohort.program import Compiler
from qohort.cohort.schedules import Progress
from qohort.cohort.stacking import CohortNetwork
from qohort.config.schema import TrainConfig


class Learner(Protocol):
    """The attributes of the learner, `qohort.agent.learner.QLearning`, that a callback may read."""

    members: Sequence[TrainConfig]
    """The configuration of each member."""
    compiler: Compiler
    """Compiles the programs."""
    progress: Progress
    """The env_steps, gradient_steps and episodes so far."""
    online: CohortNetwork
    """The online networks, with parameters `[M, ...]`."""
    failed: set[int]
    """The indices of the members that have failed."""
    last_evaluation: NDArray[np.float64]
    """The mean return of each member's last evaluation, `[M]`; NaN before the first evaluation."""

    @property
    def recent_returns(self) -> NDArray[np.float64]:
        """The moving average of each member's training returns, `[M]`; NaN before the first episode has ended."""

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""

    @property
    def evaluated_at(self) -> int:
        """The env_steps at the last evaluation; 0 before the first evaluation."""

    def log(self, name: str, value: Any) -> None:
        """Log a metric: one number for all members, or one per member, `[M]`."""


class CohortCallback(pl.Callback):
    """A Lightning callback with additional hooks for the environment loop.

    Tensor environments are stepped many times without returning to Python. Where a callback has `on_env_step`, or one
    of Lightning's hooks that are called at each update, they are stepped one by one instead.
    """

    by_rounds: ClassVar[bool] = False
    """Whether `on_env_step` may be called once for many steps."""

    def on_env_step(self, trainer: pl.Trainer, module: Learner) -> None:
        """Called before each step of the environments, after any target copy and evaluation that are due."""

    def on_evaluation_end(self, trainer: pl.Trainer, module: Learner, scores: EpisodeScores) -> None:
        """Called after each evaluation.

        Args:
            trainer: Lightning's Trainer.
            module: The learner.
            scores: The returns and lengths of the evaluation episodes, `[M, episodes]`.
        """


def has_hook(callback: pl.Callback, *names: str) -> bool:
    """Return whether a callback has its own version of one of these hooks."""
    base = CohortCallback if isinstance(callback, CohortCallback) else pl.Callback
    return any(getattr(type(callback), name) is not getattr(base, name) for name in names)


class ParameterNorm(CohortCallback):
    """Logs the 2-norm of each member's online parameters as `train/parameter_norm` after each evaluation."""

    def on_evaluation_end(self, trainer: pl.Trainer, module: Learner, scores: EpisodeScores) -> None:
        """Log the norm."""
        squares = [parameter.detach().square().flatten(1).sum(1) for parameter in module.online.parameters()]
        module.log("train/parameter_norm", torch.stack(squares).sum(0).sqrt())

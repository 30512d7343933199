"""TODO replay.base."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from qohort.cohort.schedules import Progress
from qohort.config.schema import TrainConfig

Batch = dict[str, Tensor]
"""`observation [M, B, ...]`, `action [M, B]`, `reward [M, B]`, `discount [M, B]`, `next_observation [M, B, ...]`."""


Values = Callable[[Tensor], Tensor]
"""Observations `[M, B, ...]` to action values `[M, B, A]`."""


class Replay(ABC):
    """What the environment loop and the learner need of a replay."""

    makes_targets: ClassVar[bool] = False
    """Whether its batches have their `target`, so that there is nothing to bootstrap from."""

    @abstractmethod
    def add(
        self,
        observation: NDArray[Any],
        action: NDArray[np.int64],
        reward: NDArray[np.float64],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        next_observation: NDArray[Any],
    ) -> None:
        """Store one step of every environment: arrays `[M, E, ...]`."""

    @classmethod
    def needed(cls, config: TrainConfig) -> int:
        """The env_steps of a member before a batch can be drawn."""
        return 1

    @classmethod
    def drawn(cls, config: TrainConfig) -> int:
        """Transitions of a member in a batch, B."""
        return config.batch_size

    @classmethod
    def misfit(cls, config: TrainConfig) -> str | None:
        """What in a configuration this replay cannot work with, in words; None for nothing."""
        return None

    @abstractmethod
    def sample(self, progress: Progress) -> Batch:
        """Draw a batch for every member."""

    def refresh(self, values: Values) -> None:  # noqa: B027 -- most have no use for it
        """Look at the networks before the batches of one round of updates are drawn.

        Args:
            values: Observations `[M, B, ...]` to action values `[M, B, A]`, by the online networks without noise.
        """

    def feed_back(self, td_error: Tensor) -> None:  # noqa: B027 -- most have no use for it
        """Take the TD errors `[M, B]` of the newest batch."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that changes while training."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken."""


@dataclass(frozen=True)
class ReplaySpec:
    """What a replay must know of the run.

    Attributes:
        observation_space: One environment's.
        num_envs: Environments a member, E.
        batch_size: Transitions a member in a batch, B.
        train_every: env_steps of a member between rounds of updates.
        gamma: Each member's discount factor a step, `[M]` float32.
        seeds: Each member's seed.
        budget: The env_steps that a member may take: no replay needs to hold more.
        device: Where storage and batches live.
        compile_mode: One of `COMPILE_MODES`.
    """

    observation_space: spaces.Space[Any]
    num_envs: int
    batch_size: int
    train_every: int
    gamma: Tensor
    seeds: Sequence[int]
    budget: int
    device: torch.device
    compile_mode: str

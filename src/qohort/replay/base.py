"""What a replay is: it takes transitions from the environments and gives batches to the update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from qohort.cohort.program import Compiler
from qohort.cohort.schedules import Progress
from qohort.config.schema import TrainConfig

Batch = dict[str, Tensor]
"""A batch of transitions: `[M, B, ...]` for a cohort, `[B, ...]` inside a loss.

Always: `observation`, `action`. Then either `reward`, `discount` (γⁿ, 0 where terminated) and `next_observation`, or
`target`, where the replay has made the target itself. Where there are such: `weight`, the importance weights of
prioritised replay; `ended`, whether the episode ended with the transition, terminated or truncated; `normal_<use>` and
`fractions_<use>`, the random numbers of one use of a network (`online`, `target`, `policy`).
"""

Values = Callable[[Tensor], Tensor]
"""Observations `[M, B, ...]` to action values `[M, B, A]`."""


class Transition(NamedTuple):
    """One step of every environment of a cohort: arrays `[M, E, ...]`."""

    observation: NDArray[Any]
    action: NDArray[np.int64]
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    next_observation: NDArray[Any]
    """What was observed after the step: the true last observation where the episode ended."""

    @property
    def ended(self) -> NDArray[np.bool_]:
        """Whether the episode ended with the step, terminated or truncated."""
        return self.terminated | self.truncated


class Replay(ABC):
    """Takes transitions, gives batches."""

    makes_targets: ClassVar[bool] = False
    """Whether its batches have a `target`, so that nothing is bootstrapped from."""
    newest_only: ClassVar[bool] = False
    """Whether its batches are the newest transitions, each of them once and in order."""

    @abstractmethod
    def add(self, transition: Transition) -> None:
        """Store one step of every environment."""

    @classmethod
    def min_env_steps(cls, config: TrainConfig) -> int:
        """The env_steps of a member before the first batch can be drawn."""
        return 1

    @classmethod
    def batch_size(cls, config: TrainConfig) -> int:
        """The number of transitions of a member in a batch, B."""
        return config.batch_size

    @classmethod
    def incompatibility(cls, config: TrainConfig) -> str | None:
        """What in a configuration does not go with this replay, as a message; None for nothing."""
        return None

    @abstractmethod
    def sample(self, progress: Progress) -> Batch:
        """Draw a batch for every member."""

    def refresh(self, values: Values) -> None:  # noqa: B027 -- most replays do not need it
        """Called before the batches of each round of updates are drawn.

        Args:
            values: Observations `[M, B, ...]` to action values `[M, B, A]`, by the online networks without noise.
        """

    def feed_back(self, td_error: Tensor) -> None:  # noqa: B027 -- most replays do not need it
        """Take the TD errors `[M, B]` of the newest batch."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that changes while training."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken."""


@dataclass(frozen=True)
class ReplaySpec:
    """What a replay is given by the run.

    Attributes:
        observation_space: One environment's.
        num_envs: Environments a member, E.
        batch_size: Transitions a member in a batch, B.
        train_every: env_steps of a member between rounds of updates.
        gamma: Each member's discount factor, `[M]` float32.
        seeds: Each member's seed.
        budget: The env_steps that a member may take; no replay needs to hold more.
        device: Where storage and batches live.
        compiler: Compiles the drawing of batches.
    """

    observation_space: spaces.Space[Any]
    num_envs: int
    batch_size: int
    train_every: int
    gamma: Tensor
    seeds: Sequence[int]
    budget: int
    device: torch.device
    compiler: Compiler

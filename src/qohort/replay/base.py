"""The interface of a replay, which stores transitions and samples batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from torch import Tensor

from qohort.cohort.program import Compiler
from qohort.cohort.schedules import Progress
from qohort.config.schema import TrainConfig
from qohort.networks.branches import BranchedActions
from qohort.replay.transition import Batch, Frames, Transition, Values


class Replay(ABC):
    """Base class of the replays."""

    newest_only: ClassVar[bool] = False
    """Whether batches are the newest transitions, each once and in order."""

    refillable: ClassVar[bool] = True
    """Whether training can go on from a checkpoint without the replay, which is filled anew."""

    @abstractmethod
    def add(self, transition: Transition) -> None:
        """Store one step of every environment."""

    @classmethod
    def min_env_steps(cls, config: TrainConfig) -> int:
        """Return the env_steps that a member needs before the first batch can be sampled."""
        return 1

    @classmethod
    def batch_size(cls, config: TrainConfig) -> int:
        """Return the number of transitions per member in a batch, B."""
        return config.batch_size

    @classmethod
    def incompatibility(cls, config: TrainConfig) -> str | None:
        """Return a message if a configuration is incompatible with this replay, else None."""
        return None

    @abstractmethod
    def sample(self, progress: Progress) -> Batch:
        """Sample a batch for every member.

        Args:
            progress: The cohort's progress, for schedules.
        """

    def refresh(self, values: Values) -> None:  # noqa: B027 -- most replays do not need it
        """Called before the batches of each round of updates are sampled.

        Args:
            values: Maps observations `[M, B, ...]` to action values `[M, B, A]` of the online networks, without noise.
        """

    def update_priorities(self, td_error: Tensor) -> None:  # noqa: B027 -- most replays do not need it
        """Receive the TD errors `[M, B]` of the last batch."""

    def truncate(self) -> None:  # noqa: B027 -- a replay without windows over several steps does not need it
        """Mark the newest step of each environment as the end of its episode, because the next one starts anew."""

    @property
    def nbytes(self) -> int:
        """The size of what grows with the capacity, of all members, in bytes; 0 if that is little."""
        return 0

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes during training. It may share memory with the replay."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""


@dataclass(frozen=True)
class ReplaySpec:
    """The properties of a run that a replay depends on.

    Attributes:
        observation_space: The observation space of one environment.
        num_envs: Environments per member, E.
        batch_size: Transitions per member in a batch, B.
        train_every: The env_steps of a member between rounds of updates.
        gamma: The discount factor of each member, `[M]` float32.
        seeds: The seed of each member.
        budget: The env_steps that a member may take. No replay needs a larger capacity.
        device: The device of the storage and the batches.
        compiler: Compiles the sampling of batches.
        frames: How observations are made of frames, if the observation after a step is always that of the next step,
            in the same episode; None if it is not, or if programs write the transitions.
        branches: The branches of actions; None if an action is one number.
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
    frames: Frames | None = None
    branches: BranchedActions | None = None

    @property
    def action_shape(self) -> tuple[int, ...]:
        """The shape of an action: `()`, or `(K,)` with branches."""
        return () if self.branches is None else (len(self.branches.sizes),)

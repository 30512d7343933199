"""The interface of a replay, which stores transitions and samples batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from qohort.cohort.program import Compiler
from qohort.cohort.schedules import Progress
from qohort.config.schema import TrainConfig
from qohort.networks.branches import BranchedActions

Batch = dict[str, Tensor]
"""A batch of transitions by name: tensors `[M, B, ...]` for a cohort, `[B, ...]` inside a loss.

Every batch has `observation` and `action`. It also has either `reward`, `discount` (γⁿ, 0 where terminated) and
`next_observation`, or `target` if the replay computes the targets itself. Optional entries are:

- `weight`: the importance weights of prioritised replay.
- `ended`: whether the episode ended with the transition, terminated or truncated.
- `normal_<use>`, `fractions_<use>`: the random numbers for one use of a network (`online`, `target` or `policy`).
"""

Values = Callable[[Tensor], Tensor]
"""A function from observations `[M, B, ...]` to action values `[M, B, A]`."""


class Transition(NamedTuple):
    """One step of every environment of a cohort, as arrays `[M, E, ...]`."""

    observation: NDArray[Any]
    action: NDArray[np.int64]
    """The actions, counted from 0, `[M, E]`; `[M, E, K]` with branches."""
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    next_observation: NDArray[Any]
    """The observation after the step; where the episode ended, its final observation."""
    life_lost: NDArray[np.bool_] | None = None
    """Where the discount after the step is 0 although the episode goes on; None for nowhere."""

    @property
    def continues(self) -> NDArray[np.bool_]:
        """Whether the discount after the step is γ, and not 0."""
        return ~self.terminated if self.life_lost is None else ~(self.terminated | self.life_lost)

    @property
    def ended(self) -> NDArray[np.bool_]:
        """Whether the episode ended with the step, terminated or truncated."""
        return self.terminated | self.truncated


class Frames(NamedTuple):
    """How observations are made of frames."""

    stack: int
    """The number of frames of an observation, on its first axis; 1 for an observation that is its own frame."""
    padding: Literal["reset", "zero"]
    """What stands for the frames before the first one of an episode: the first one, or zeros."""


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

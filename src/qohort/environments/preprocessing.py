"""What a learner is shown of its environments: rewards scaled and clipped, both normalised by running moments.

Moments are those of Stream Q(λ) (Elsayed et al., 2024, algorithms 4 to 6), for any agent. Every member keeps its own,
and a checkpoint holds them. Who is evaluated sees observations as they would be normalised now, and moves no moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from qohort.cohort.schedules import Floats
from qohort.config.schema import TrainConfig
from qohort.replay.base import Values

EPSILON = 1e-8
"""Added to variances."""


class RunningMoments:
    """Mean and sample variance of all that each member was given so far (Welford, 1962).

    Args:
        members: M.
        shape: Of one sample.
    """

    def __init__(self, members: int, shape: Sequence[int] = ()) -> None:
        self._count = np.zeros((members, *[1] * len(shape)))
        self.mean = np.zeros((members, *shape))
        self._squares = np.zeros_like(self.mean)

    def add(self, sample: Floats, where: NDArray[np.bool_]) -> None:
        """Take in a sample `[M, ...]` of the members `where [M]` says so."""
        where = where.reshape(self._count.shape)
        np.add(self._count, 1, out=self._count, where=where)
        off = sample - self.mean
        np.add(self.mean, off / np.maximum(self._count, 1), out=self.mean, where=where)
        np.add(self._squares, off * (sample - self.mean), out=self._squares, where=where)

    @property
    def variance(self) -> Floats:
        """The sample variance `[M, ...]`, 1 before two samples."""
        variance: Floats = np.where(self._count < 2, 1.0, self._squares / np.maximum(self._count - 1, 1))
        return variance

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the counts, the means and the sums of squares."""
        arrays = {"count": self._count, "mean": self.mean, "squares": self._squares}
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put them back."""
        self._count[:] = state["count"].numpy()
        self.mean[:] = state["mean"].numpy()
        self._squares[:] = state["squares"].numpy()


class ObservationNormalizer:
    """(s - mean) / √(variance + ε), by moments that hold s already.

    Args:
        members: M.
        shape: Of one observation.
    """

    def __init__(self, members: int, shape: Sequence[int]) -> None:
        self._moments = RunningMoments(members, shape)

    def __call__(self, observation: NDArray[Any], where: NDArray[np.bool_] | None = None) -> NDArray[Any]:
        """Take in what environments show, one after the other, and normalise it.

        Args:
            observation: `[M, E, ...]`.
            where: `[M, E]`, which of it is new: the rest is returned as it is. None for all.

        Returns:
            `[M, E, ...]`, of the same dtype.
        """
        normalized = observation.copy()
        for e in range(observation.shape[1]):
            new = np.ones(len(observation), dtype=bool) if where is None else where[:, e]
            if not new.any():
                continue
            sample = observation[:, e].astype(np.float64)
            self._moments.add(sample, new)
            scaled = (sample - self._moments.mean) / np.sqrt(self._moments.variance + EPSILON)
            normalized[new, e] = scaled[new]
        return normalized

    def before(self, values: Values) -> Values:
        """Action values of observations as environments show them: they are normalised, and not taken in."""

        def normalized_values(observation: Tensor) -> Tensor:
            mean, variance = (
                torch.from_numpy(one).to(observation.device).unsqueeze(1)
                for one in (self._moments.mean, self._moments.variance)
            )
            scaled = (observation.double() - mean) / (variance + EPSILON).sqrt()
            return values(scaled.to(observation.dtype))

        return normalized_values

    def state_dict(self) -> dict[str, Any]:
        """The moments."""
        return self._moments.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        self._moments.load_state_dict(state)


class RewardNormalizer:
    """r / √(variance of the running return + ε), with u ← γ u + r, and u ← r where an episode ends.

    Args:
        gamma: Each member's discount factor, `[M]`.
        num_envs: Environments a member, E.

    Deviations: 1. the variance is about the running mean, as in the authors' code; the paper prints it about 0.
    """

    def __init__(self, gamma: Floats, num_envs: int) -> None:
        self._gamma = gamma[:, None]
        self._returns = np.zeros((len(gamma), num_envs))
        self._moments = RunningMoments(len(gamma))

    def __call__(self, reward: Floats, ended: NDArray[np.bool_]) -> Floats:
        """Take in rewards `[M, E]`, one environment's after the other's, and scale them.

        Args:
            reward: Of one step of every environment.
            ended: Whether the episode ended with it, terminated or truncated.
        """
        self._returns = self._gamma * np.where(ended, 0.0, self._returns) + reward
        everyone = np.ones(len(reward), dtype=bool)
        scaled = np.empty_like(reward)
        for e in range(reward.shape[1]):
            self._moments.add(self._returns[:, e], everyone)
            scaled[:, e] = reward[:, e] / np.sqrt(self._moments.variance + EPSILON)
        return scaled

    def state_dict(self) -> dict[str, Any]:
        """The running returns and their moments."""
        return {"returns": torch.from_numpy(self._returns.copy()), "moments": self._moments.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        self._returns[:] = state["returns"].numpy()
        self._moments.load_state_dict(state["moments"])


class Preprocessed(NamedTuple):
    """One step of every environment after preprocessing."""

    reward: Floats
    """`[M, E]`."""
    next_observation: NDArray[Any]
    """What the step led to, `[M, E, ...]`."""
    observation: NDArray[Any]
    """What is acted on next: the first of an episode, where one has ended."""


class Preprocessing:
    """All that comes between a cohort's environments and its replay.

    Args:
        members: The members' configurations.
        space: One environment's observation space.
    """

    def __init__(self, members: Sequence[TrainConfig], space: spaces.Space[Any]) -> None:
        config = members[0]
        self._scale, self._limit = config.reward_scale, config.reward_clip
        self._observations: ObservationNormalizer | None = None
        self._rewards: RewardNormalizer | None = None
        if config.normalize_observations:
            self._observations = ObservationNormalizer(len(members), space.shape or ())
        if config.normalize_rewards:
            self._rewards = RewardNormalizer(np.array([one.gamma for one in members]), config.env.num_envs)

    def first(self, observation: NDArray[Any]) -> NDArray[Any]:
        """The first observations of all, `[M, E, ...]`."""
        return observation if self._observations is None else self._observations(observation)

    def step(
        self,
        reward: Floats,
        ended: NDArray[np.bool_],
        next_observation: NDArray[Any],
        observation: NDArray[Any],
    ) -> Preprocessed:
        """One step of every environment: arrays `[M, E, ...]`, as environments gave them.

        Args:
            reward: The rewards.
            ended: Whether the episode ended, terminated or truncated.
            next_observation: What the step led to.
            observation: The same, or where an episode ended the first of the next.
        """
        if self._rewards is not None:
            reward = self._rewards(reward, ended)
        if self._scale != 1:
            reward = reward * self._scale
        if self._limit is not None:
            reward = reward.clip(-self._limit, self._limit)
        if self._observations is not None:
            next_observation = self._observations(next_observation)
            fresh = np.where(ended.reshape(*ended.shape, *[1] * (observation.ndim - 2)), observation, next_observation)
            observation = self._observations(fresh, ended) if ended.any() else fresh
        return Preprocessed(reward, next_observation, observation)

    def before(self, values: Values) -> Values:
        """Action values of observations as environments give them."""
        return values if self._observations is None else self._observations.before(values)

    def state_dict(self) -> dict[str, Any]:
        """The moments, where there are any."""
        parts = {"observations": self._observations, "rewards": self._rewards}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        if self._observations is not None:
            self._observations.load_state_dict(state["observations"])
        if self._rewards is not None:
            self._rewards.load_state_dict(state["rewards"])

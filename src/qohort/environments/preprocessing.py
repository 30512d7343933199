"""Preprocessing: scales and clips rewards, and normalises observations and rewards by running statistics.

The normalisation is that of Stream Q(λ) (Elsayed et al., 2024, algorithms 4 to 6). It can be combined with any agent.
Each member has its own statistics, which are saved in checkpoints. Evaluation normalises with the current statistics
and does not update them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from qohort.cohort.schedules import Floats
from qohort.config.schema import TrainConfig
from qohort.replay.transition import Values

EPSILON = 1e-8
"""Added to variances before the square root."""


class RunningMoments:
    """Computes the running mean and sample variance of each member's samples (Welford, 1962).

    Args:
        members: The number of members, M.
        shape: The shape of one sample.
    """

    def __init__(self, members: int, shape: Sequence[int] = ()) -> None:
        self._count = np.zeros((members, *[1] * len(shape)))
        self.mean = np.zeros((members, *shape))
        self._squares = np.zeros_like(self.mean)

    def add(self, sample: Floats, where: NDArray[np.bool_]) -> None:
        """Add one sample per member.

        Args:
            sample: The samples, `[M, ...]`.
            where: The members whose sample is added, `[M]`.
        """
        where = where.reshape(self._count.shape)
        np.add(self._count, 1, out=self._count, where=where)
        deviation = sample - self.mean
        np.add(self.mean, deviation / np.maximum(self._count, 1), out=self.mean, where=where)
        np.add(self._squares, deviation * (sample - self.mean), out=self._squares, where=where)

    @property
    def variance(self) -> Floats:
        """The sample variance, `[M, ...]`; 1 before the second sample."""
        variance: Floats = np.where(self._count < 2, 1.0, self._squares / np.maximum(self._count - 1, 1))
        return variance

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the counts, the means and the sums of squared deviations."""
        arrays = {"count": self._count, "mean": self.mean, "squares": self._squares}
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state that `state_dict` returned."""
        self._count[:] = state["count"].numpy()
        self.mean[:] = state["mean"].numpy()
        self._squares[:] = state["squares"].numpy()


class ObservationNormalizer:
    """Normalises observations: (s - mean) / √(variance + ε), where the statistics include s.

    Args:
        members: The number of members, M.
        shape: The shape of one observation.
    """

    def __init__(self, members: int, shape: Sequence[int]) -> None:
        self.moments = RunningMoments(members, shape)

    def __call__(self, observation: NDArray[Any], where: NDArray[np.bool_] | None = None) -> NDArray[Any]:
        """Add observations to the statistics, one environment after the other, and normalise them.

        Args:
            observation: The observations, `[M, E, ...]`.
            where: The observations to add and normalise, `[M, E]`; the others are returned unchanged. None for all.

        Returns:
            The normalised observations, `[M, E, ...]`, with the same dtype.
        """
        normalized = observation.copy()
        for e in range(observation.shape[1]):
            new = np.ones(len(observation), dtype=bool) if where is None else where[:, e]
            if not new.any():
                continue
            sample = observation[:, e].astype(np.float64)
            self.moments.add(sample, new)
            scaled = (sample - self.moments.mean) / np.sqrt(self.moments.variance + EPSILON)
            normalized[new, e] = scaled[new]
        return normalized

    def before(self, values: Values) -> Values:
        """Return a function that normalises observations, without updating the statistics, and calls `values`."""

        def normalized_values(observation: Tensor) -> Tensor:
            mean, variance = (
                torch.from_numpy(moment).to(observation.device).unsqueeze(1)
                for moment in (self.moments.mean, self.moments.variance)
            )
            scaled = (observation.double() - mean) / (variance + EPSILON).sqrt()
            return values(scaled.to(observation.dtype))

        return normalized_values

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics."""
        return self.moments.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.moments.load_state_dict(state)


class RewardNormalizer:
    """Scales rewards: r / √(variance of u + ε), where u ← γ u + r is a running return.

    At the end of an episode, u ← r.

    Args:
        gamma: The discount factor of each member, `[M]`.
        num_envs: Environments per member, E.

    Deviations: 1. The variance is about the running mean, as in the authors' code. In the paper it is about 0.
    """

    def __init__(self, gamma: Floats, num_envs: int) -> None:
        self._gamma = gamma[:, None]
        self._returns = np.zeros((len(gamma), num_envs))
        self._moments = RunningMoments(len(gamma))

    def __call__(self, reward: Floats, ended: NDArray[np.bool_]) -> Floats:
        """Add rewards to the statistics, one environment after the other, and scale them.

        Args:
            reward: The rewards of one step of every environment, `[M, E]`.
            ended: Whether the episode ended with the step, terminated or truncated, `[M, E]`.

        Returns:
            The scaled rewards, `[M, E]`.
        """
        self._returns = self._gamma * np.where(ended, 0.0, self._returns) + reward
        all_members = np.ones(len(reward), dtype=bool)
        scaled = np.empty_like(reward)
        for e in range(reward.shape[1]):
            self._moments.add(self._returns[:, e], all_members)
            scaled[:, e] = reward[:, e] / np.sqrt(self._moments.variance + EPSILON)
        return scaled

    def state_dict(self) -> dict[str, Any]:
        """Return the running returns and their statistics."""
        return {"returns": torch.from_numpy(self._returns.copy()), "moments": self._moments.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._returns[:] = state["returns"].numpy()
        self._moments.load_state_dict(state["moments"])


Rewards = TypeVar("Rewards", Floats, Tensor)


class Preprocessed(NamedTuple):
    """One step of every environment after preprocessing."""

    reward: Floats
    """The reward to learn from, `[M, E]`."""
    next_observation: NDArray[Any]
    """The observation after the step, `[M, E, ...]`; where the episode ended, its final observation."""
    observation: NDArray[Any]
    """The observation to act on, `[M, E, ...]`; where the episode ended, the first observation of the next one."""


class Preprocessing:
    """Preprocesses what the environments return, before acting and before the replay.

    Args:
        members: The members' configurations.
        space: The observation space of one environment.
    """

    def __init__(self, members: Sequence[TrainConfig], space: spaces.Space[Any]) -> None:
        config = members[0]
        self._scale, self._limit = config.reward_scale, config.reward_clip
        self._observations: ObservationNormalizer | None = None
        self._rewards: RewardNormalizer | None = None
        if config.normalize_observations:
            self._observations = ObservationNormalizer(len(members), space.shape or ())
        if config.normalize_rewards:
            self._rewards = RewardNormalizer(np.array([member.gamma for member in members]), config.env.num_envs)

    def first(self, observation: NDArray[Any]) -> NDArray[Any]:
        """Preprocess the first observations, `[M, E, ...]`."""
        return observation if self._observations is None else self._observations(observation)

    def step(
        self,
        reward: Floats,
        ended: NDArray[np.bool_],
        next_observation: NDArray[Any],
        observation: NDArray[Any],
    ) -> Preprocessed:
        """Preprocess one step of every environment.

        Args:
            reward: The rewards, `[M, E]`.
            ended: Whether the episode ended, terminated or truncated, `[M, E]`.
            next_observation: The observations after the step, `[M, E, ...]`; where the episode ended, its final
                observation.
            observation: The observations to act on, `[M, E, ...]`; where the episode ended, the first observation of
                the next one.
        """
        if self._rewards is not None:
            reward = self._rewards(reward, ended)
        reward = self.scaled(reward)
        if self._observations is not None:
            next_observation = self._observations(next_observation)
            expanded = ended.reshape(*ended.shape, *[1] * (observation.ndim - 2))
            observation = np.where(expanded, observation, next_observation)
            observation = self._observations(observation, ended) if ended.any() else observation
        return Preprocessed(reward, next_observation, observation)

    def scaled(self, reward: Rewards) -> Rewards:
        """Scale and clip rewards, an array or a tensor."""
        if self._scale != 1:
            reward = reward * self._scale
        return reward if self._limit is None else reward.clip(-self._limit, self._limit)

    @property
    def normalizes(self) -> bool:
        """Whether observations or rewards are normalised by running statistics."""
        return self._observations is not None or self._rewards is not None

    @property
    def observation_moments(self) -> RunningMoments | None:
        """The statistics of observations; None if they are not normalised."""
        return None if self._observations is None else self._observations.moments

    def before(self, values: Values) -> Values:
        """Return a function that preprocesses observations, without updating any statistics, and calls `values`."""
        return values if self._observations is None else self._observations.before(values)

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics of the normalisations that are switched on."""
        parts = {"observations": self._observations, "rewards": self._rewards}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        if self._observations is not None:
            self._observations.load_state_dict(state["observations"])
        if self._rewards is not None:
            self._rewards.load_state_dict(state["rewards"])

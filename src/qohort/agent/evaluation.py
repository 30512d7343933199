"""Greedy evaluation, apart from training: its own environments, its own seeds, its own ε."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from qohort.cohort.streams import UniformStream, member_seed
from qohort.config.schema import EnvironmentConfig, EvaluationConfig
from qohort.environments.making import make_environment
from qohort.replay.base import Values


class EpisodeScores(NamedTuple):
    """The outcome of an evaluation."""

    returns: NDArray[np.float64]
    """The undiscounted return of each episode, `[M, episodes]`."""
    lengths: NDArray[np.int64]
    """The env_steps of each episode, `[M, episodes]`."""


class Evaluator:
    """Plays episodes with a cohort's networks, all members' episodes side by side.

    Its episodes depend on the members' seeds and on `round` only, so it has no state.

    Args:
        env: Which environment.
        evaluation: How many episodes, with which ε.
        seeds: The members' seeds.
        device: Where the networks are.
    """

    def __init__(
        self, env: EnvironmentConfig, evaluation: EvaluationConfig, seeds: Sequence[int], device: torch.device
    ) -> None:
        self._config = evaluation
        self._seeds = seeds
        self._device = device
        self._envs: list[list[gym.Env[Any, Any]]] = [
            [make_environment(env) for _ in range(evaluation.episodes)] for _ in seeds
        ]
        space = self._envs[0][0].observation_space
        self._actions = int(self._envs[0][0].action_space.n)  # type: ignore[attr-defined]
        self._first_action = np.int64(self._envs[0][0].action_space.start)  # type: ignore[attr-defined]
        self._observations = np.zeros((len(seeds), evaluation.episodes, *(space.shape or ())), dtype=space.dtype)

    def prepare(self, values: Values) -> None:
        """Let the networks be compiled for an evaluation's batch now, not in the midst of training."""
        values(torch.as_tensor(self._observations, device=self._device))

    def __call__(self, values: Values, round: int) -> EpisodeScores:
        """Play one episode in every environment.

        Args:
            values: The networks.
            round: Tells this evaluation's episodes from the others'; the env_steps so far.
        """
        shape = self._observations.shape[:2]
        returns, lengths = np.zeros(shape), np.zeros(shape, dtype=np.int64)
        running = [(m, i) for m in range(shape[0]) for i in range(shape[1])]
        for m, i in running:
            seed = member_seed(self._seeds[m], "evaluation", round, i) >> 31
            self._observations[m, i] = self._envs[m][i].reset(seed=seed)[0]
        coins = self._coins(round)
        for step in range(self._config.max_episode_steps):
            # The batch keeps its shape as episodes end, so that no episode changes another's bits.
            greedy = values(torch.as_tensor(self._observations, device=self._device)).argmax(-1).cpu().numpy()
            actions = self._sometimes_random(greedy, coins)
            still = []
            chosen = actions[tuple(np.transpose(running))] + self._first_action
            for (m, i), action in zip(running, chosen, strict=True):
                observation, reward, terminated, truncated, _ = self._envs[m][i].step(action)
                self._observations[m, i] = observation
                returns[m, i] += float(reward)
                lengths[m, i] = step + 1
                if not (terminated or truncated):
                    still.append((m, i))
            running = still
            if not running:
                break
        return EpisodeScores(returns, lengths)

    def _coins(self, round: int) -> UniformStream | None:
        if self._config.epsilon == 0:
            return None
        seeds = [member_seed(seed, "evaluation", round) for seed in self._seeds]
        return UniformStream(seeds, "evaluation", (self._config.episodes, 2), block=64)

    def _sometimes_random(self, greedy: NDArray[np.int64], coins: UniformStream | None) -> NDArray[np.int64]:
        if coins is None:
            return greedy
        uniforms = coins.next()
        random = (uniforms[..., 1] * self._actions).astype(np.int64)
        return np.where(uniforms[..., 0] < self._config.epsilon, random, greedy)

    def close(self) -> None:
        """Close every environment."""
        for member in self._envs:
            for env in member:
                env.close()

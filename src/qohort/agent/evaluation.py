"""Evaluation, independent of training: separate environments, separate seeds and a separate ε."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qohort.cohort.streams import UniformStream, member_seed
from qohort.config.schema import EnvironmentConfig, EvaluationConfig
from qohort.environments.actions import actions_of, as_counted
from qohort.environments.checked import (
    CheckedEnv,
    EnvironmentFailure,
    ValueCheck,
    close_all,
    named_numbers,
    numbers_of,
)
from qohort.environments.making import make_environment
from qohort.networks.branches import branches_of, greedy_actions
from qohort.networks.packing import masks_of
from qohort.replay.transition import Values


class EpisodeScores(NamedTuple):
    """The scores of the episodes of an evaluation."""

    returns: NDArray[np.float64]
    """The undiscounted return of each episode, `[M, episodes]`."""
    lengths: NDArray[np.int64]
    """The env_steps of each episode, `[M, episodes]`."""
    failures: Mapping[int, EnvironmentFailure] = MappingProxyType({})
    """The members whose environment failed. Their returns are NaN."""
    metrics: Mapping[str, NDArray[np.float64]] = MappingProxyType({})
    """The numbers in the info of the last step of each episode, `[M, episodes]` by name; NaN for what is missing."""
    numbers: Sequence[str] = ()
    """The names of all numbers in the info of the last step of an episode, if some were asked for."""


def random_actions(
    greedy: Tensor, actions: int | Tensor, uniforms: Tensor, epsilon: float, allowed: Tensor | None = None
) -> Tensor:
    """Return greedy actions `[..., E]`, or those of branches `[..., E, K]`, of which some are replaced by random ones.

    Args:
        greedy: The greedy actions.
        actions: The number of actions, A; of branches, the number of each, `[K]`.
        uniforms: Random numbers uniform in [0, 1), `[..., E, 2]` float64; with branches `[..., E, K, 2]`.
        epsilon: The probability of a random action.
        allowed: The action masks, `[..., E, A]`; None for no masks.
    """
    if allowed is None:
        random = (uniforms[..., 1] * actions).long()
    else:
        which = (uniforms[..., 1] * allowed.sum(-1)).long()
        random = (allowed.long().cumsum(-1) > which.unsqueeze(-1)).int().argmax(-1)
    return torch.where(uniforms[..., 0] < epsilon, random, greedy)


class EvaluationStopped(Exception):
    """A signal asked to stop during an evaluation."""


class Evaluator:
    """Plays evaluation episodes of all members in parallel.

    The episodes depend only on the members' seeds and on `round`, so the evaluator has no state to save.

    Args:
        env: The configuration of the environment.
        evaluation: The number of episodes, their maximum length and ε.
        seeds: The members' seeds.
        device: The device of the networks.
        info_metrics: The names of numbers that the info of an episode's last step has.
    """

    def __init__(
        self,
        env: EnvironmentConfig,
        evaluation: EvaluationConfig,
        seeds: Sequence[int],
        device: torch.device,
        info_metrics: Sequence[str] = (),
    ) -> None:
        self._config, self._names = evaluation, info_metrics
        self._seeds = seeds
        self._device = device
        self._envs: list[list[gym.Env[Any, Any]]] = [
            [make_environment(env) for _ in range(evaluation.episodes)] for _ in seeds
        ]
        space = self._envs[0][0].observation_space
        self._action_space = self._envs[0][0].action_space
        self._actions = actions_of(self._action_space)
        self._observations = np.zeros((len(seeds), evaluation.episodes, *(space.shape or ())), dtype=space.dtype)
        self._masks = masks_of(space)
        self._check = ValueCheck(space, self._observations.reshape(-1, *(space.shape or ())))

    def prepare(self, values: Values) -> None:
        """Compile the networks for the batch shape of an evaluation, so that the first evaluation does not wait."""
        values(torch.as_tensor(self._observations, device=self._device))

    def __call__(
        self,
        values: Values,
        round: int,
        without: Collection[int] = (),
        stop: Callable[[], str | None] = lambda: None,
    ) -> EpisodeScores:
        """Play one episode in every environment.

        Args:
            values: Maps observations `[M, episodes, ...]` to action values `[M, episodes, A]`.
            round: Selects the seeds of the episodes; training passes the env_steps so far.
            without: Indices of members that have failed. They are not evaluated, and their returns are NaN.
            stop: Returns the name of the signal that asks to stop, if there was one.

        Raises:
            EvaluationStopped: If a signal asked to stop. An evaluation can be repeated, since it changes nothing.
        """
        shape = self._observations.shape[:2]
        returns, lengths = np.zeros(shape), np.zeros(shape, dtype=np.int64)
        still, limit = np.zeros(shape, dtype=np.int64), self._config.still_steps
        failures: dict[int, EnvironmentFailure] = {}
        envs = [[CheckedEnv(env) for env in member] for member in self._envs]
        running = [(m, i) for m in range(shape[0]) for i in range(shape[1]) if m not in without]
        for m, i in running:
            try:
                seed = member_seed(self._seeds[m], "evaluation", round, i) >> 31
                self._observations[m, i] = envs[m][i].reset(seed)
            except EnvironmentFailure as failure:
                failures.setdefault(m, failure)
        stream = self._random_stream(round)
        for step in range(self._config.max_episode_steps):
            running = [(m, i) for m, i in running if m not in failures] if failures else running
            if not running:
                break
            if stop():
                raise EvaluationStopped
            # The batch keeps its shape when episodes end, so that one episode never changes the bits of another.
            actions = self._act(values, stream)
            unfinished = []
            running_actions = as_counted(self._action_space, actions[tuple(np.transpose(running))])
            for (m, i), action in zip(running, running_actions, strict=True):
                try:
                    observation, reward, terminated, truncated = envs[m][i].step(action)
                except EnvironmentFailure as failure:
                    failures.setdefault(m, failure)
                    continue
                if limit is not None:
                    moves = reward != 0 or not np.array_equal(observation, self._observations[m, i])
                    still[m, i] = 0 if moves else still[m, i] + 1
                    truncated = truncated or bool(still[m, i] >= limit)
                self._observations[m, i] = observation
                returns[m, i] += float(reward)
                lengths[m, i] = step + 1
                if not (terminated or truncated):
                    unfinished.append((m, i))
            for index, wrong in self._check.wrong():
                m, i = divmod(index, shape[1])
                failures.setdefault(m, envs[m][i].failure(f"step() returned an observation with {wrong}"))
                self._observations[m, i] = self._check.harmless
            running = unfinished
        returns[[*failures, *without]] = np.nan
        if not self._names:
            return EpisodeScores(returns, lengths, failures)
        metrics = np.array([[named_numbers(env.info, self._names) for env in member] for member in envs])
        metrics[[*failures, *without]] = np.nan
        numbers = sorted({name for member in envs for env in member for name in numbers_of(env.info)})
        by_name = {name: metrics[..., k] for k, name in enumerate(self._names)}
        return EpisodeScores(returns, lengths, failures, by_name, numbers)

    def _act(self, values: Values, stream: UniformStream | None) -> NDArray[np.int64]:
        """Return the actions of all environments, `[M, episodes]`, or `[M, episodes, K]` with branches."""
        outputs = values(torch.as_tensor(self._observations, device=self._device))
        greedy = greedy_actions(outputs, self._actions).cpu()
        if stream is None:
            return greedy.numpy()
        branches = branches_of(self._actions)
        sizes = self._actions if branches is None else torch.tensor(branches.sizes)
        allowed = None if self._masks is None else self._masks.allowed(torch.from_numpy(self._observations))
        return random_actions(greedy, sizes, torch.from_numpy(stream.next()), self._config.epsilon, allowed).numpy()

    def beyond_bounds(self) -> str | None:
        """Return, once, a float that was beyond the bounds of the observation space since the last call."""
        return self._check.beyond()

    def _random_stream(self, round: int) -> UniformStream | None:
        if self._config.epsilon == 0:
            return None
        seeds = [member_seed(seed, "evaluation", round) for seed in self._seeds]
        branches = branches_of(self._actions)
        each = () if branches is None else (len(branches.sizes),)
        return UniformStream(seeds, "evaluation", (self._config.episodes, *each, 2), block=64)

    def close(self) -> None:
        """Close every environment."""
        close_all(env for member in self._envs for env in member)

"""The vector environment: steps the environments of a cohort, seeds each episode, and saves and restores them.

An episode is a pure function of its seed and its actions. The state of a deterministic environment is therefore the
seed of the current episode and the actions so far. It is restored by replaying them.

An environment that fails ends the run of its member alone. All environments of the member are stepped no more, and the
other members go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from qohort.cohort.streams import member_seed
from qohort.config.errors import ConfigError
from qohort.environments.actions import Recorded, as_counted, counted_from_0, from_record
from qohort.environments.checked import (
    INFO_METRICS,
    LIFE_LOST,
    CheckedEnv,
    EnvironmentFailure,
    ValueCheck,
    close_all,
    named_numbers,
)

EpisodeSeed = Callable[[int, int], int]
"""A function from environment index and episode number to the seed of the episode."""


class MemberFailure(NamedTuple):
    """The failure of an environment, which ends the run of its member."""

    environment: int
    """Its index among the member's environments."""
    episode: int
    """The number of its episode."""
    failure: EnvironmentFailure


def episode_seeds(seeds: Sequence[int], num_envs: int, stream: str) -> EpisodeSeed:
    """Return the function that seeds the episodes of a cohort's environments.

    The environments are ordered member by member.

    Args:
        seeds: The members' seeds.
        num_envs: Environments per member.
        stream: The random stream of the seeds: `environments` or `evaluation`.
    """

    def seed(index: int, episode: int) -> int:
        member, environment = divmod(index, num_envs)
        # 32 bits, because some environments do not accept larger seeds.
        return member_seed(seeds[member], stream, environment, episode) >> 31

    return seed


class EpisodicVectorEnv(VectorEnv[Any, Any, Any]):
    """Steps environments one after the other, and starts each episode with its own seed.

    Autoreset is same-step: where an episode ends, `step` returns the first observation of the next episode, and
    `info["final_obs"]` has the final observation. The other rows of `info["final_obs"]` equal the observations.

    Args:
        makers: One function per environment, which creates it.
        episode_seed: Returns the seed of each episode.
        members: The number of members, M. Each has the same number of environments.
        deterministic: Whether an episode can be restored from its seed and actions. If not, restoring starts a new one.
        info_metrics: The names of numbers that the info of an episode's last step has.
    """

    def __init__(
        self,
        makers: Sequence[Callable[[], gym.Env[Any, Any]]],
        episode_seed: EpisodeSeed,
        members: int = 1,
        deterministic: bool = True,
        info_metrics: Sequence[str] = (),
    ) -> None:
        self.envs = [make() for make in makers]
        self.num_envs = len(self.envs)
        self.metadata = {**self.envs[0].metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.render_mode = self.envs[0].render_mode
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._counted_otherwise = not counted_from_0(self.single_action_space)
        self._episode_seed, self._members, self._deterministic = episode_seed, members, deterministic
        shape, dtype = self.single_observation_space.shape or (), self.single_observation_space.dtype
        self.observations = np.zeros((self.num_envs, *shape), dtype=dtype)
        """The newest observations, `[num_envs, ...]`."""
        self._final = np.zeros_like(self.observations)
        self._rewards = np.zeros(self.num_envs)
        self._terminated = np.zeros(self.num_envs, dtype=np.bool_)
        self._truncated = np.zeros(self.num_envs, dtype=np.bool_)
        self._life_lost = np.zeros(self.num_envs, dtype=np.bool_)
        self._flagged = False  # whether one of these three is set
        self._names = info_metrics
        self._metrics = np.full((self.num_envs, len(info_metrics)), np.nan)
        self._episodes = [-1] * self.num_envs
        self._checked = [CheckedEnv(env) for env in self.envs]
        self._running = list(enumerate(self._checked))
        self._values = ValueCheck(self.single_observation_space, self.observations)
        self.failures: dict[int, MemberFailure] = {}
        """The failures of members that nobody has taken yet, by index of the member."""

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start the next episode of every environment.

        Args:
            seed: Must be None, because `episode_seed` provides the seeds.
            options: Not used.

        Returns:
            The observations `[num_envs, ...]` and an empty info.

        Raises:
            ValueError: If `seed` is not None.
        """
        if seed is not None:
            raise ValueError("episodes are seeded one by one: set episode_seed when creating the vector environment")
        for index, _ in self._running:
            self._start_episode(index)
        return self.observations.copy(), {}

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step every environment. Where an episode ends, start the next one.

        Args:
            actions: One action per environment, counted from 0, `[num_envs]`, or `[num_envs, K]` with branches.

        Returns:
            Observations, rewards, terminated, truncated, and an info. If an episode ended, the info has `final_obs`,
            and `info_metrics [num_envs, names]`, whose rows count where one ended. It has
            `life_lost [num_envs]` where the discount after the step is 0 although the episode goes on.
            The next step overwrites all arrays.
        """
        observations, rewards, ended = self.observations, self._rewards, []
        if self._flagged:
            self._terminated[:] = self._truncated[:] = self._life_lost[:] = self._flagged = False
        if self._counted_otherwise:
            actions = as_counted(self.single_action_space, actions)
        if len(self._running) < self.num_envs:
            actions = actions[[index for index, _ in self._running]]
        for (index, env), action in zip(self._running, actions, strict=True):
            try:
                observation, reward, terminated, truncated = env.step(action)
            except EnvironmentFailure as failure:
                self._stop(index, failure)
                continue
            observations[index] = observation
            rewards[index] = reward
            if env.life_lost:
                self._life_lost[index] = self._flagged = True
            if terminated or truncated:
                self._terminated[index], self._truncated[index] = terminated, truncated
                self._flagged = True
                ended.append(index)
                if self._names:
                    self._metrics[index] = named_numbers(env.info, self._names)
        for index, wrong in self._values.wrong():
            self._stop(
                index,
                self._checked[index].failure(
                    f"step() returned an observation with {wrong}, but the space is {self.single_observation_space}"
                ),
            )
        info: dict[str, Any] = {LIFE_LOST: self._life_lost}
        if self.failures:  # members that have just been stopped start no episode, also where they were stepped after it
            for member in self.failures:
                self.stand_still(member)
            ended = [index for index in ended if self._terminated[index] or self._truncated[index]]
        if ended:
            np.copyto(self._final, observations)
            info["final_obs"], info[INFO_METRICS] = self._final, self._metrics
            for index in ended:
                self._start_episode(index)
        return observations, rewards, self._terminated, self._truncated, info

    def beyond_bounds(self) -> str | None:
        """Return, once, a float that was beyond the bounds of the observation space since the last call."""
        return self._values.beyond()

    def _start_episode(self, index: int) -> None:
        """Start the next episode of an environment."""
        self._episodes[index] += 1
        try:
            observation = self._checked[index].reset(self._episode_seed(index, self._episodes[index]))
        except EnvironmentFailure as failure:
            self._stop(index, failure)
        else:
            self.observations[index] = observation

    def _stop(self, index: int, failure: EnvironmentFailure) -> None:
        """Take note of a failure, which stops all environments of its member."""
        size = self.num_envs // self._members
        member, environment = divmod(index, size)
        self.failures.setdefault(member, MemberFailure(environment, self._episodes[index], failure))
        self.stand_still(member)

    def stand_still(self, member: int) -> None:
        """Step the environments of a member no more: they have usable observations and no rewards."""
        size = self.num_envs // self._members
        self._running = [one for one in self._running if one[0] // size != member]
        own = slice(member * size, (member + 1) * size)
        self.observations[own] = self._values.harmless
        self._rewards[own] = 0
        self._terminated[own] = self._truncated[own] = self._life_lost[own] = False

    def state_dict(self) -> dict[str, Any]:
        """Return the episode number, the actions of the current episode and the observation of each environment."""
        size = self.num_envs // self._members
        return {
            "members": [
                {
                    "episodes": self._episodes[first : first + size],
                    "actions": [list(env.actions) for env in self._checked[first : first + size]],
                    "observations": [row.tobytes().hex() for row in self.observations[first : first + size]],
                }
                for first in range(0, self.num_envs, size)
            ]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> NDArray[Any]:
        """Restore the state that `state_dict` returned by replaying the current episodes.

        Returns:
            The observations, `[num_envs, ...]`.

        Raises:
            ConfigError: If an episode does not repeat, because the environment has changed or is not deterministic.
        """
        keys = ("episodes", "actions", "observations")
        current = [row for member in state["members"] for row in zip(*(member[key] for key in keys), strict=True)]
        for index, (episode, actions, expected) in enumerate(current):
            if not self._deterministic:
                self._episodes[index] = episode
                self._start_episode(index)
                continue
            self._episodes[index] = episode - 1
            problem = self._replay(index, actions)
            if problem is None and self.observations[index].tobytes().hex() != expected:
                problem = "the observation is another one"
            if problem is not None:
                raise ConfigError(
                    f"environment {index} does not repeat episode {episode} from its seed and actions ({problem}): the "
                    "environment, a wrapper or its package has changed since the checkpoint, or it is not "
                    "deterministic. Resume with what it was, start over with overwrite=true, or go on with new "
                    "episodes by env.deterministic=false"
                )
        return self.observations.copy()

    def _replay(self, index: int, actions: Sequence[Recorded]) -> str | None:
        """Start the next episode of an environment and take these actions; return what went wrong, if anything."""
        env = self._checked[index]
        self._start_episode(index)
        try:
            for action in actions:
                self.observations[index] = env.step(from_record(self.single_action_space, action))[0]
        except EnvironmentFailure as failure:
            return failure.reason
        failed = self.failures.get(index // (self.num_envs // self._members))
        return None if failed is None else failed.failure.reason

    def close_extras(self, **kwargs: Any) -> None:
        """Close every environment; errors are only reported."""
        close_all(self.envs)

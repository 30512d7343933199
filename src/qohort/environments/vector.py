"""The vector environment: steps the environments of a cohort, seeds each episode, and saves and restores them.

An episode is a pure function of its seed and its actions. The state of a deterministic environment is therefore the
seed of the current episode and the actions so far. It is restored by replaying them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from qohort.cohort.streams import member_seed

EpisodeSeed = Callable[[int, int], int]
"""A function from environment index and episode number to the seed of the episode."""


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
    """

    def __init__(
        self, makers: Sequence[Callable[[], gym.Env[Any, Any]]], episode_seed: EpisodeSeed, members: int = 1
    ) -> None:
        self.envs = [make() for make in makers]
        self.num_envs = len(self.envs)
        self.metadata = {**self.envs[0].metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.render_mode = self.envs[0].render_mode
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._episode_seed, self._members = episode_seed, members
        self._first_action = np.int64(getattr(self.single_action_space, "start", 0))
        shape, dtype = self.single_observation_space.shape or (), self.single_observation_space.dtype
        self._observations = np.zeros((self.num_envs, *shape), dtype=dtype)
        self._final = np.zeros_like(self._observations)
        self._rewards = np.zeros(self.num_envs)
        self._terminated = np.zeros(self.num_envs, dtype=np.bool_)
        self._truncated = np.zeros(self.num_envs, dtype=np.bool_)
        self._episodes = [-1] * self.num_envs
        self._actions: list[list[int]] = [[] for _ in self.envs]

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
        for index in range(self.num_envs):
            self._observations[index] = self._start_episode(index)
        return self._observations.copy(), {}

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step every environment. Where an episode ends, start the next one.

        Args:
            actions: One action per environment, counted from 0, `[num_envs]`.

        Returns:
            Observations, rewards, terminated, truncated, and an info. The info has `final_obs` if an episode ended.
            The next step overwrites all arrays.
        """
        observations, ended = self._observations, []
        # Actions stay NumPy integers, because Gymnasium checks these faster than Python's.
        for index, action in enumerate(actions + self._first_action):
            observation, reward, terminated, truncated, _ = self.envs[index].step(action)
            self._actions[index].append(int(action))
            observations[index] = observation
            self._rewards[index] = reward
            self._terminated[index] = terminated
            self._truncated[index] = truncated
            if terminated or truncated:
                ended.append(index)
        info: dict[str, Any] = {}
        if ended:
            np.copyto(self._final, observations)
            info["final_obs"] = self._final
            for index in ended:
                observations[index] = self._start_episode(index)
        return observations, self._rewards, self._terminated, self._truncated, info

    def _start_episode(self, index: int) -> Any:
        self._episodes[index] += 1
        self._actions[index].clear()
        return self.envs[index].reset(seed=self._episode_seed(index, self._episodes[index]))[0]

    def state_dict(self) -> dict[str, Any]:
        """Return the episode number, the actions of the current episode and the observation of each environment."""
        size = self.num_envs // self._members
        return {
            "members": [
                {
                    "episodes": self._episodes[first : first + size],
                    "actions": [list(actions) for actions in self._actions[first : first + size]],
                    "observations": [row.tobytes().hex() for row in self._observations[first : first + size]],
                }
                for first in range(0, self.num_envs, size)
            ]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> NDArray[Any]:
        """Restore the state that `state_dict` returned by replaying the current episodes.

        Returns:
            The observations, `[num_envs, ...]`.

        Raises:
            RuntimeError: If an episode does not repeat, because the environment is not deterministic.
        """
        keys = ("episodes", "actions", "observations")
        current = [row for member in state["members"] for row in zip(*(member[key] for key in keys), strict=True)]
        for index, (episode, actions, expected) in enumerate(current):
            self._episodes[index] = episode - 1
            observation = self._start_episode(index)
            for action in actions:
                observation = self.envs[index].step(np.int64(action))[0]
            self._actions[index] = list(actions)
            self._observations[index] = observation
            if self._observations[index].tobytes().hex() != expected:
                raise RuntimeError(
                    f"environment {index} does not repeat episode {episode} from its seed and actions: "
                    "it is not deterministic, so this run cannot be resumed exactly; overwrite=true starts over"
                )
        return self._observations.copy()

    def close_extras(self, **kwargs: Any) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()

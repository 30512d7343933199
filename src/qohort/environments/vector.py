"""The vector environment: stepping environments one after the other, seeding each episode, saving and restoring.

An episode is a pure function of its seed and its actions. So the state of any deterministic environment is
the seed of the running episode and its actions so far, and it is restored by playing them again.
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
"""Environment index and episode number to the seed of the episode."""


def episode_seeds(seeds: Sequence[int], num_envs: int, stream: str) -> EpisodeSeed:
    """The episode seeds of a cohort's environments, which are laid out member by member.

    Args:
        seeds: The members' seeds.
        num_envs: Environments a member.
        stream: Which of the members' streams: `environments` or `evaluation`.
    """

    def seed(index: int, episode: int) -> int:
        member, environment = divmod(index, num_envs)
        # 32 bits: the widest that every environment family takes.
        return member_seed(seeds[member], stream, environment, episode) >> 31

    return seed


class EpisodicVectorEnv(VectorEnv[Any, Any, Any]):
    """Environments stepped one after the other, each episode started with a seed of its own.

    Autoreset is same-step: where an episode ends, the observation returned is the first of the next one, and
    `info["final_obs"]` holds the true last one (its other rows equal the observations).

    Args:
        makers: One function an environment.
        episode_seed: The seed of each episode of each environment.
        members: M, among whom the environments are divided; each has a state of its own.
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
            seed: Must be None: episodes have their own seeds.
            options: Not used.
        """
        if seed is not None:
            raise ValueError("episodes are seeded one by one: give episode_seed when making the environments")
        for index in range(self.num_envs):
            self._observations[index] = self._start_episode(index)
        return self._observations.copy(), {}

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step every environment, starting the next episode where one ends.

        Args:
            actions: One an environment, `[num_envs]`, counted from 0.

        Returns:
            Observations, rewards, terminated, truncated, and an info with `final_obs` where an episode ended.
            Arrays are overwritten by the next step.
        """
        observations, ended = self._observations, []
        # NumPy's integers, as any vector environment hands on: Gymnasium checks them quicker than Python's.
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
        """Of each member's environments the episode number, the actions of the running episode, the observation."""
        size = self.num_envs // self._members
        return {
            "members": [
                {
                    "episodes": self._episodes[first : first + size],
                    "actions": [list(actions) for actions in self._actions[first : first + size]],
                    "observations": [one.tobytes().hex() for one in self._observations[first : first + size]],
                }
                for first in range(0, self.num_envs, size)
            ]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> NDArray[Any]:
        """Play every running episode again; returns the observations.

        Raises:
            RuntimeError: If an episode does not repeat, so that the environment is not deterministic.
        """
        keys = ("episodes", "actions", "observations")
        running = [row for member in state["members"] for row in zip(*(member[key] for key in keys), strict=True)]
        for index, (episode, actions, expected) in enumerate(running):
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

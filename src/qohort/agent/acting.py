"""Acting: one step of every environment of a cohort."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from hydra.utils import instantiate
from numpy.typing import NDArray
from torch import Tensor

from qohort.agent.exploration import Exploration, act_in_branches, draws_of
from qohort.cohort.held import across_members
from qohort.cohort.program import Compiler
from qohort.cohort.schedules import Floats, Progress, follows_episodes
from qohort.cohort.state import load_state, state_of
from qohort.cohort.streams import UniformStream
from qohort.config.schema import EnvironmentConfig, TrainConfig
from qohort.environments.actions import actions_of
from qohort.environments.checked import INFO_METRICS, LIFE_LOST
from qohort.environments.episodes import Episode, EpisodeStatistics
from qohort.environments.making import make_environment
from qohort.environments.preprocessing import Preprocessing
from qohort.environments.tensor.registry import tensor_environment
from qohort.environments.tensor.vector import TensorVectorEnv, episode_keys
from qohort.environments.vector import EpisodicVectorEnv, episode_seeds
from qohort.environments.workers import WorkerVectorEnv
from qohort.networks.branches import branches_of
from qohort.networks.packing import masks_of
from qohort.replay.transition import Transition


class Actor:
    """Acts in the environments of a cohort, E per member, and preprocesses what they return.

    Args:
        members: The members' configurations.
    """

    def __init__(self, members: Sequence[TrainConfig], compiler: Compiler) -> None:
        env = members[0].env
        seeds = [member.seed for member in members]
        self._shape, self._deterministic = (len(members), env.num_envs), env.deterministic
        self.num_envs = env.num_envs
        names = members[0].info_metrics
        self.environments = _environments(env, seeds, compiler, names)
        self.space: spaces.Space[Any] = self.environments.single_observation_space
        self.actions = actions_of(self.environments.single_action_space)
        """The number of actions, with branches as a `BranchedActions`."""
        self.branches = branches_of(self.actions)
        self.exploration: Exploration = across_members(
            [instantiate(member.exploration, _convert_="all") for member in members]
        )
        self._masks = masks_of(self.space)
        branches = self.branches
        draws = self.exploration.draws(self.actions) if branches is None else draws_of(self.exploration, branches)
        self.member_exploration: Any = instantiate(members[0].exploration, _convert_="all")
        """The exploration of one member; what members may hold is in its parameter."""
        self.uniforms = UniformStream(seeds, "exploration", (env.num_envs, draws))
        self.preprocessing = Preprocessing(members, self.space)
        self.statistics = EpisodeStatistics(*self._shape, names)
        self.observation = self.preprocessing.first(self._by_member(self.environments.reset()[0]))
        """The observations to act on, `[M, E, ...]`."""

    def step(self, values: Callable[[Tensor], Tensor], progress: Progress) -> tuple[Transition, list[Episode]]:
        """Take one action in every environment.

        Args:
            values: Maps observations `[M, E, ...]` to action values `[M, E, A]`. Only called if an action depends on
                them.
            progress: The cohort's progress before the step.

        Returns:
            The preprocessed transition, and the episodes that ended. Their returns are undiscounted sums of the
            environment's own rewards.
        """
        observation = self.observation
        action = self._choose(lambda: values(torch.from_numpy(observation)).cpu().numpy(), observation, progress)
        flat = action.reshape(-1, *action.shape[2:])
        new_observation, reward, terminated, truncated, info = self.environments.step(flat)
        reward, terminated, truncated = map(self._by_member, (reward, terminated, truncated))
        next_observation = self._by_member(info.get("final_obs", new_observation))
        new_observation = self._by_member(new_observation)
        ended = terminated | truncated
        preprocessed = self.preprocessing.step(reward, ended, next_observation, new_observation)
        self.observation = preprocessed.observation.copy()  # the environments overwrite theirs
        self.statistics.add(reward)
        metrics = self._by_member(info[INFO_METRICS]) if INFO_METRICS in info else None
        episodes = self.statistics.end(ended, metrics) if "final_obs" in info else []
        transition = Transition(
            observation,
            action,
            preprocessed.reward,
            terminated=terminated,
            truncated=truncated,
            next_observation=preprocessed.next_observation,
            life_lost=self._by_member(info[LIFE_LOST]) if LIFE_LOST in info else None,
        )
        return transition, episodes

    def _choose(self, values: Callable[[], Floats], observation: NDArray[Any], progress: Progress) -> NDArray[np.int64]:
        """Return actions `[M, E]`, or `[M, E, K]` with branches, given action values `[M, E, A]`."""
        numbers = self.exploration.parameter(progress), self.uniforms.next()
        if self.branches is not None:
            return act_in_branches(self.exploration, values, *numbers, self.branches)
        if self._masks is None:  # an exploration of your own need not know masks
            return self.exploration.act(values, *numbers, self.actions)
        return self.exploration.act(values, *numbers, self.actions, allowed=self._masks.allowed_array(observation))

    @property
    def follows_episodes(self) -> bool:
        """Whether the exploration may depend on the episodes that have ended."""
        return any(follows_episodes(value) for value in vars(self.exploration).values() if callable(value))

    def _by_member(self, array: NDArray[Any]) -> NDArray[Any]:
        """Reshape `[M * E, ...]` to `[M, E, ...]`."""
        return array.reshape(*self._shape, *array.shape[1:])

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the environments, exploration, preprocessing and episodes, and the last observation."""
        return {**state_of(self._parts), "observation": torch.from_numpy(self.observation.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        load_state(self._parts, state)
        self.observation = np.array(state["observation"].numpy())
        if not self._deterministic and not isinstance(self.environments, TensorVectorEnv):
            self.statistics.drop()
            self.observation = self.preprocessing.first(self._by_member(self.environments.observations.copy()))

    @property
    def _parts(self) -> dict[str, Any]:
        return {
            "environments": self.environments,
            "uniforms": self.uniforms,
            "preprocessing": self.preprocessing,
            "statistics": self.statistics,
        }

    def close(self) -> None:
        """Close every environment."""
        self.environments.close()


def _environments(
    env: EnvironmentConfig, seeds: Sequence[int], compiler: Compiler, info_metrics: Sequence[str] = ()
) -> EpisodicVectorEnv | WorkerVectorEnv | TensorVectorEnv:
    """Make the environments of all members."""
    tensor = tensor_environment(env)
    if tensor is not None:
        return TensorVectorEnv(tensor, episode_keys(seeds, env.num_envs, "environments"), compiler)
    if env.workers:
        return WorkerVectorEnv(env, seeds, "environments", info_metrics)
    makers = [lambda: make_environment(env)] * (len(seeds) * env.num_envs)
    seed_of = episode_seeds(seeds, env.num_envs, "environments")
    return EpisodicVectorEnv(makers, seed_of, len(seeds), env.deterministic, info_metrics)

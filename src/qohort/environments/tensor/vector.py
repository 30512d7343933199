"""Steps tensor environments: autoreset, time limit, episode seeds, saving and restoring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from qohort.cohort.program import Compiler
from qohort.cohort.streams import member_seed
from qohort.environments.tensor.base import State, TensorEnvironment, hash_of, uniforms_of
from qohort.environments.tensor.registry import TENSOR_ENVIRONMENTS


class Outcome(NamedTuple):
    """What one step of every environment returns, `[..., *shape]` each."""

    observation: Tensor
    """The observation to act on; where the episode ended, the first one of the next episode."""
    next_observation: Tensor
    """The observation after the step; where the episode ended, its final observation."""
    reward: Tensor
    terminated: Tensor
    truncated: Tensor


def start(environment: TensorEnvironment, key: Tensor, episode: Tensor) -> State:
    """Return the state of environments at the start of an episode.

    Besides the entries of the environment's own state, it has `key`, which seeds all episodes of an environment,
    `episode`, the number of its episode, and `time`, the steps of the episode so far.

    Args:
        environment: The environment.
        key: A 32-bit word for each environment, `[...]` int64.
        episode: The number of the episode of each environment, `[...]` int64.
    """
    time = torch.zeros_like(episode)
    own = environment.reset(uniforms_of(hash_of(key, episode), time, environment.reset_draws))
    return {**own, "key": key, "episode": episode, "time": time}


def advance(environment: TensorEnvironment, state: State, action: Tensor) -> tuple[State, Outcome]:
    """Step environments. Where an episode ends, start the next one.

    Args:
        environment: The environment.
        state: Their state, as `start` returned it.
        action: The actions, `[...]` int64.
    """
    key, episode, time = state["key"], state["episode"], state["time"] + 1
    uniforms = uniforms_of(hash_of(key, episode), time, environment.step_draws)
    own, reward, terminated = environment.step(state, action, uniforms)
    limit = environment.max_episode_steps
    truncated = torch.zeros_like(terminated) if limit is None else (time >= limit) & ~terminated
    ended = terminated | truncated
    following = start(environment, key, episode + ended)
    final = environment.observe(own)
    merged = {name: torch.where(_like(ended, value), following[name], value) for name, value in own.items()}
    merged |= {"key": key, "episode": following["episode"], "time": torch.where(ended, 0, time)}
    return merged, Outcome(environment.observe(merged), final, reward, terminated, truncated)


def _like(condition: Tensor, value: Tensor) -> Tensor:
    """Return a condition `[...]` with further axes, so that it broadcasts against a value `[..., *shape]`."""
    return condition.view(*condition.shape, *[1] * (value.dim() - condition.dim()))


def episode_keys(seeds: Sequence[int], num_envs: int, stream: str, *path: int) -> Tensor:
    """Return the keys of a cohort's environments, `[M, E]` int64 with 32 bits.

    Args:
        seeds: The members' seeds.
        num_envs: Environments per member, E.
        stream: The random stream of the seeds: `environments` or `evaluation`.
        path: Distinguishes the uses of the stream.
    """
    keys = [[member_seed(seed, stream, *path, e) >> 31 for e in range(num_envs)] for seed in seeds]
    return torch.tensor(keys, dtype=torch.int64)


class TensorVectorEnv(VectorEnv[Any, Any, Any]):
    """A tensor environment as a vector environment of Gymnasium, with same-step autoreset.

    `reset(seed=...)` starts episode 0 of each environment: a list has one seed for each environment, and an integer s
    gives environment i the seed s + i. Later episodes follow from the seed.

    Args:
        environment: The environment.
        keys: The seeds of the environments, `[M, E]`; the environments are ordered member by member.
        compiler: Compiles the step.
    """

    def __init__(self, environment: TensorEnvironment, keys: Tensor, compiler: Compiler | None = None) -> None:
        self.environment = environment
        self.num_envs = keys.numel()
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}
        self.render_mode = None
        self.single_observation_space = environment.observation_space
        self.single_action_space = environment.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.failures: dict[int, Any] = {}
        """Always empty: a tensor environment does not fail."""
        self.state: State = {}
        """The state of all environments, `[M, E, ...]`; written in place by the programs that step them."""
        self._keys = keys
        self._compiler = Compiler("none") if compiler is None else compiler
        self._begin(keys)

    def _begin(self, keys: Tensor) -> None:
        self.state = start(self.environment, keys.clone(), torch.zeros_like(keys))
        self._step = self._compiler.program("the environments", self._advance, self.state)

    def to(self, device: torch.device) -> State:
        """Move the state of all environments to a device, and return it."""
        if self._keys.device != device:
            self._keys = self._keys.to(device)
            self.state = {name: tensor.to(device) for name, tensor in self.state.items()}
            self._step = self._compiler.program("the environments", self._advance, self.state)
        return self.state

    def _advance(self, state: State, action: Tensor) -> Outcome:
        """Step all environments and write their state in place."""
        new, outcome = advance(self.environment, state, action)
        for name, tensor in new.items():
            state[name].copy_(tensor)
        return outcome

    @property
    def observations(self) -> NDArray[Any]:
        """The newest observations, `[num_envs, ...]`."""
        return _flat(self.environment.observe(self.state))

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start the first episode of every environment.

        Args:
            seed: The seeds of the environments; None for those given to the constructor.
            options: Not used.
        """
        if seed is not None:
            seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else list(seed)
            words = [member_seed(0 if one is None else one, "environments") >> 31 for one in seeds]
            self._keys = torch.tensor(words, dtype=torch.int64).view(self._keys.shape)
        self._begin(self._keys)
        return self.observations.copy(), {}

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step every environment. Where an episode ends, start the next one.

        Args:
            actions: One action per environment, `[num_envs]`.

        Returns:
            Observations, rewards, terminated, truncated, and an info. The info has `final_obs` if an episode ended: the
            observations after the step, also of episodes that go on.
        """
        outcome: Outcome = self._step(torch.from_numpy(np.asarray(actions, dtype=np.int64)).view(self._keys.shape))
        terminated, truncated = _flat(outcome.terminated), _flat(outcome.truncated)
        ended = terminated | truncated
        info = {"final_obs": _flat(outcome.next_observation), "_final_obs": ended} if ended.any() else {}
        return _flat(outcome.observation), _flat(outcome.reward).astype(np.float64), terminated, truncated, info

    def beyond_bounds(self) -> str | None:
        """Return None: observations keep their bounds."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state of all environments."""
        return {name: tensor.cpu().clone() for name, tensor in self.state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> NDArray[Any]:
        """Restore the state that `state_dict` returned, and return the observations `[num_envs, ...]`."""
        for name, tensor in self.state.items():
            tensor.copy_(state[name])
        return self.observations.copy()

    def close_extras(self, **kwargs: Any) -> None:
        """Do nothing: there is nothing to close."""


def _flat(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor `[M, E, ...]` as an array `[M * E, ...]`."""
    array: NDArray[Any] = tensor.flatten(0, 1).cpu().numpy()
    return array


def make_vector(name: str, num_envs: int = 1, **kwargs: Any) -> TensorVectorEnv:
    """Make vector environments, as `gymnasium.make_vec` does.

    Args:
        name: A key of `TENSOR_ENVIRONMENTS`.
        num_envs: The number of environments.
        kwargs: Arguments of the environment.
    """
    build, arguments = TENSOR_ENVIRONMENTS[name]
    return TensorVectorEnv(build(**{**arguments, **kwargs}), episode_keys([0], num_envs, "environments"))

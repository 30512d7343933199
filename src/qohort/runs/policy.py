"""A trained policy as an ordinary object: what it would do, and its network without a member axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from qohort.agent.heads import Head
from qohort.config.schema import TrainConfig
from qohort.environments.actions import actions_of, as_counted
from qohort.environments.packed import ACTION_MASK, split_mask
from qohort.environments.preprocessing import EPSILON, Preprocessing
from qohort.networks.branches import greedy_actions
from qohort.networks.packing import PackedSpace, Unpacked, part_dtype, without_masked
from qohort.runs.directory import RunDirectory
from qohort.runs.evaluating import StoredMember


class PolicyNetwork(nn.Module):
    """Maps observations `[B, ...]`, as the environment returns them, to action values `[B, A]`.

    An ordinary module without a member axis. Noise is off, and a head with random fractions uses the midpoints of equal
    ones, as in evaluation. Where training normalised observations, so does the module.

    Args:
        network: The network of one member.
        head: The value head.
        mean: The running mean of observations; None if they were not normalised.
        variance: Their running variance.
    """

    fractions: Tensor
    mean: Tensor | None
    variance: Tensor

    def __init__(
        self, network: nn.Module, head: Head, mean: Tensor | None = None, variance: Tensor | None = None
    ) -> None:
        super().__init__()
        self.network, self.head = network, head
        count = 0 if head.fractions is None else head.fractions["policy"]
        self.register_buffer("fractions", (torch.arange(count, dtype=torch.float32) + 0.5) / max(count, 1))
        self.register_buffer("mean", mean)
        self.register_buffer("variance", variance)

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations `[B, ...]` to action values `[B, A]`."""
        if self.mean is not None:
            scaled = (observation.double() - self.mean) / (self.variance + EPSILON).sqrt()
            observation = scaled.to(observation.dtype)
        fractions = [self.fractions.expand(_rows(observation), -1)] if self.fractions.numel() else []
        values: Tensor = self.head.mean(self.head.distribution(self.network(observation, *fractions)))
        return values


def _rows(observation: Any) -> int:
    """Return the number of observations, B, of a tensor `[B, ...]` or of a dict or tuple of such."""
    while not isinstance(observation, Tensor):
        observation = next(iter(observation.values() if isinstance(observation, Mapping) else observation))
    return observation.shape[0]


class Policy:
    """A trained policy.

        policy = qohort.load("outputs/CartPole-v1/dqn-9817f200/seed-0")
        action = policy.act(observation)

    Args:
        network: Maps observations to action values.
        config: The configuration that it was trained with.
        observation_space: The observation space of one environment, without its action mask.
        action_space: The action space of one environment.
        env_steps: The env_steps that it was trained for.
    """

    def __init__(
        self,
        network: PolicyNetwork,
        config: TrainConfig,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        env_steps: int,
    ) -> None:
        self.network, self.config, self.env_steps = network.eval(), config, env_steps
        self.observation_space, self.action_space = observation_space, action_space

    @property
    def scalar(self) -> bool:
        """Whether the network has one value for each action, not a distribution of the return."""
        return self.network.head.scalar

    def values(self, observation: Any, action_mask: Any = None) -> NDArray[np.float32]:
        """Return the action values `[A]` of an observation, or `[B, A]` of several.

        With branches they are those of the first branch, then those of the second, and so on.

        Args:
            observation: The observation, as the environment returns it; several as one batch in each of its parts.
            action_mask: The action mask `[A]`, or `[B, A]`, for a policy that was trained with masks, unless the
                observation has it. Masked actions have the value -inf.

        Raises:
            ValueError: If the observation or the mask does not fit.
        """
        if self.config.env.action_mask and isinstance(observation, Mapping) and ACTION_MASK in observation:
            observation, action_mask = split_mask(observation)
        if self.config.env.action_mask and action_mask is None:
            raise ValueError(
                "this policy was trained with action masks: give the mask of the observation as action_mask"
            )
        batch, several = self._batch(self.observation_space, observation)
        with torch.no_grad():
            values = self.network(batch)
        if action_mask is not None:
            values = without_masked(values, torch.as_tensor(np.asarray(action_mask)).expand_as(values) != 0)
        array = values.numpy()
        result: NDArray[np.float32] = array if several else array[0]
        return result

    def _batch(self, space: spaces.Space[Any], observation: Any) -> tuple[Any, bool]:
        """Return observations `[B, ...]` as tensors, and whether there were several."""
        if isinstance(space, spaces.Dict):
            parts = {key: self._batch(inner, observation[key]) for key, inner in space.items()}
            return {key: part for key, (part, _) in parts.items()}, any(several for _, several in parts.values())
        if isinstance(space, spaces.Tuple):
            pairs = [self._batch(inner, part) for inner, part in zip(space.spaces, observation, strict=True)]
            return tuple(part for part, _ in pairs), any(several for _, several in pairs)
        array, shape = np.asarray(observation, dtype=space.dtype), space.shape or ()
        if array.shape[array.ndim - len(shape) :] != shape or array.ndim > len(shape) + 1:
            raise ValueError(f"an observation has the shape {shape}, several [B, ...]; this one has {array.shape}")
        tensor = torch.from_numpy(np.array(array.reshape(-1, *shape)))
        if self.config.env.action_mask or isinstance(self.observation_space, spaces.Dict | spaces.Tuple):
            tensor = tensor.to(part_dtype(space))  # as the parts of a packed observation were, when it was trained
        return tensor, array.ndim > len(shape)

    def act(self, observation: Any, action_mask: Any = None) -> Any:
        """Return the greedy action of an observation, or an array `[B]` of those of several.

        An action of several numbers is an array `[K]`, and those of several observations are `[B, K]`.

        Args:
            observation: See `values`.
            action_mask: See `values`.
        """
        values = self.values(observation, action_mask)
        several = torch.from_numpy(values.reshape(-1, values.shape[-1]))
        action = as_counted(self.action_space, greedy_actions(several, actions_of(self.action_space)).numpy())
        if values.ndim > 1:
            return action
        return int(action[0]) if action.ndim == 1 else action[0]


def policy_of(stored: StoredMember, directory: RunDirectory, config: TrainConfig) -> Policy:
    """Return the policy of a member.

    Args:
        stored: The member.
        directory: Its run directory, for messages.
        config: Its configuration.

    Raises:
        ConfigError: If its weights do not fit its network.
    """
    prefix = "network."
    weights = {name.removeprefix(prefix): value[0] for name, value in stored.weights.items() if name.startswith(prefix)}
    try:
        network = stored.make()
        network.load_state_dict(weights)
    except (ValueError, TypeError, RuntimeError) as error:
        raise stored.misfit(directory, error) from error
    space = stored.space
    if isinstance(network, Unpacked):  # takes observations as the environment returns them
        network = network.network
    if isinstance(space, PackedSpace):
        space = space.unpacked
    mean, variance = _moments(stored.preprocessing)
    policy_network = PolicyNetwork(network, stored.head, mean, variance)
    return Policy(policy_network, config, space, stored.actions, stored.env_steps)


def _moments(preprocessing: Preprocessing) -> tuple[Tensor | None, Tensor | None]:
    """Return the mean and the variance of observations; None if they are not normalised."""
    moments = preprocessing.observation_moments
    if moments is None:
        return None, None
    return torch.from_numpy(moments.mean[0].copy()), torch.from_numpy(moments.variance[0].copy())

"""Builds the Q-networks of a configuration, and computes the action values of a cohort."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from gymnasium import spaces
from hydra.utils import instantiate
from torch import Tensor, nn

from qohort.agent.heads import Head
from qohort.cohort.program import Compiler, Inputs, Lifted
from qohort.cohort.stacking import CohortNetwork
from qohort.networks.packing import PackedSpace, Unpacked, without_masked

MemberValues = Callable[[Mapping[str, Tensor], Inputs], Tensor]
"""The action values `[E, A]` of one member: of its parameters, and of `observation` and random numbers."""


def network_maker(
    node: Mapping[str, Any], space: spaces.Space[Any], actions: int, head: Head
) -> Callable[[], nn.Module]:
    """Return a function that builds the network of one member.

    Args:
        node: The node `network` of the configuration.
        space: The observation space.
        actions: The number of actions.
        head: The value head, which sets the number of outputs and may wrap the network.

    Raises:
        TypeError: By the function, if the node makes something else.
    """
    build = instantiate(node, _partial_=True, _convert_="all")
    if isinstance(space, PackedSpace):
        inner = network_maker(node, space.unpacked, actions, head)
        return lambda: Unpacked(inner(), space)

    def make() -> nn.Module:
        network = build(observation_space=space, actions=actions, atoms=head.atoms)
        if not isinstance(network, nn.Module):
            raise TypeError(f"network={node['_target_']} must make a torch.nn.Module, but made {network!r}")
        return head.network(network)

    return make


class QValues:
    """Computes action values with the networks of a cohort.

    Args:
        network: The networks.
        head: The value head.
        compiler: Compiles the networks.
        allowed: Returns the action masks `[B, A]` of observations `[B, ...]`; None for no masks. Masked actions have
            the value -inf.
    """

    def __init__(
        self, network: CohortNetwork, head: Head, compiler: Compiler, allowed: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self._network, self._head, self._allowed = network, head, allowed
        self._lifted = Lifted(compiler, "action values", self.of_member, network)
        self._noise_free: dict[torch.Size, dict[str, Tensor]] = {}

    def __call__(self, observation: Tensor, numbers: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the action values `[M, B, A]` of observations `[M, B, ...]`.

        Args:
            observation: The observations.
            numbers: The random numbers `normal` and `fractions`, where the networks and the head need them. None
                switches the noise off and uses the midpoints of equal fractions, as in evaluation.
        """
        if numbers is None:
            numbers = self._noise_free.get(observation.shape) or self._make_noise_free(observation)
        return self._lifted({"observation": observation, **numbers})

    def _make_noise_free(self, observation: Tensor) -> dict[str, Tensor]:
        members, rows = observation.shape[:2]
        numbers = self._noise_free[observation.shape] = {}
        if self._network.normals:
            numbers["normal"] = torch.zeros((members, self._network.normals), device=observation.device)
        if self._head.fractions is not None:
            count = self._head.fractions["policy"]
            midpoints = (torch.arange(count, device=observation.device, dtype=torch.float32) + 0.5) / count
            numbers["fractions"] = midpoints.expand(members, rows, count).contiguous()
        return numbers

    def of_member_without_noise(self, parameters: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        """Return the action values `[B, A]` of one member without noise, as in evaluation."""
        observation = inputs["observation"]
        numbers: dict[str, Tensor] = {}
        if self._network.normals:
            numbers["normal"] = observation.new_zeros(self._network.normals, dtype=torch.float32)
        if self._head.fractions is not None:
            count = self._head.fractions["policy"]
            midpoints = (torch.arange(count, device=observation.device, dtype=torch.float32) + 0.5) / count
            numbers["fractions"] = midpoints.expand(observation.shape[0], count)
        return self.of_member(parameters, {"observation": observation, **numbers})

    def of_member(self, parameters: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        """Return the action values `[B, A]` of one member."""
        numbers = inputs.get("normal"), inputs.get("fractions")
        outputs = self._network.member_forward(parameters, inputs["observation"], *numbers)
        values = self._head.mean(self._head.distribution(outputs))
        return values if self._allowed is None else without_masked(values, self._allowed(inputs["observation"]))

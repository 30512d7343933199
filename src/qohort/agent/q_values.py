"""Action values of a cohort: the networks that a configuration describes, and what they say of an observation."""

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


def network_maker(
    node: Mapping[str, Any], space: spaces.Space[Any], actions: int, head: Head
) -> Callable[[], nn.Module]:
    """Makes one member's network, as its head needs it.

    Args:
        node: The network's node.
        space: The observation space.
        actions: The number of actions.
        head: The value head.
    """
    build = instantiate(node, _partial_=True, _convert_="all")
    return lambda: head.network(build(observation_space=space, actions=actions, atoms=head.atoms))


class QValues:
    """What a cohort's networks say of observations.

    Args:
        network: The networks.
        head: What their outputs mean.
        compiler: Compiles the programs.
    """

    def __init__(self, network: CohortNetwork, head: Head, compiler: Compiler) -> None:
        self._network, self._head = network, head
        self._lifted = Lifted(compiler, "action values", self._member_values, network)
        self._quiet: dict[torch.Size, dict[str, Tensor]] = {}

    def __call__(self, observation: Tensor, numbers: Mapping[str, Tensor] | None = None) -> Tensor:
        """The action values `[M, B, A]` of observations `[M, B, ...]`.

        Args:
            observation: The observations.
            numbers: `normal` and `fractions`, as the networks and the head need them; None for none of the noise and
                for the middles of equal parts as fractions, as in evaluation.
        """
        if numbers is None:
            numbers = self._quiet.get(observation.shape) or self._make_quiet(observation)
        return self._lifted({"observation": observation, **numbers})

    def _make_quiet(self, observation: Tensor) -> dict[str, Tensor]:
        members, rows = observation.shape[:2]
        numbers = self._quiet[observation.shape] = {}
        if self._network.normals:
            numbers["normal"] = torch.zeros((members, self._network.normals), device=observation.device)
        if self._head.fractions is not None:
            count = self._head.fractions["policy"]
            middles = (torch.arange(count, device=observation.device, dtype=torch.float32) + 0.5) / count
            numbers["fractions"] = middles.expand(members, rows, count).contiguous()
        return numbers

    def _member_values(self, parameters: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        """One member's action values `[B, A]`."""
        numbers = inputs.get("normal"), inputs.get("fractions")
        outputs = self._network.member_forward(parameters, inputs["observation"], *numbers)
        return self._head.mean(self._head.distribution(outputs))

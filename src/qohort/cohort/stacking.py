"""The stacked network: M networks of one architecture as one module with a leading member axis.

A network is written as an ordinary `nn.Module` for one member. `CohortNetwork` builds one for each member and stacks
their parameters. `torch.func` lifts `member_forward`, a function of one member's parameters, over the members.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from qohort.cohort.streams import member_seed
from qohort.cohort.tracing import TRACING


class CohortNetwork(nn.Module):
    """M networks of one architecture as one module whose parameters have a leading member axis.

    Args:
        build: Builds the network of one member, an ordinary `nn.Module`.
        seeds: The members' seeds. Each network is initialised from the `network` stream of its member.
        path: Distinguishes the uses of that stream, for example the number of a reset.

    Raises:
        ValueError: If a network has BatchNorm or a persistent buffer. Buffers are noise here.
    """

    def __init__(self, build: Callable[[], nn.Module], seeds: Sequence[int], path: tuple[int, ...] = ()) -> None:
        super().__init__()
        networks = []
        for seed in seeds:
            # torch's initialisers use the global generator. Seed it temporarily and restore it afterwards.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(member_seed(seed, "network", *path))
                networks.append(build())
        self.size = len(networks)
        self.network = networks[0]
        self._noise = {name: buffer.shape for name, buffer in self.network.named_buffers()}
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.network.modules()):
            raise ValueError("BatchNorm mixes the rows of a batch and is not supported: use LayerNorm")
        if any(name in self.network.state_dict() for name in self._noise):
            raise ValueError(
                f"the network has persistent buffers ({', '.join(self._noise)}): buffers are noise here, "
                "register them with persistent=False"
            )
        states = [dict(network.named_parameters()) for network in networks]
        for name, parameter in states[0].items():
            owner, _, leaf = name.rpartition(".")
            stacked = torch.stack([state[name].detach() for state in states])
            requires_grad = parameter.requires_grad
            setattr(self.network.get_submodule(owner), leaf, nn.Parameter(stacked, requires_grad=requires_grad))

    def parameters_by_name(self) -> dict[str, Tensor]:
        """Return the stacked parameters `[M, ...]` by name, detached and sharing memory."""
        return {name: parameter.detach() for name, parameter in self.network.named_parameters()}

    @property
    def normals(self) -> int:
        """The number of standard normal values per use of a member's network."""
        return sum(shape.numel() for shape in self._noise.values())

    def member_forward(
        self,
        parameters: Mapping[str, Tensor],
        observation: Tensor,
        normal: Tensor | None = None,
        fractions: Tensor | None = None,
    ) -> Tensor:
        """Call the network of one member. Lifted functions use this method.

        Args:
            parameters: The parameters of the member by name.
            observation: The observations, `[B, ...]`.
            normal: The values of the noise buffers, `[normals]`; None for a network without noise.
            fractions: The second argument of the network, `[B, N]`; None if it takes none.
        """
        tensors = {**parameters, **self._noise_from(normal)}
        inputs = (observation,) if fractions is None else (observation, fractions)
        output: Tensor
        if observation.shape[0] > 1 or TRACING.unrolled:
            output = functional_call(self.network, tensors, inputs)
            return output
        # With a batch of one row, torch computes a matrix-vector product for M = 1 and a matrix product for M > 1,
        # which round differently. With two equal rows, it computes a matrix product for any M.
        doubled = tuple(tensor.expand(2, *tensor.shape[1:]).contiguous() for tensor in inputs)
        output = functional_call(self.network, tensors, doubled)
        return output.mean(0, keepdim=True)

    def _noise_from(self, normal: Tensor | None) -> dict[str, Tensor]:
        if normal is None:
            return {}
        pieces = torch.split(normal, [shape.numel() for shape in self._noise.values()])
        return {name: piece.view(shape) for (name, shape), piece in zip(self._noise.items(), pieces, strict=True)}

    def forward(self, observation: Tensor) -> Tensor:
        """Call every member's network on its own batch: `[M, B, ...]` to `[M, B, outputs]`."""
        output: Tensor = vmap(self.member_forward)(self.parameters_by_name(), observation)
        return output

    def frozen_copy(self) -> CohortNetwork:
        """Return an independent copy without gradients, for a target network."""
        return copy.deepcopy(self).requires_grad_(False)


def is_of_output(name: str) -> bool:
    """Return whether a parameter belongs to the output layers of a network, the submodule `output`, by its name."""
    return "output" in name.split(".")

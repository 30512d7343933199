"""The stacked network: M networks of one architecture as one module with a leading member axis.

A researcher writes an ordinary `nn.Module` for one member. `CohortNetwork` makes one for each member and stacks their
parameters; `member_forward` is the function of one member's parameters that `torch.func` lifts over the members.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from qohort.cohort.streams import member_seed

_unrolling = False


@contextmanager
def unrolling() -> Iterator[None]:
    """While a function is traced for inductor, which compiles a batch of one row to the same loops for any M."""
    global _unrolling
    _unrolling = True
    try:
        yield
    finally:
        _unrolling = False


class CohortNetwork(nn.Module):
    """M networks of one architecture, held as one module whose parameters have a leading member axis.

    Args:
        build: Makes one member's network: an ordinary `nn.Module`.
        seeds: The members' seeds; each network is initialised from its member's `network` stream.
        path: What tells the uses of the stream apart.

    Raises:
        ValueError: If a network has a buffer that would be saved: buffers are noise.
    """

    def __init__(self, build: Callable[[], nn.Module], seeds: Sequence[int], path: tuple[int, ...] = ()) -> None:
        super().__init__()
        networks = []
        for seed in seeds:
            # torch's initialisers read the global generator: lend them one, and leave the global as it was.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(member_seed(seed, "network", *path))
                networks.append(build())
        self.size = len(networks)
        self.network = networks[0]
        self._noise = {name: buffer.shape for name, buffer in self.network.named_buffers()}
        if any(name in self.network.state_dict() for name in self._noise):
            raise ValueError(
                f"the network has buffers ({', '.join(self._noise)}): a buffer is noise here, "
                "and is registered with persistent=False"
            )
        states = [dict(network.named_parameters()) for network in networks]
        for name, parameter in states[0].items():
            owner, _, leaf = name.rpartition(".")
            stacked = torch.stack([state[name].detach() for state in states])
            requires_grad = parameter.requires_grad
            setattr(self.network.get_submodule(owner), leaf, nn.Parameter(stacked, requires_grad=requires_grad))

    def parameters_by_name(self) -> dict[str, Tensor]:
        """The stacked parameters `[M, ...]` by the member network's own names, detached, sharing memory."""
        return {name: parameter.detach() for name, parameter in self.network.named_parameters()}

    @property
    def normals(self) -> int:
        """How many standard normal numbers one use of a member's network needs."""
        return sum(shape.numel() for shape in self._noise.values())

    def member_forward(
        self,
        parameters: Mapping[str, Tensor],
        observation: Tensor,
        normal: Tensor | None = None,
        fractions: Tensor | None = None,
    ) -> Tensor:
        """One member's network on one member's parameters: what a lifted function calls.

        Args:
            parameters: By the member network's own names.
            observation: `[B, ...]`.
            normal: The numbers for its noise, `[normals]`; None where it has none.
            fractions: A second argument of the network, `[B, N]`; None where it takes none.
        """
        tensors = {**parameters, **self._noise_from(normal)}
        inputs = (observation,) if fractions is None else (observation, fractions)
        output: Tensor
        if observation.shape[0] > 1 or _unrolling:
            output = functional_call(self.network, tensors, inputs)
            return output
        # A batch of one row is a matrix-vector product for M = 1 and a matrix product for M > 1, which round
        # differently. Two equal rows are a matrix product for any M. Inductor turns either into the same loops.
        twice = tuple(one.expand(2, *one.shape[1:]).contiguous() for one in inputs)
        output = functional_call(self.network, tensors, twice)
        return output.mean(0, keepdim=True)

    def _noise_from(self, normal: Tensor | None) -> dict[str, Tensor]:
        if normal is None:
            return {}
        pieces = torch.split(normal, [shape.numel() for shape in self._noise.values()])
        return {name: one.view(shape) for (name, shape), one in zip(self._noise.items(), pieces, strict=True)}

    def forward(self, observation: Tensor) -> Tensor:
        """Every member's network on its own batch: `[M, B, ...]` to `[M, B, outputs]`."""
        output: Tensor = vmap(self.member_forward)(self.parameters_by_name(), observation)
        return output

    def frozen_copy(self) -> CohortNetwork:
        """An independent copy that takes no gradients: a target network."""
        return copy.deepcopy(self).requires_grad_(False)


def is_of_output(name: str) -> bool:
    """Whether a parameter of this name belongs to a network's output layers: those of its submodule `output`."""
    return "output" in name.split(".")

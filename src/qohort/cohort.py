"""The cohort: M members as one program, with a leading member axis on every tensor.

A researcher writes an ordinary module and functions of one member's tensors; this file lifts them over the
member axis with `torch.func`, gives every member its own random streams, and splits a cohort's state into
its members' states and back. Only this file, the replay and the environment loop know that `M` exists.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.fx.experimental.proxy_tensor import make_fx

STREAMS = ("network", "environments", "exploration", "replay", "noise", "evaluation")
"""The random streams of a member. Their order is part of every published number: append, never insert."""

COMPILE_MODES = ("inductor", "aot_eager", "none")


def member_seed(seed: int, stream: str, *path: int) -> int:
    """A 64-bit seed for one use of one stream of one member.

    Args:
        seed: The member's seed.
        stream: One of `STREAMS`.
        path: What tells the uses of a stream apart, for example (environment index, episode number).

    Returns:
        An integer in [0, 2^63) that depends on the arguments only.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(STREAMS.index(stream), *path))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


class UniformStream:
    """Uniform numbers for every member, each from the member's own generator.

    Numbers are drawn a block ahead, since a call to each of M generators at every step would cost more than
    the step. A member's numbers depend on its seed and on how many were taken, not on M.

    Args:
        seeds: The members' seeds.
        stream: One of `STREAMS`.
        shape: The shape of one draw of one member.
        block: The number of draws made at once.
    """

    def __init__(self, seeds: Sequence[int], stream: str, shape: tuple[int, ...], block: int = 1024) -> None:
        self._generators = [np.random.Generator(np.random.PCG64(member_seed(seed, stream))) for seed in seeds]
        self._block = np.empty((len(seeds), block, *shape))
        self._refill()

    def next(self) -> NDArray[np.float64]:
        """The next draw: `[M, *shape]`, uniform in [0, 1)."""
        if self._cursor == self._block.shape[1]:
            self._refill()
        draw: NDArray[np.float64] = self._block[:, self._cursor]
        self._cursor += 1
        return draw

    def _refill(self) -> None:
        self._before = [generator.bit_generator.state for generator in self._generators]
        for m, generator in enumerate(self._generators):
            generator.random(out=self._block[m])
        self._cursor = 0

    def state_dict(self) -> dict[str, Any]:
        """The generators as they were before the current block, and how much of the block was taken."""
        states = [state["state"] for state in self._before]
        return {"members": [[str(state["state"]), str(state["inc"])] for state in states], "cursor": self._cursor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        for generator, (value, increment) in zip(self._generators, state["members"], strict=True):
            generator.bit_generator.state = {
                "bit_generator": "PCG64",
                "state": {"state": int(value), "inc": int(increment)},
                "has_uint32": 0,
                "uinteger": 0,
            }
        self._refill()
        self._cursor = int(state["cursor"])


class CohortNetwork(nn.Module):
    """M networks of one architecture, held as one module whose parameters have a leading member axis.

    Args:
        build: Makes one member's network: an ordinary `nn.Module`.
        seeds: The members' seeds; each network is initialised from its member's `network` stream.
    """

    def __init__(self, build: Callable[[], nn.Module], seeds: Sequence[int]) -> None:
        super().__init__()
        networks = []
        for seed in seeds:
            # torch's initialisers read the global generator: lend them one, and leave the global as it was.
            with torch.random.fork_rng(devices=[]):
                torch.random.default_generator.manual_seed(member_seed(seed, "network"))
                networks.append(build())
        self.size = len(networks)
        self.network = networks[0]
        states = [dict(network.named_parameters()) for network in networks]
        for name, parameter in states[0].items():
            owner, _, leaf = name.rpartition(".")
            stacked = torch.stack([state[name].detach() for state in states])
            requires_grad = parameter.requires_grad
            setattr(self.network.get_submodule(owner), leaf, nn.Parameter(stacked, requires_grad=requires_grad))

    def parameters_by_name(self) -> dict[str, Tensor]:
        """The stacked parameters `[M, ...]` by the member network's own names, detached, sharing memory."""
        return {name: parameter.detach() for name, parameter in self.network.named_parameters()}

    def member_forward(self, parameters: Mapping[str, Tensor], observation: Tensor) -> Tensor:
        """One member's network on one member's parameters: what a lifted function calls."""
        output: Tensor = functional_call(self.network, dict(parameters), (observation,))
        return output

    def forward(self, observation: Tensor) -> Tensor:
        """Every member's network on its own batch: `[M, B, ...]` to `[M, B, outputs]`."""
        output: Tensor = vmap(self.member_forward)(self.parameters_by_name(), observation)
        return output

    def frozen_copy(self) -> CohortNetwork:
        """An independent copy that takes no gradients: a target network."""
        return copy.deepcopy(self).requires_grad_(False)


class Forward:
    """Acting's forward pass over a cohort, with the interpreter's overhead taken out.

    A lifted module costs some 200 µs a call in Python, ten times its arithmetic at the sizes of acting. So
    the lifted pass is unrolled to plain tensor operations once for each input shape, and replayed by
    TorchScript: the same operations, so the same bits. With `compile="none"` the module is simply called.

    Args:
        network: The networks to call.
        compile_mode: One of `COMPILE_MODES`.
    """

    def __init__(self, network: CohortNetwork, compile_mode: str) -> None:
        self._network = network
        self._unroll = compile_mode != "none"
        self._parameters = network.parameters_by_name()
        self._traces: dict[tuple[torch.Size, torch.dtype], Callable[..., Tensor]] = {}

    @torch.no_grad()
    def __call__(self, observation: Tensor) -> Tensor:
        """`[M, B, ...]` to `[M, B, outputs]`."""
        if not self._unroll:
            output: Tensor = self._network(observation)
            return output
        key = (observation.shape, observation.dtype)
        trace = self._traces.get(key)
        if trace is None:
            trace = self._traces[key] = self._trace(observation)
        return trace(observation, *self._parameters.values())

    def _trace(self, observation: Tensor) -> Callable[..., Tensor]:
        names = list(self._parameters)

        def forward(observation: Tensor, *parameters: Tensor) -> Tensor:
            output: Tensor = vmap(self._network.member_forward)(
                dict(zip(names, parameters, strict=True)), observation
            )
            return output

        arguments = (observation, *self._parameters.values())
        unrolled = make_fx(forward)(*arguments)
        traced: Callable[..., Tensor] = torch.jit.trace(unrolled, arguments, check_trace=False)
        return traced


def lift(function: Callable[..., Any], in_dims: Any, compile_mode: str) -> Callable[..., Any]:
    """Lift a function of one member's tensors over the member axis, and compile it.

    Shapes are compiled as they are: one program for each M. What is computed for a member, and in which
    order, does not depend on M.

    Args:
        function: A function of one member's tensors.
        in_dims: As in `torch.func.vmap`: 0 where an argument has a member axis, None where it is shared.
        compile_mode: One of `COMPILE_MODES`.

    Returns:
        The function of the cohort's tensors.
    """
    lifted = vmap(function, in_dims=in_dims)
    return compiled(lifted, compile_mode)


def compiled(function: Callable[..., Any], compile_mode: str) -> Callable[..., Any]:
    """`function`, compiled as `compile_mode` says."""
    if compile_mode == "none":
        return function
    result: Callable[..., Any] = torch.compile(function, backend=compile_mode, fullgraph=True, dynamic=False)
    return result


def per_member(values: Sequence[float], device: torch.device | str = "cpu") -> Tensor:
    """One float32 number a member: `[M]`."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def split_state(state: Any, m: int) -> Any:
    """Member m's part of a cohort's state, as a cohort of one has it.

    In a state, tensors with a dimension have a leading member axis, and so has the list under a key
    `members`; mappings, other lists and tuples are walked through; anything else (counters, text,
    0-dimensional tensors) is shared by all members.
    """
    if isinstance(state, Tensor) and state.dim() > 0:
        return state[m : m + 1].clone()
    if isinstance(state, Mapping):
        return {
            key: [value[m]] if key == "members" and isinstance(value, list) else split_state(value, m)
            for key, value in state.items()
        }
    if isinstance(state, list | tuple):
        return type(state)(split_state(value, m) for value in state)
    return state


def merge_states(states: Sequence[Any]) -> Any:
    """A cohort's state from its members' states: the inverse of `split_state`.

    Raises:
        ValueError: If what members share differs, for example their number of steps.
    """
    first = states[0]
    if isinstance(first, Tensor) and first.dim() > 0:
        return torch.cat(list(states))
    if isinstance(first, Mapping):
        return {
            key: [state[key][0] for state in states]
            if key == "members" and isinstance(value, list)
            else merge_states([state[key] for state in states])
            for key, value in first.items()
        }
    if isinstance(first, list | tuple):
        return type(first)(merge_states(values) for values in zip(*states, strict=True))
    if any(not _equal(state, first) for state in states[1:]):
        raise ValueError(f"members of one cohort must agree on what they share, got {list(states)}")
    return first


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)

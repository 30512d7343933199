"""The cohort: M members as one program, with a leading member axis on every tensor.

A researcher writes an ordinary module and functions of one member's tensors; this file lifts them over the
member axis with `torch.func`, gives every member its own random streams, and splits a cohort's state into
its members' states and back. Networks, heads, bootstraps, losses and optimisers' steps never see that axis.
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch._dynamo.source import ConstantSource
from torch._inductor import config as inductor_config
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.exc import InductorError
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, functionalize, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from qohort.cohort.streams import member_seed

TORCHSCRIPT_LACKS: Any = get_decompositions(
    [torch.ops.aten.native_layer_norm, torch.ops.aten.native_layer_norm_backward]  # their masks of outputs
)


COMPILE_MODES = ("inductor", "aot_eager", "none")


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
        if observation.shape[0] > 1 or _compiling:
            output = functional_call(self.network, tensors, inputs)
            return output
        # A batch of one row becomes a matrix-vector product for M = 1 and a matrix product for M > 1, which
        # round differently: two equal rows are a matrix product for any M. Inductor makes loops of either.
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


class Program:
    """A function of tensors, lifted or not, unrolled to plain tensor operations and compiled.

    A call of a lifted function in Python costs ten times its arithmetic at the sizes of a Q-network. So it is
    unrolled once, for the shapes of its first call, and from then on run by inductor, or by TorchScript where
    `aot_eager` is asked for. `torch.compile` is not used: what it checks at each call costs more than the call.

    What is computed for a member, and in which order, does not depend on M: one program for each M, all alike.

    Args:
        function: Takes `state` and the inputs, returns tensors in any nesting; may write to the state in place.
        state: Tensors in any nesting, the same at each call.
        compile_mode: One of `COMPILE_MODES`; `none` calls the function as it is.
        cached: A function that works through all of its state goes over as many members at once as have their
            state in the CPU's cache: the bits are the same, and for large networks it is quicker.
    """

    def __init__(
        self, function: Callable[[Any, Any], Any], state: Any, compile_mode: str, cached: bool = False
    ) -> None:
        self._function, self._state, self._mode, self._cached = function, state, compile_mode, cached
        self._run: Callable[[Any], Any] | None = None

    def __call__(self, inputs: Any) -> Any:
        """The function's result; it takes no part in autograd.

        Args:
            inputs: A tensor, or a mapping of tensors; in shapes, dtypes and keys as at the first call.
        """
        if self._run is None:
            with torch.no_grad():
                self._run = self._build(inputs)
        return self._run(inputs)

    def _build(self, inputs: Any) -> Callable[[Any], Any]:
        if self._mode == "none":
            return lambda inputs: self._function(self._state, inputs)
        leaves, spec = tree_flatten((self._state, inputs))
        # A tensor that stands twice in the state (an online network that is its own target) is passed once.
        place: dict[Any, int] = {}
        state_size = len(leaves) - len(tree_leaves(inputs))
        keys = [(one.data_ptr(), one.shape) if i < state_size else i for i, one in enumerate(leaves)]
        position = [place.setdefault(key, len(place)) for key in keys]
        distinct = [leaves[position.index(index)] for index in range(len(place))]
        held = distinct[: len({*position[:state_size]})]
        result_spec: TreeSpec | None = None

        def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
            nonlocal result_spec
            state, inputs = tree_unflatten([tensors[index] for index in position], spec)
            results, result_spec = tree_flatten(self._function(state, inputs))
            return tuple(results)

        program = compiled = _compile(flat, distinct) if self._mode == "inductor" else None
        if program is None:
            # Traced with fake tensors, then with clones: the function may write to the state.
            unrolled = make_fx(flat, decomposition_table=TORCHSCRIPT_LACKS, tracing_mode="fake")(*distinct)
            clones = tuple(leaf.clone() for leaf in distinct)
            program = torch.jit.trace(unrolled, clones, check_trace=False)  # type: ignore[no-untyped-call]
        assert result_spec is not None
        final_spec: TreeSpec = result_spec
        kinds = [(leaf.shape, leaf.dtype) for leaf in tree_leaves(inputs)]
        one_result = final_spec.is_leaf()
        if compiled is not None and self._cached:
            program = _in_parts(compiled, held)

        def run(inputs: Any) -> Any:
            given = [inputs] if isinstance(inputs, Tensor) else list(inputs.values())
            found = [(one.shape, one.dtype) for one in given]
            if found != kinds:  # compiled code would read past their ends
                raise ValueError(f"inputs must keep their shapes and dtypes {kinds}, got {found}")
            results = program(*held, *[one.contiguous() for one in given])
            return results[0] if one_result else tree_unflatten(results, final_spec)

        return run


CACHE_BYTES = 1 << 20
"""What of the state is worked on at once: half of a usual core's second-level cache."""


def _in_parts(program: Callable[..., Any], state: Sequence[Tensor]) -> Callable[..., Any]:
    """A compiled program that goes over the members in equal parts of at most `CACHE_BYTES` of state."""
    members = len(state[0])
    size = sum(one.nbytes for one in state)
    if state[0].device.type != "cpu" or size <= CACHE_BYTES:
        return program
    count = min(members, -(-size // CACHE_BYTES))
    cuts = [members * part // count for part in range(count + 1)]
    parts = [slice(first, last) for first, last in itertools.pairwise(cuts)]
    held = [[one[part] for one in state] for part in parts]

    def run(*tensors: Tensor) -> list[Tensor]:
        inputs = tensors[len(state) :]
        results = [program(*own, *[one[part] for one in inputs]) for part, own in zip(parts, held, strict=True)]
        return [torch.cat(pieces) for pieces in zip(*results, strict=True)]

    return run


_compiling = False
"""Whether a function is being unrolled for inductor."""


def _compile(function: Callable[..., Any], tensors: Sequence[Tensor]) -> Callable[..., Any] | None:
    """Compile a function of tensors for any size of their first axis, the members'.

    Compiled for one size, a cohort of one would be a program of its own: without a loop over members inductor
    orders its sums otherwise. Compiled for any size, it is the same program for every M, so the same bits.

    Returns:
        The compiled function; None where an operation can only be compiled for one size, or not at all.
    """
    shapes = ShapeEnv()
    mode = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
    stand_ins: list[Any] = []
    for tensor in tensors:
        # 7 stands for any size but 0 and 1; a static size that happens to be 7 is told apart.
        sample = torch.empty((7, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device)
        sizes = [DimDynamic.DUCK, *[DimDynamic.STATIC] * (tensor.dim() - 1)]
        context: Any = StatelessSymbolicContext(dynamic_sizes=sizes)
        source = ConstantSource(f"input{len(stand_ins)}")
        stand_ins.append(mode.from_tensor(sample, symbolic_context=context, source=source))
    global _compiling
    _compiling = True
    try:
        with mode:
            trace = make_fx(functionalize(function), decomposition_table=select_decomp_table())
            unrolled = trace(*stand_ins)
    finally:
        _compiling = False
    if shapes.replacements:
        print(
            "compile=inductor: the network or loss has an operation that fixes M; TorchScript runs it", file=sys.stderr
        )
        return None
    try:
        with inductor_config.patch(size_asserts=False):  # `Program` has looked at the inputs
            compiled: Any = compile_fx_inner(unrolled, stand_ins)
    except InductorError as error:
        reason = " ".join(str(error).split())[:200]
        print(f"compile=inductor: it fails ({reason}); TorchScript runs the network or loss", file=sys.stderr)
        return None
    call = compiled.current_callable
    return lambda *tensors: call(list(tensors))


Inputs = Mapping[str, Tensor]
"""`observation`, and where there are such `normal` and `fractions`, the random numbers of one use of a network."""


class Lifted:
    """A member's function of its parameters and inputs, lifted: a program for each shape and dtype of observations.

    Args:
        function: Takes one member's parameters and inputs, `[B, ...]` each.
        network: Holds the parameters.
        compile_mode: One of `COMPILE_MODES`.
    """

    def __init__(
        self, function: Callable[[Mapping[str, Tensor], Inputs], Tensor], network: CohortNetwork, compile_mode: str
    ) -> None:
        self._parameters = network.parameters_by_name()
        self._lifted = vmap(function)
        self._mode = compile_mode
        self._programs: dict[tuple[torch.Size, torch.dtype], Program] = {}

    def __call__(self, inputs: Inputs) -> Tensor:
        """The function of inputs `[M, B, ...]`."""
        observation = inputs["observation"]
        kind = (observation.shape, observation.dtype)
        program = self._programs.get(kind)
        if program is None:
            program = self._programs[kind] = Program(self._lifted, self._parameters, self._mode)
        output: Tensor = program(inputs)
        return output

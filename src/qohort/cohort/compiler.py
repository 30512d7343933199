"""PyTorch's compiler, behind one door: the only file that touches interfaces of PyTorch's that it calls private.

Imported when the first program is compiled. Whatever raises here is `Compiler.build`'s to deal with: the program then
runs in another mode, and a line says so.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.source import ConstantSource
from torch._inductor import config as inductor_config
from torch._inductor import cpp_builder, exc
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from qohort.cohort.stacking import unrolling

CACHE_BYTES = 1 << 20
"""Bytes of state that a program works on at once: half of a usual core's second-level cache."""

Flat = Callable[..., Any]
"""A function from tensors to a sequence of tensors."""


def build(
    mode: str, function: Callable[[Any, Any], Any], state: Any, inputs: Any, in_parts: bool
) -> Callable[[Any], Any]:
    """Trace a function of a state and inputs, and compile it.

    Args:
        mode: `inductor` or `fx`.
        function: See `qohort.cohort.program.Program`.
        state: The tensors that it works on, held from now on.
        inputs: Of the shapes, dtypes and keys that all later inputs have.
        in_parts: See `qohort.cohort.program.Program`.

    Returns:
        A function of inputs.
    """
    leaves, spec = tree_flatten((state, inputs))
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
        results, result_spec = tree_flatten(function(state, inputs))
        return tuple(results)

    program: Flat
    if mode == "inductor":
        program = _compile(flat, distinct)
        if in_parts:
            program = _in_parts(program, held)
    else:
        program = make_fx(flat, tracing_mode="fake")(*distinct)
    assert result_spec is not None
    final_spec: TreeSpec = result_spec
    kinds = [(leaf.shape, leaf.dtype) for leaf in tree_leaves(inputs)]
    one_result = final_spec.is_leaf()

    def run(inputs: Any) -> Any:
        given = [inputs] if isinstance(inputs, Tensor) else list(inputs.values())
        found = [(one.shape, one.dtype) for one in given]
        if found != kinds:  # compiled code would read past their ends
            raise ValueError(f"inputs must keep their shapes and dtypes {kinds}, got {found}")
        results = program(*held, *[one.contiguous() for one in given])
        return results[0] if one_result else tree_unflatten(results, final_spec)

    return run


def _compile(function: Flat, tensors: Sequence[Tensor]) -> Flat:
    """Compile a function of tensors by inductor, for any size of their first axis, the members'.

    Compiled for one size, a cohort of one would be a program of its own: without a loop over members inductor
    orders its sums otherwise. Compiled for any size, it is the same program for every M, so the bits are the same.

    Raises:
        ValueError: If an operation can only be compiled for one number of members.
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
    with mode, unrolling():
        unrolled = make_fx(functionalize(function), decomposition_table=select_decomp_table())(*stand_ins)
    if shapes.replacements:
        raise ValueError("the network or loss has an operation that fixes the number of members")
    with inductor_config.patch(size_asserts=False):  # `build` checks the inputs
        compiled: Any = compile_fx_inner(unrolled, stand_ins)
    call = compiled.current_callable
    return lambda *tensors: call(list(tensors))


def _in_parts(program: Flat, state: Sequence[Tensor]) -> Flat:
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


def has_cpp_compiler() -> bool:
    """Whether inductor finds a C++ compiler for the CPU."""
    try:
        return shutil.which(cpp_builder.get_cpp_compiler()) is not None
    except (exc.InvalidCxxCompiler, RuntimeError):
        return False

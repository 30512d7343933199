"""Compiles programs with PyTorch. This is the only file that uses private interfaces of PyTorch.

It is imported when the first program is compiled. If anything here raises, `Compiler.build` prints a line and runs the
program in another mode.
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
"""The bytes of state that a program processes at once: half of a typical L2 cache."""

Flat = Callable[..., Any]
"""A function from tensors to a sequence of tensors."""


def build(
    mode: str, function: Callable[[Any, Any], Any], state: Any, inputs: Any, in_parts: bool
) -> Callable[[Any], Any]:
    """Trace a function of a state and inputs, and compile it.

    Args:
        mode: `inductor` or `fx`.
        function: See `qohort.cohort.program.Program`.
        state: The state tensors. The compiled function keeps references to them.
        inputs: Example inputs. All later inputs must have the same shapes, dtypes and keys.
        in_parts: See `qohort.cohort.program.Program`.

    Returns:
        The compiled function of the inputs.

    Raises:
        Exception: Anything that PyTorch's compiler raises.
    """
    leaves, spec = tree_flatten((state, inputs))
    # A tensor that occurs twice in the state, such as an online network without a target network, is passed once.
    positions: dict[Any, int] = {}
    state_size = len(leaves) - len(tree_leaves(inputs))
    keys = [(leaf.data_ptr(), leaf.shape) if i < state_size else i for i, leaf in enumerate(leaves)]
    position = [positions.setdefault(key, len(positions)) for key in keys]
    distinct = [leaves[position.index(index)] for index in range(len(positions))]
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
    expected = [(leaf.shape, leaf.dtype) for leaf in tree_leaves(inputs)]
    single_result = final_spec.is_leaf()

    def run(inputs: Any) -> Any:
        tensors = [inputs] if isinstance(inputs, Tensor) else list(inputs.values())
        found = [(tensor.shape, tensor.dtype) for tensor in tensors]
        if found != expected:  # compiled code would read beyond the end of the tensors
            raise ValueError(f"inputs must keep their shapes and dtypes {expected}, got {found}")
        results = program(*held, *[tensor.contiguous() for tensor in tensors])
        return results[0] if single_result else tree_unflatten(results, final_spec)

    return run


def _compile(function: Flat, tensors: Sequence[Tensor]) -> Flat:
    """Compile a function of tensors with inductor, for any size of the first axis, the member axis.

    If it were compiled for a fixed size, a cohort of one would get a different program: without a loop over members,
    inductor orders sums differently. Compiled for any size, the program and therefore the bits are the same for all M.

    Raises:
        ValueError: If an operation can only be compiled for one number of members.
    """
    shapes = ShapeEnv()
    mode = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
    stand_ins: list[Any] = []
    for tensor in tensors:
        # 7 represents any size except 0 and 1. A static axis of size 7 is not confused with it.
        sample = torch.empty((7, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device)
        sizes = [DimDynamic.DUCK, *[DimDynamic.STATIC] * (tensor.dim() - 1)]
        context: Any = StatelessSymbolicContext(dynamic_sizes=sizes)
        source = ConstantSource(f"input{len(stand_ins)}")
        stand_ins.append(mode.from_tensor(sample, symbolic_context=context, source=source))
    with mode, unrolling():
        unrolled = make_fx(functionalize(function), decomposition_table=select_decomp_table())(*stand_ins)
    if shapes.replacements:
        raise ValueError("the network or loss has an operation that fixes the number of members")
    with inductor_config.patch(size_asserts=False):  # `build` checks the inputs itself
        compiled: Any = compile_fx_inner(unrolled, stand_ins)
    call = compiled.current_callable
    return lambda *tensors: call(list(tensors))


def _in_parts(program: Flat, state: Sequence[Tensor]) -> Flat:
    """Run a compiled program on equal parts of the members, with at most `CACHE_BYTES` of state each."""
    members = len(state[0])
    size = sum(tensor.nbytes for tensor in state)
    if state[0].device.type != "cpu" or size <= CACHE_BYTES:
        return program
    count = min(members, -(-size // CACHE_BYTES))
    cuts = [members * part // count for part in range(count + 1)]
    parts = [slice(first, last) for first, last in itertools.pairwise(cuts)]
    states = [[tensor[part] for tensor in state] for part in parts]

    def run(*tensors: Tensor) -> list[Tensor]:
        inputs = tensors[len(state) :]
        results = [
            program(*part_state, *[tensor[part] for tensor in inputs])
            for part, part_state in zip(parts, states, strict=True)
        ]
        return [torch.cat(pieces) for pieces in zip(*results, strict=True)]

    return run


def has_cpp_compiler() -> bool:
    """Return whether inductor finds a C++ compiler for the CPU."""
    try:
        return shutil.which(cpp_builder.get_cpp_compiler()) is not None
    except (exc.InvalidCxxCompiler, RuntimeError):
        return False

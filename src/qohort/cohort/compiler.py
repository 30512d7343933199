"""Compiles programs with PyTorch. Only this file, `native` and `batching` use private interfaces of PyTorch.

It is imported when the first program is compiled. If anything here raises, `Compiler.build` prints a line and runs the
program in another mode.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._dynamo.source import ConstantSource
from torch._functorch.autograd_function import custom_function_call
from torch._guards import TracingContext, tracing
from torch._inductor import compile_fx, cpp_builder, exc
from torch._inductor import config as inductor_config
from torch._inductor.codegen.cpp import CppScheduling
from torch._inductor.codegen.wrapper import PythonWrapperCodegen
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from qohort.cohort.batching import register
from qohort.cohort.rewriting import DECOMPOSITIONS, Rewritten
from qohort.cohort.tracing import TRACING

CACHE_BYTES = 1 << 20
"""The bytes of state that a program processes at once: half of a typical L2 cache."""

INLINED = 8
"""The operations of a value that inductor computes again for each of its uses in a native program. By default it is 30,
with which the hashes of a tensor environment take a minute to compile."""
ON_GPU = {
    "deterministic": True,
    "split_reductions": False,
    "triton.cooperative_reductions": False,
    "triton.mix_order_reduction": False,
}
"""Settings of inductor on a GPU: the order of a sum is not chosen by timing it, nor by the number of members."""
SIZES_ARE_ASSERTED = hasattr(PythonWrapperCodegen, "bind_input_symbol")
"""Whether compiled Python reads the number of members from its inputs only if it asserts their sizes, as since 2.14."""


def _functionalized(_: Any, function: type[torch.autograd.Function], *operands: Any) -> Any:
    """Trace what a `torch.autograd.Function` computes; PyTorch has no rule for it under `functionalize`."""
    return function.forward(*operands)


custom_function_call.functorch_table[TransformType.Functionalize] = _functionalized
register()


def _split_if_alike(split: Callable[..., Any]) -> Callable[..., Any]:
    """Return inductor's splitting of loops, which is optional, without its failure for loops of different shapes."""

    @functools.wraps(split)
    def guarded(scheduling: Any, nodes: list[Any]) -> list[Any]:
        try:
            result: list[Any] = split(scheduling, nodes)
        except AssertionError:
            return nodes
        return result

    return guarded


CppScheduling.try_loop_split = _split_if_alike(CppScheduling.try_loop_split)  # type: ignore[method-assign]

Flat = Callable[..., Any]
"""A function from tensors to a sequence of tensors."""


class Flattened:
    """A function of a state and inputs as a function of tensors, each passed once.

    Args:
        function: See `qohort.cohort.program.Program`.
        state: The state tensors.
        inputs: Example inputs.
    """

    def __init__(self, function: Callable[[Any, Any], Any], state: Any, inputs: Any) -> None:
        self._function = function
        leaves, self._spec = tree_flatten((state, inputs))
        # A tensor that occurs twice in the state, such as an online network without a target network, is passed once.
        positions: dict[Any, int] = {}
        state_size = len(leaves) - len(tree_leaves(inputs))
        keys = [(leaf.data_ptr(), leaf.shape) if i < state_size else i for i, leaf in enumerate(leaves)]
        self._position = [positions.setdefault(key, len(positions)) for key in keys]
        self.tensors = [leaves[self._position.index(index)] for index in range(len(positions))]
        """The distinct tensors: those of the state, then those of the example inputs."""
        self.held = self.tensors[: len({*self._position[:state_size]})]
        """The distinct tensors of the state."""
        self.result_spec: TreeSpec | None = None
        """The nesting of the results, known after the first call."""

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Call the function with tensors in the order of `tensors`, and return its results as one tuple."""
        state, inputs = tree_unflatten([tensors[index] for index in self._position], self._spec)
        results, self.result_spec = tree_flatten(self._function(state, inputs))
        return tuple(results)


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
    flat = Flattened(function, state, inputs)
    held = flat.held
    program: Flat
    if mode == "inductor":
        call = compile_function(flat, flat.tensors).current_callable

        def program(*tensors: Tensor) -> Any:
            return call(list(tensors))

        if in_parts:
            program = _in_parts(program, held)
    else:
        program = make_fx(flat, tracing_mode="fake")(*flat.tensors)
    assert flat.result_spec is not None
    final_spec: TreeSpec = flat.result_spec
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


@contextlib.contextmanager
def telling(tell: Callable[[], None]) -> Iterator[None]:
    """Within this context, call `tell` when inductor compiles a program, but not when it finds it on the disk.

    Whether it is there is known after it was traced. A torch whose inductor has no such function tells at once.
    """
    compiles = getattr(compile_fx, "fx_codegen_and_compile", None)
    if compiles is None:
        tell()
        yield
        return

    def told(*arguments: Any, **options: Any) -> Any:
        tell()
        return compiles(*arguments, **options)

    with mock.patch.object(compile_fx, "fx_codegen_and_compile", told):
        yield


def compile_function(function: Flat, tensors: Sequence[Tensor], native: bool = False) -> Any:
    """Compile a function of tensors with inductor, for any size of the first axis, the member axis.

    If it were compiled for a fixed size, a cohort of one would get a different program: without a loop over members,
    inductor orders sums differently. Compiled for any size, the program and therefore the bits are the same for all M.

    Args:
        function: The function.
        tensors: Example inputs.
        native: Whether inductor calls the kernels from C++ instead of Python.

    Returns:
        Inductor's compiled graph.

    Raises:
        ValueError: If an operation can only be compiled for one number of members.
    """
    shapes = ShapeEnv()
    mode = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
    # 7 represents any number of members except 0 and 1. A static axis of size 7 is not confused with it.
    source = ConstantSource("members")
    symbol = shapes.create_symbol(7, source, DimDynamic.DYNAMIC)
    members = shapes.create_symintnode(symbol, hint=7, source=source)
    with mode:  # nothing is allocated: a replay may fill most of the memory
        stand_ins: list[Any] = [
            torch.empty((members, *one.shape[1:]), dtype=one.dtype, device=one.device) for one in tensors
        ]
    on_gpu = any(tensor.device.type != "cpu" for tensor in tensors)
    with mode, TRACING.unrolling(), Rewritten(products=on_gpu):
        table = {**select_decomp_table(), **DECOMPOSITIONS}
        unrolled = make_fx(functionalize(function), decomposition_table=table)(*stand_ins)
    fixed = {str(name): str(size) for name, size in shapes.replacements.items() if size.is_number}
    if fixed:
        raise ValueError(f"the network or loss has an operation that fixes the number of members: {fixed}")
    settings: dict[str, Any] = {"size_asserts": SIZES_ARE_ASSERTED and not native}  # `build` checks the inputs itself
    if native:
        settings["realize_opcount_threshold"] = INLINED
    if on_gpu:
        known = inductor_config.get_config_copy()
        settings |= {name: value for name, value in ON_GPU.items() if name in known}
    # With a tracing context, inductor keeps compiled programs on disk, for the next start.
    with inductor_config.patch(settings), tracing(TracingContext(mode)):
        options: dict[str, Any] = {"cpp_wrapper": True} if native else {}
        return compile_fx.compile_fx_inner(unrolled, stand_ins, **options)


def parts_of(state: Sequence[Tensor]) -> list[slice]:
    """Return equal parts of the members with at most `CACHE_BYTES` of state each; one part for all on a GPU."""
    members = len(state[0])
    size = sum(tensor.nbytes for tensor in state)
    count = 1 if state[0].device.type != "cpu" else min(members, -(-size // CACHE_BYTES))
    cuts = [members * part // count for part in range(count + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(cuts)]


def _in_parts(program: Flat, state: Sequence[Tensor]) -> Flat:
    """Run a compiled program on the parts of the members."""
    parts = parts_of(state)
    if len(parts) == 1:
        return program
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

"""Compiles programs with PyTorch. Only this file, `batching` and `native` use private interfaces of PyTorch.

It is imported when the first program is traced. If anything here raises, `Compiler.build` prints a line and runs the
program in another mode.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._dynamo.source import ConstantSource
from torch._functorch.autograd_function import custom_function_call
from torch._guards import TracingContext, tracing
from torch._inductor import compile_fx
from torch._inductor import config as inductor_config
from torch._inductor.codegen.cpp import CppScheduling
from torch._inductor.codegen.wrapper import PythonWrapperCodegen
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_leaves, tree_unflatten

from qohort.cohort.batching import register
from qohort.cohort.convolution import convolution, max_pool
from qohort.cohort.native import Flat, Flattened, Library, parts_of
from qohort.cohort.tracing import TRACING

INLINED = 8
"""The operations of a value that inductor computes again for each of its uses on a tape. By default it is 30,
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


class Rewritten(TorchFunctionMode):
    """Replaces functions that do not compile to the same bits for any number of members.

    Args:
        products: Whether matrix products become sums of products, too. NVIDIA's library chooses its kernel, and so the
            order of the sums, by the number of members. A compiled sum has one kernel for any number.
    """

    def __init__(self, products: bool) -> None:
        super().__init__()
        self._rewritten: dict[Any, Callable[..., Any]] = {
            torch.nn.functional.conv2d: _conv2d,
            torch.nn.functional.max_pool2d: _max_pool2d,
            torch.nn.functional.layer_norm: _layer_norm,
        }
        if products:
            self._rewritten |= {torch.nn.functional.linear: _linear, **dict.fromkeys(PRODUCTS, _matmul)}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call what replaces a function, or the function."""
        if rewritten := self._rewritten.get(func):
            with self:  # for the products in a convolution
                result = rewritten(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        return func(*args, **(kwargs or {}))


def _square(*pairs: int | Sequence[int]) -> list[int] | None:
    """Return the one number of each pair; None if a pair has two different ones."""
    numbers = [{*pair} if isinstance(pair, Sequence) else {pair} for pair in pairs]
    return [number.pop() for number in numbers] if all(len(number) == 1 for number in numbers) else None


def _conv2d(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Return `conv2d` with square kernels, strides and borders."""
    if isinstance(padding, str) or image.dim() != 4:
        return NotImplemented
    sizes = _square(weight.shape[2:], stride, padding, dilation)
    if sizes is None or groups != 1 or sizes.pop() != 1:
        return NotImplemented
    return convolution(image, weight.flatten(1), bias, *sizes)


def _max_pool2d(
    image: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Return `max_pool2d` with square patches, strides and borders. Equal largest pixels share the gradient."""
    sizes = _square(kernel_size, kernel_size if stride is None else stride, padding, dilation)
    if sizes is None or sizes.pop() != 1 or ceil_mode or return_indices:
        return NotImplemented
    return max_pool(image, *sizes)


def _layer_norm(
    value: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return `layer_norm` in elementary operations."""
    axes = [*range(-len(normalized_shape), 0)]
    centred = value - value.mean(axes, keepdim=True)
    normalised = centred / (centred.square().mean(axes, keepdim=True) + eps).sqrt()
    if weight is not None:
        normalised = normalised * weight
    return normalised if bias is None else normalised + bias


PRODUCTS = (torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm)
"""The matrix products without an addition."""


def _linear(value: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `value [..., I]` times `weight [O, I]` transposed, plus `bias [O]`."""
    product = (value.unsqueeze(-2) * weight).sum(-1)
    return product if bias is None else product + bias


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    """Return the matrix product, with the rules of `torch.matmul`."""
    if right.dim() == 1:
        return (left * right).sum(-1)
    if left.dim() == 1:
        return (left.unsqueeze(-1) * right).sum(-2)
    return (left.unsqueeze(-1) * right.unsqueeze(-3)).sum(-2)


NARROW = 8
"""A matrix product with fewer rows or columns is compiled as a sum of products on the CPU. For these alone, MKL has a
kernel for each make of CPU, with other bits, even with `MKL_CBWR=AVX2,STRICT`."""


def _narrow_bmm(left: Tensor, right: Tensor) -> Any:
    """Return the product of `left [M, R, K]` and `right [M, K, C]` if it is narrow."""
    if min(left.shape[1], right.shape[2]) >= NARROW:
        return NotImplemented
    return (left.unsqueeze(-1) * right.unsqueeze(1)).sum(2)


def _narrow_mm(left: Tensor, right: Tensor) -> Any:
    """Return the product of `left [R, K]` and `right [K, C]` if it is narrow."""
    if min(left.shape[0], right.shape[1]) >= NARROW:
        return NotImplemented
    return (left.unsqueeze(-1) * right.unsqueeze(0)).sum(1)


def _clone(tensor: Tensor, memory_format: torch.memory_format | None = None) -> Any:
    """Compute a tensor once, and in order, before what reads it. Inductor takes a clone for the expression itself."""
    if memory_format is not None:
        return NotImplemented
    strides = torch.empty_like(tensor, memory_format=torch.contiguous_format).stride()
    return torch.ops.prims.inductor_force_stride_order.default(tensor, strides)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.bmm.default: _narrow_bmm,
    torch.ops.aten.mm.default: _narrow_mm,
    torch.ops.aten.clone.default: _clone,
}


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
        call = _compile(flat, flat.tensors).current_callable

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


def compile_native(flat: Flattened, on_tape: bool) -> Library:
    """Trace a function of tensors, and compile it to C++.

    Args:
        flat: The function.
        on_tape: Whether it is called from tapes. Then less is computed again for each use, see `INLINED`.

    Raises:
        Exception: Anything that PyTorch's compiler raises.
    """
    compiled = _compile(flat, flat.tensors, native=True, inlined=INLINED if on_tape else None)
    if not flat.returns_tensors:
        raise ValueError("it does not return tensors only")
    assert flat.result_spec is not None
    entry = compiled.current_callable.__closure__[0].cell_contents
    return Library(entry.__self__.__file__, flat.result_spec, list(compiled.constants.values()))


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


def _compile(function: Flat, tensors: Sequence[Tensor], native: bool = False, inlined: int | None = None) -> Any:
    """Compile a function of tensors with inductor, for any size of the first axis, the member axis.

    If it were compiled for a fixed size, a cohort of one would get a different program: without a loop over members,
    inductor orders sums differently. Compiled for any size, the program and therefore the bits are the same for all M.

    Args:
        function: The function.
        tensors: Example inputs.
        native: Whether inductor calls the kernels from C++ instead of Python.
        inlined: See `INLINED`; None for inductor's default.

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
    if inlined is not None:
        settings["realize_opcount_threshold"] = inlined
    if on_gpu:
        known = inductor_config.get_config_copy()
        settings |= {name: value for name, value in ON_GPU.items() if name in known}
    # With a tracing context, inductor keeps compiled programs on disk, for the next start.
    with inductor_config.patch(settings), tracing(TracingContext(mode)):
        options: dict[str, Any] = {"cpp_wrapper": True} if native else {}
        return compile_fx.compile_fx_inner(unrolled, stand_ins, **options)


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

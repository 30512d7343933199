"""Compiles programs with PyTorch. Only this file and `batching`, which it imports, use private interfaces of PyTorch.

It is imported when the first program is compiled. If anything here raises, `Compiler.build` prints a line and runs the
program in another mode.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
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
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from qohort.cohort.batching import register
from qohort.cohort.convolution import convolution, max_pool
from qohort.cohort.denormals import denormals_as_zero
from qohort.cohort.tracing import TRACING

CACHE_BYTES = 1 << 20
"""The bytes of state that a program processes at once: half of a typical L2 cache."""

CALLS_FOR_THREADS = 16
"""The calls of a tape from which on it is worth starting threads, some 20 µs each."""

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
ENTRY = "_Z19inductor_entry_implPP16AtenTensorOpaqueS1_"
"""The symbol of `void inductor_entry_impl(AtenTensorHandle* inputs, AtenTensorHandle* outputs)`."""


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
        self.returns_tensors = True
        """Whether all results are tensors, known after the first call."""

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Call the function with tensors in the order of `tensors`, and return its results as one tuple."""
        state, inputs = tree_unflatten([tensors[index] for index in self._position], self._spec)
        results, self.result_spec = tree_flatten(self._function(state, inputs))
        self.returns_tensors = all(isinstance(result, Tensor) for result in results)
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


def _compile(function: Flat, tensors: Sequence[Tensor], native: bool = False) -> Any:
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


def _cut(members: slice, count: int) -> list[slice]:
    """Return a slice of the members in equal parts, at most one for each member."""
    size = members.stop - members.start
    count = max(1, min(size, count))
    cuts = [members.start + size * part // count for part in range(count + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(cuts)]


def _parts(state: Sequence[Tensor], share: slice | None = None) -> list[slice]:
    """Return equal parts of the members with at most `CACHE_BYTES` of state each; one part for all on a GPU.

    Args:
        state: Tensors `[M, ...]`.
        share: The members that are wanted; None for all.
    """
    share = slice(0, len(state[0])) if share is None else share
    size = sum(tensor[share].nbytes for tensor in state)
    return _cut(share, 1 if state[0].device.type != "cpu" else -(-size // CACHE_BYTES))


def _in_parts(program: Flat, state: Sequence[Tensor]) -> Flat:
    """Run a compiled program on the parts of the members."""
    parts = _parts(state)
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


class _Share(ctypes.Structure):
    """The calls that one thread plays, `Share` of `tape.cpp`."""

    _fields_ = (("calls", ctypes.c_char_p), ("count", ctypes.c_size_t))


class _Record(ctypes.Structure):
    """One call of a program, `Call` of `tape.cpp`."""

    _fields_ = (
        ("entry", ctypes.c_void_p),
        ("input_count", ctypes.c_size_t),
        ("output_count", ctypes.c_size_t),
        ("inputs", ctypes.c_void_p),
        ("outputs", ctypes.c_void_p),
    )


class NativeProgram:
    """A program that is compiled to C++ entirely, so that a tape can call it; see `qohort.cohort.tape`.

    Args:
        function: See `qohort.cohort.program.Program`.
        state: The state tensors.
        inputs: Example inputs.
        in_parts: See `qohort.cohort.program.Program`.
        threads: How many threads share the members out.

    Raises:
        Exception: Anything that PyTorch's compiler raises.
    """

    def __init__(
        self, function: Callable[[Any, Any], Any], state: Any, inputs: Any, in_parts: bool, threads: int
    ) -> None:
        flat = Flattened(function, state, inputs)
        compiled = _compile(flat, flat.tensors, native=True)
        entry = compiled.current_callable.__closure__[0].cell_contents
        library = ctypes.PyDLL(entry.__self__.__file__)
        self.entry = ctypes.cast(library[ENTRY], ctypes.c_void_p).value
        self.held, self._inputs = flat.held, flat.tensors[len(flat.held) :]
        self.constants: list[Tensor] = list(compiled.constants.values())
        """Tables in the function itself, which the entry expects after its inputs."""
        if not flat.returns_tensors:
            raise ValueError("it does not return tensors only")
        assert flat.result_spec is not None
        self.spec: TreeSpec = flat.result_spec
        shares = _cut(slice(0, len(flat.tensors[0])), threads)
        self.shares = [_parts(self.held, share) if in_parts else [share] for share in shares]
        """The parts of the members that each thread goes over."""
        _player()

    def bind(self, inputs: Any) -> NativeCall:
        """Return a call with these inputs.

        Raises:
            ValueError: If they differ from the example inputs in a shape or a dtype.
        """
        tensors: list[Tensor] = tree_leaves(inputs)
        if [(one.shape, one.dtype) for one in tensors] != [(one.shape, one.dtype) for one in self._inputs]:
            raise ValueError("the inputs of a program must keep their shapes and dtypes")  # it would read beyond them
        if not all(tensor.is_contiguous() for tensor in tensors):
            raise ValueError("the inputs of a tape must be contiguous")
        return NativeCall(self, tensors)


class NativeCall:
    """A native program bound to input tensors."""

    def __init__(self, program: NativeProgram, inputs: Sequence[Tensor]) -> None:
        self._program, self._kept = program, list(inputs)
        self._addresses: list[tuple[Any, Any]] = []
        self.records = [b"".join(map(self._record, parts)) for parts in program.shares]
        """For each thread the records of its parts, for `tape.cpp`."""

    def _record(self, part: slice) -> bytes:
        program = self._program
        tensors = [tensor[part] for tensor in (*program.held, *self._kept)] + program.constants
        handles = [_pointer(one) for one in torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(tensors)]
        addresses = ((ctypes.c_void_p * len(handles))(*handles), (ctypes.c_void_p * program.spec.num_leaves)())
        self._addresses.append(addresses)
        counts = (len(handles), program.spec.num_leaves)
        return bytes(_Record(program.entry, *counts, *map(ctypes.addressof, addresses)))

    def results(self) -> Any:
        """Return the results of the last time that the call was played."""
        by_part = []
        for _, outputs in self._addresses:
            capsules = [_capsule(_copied(handle)) for handle in outputs]
            by_part.append(torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs(capsules))
        leaves = by_part[0] if len(by_part) == 1 else [torch.cat(pieces) for pieces in zip(*by_part, strict=True)]
        return tree_unflatten(leaves, self._program.spec)

    @staticmethod
    def play_all(calls: Sequence[NativeCall]) -> None:
        """Call native programs one after the other, each thread for its share of the members.

        Raises:
            RuntimeError: If a program raised an error.
        """
        tapes = [b"".join(records) for records in zip(*[call.records for call in calls], strict=True)]
        shares = (_Share * len(tapes))(*[_Share(tape, len(tape) // ctypes.sizeof(_Record)) for tape in tapes])
        with denormals_as_zero():
            problem = _player().play(shares, len(tapes), len(calls) >= CALLS_FOR_THREADS)
        if problem is not None:
            raise RuntimeError(problem.decode(errors="replace"))

    def __del__(self) -> None:
        """Release the tensors."""
        for handles in itertools.chain.from_iterable(self._addresses):
            _player().release(ctypes.addressof(handles), len(handles))


def _pointer(capsule: Any) -> int:
    function = ctypes.pythonapi.PyCapsule_GetPointer
    function.restype, function.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return int(function(capsule, None))


def _capsule(pointer: int) -> Any:
    function = ctypes.pythonapi.PyCapsule_New
    function.restype, function.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return function(pointer, None, None)


def _copied(handle: int | None) -> int:
    """Return another handle of a tensor."""
    copied = ctypes.c_void_p()
    _player().aoti_torch_new_tensor_handle(ctypes.c_void_p(handle), ctypes.byref(copied))
    assert copied.value is not None
    return copied.value


@cache
def _player() -> ctypes.PyDLL:
    """Return the library of `tape.cpp`, compiled at the first use on a machine."""
    source = Path(__file__).with_name("tape.cpp")
    torch_libraries = Path(torch.__file__).parent / "lib"
    digest = hashlib.sha256(source.read_bytes() + torch.__version__.encode() + str(torch_libraries).encode())
    library = Path(cache_dir()) / f"qohort_tape_{digest.hexdigest()[:16]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        unfinished = library.with_suffix(f".{os.getpid()}")
        linked = [f"-L{torch_libraries}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch_libraries}"]
        # Python and OpenMP are in the process already; on macOS the linker must be told that they are not missing.
        linked += ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        options = ["-O2", "-shared", "-fPIC", "-pthread", "-o", str(unfinished), str(source), *linked]
        outcome = subprocess.run([cpp_builder.get_cpp_compiler(), *options], capture_output=True, text=True)
        if outcome.returncode:
            raise RuntimeError(f"tape.cpp: {outcome.stderr}")
        unfinished.replace(library)
    player = ctypes.PyDLL(str(library))
    player.play.restype = ctypes.c_char_p
    player.play.argtypes = [ctypes.POINTER(_Share), ctypes.c_size_t, ctypes.c_bool]
    player.release.restype, player.release.argtypes = None, [ctypes.c_void_p, ctypes.c_size_t]
    return player

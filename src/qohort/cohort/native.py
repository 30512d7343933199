"""Native programs: compiled to C++ entirely, so that a tape (`qohort.cohort.tape`) and several threads can call them.

What is needed to call one, which does not include PyTorch's compiler: importing that takes a second.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._inductor import config as inductor_config
from torch._inductor import cpp_builder, exc
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

CACHE_BYTES = 1 << 20
"""The bytes of state that a program processes at once: half of a typical L2 cache."""

CALLS_FOR_THREADS = 16
"""The calls of a tape from which on it is worth starting threads, some 20 µs each."""

ENTRY = "_Z19inductor_entry_implPP16AtenTensorOpaqueS1_"
"""The symbol of `void inductor_entry_impl(AtenTensorHandle* inputs, AtenTensorHandle* outputs)`."""


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
        self.layout = repr((self._position, self._spec, [(one.shape[1:], one.dtype) for one in self.tensors]))
        """The nesting, shapes and dtypes of all tensors, without the number of members."""

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Call the function with tensors in the order of `tensors`, and return its results as one tuple."""
        state, inputs = tree_unflatten([tensors[index] for index in self._position], self._spec)
        results, self.result_spec = tree_flatten(self._function(state, inputs))
        self.returns_tensors = all(isinstance(result, Tensor) for result in results)
        return tuple(results)


def cut(members: slice, count: int) -> list[slice]:
    """Return a slice of the members in equal parts, at most one for each member."""
    size = members.stop - members.start
    count = max(1, min(size, count))
    cuts = [members.start + size * part // count for part in range(count + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(cuts)]


def parts_of(state: Sequence[Tensor], share: slice | None = None) -> list[slice]:
    """Return equal parts of the members with at most `CACHE_BYTES` of state each; one part for all on a GPU.

    Args:
        state: Tensors `[M, ...]`.
        share: The members that are wanted; None for all.
    """
    share = slice(0, len(state[0])) if share is None else share
    size = sum(tensor[share].nbytes for tensor in state)
    return cut(share, 1 if state[0].device.type != "cpu" else -(-size // CACHE_BYTES))


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


@dataclass(frozen=True)
class Library:
    """A program that was compiled to C++, without the tensors that it works on."""

    path: str
    """The shared library."""
    results: TreeSpec
    """The nesting of the results."""
    constants: list[Tensor]
    """Tables in the function itself, which the entry expects after its inputs."""


class NativeProgram:
    """A program that is compiled to C++ entirely, with the tensors that it works on.

    Args:
        function: What was compiled.
        library: The compiled program.
        in_parts: See `qohort.cohort.program.Program`.
        threads: How many threads share the members out, on a tape, or in a call that is long enough for it.
        on_tape: Whether it is called from tapes, instead of one call at a time.

    Raises:
        Exception: If the library cannot be loaded.
    """

    def __init__(
        self, function: Flattened, library: Library, in_parts: bool, threads: int, on_tape: bool = True
    ) -> None:
        self.entry = ctypes.cast(ctypes.PyDLL(library.path)[ENTRY], ctypes.c_void_p).value
        self.held, self._inputs = function.held, function.tensors[len(function.held) :]
        self.constants, self.spec = library.constants, library.results
        self.is_long = in_parts and sum(tensor.nbytes for tensor in self.held) > CACHE_BYTES
        """Whether a single call is worth starting threads."""
        shares = cut(slice(0, len(function.tensors[0])), threads if on_tape or self.is_long else 1)
        self.shares = [parts_of(self.held, share) if in_parts else [share] for share in shares]
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

    def run(self) -> Callable[[Any], Any]:
        """Return the program as a function of inputs, a tensor or a mapping of tensors.

        The function copies its inputs into tensors that it keeps. Threads take turns to call it.
        """
        with torch.inference_mode(False):
            slots = [torch.empty_like(one, memory_format=torch.contiguous_format) for one in self._inputs]
        call = NativeCall(self, slots)
        expected = [(one.shape, one.dtype) for one in slots]
        turn = threading.Lock()
        addresses = {slot.untyped_storage().data_ptr() for slot in slots}

        def own(result: Tensor) -> Tensor:
            """Copy a result that is an input, or a part of one: the next call writes to it."""
            return result.clone() if result.untyped_storage().data_ptr() in addresses else result

        def run(inputs: Any) -> Any:
            tensors = [inputs] if isinstance(inputs, Tensor) else list(inputs.values())
            found = [(one.shape, one.dtype) for one in tensors]
            if found != expected:  # compiled code would read beyond the end of the tensors
                raise ValueError(f"inputs must keep their shapes and dtypes {expected}, got {found}")
            with turn, torch.no_grad():
                for slot, tensor in zip(slots, tensors, strict=True):
                    slot.copy_(tensor)
                NativeCall.play_all([call])
                results = tree_map(own, call.results())
                call.release_results()
            return results

        return run


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

    def release_results(self) -> None:
        """Give up the results of the last time, which would otherwise be kept until the next."""
        for _, outputs in self._addresses:
            _player().release(ctypes.addressof(outputs), len(outputs))

    @staticmethod
    def play_all(calls: Sequence[NativeCall]) -> None:
        """Call native programs one after the other, each thread for its share of the members.

        Raises:
            RuntimeError: If a program raised an error.
        """
        tapes = [b"".join(records) for records in zip(*[call.records for call in calls], strict=True)]
        shares = (_Share * len(tapes))(*[_Share(tape, len(tape) // ctypes.sizeof(_Record)) for tape in tapes])
        in_threads = len(calls) >= CALLS_FOR_THREADS or calls[0]._program.is_long
        problem = _player().play(shares, len(tapes), in_threads)
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


def cache_directory() -> Path:
    """Return the directory in which inductor keeps what it has compiled."""
    return Path(cache_dir())


def compiler_settings() -> str:
    """Return inductor's settings. Its own hash of them is not the same in every process."""
    return repr(sorted(inductor_config.save_config_portable().items()))


@cache
def _player() -> ctypes.PyDLL:
    """Return the library of `tape.cpp`, compiled at the first use on a machine."""
    source = Path(__file__).with_name("tape.cpp")
    torch_libraries = Path(torch.__file__).parent / "lib"
    digest = hashlib.sha256(source.read_bytes() + torch.__version__.encode() + str(torch_libraries).encode())
    library = cache_directory() / f"qohort_tape_{digest.hexdigest()[:16]}.so"
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

"""Programs that are compiled to C++ entirely, for a tape, which calls them without Python.

Besides `compiler` and `batching`, this file uses private interfaces of PyTorch.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._inductor import cpp_builder
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch.utils._pytree import TreeSpec, tree_leaves, tree_unflatten

from qohort.cohort.compiler import Flattened, compile_function, parts_of

ENTRY = "_Z19inductor_entry_implPP16AtenTensorOpaqueS1_"
"""The symbol of `void inductor_entry_impl(AtenTensorHandle* inputs, AtenTensorHandle* outputs)`."""


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

    Raises:
        Exception: Anything that PyTorch's compiler raises.
    """

    def __init__(self, function: Callable[[Any, Any], Any], state: Any, inputs: Any, in_parts: bool) -> None:
        flat = Flattened(function, state, inputs)
        compiled = compile_function(flat, flat.tensors, native=True)
        entry = compiled.current_callable.__closure__[0].cell_contents
        library = ctypes.PyDLL(entry.__self__.__file__)
        self.entry = ctypes.cast(library[ENTRY], ctypes.c_void_p).value
        self.held, self._inputs = flat.held, flat.tensors[len(flat.held) :]
        self.constants: list[Tensor] = list(compiled.constants.values())
        """Tables in the function itself, which the entry expects after its inputs."""
        assert flat.result_spec is not None
        self.spec: TreeSpec = flat.result_spec
        self.parts = parts_of(self.held) if in_parts else [slice(None)]
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
        self._program, self._kept, self._addresses = program, list(inputs), []
        self.record = b""
        """The record of each part, for `tape.cpp`."""
        for part in program.parts:
            tensors = [tensor[part] for tensor in (*program.held, *inputs)] + program.constants
            handles = [_pointer(one) for one in torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(tensors)]
            addresses = ((ctypes.c_void_p * len(handles))(*handles), (ctypes.c_void_p * program.spec.num_leaves)())
            self._addresses.append(addresses)
            counts = (len(handles), program.spec.num_leaves)
            self.record += bytes(_Record(program.entry, *counts, *map(ctypes.addressof, addresses)))

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
        """Call native programs one after the other.

        Raises:
            RuntimeError: If a program raised an error.
        """
        records = b"".join([call.record for call in calls])
        problem = _player().play(records, len(records) // ctypes.sizeof(_Record))
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
        command = [cpp_builder.get_cpp_compiler(), "-O2", "-shared", "-fPIC", "-o", str(unfinished), str(source)]
        outcome = subprocess.run([*command, *linked], capture_output=True, text=True)
        if outcome.returncode:
            raise RuntimeError(f"tape.cpp: {outcome.stderr}")
        unfinished.replace(library)
    player = ctypes.PyDLL(str(library))
    player.play.restype, player.play.argtypes = ctypes.c_char_p, [ctypes.c_char_p, ctypes.c_size_t]
    player.release.restype, player.release.argtypes = None, [ctypes.c_void_p, ctypes.c_size_t]
    return player

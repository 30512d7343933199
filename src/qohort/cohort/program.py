"""Programs: functions of tensors, lifted over members, that are compiled once and then called at every step.

For networks of this size, calling a lifted function in Python costs ten times as much as its arithmetic. A program
therefore traces its function once, for the shapes of the first call. The modes are:

    inductor   compiled to C++ (Triton on a GPU), the same program for any number of members
    fx         traced to a graph of plain tensor operations, which PyTorch runs one by one
    none       not traced; the Python function is called directly

If a mode cannot compile a program, the program runs in the next mode, and a line on stderr says so. `torch.compile` is
not used, because checking its guards costs more than the call itself.

The operations for a member, and their order, do not depend on M.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_leaves

from qohort.cohort.denormals import denormals_as_zero
from qohort.cohort.kept_programs import KeptPrograms, OtherProgram
from qohort.cohort.stacking import CohortNetwork
from qohort.cohort.tape import Call, PythonCall
from qohort.config.errors import Interrupted

if TYPE_CHECKING:
    from qohort.cohort.native import Flattened, Library, NativeProgram

COMPILE_MODES = ("inductor", "fx", "none")
"""The values of the key `compile`, fastest first."""

COPIED_BYTES = 1 << 26
"""Up to so many bytes of inputs, a program is called from C++, which needs a copy of them. With more, the time and the
memory of the copy are worth more than the calls."""

Run = Callable[[Any], Any]


class Compiler:
    """Builds the programs of a run.

    Args:
        mode: One of `COMPILE_MODES`.
        stop: Returns the name of the signal that asks to stop, if there was one. A signal also reaches the C++
            compiler, whose failure is then not one of the program.
        threads: How many threads share the members out, on tapes and in long calls. It does not change any bits.
        kept: The programs on the disk that need not be traced again; None for none.
    """

    def __init__(
        self,
        mode: str,
        stop: Callable[[], str | None] = lambda: None,
        threads: int = 1,
        kept: KeptPrograms | None = None,
    ) -> None:
        self.mode, self._stop, self._threads, self._kept = mode, stop, threads, kept or KeptPrograms(None)
        self.seconds = 0.0
        """The seconds spent compiling so far."""
        self.on_start: Callable[[str], None] = lambda name: None
        """Called with the name of a program before it is compiled, unless it is on the disk, compiled already."""
        self.on_end: Callable[[], None] = lambda: None
        """Called after a program was compiled, or loaded from the disk."""
        self.fallbacks: dict[str, str] = {}
        """The mode of each program that could not be compiled in the requested mode, by program name."""

    def program(self, name: str, function: Callable[[Any, Any], Any], state: Any, in_parts: bool = False) -> Program:
        """Create a program; see `Program` for the arguments."""
        return Program(self, name, function, state, in_parts)

    def without_compiling(self) -> Compiler:
        """Return a compiler with mode `none`, for programs that are not worth compiling."""
        return Compiler("none")

    def build(self, program: Program, inputs: Any) -> Run:
        """Compile a program in the requested mode, or in the first mode after it that succeeds.

        Args:
            program: The program.
            inputs: Example inputs.

        Returns:
            The compiled function of the inputs.

        Raises:
            Interrupted: If a signal asked to stop while it was compiled.
        """
        modes = COMPILE_MODES[COMPILE_MODES.index(self.mode) :]
        for mode, following in zip(modes, (*modes[1:], ""), strict=True):
            if mode == "none":
                break
            try:
                with self._timed():
                    built = self._build(mode, program, inputs)
                self._check_signal(program)
                return built
            except (Interrupted, OtherProgram):
                raise
            except Exception as error:  # a compiler may raise anything
                self._check_signal(program)
                reason = _in_words(error)
                if program.name not in self.fallbacks or self.fallbacks[program.name] == mode:
                    print(
                        f"compile={mode} cannot do {program.name} ({reason}): it runs as {following}", file=sys.stderr
                    )
                self.fallbacks[program.name] = following
        return lambda inputs: program.function(program.state, inputs)

    def _build(self, mode: str, program: Program, inputs: Any) -> Run:
        """Compile a program in one mode; from C++ if that can call all of its operations."""
        reason = None
        copied = sum(leaf.nbytes for leaf in tree_leaves(inputs))
        can_copy = copied <= COPIED_BYTES and not _on_gpu(program.state, inputs)
        if mode == "inductor" and can_copy and not program.from_python:
            try:
                return self._native(program, inputs, on_tape=False).run()
            except OtherProgram:
                raise
            except Exception as error:  # a compiler may raise anything
                self._check_signal(program)
                reason = _in_words(error)
        from qohort.cohort.compiler import build, telling

        with telling(lambda: self.on_start(program.name)):
            built = build(mode, program.function, program.state, inputs, program.in_parts)
        if reason is not None:
            print(f"qohort: {program.name} cannot be called from C++ ({reason}): it is slower", file=sys.stderr)
        return built

    def bind(self, program: Program, inputs: Any) -> Callable[[Any], Call] | None:
        """Compile a program for tapes.

        Args:
            program: The program.
            inputs: Example inputs.

        Returns:
            A function that binds the program to inputs; None if it must be called from Python.

        Raises:
            Interrupted: If a signal asked to stop while it was compiled.
        """
        if self.mode != "inductor" or _on_gpu(program.state, inputs):
            return None  # on a GPU, the player records the calls
        try:
            with self._timed():
                return self._native(program, inputs, on_tape=True).bind
        except (Interrupted, OtherProgram):
            raise
        except Exception as error:  # a compiler may raise anything
            self._check_signal(program)
            reason = _in_words(error)
            print(f"qohort: {program.name} cannot be played from a tape ({reason}): it is slower", file=sys.stderr)
            return None

    def _native(self, program: Program, inputs: Any, on_tape: bool) -> NativeProgram:
        """Return a program compiled to C++, from the disk or traced here."""
        from qohort.cohort.native import Flattened, NativeProgram, cache_directory, compiler_settings

        flat = Flattened(program.function, program.state, inputs)
        name = f"{program.name}, {'on a tape' if on_tape else 'called'}"
        place = (cache_directory(), name, program.function)
        file = self._kept.file(*place, flat.layout, compiler_settings())
        library = self._kept.find(file) or self._trace(program, flat, on_tape)
        native = NativeProgram(flat, library, program.in_parts, self._threads, on_tape)
        self._check_signal(program)
        self._kept.keep(file, library)
        return native

    def _trace(self, program: Program, flat: Flattened, on_tape: bool) -> Library:
        """Trace a program and compile it to C++."""
        from qohort.cohort.compiler import compile_native, telling

        with telling(lambda: self.on_start(program.name)):
            return compile_native(flat, on_tape)

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        """Count the seconds, and tell that a program was compiled."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began
            self.on_end()

    def _check_signal(self, program: Program) -> None:
        """Raise `Interrupted` if a signal came while a program was compiled, since it may also have hit the compiler.

        Then not even a program that was built is used: the compiler may have settled for other instructions.
        """
        if signal := self._stop():
            raise Interrupted(f"interrupted by {signal} while {program.name} was compiled: the same command goes on")


def _on_gpu(*tensors: Any) -> bool:
    """Return whether one of the tensors, in any nesting, is not on the CPU."""
    return any(leaf.device.type != "cpu" for leaf in tree_leaves(tensors))


def _in_words(error: Exception) -> str:
    """Return why something could not be compiled, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class Program:
    """A function of a state and inputs that is compiled at the first call.

    Args:
        compiler: The compiler.
        name: What the program computes, for messages and the manifest, for example "the update".
        function: Takes the state and the inputs, and returns tensors in any nesting. May write to the state in place,
            and to inputs that it is bound to.
        state: Tensors in any nesting, the same ones at each call.
        in_parts: Whether to process the members in parts whose state fits in the CPU's cache. This is faster for a
            function that reads or writes all of its state. It does not change any bits.
    """

    def __init__(
        self, compiler: Compiler, name: str, function: Callable[[Any, Any], Any], state: Any, in_parts: bool = False
    ) -> None:
        self.name, self.function, self.state, self.in_parts = name, function, state, in_parts
        self.from_python = False
        """Whether Python must call the compiled program: it may write to its inputs, which a call from C++ copies."""
        self._compiler = compiler
        self._run: Run | None = None
        self._bind: Callable[[Any], Call] | None = None
        self._bound = False

    def __call__(self, inputs: Any) -> Any:
        """Return the result of the function, without tracking gradients.

        Args:
            inputs: A tensor or a mapping of tensors, with the shapes, dtypes and keys of the first call.
        """
        if self._run is None:
            with torch.no_grad():
                self._run = self._compiler.build(self, inputs)
        with denormals_as_zero():
            return self._run(inputs)

    def bind(self, inputs: Any) -> Call:
        """Return a call of the program with these inputs, for a tape; see `qohort.cohort.tape`.

        Args:
            inputs: As in a call. The tensors are kept, and read each time that the call is played.
        """
        if not self._bound:
            with torch.no_grad():
                self._bind = self._compiler.bind(self, inputs)
            self._bound, self.from_python = True, self._bind is None
        return PythonCall(lambda: self(inputs)) if self._bind is None else self._bind(inputs)


Inputs = Mapping[str, Tensor]
"""`observation`, and optionally `normal` and `fractions`, the random numbers for one use of a network."""


class Lifted:
    """A function of one member's parameters and inputs, lifted over members.

    It has one program for each shape and dtype of observations.

    Args:
        compiler: Compiles the programs.
        name: What the function computes, for messages.
        function: Takes the parameters and the inputs `[B, ...]` of one member.
        network: The networks whose parameters are used.
    """

    def __init__(
        self,
        compiler: Compiler,
        name: str,
        function: Callable[[Mapping[str, Tensor], Inputs], Tensor],
        network: CohortNetwork,
    ) -> None:
        self._compiler, self._name = compiler, name
        self._parameters = network.parameters_by_name()
        self._lifted = vmap(function)
        self._programs: dict[tuple[torch.Size, torch.dtype], Program] = {}

    def __call__(self, inputs: Inputs) -> Tensor:
        """Apply the function to inputs `[M, B, ...]`."""
        observation = inputs["observation"]
        key = (observation.shape, observation.dtype)
        program = self._programs.get(key)
        if program is None:
            program = self._programs[key] = self._compiler.program(self._name, self._lifted, self._parameters)
        output: Tensor = program(inputs)
        return output


def usable_mode(mode: str) -> str:
    """Return `mode`, or `fx` instead of `inductor` if no C++ compiler is found. In this case, print a line."""
    if mode == "inductor":
        from qohort.cohort.native import has_cpp_compiler

        if not has_cpp_compiler():
            print("compile=inductor needs a C++ compiler and none was found: using compile=fx", file=sys.stderr)
            return "fx"
    return mode

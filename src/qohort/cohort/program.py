"""Programs: functions of tensors, lifted over members, compiled once and then called at every step.

A call of a lifted function in Python costs ten times its arithmetic at the sizes of a Q-network. So a program traces
its function once, for the shapes of the first call, and then runs what was traced:

    inductor   compiled to C++ (a GPU: Triton), the same program for any number of members
    fx         traced to a graph of plain tensor operations, which PyTorch runs one by one
    none       not traced: the function is called as it is written

What one mode cannot do is done by the next one, and said. `torch.compile` is not used: the guards that it checks at
each call cost more than the call.

What is computed for a member, and in which order, does not depend on M.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from qohort.cohort.stacking import CohortNetwork

COMPILE_MODES = ("inductor", "fx", "none")
"""What `compile` may be, the fastest first."""

Run = Callable[[Any], Any]


class Compiler:
    """Makes the programs of a run.

    Args:
        mode: One of `COMPILE_MODES`.
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.fallbacks: dict[str, str] = {}
        """The mode of each program that could not be compiled as asked, by the program's name."""

    def program(self, name: str, function: Callable[[Any, Any], Any], state: Any, in_parts: bool = False) -> Program:
        """A program; see `Program`."""
        return Program(self, name, function, state, in_parts)

    def without_compiling(self) -> Compiler:
        """A compiler whose programs are called as they are written, for what runs once."""
        return Compiler("none")

    def build(self, program: Program, inputs: Any) -> Run:
        """What runs a program, in the mode asked for or the first one after it that can."""
        modes = COMPILE_MODES[COMPILE_MODES.index(self.mode) :]
        for mode, following in zip(modes, (*modes[1:], ""), strict=True):
            if mode == "none":
                break
            from qohort.cohort.compiler import build

            try:
                return build(mode, program.function, program.state, inputs, program.in_parts)
            except Exception as error:  # a compiler may raise anything
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                if program.name not in self.fallbacks or self.fallbacks[program.name] == mode:
                    print(
                        f"compile={mode} cannot do {program.name} ({reason}): it runs as {following}", file=sys.stderr
                    )
                self.fallbacks[program.name] = following
        return lambda inputs: program.function(program.state, inputs)


class Program:
    """A function of a state and inputs, compiled at its first call.

    Args:
        compiler: Compiles it.
        name: What it computes, for messages and the manifest, as in "the update".
        function: Takes the state and the inputs, returns tensors in any nesting; may write to the state in place.
        state: Tensors in any nesting, the same ones at each call.
        in_parts: Whether a compiled program may go over the members in parts, as many at once as have their state in
            the CPU's cache: for a function that works through all of its state. The bits are the same.
    """

    def __init__(
        self, compiler: Compiler, name: str, function: Callable[[Any, Any], Any], state: Any, in_parts: bool = False
    ) -> None:
        self.name, self.function, self.state, self.in_parts = name, function, state, in_parts
        self._compiler = compiler
        self._run: Run | None = None

    def __call__(self, inputs: Any) -> Any:
        """The function's result; it takes no part in autograd.

        Args:
            inputs: A tensor, or a mapping of tensors; shapes, dtypes and keys are those of the first call.
        """
        if self._run is None:
            with torch.no_grad():
                self._run = self._compiler.build(self, inputs)
        return self._run(inputs)


Inputs = Mapping[str, Tensor]
"""`observation`, and where there are such `normal` and `fractions`, the random numbers of one use of a network."""


class Lifted:
    """A member's function of its parameters and inputs, lifted: a program for each shape and dtype of observations.

    Args:
        compiler: Compiles the programs.
        name: What the function computes, for messages.
        function: Takes one member's parameters and inputs, `[B, ...]` each.
        network: Holds the parameters.
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
        """The function of inputs `[M, B, ...]`."""
        observation = inputs["observation"]
        kind = (observation.shape, observation.dtype)
        program = self._programs.get(kind)
        if program is None:
            program = self._programs[kind] = self._compiler.program(self._name, self._lifted, self._parameters)
        output: Tensor = program(inputs)
        return output


def usable_mode(mode: str) -> str:
    """`mode`, or `fx` in place of `inductor` where there is no C++ compiler, which is said in a line."""
    if mode == "inductor":
        from qohort.cohort.compiler import has_cpp_compiler

        if not has_cpp_compiler():
            print("compile=inductor needs a C++ compiler and none was found: going on with compile=fx", file=sys.stderr)
            return "fx"
    return mode

"""Tapes: many calls of programs, with inputs that are known in advance, played as one call.

Between two steps of a tensor environment Python has nothing to decide, so it need not be asked: a call of a program
from Python costs more than its arithmetic. A tape holds calls of programs, each bound to its input tensors. Compiled
programs are played by a loop in C++; others are called one by one. The programs are the same for every length of a
tape, so a result does not depend on how many calls are played at once.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from qohort.cohort.denormals import denormals_as_zero

ALIGNMENT = 64
"""The bytes at multiples of which the tensors of `Slots` begin, the size of a line of the CPU's cache."""


class Call(Protocol):
    """A program bound to its state and to input tensors, which may be filled anew before each playing."""

    def results(self) -> Any:
        """Return the results of the last time that the call was played."""

    @staticmethod
    def play_all(calls: Sequence[Any]) -> None:
        """Play calls of this class, one after the other."""


class PythonCall:
    """A call of a Python function."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function, self._results = function, None

    @staticmethod
    def play_all(calls: Sequence[PythonCall]) -> None:
        """Call the functions and keep their results."""
        for call in calls:
            call._results = call._function()

    def results(self) -> Any:
        """Return the results of the last call."""
        return self._results


class Player:
    """Calls programs one after the other.

    On a GPU, calls that are played again in the same order are recorded as a CUDA graph at the second time, so that the
    GPU does not wait for Python.

    Args:
        device: The device of the programs.
    """

    def __init__(self, device: torch.device) -> None:
        self._graphs: dict[tuple[int, ...], torch.cuda.CUDAGraph | None] | None = {} if device.type == "cuda" else None

    def play(self, calls: Sequence[Call]) -> None:
        """Call programs.

        Args:
            calls: The calls. They may share tensors: a call sees what the calls before it have written.
        """
        if self._graphs is None:
            _play(calls)
            return
        key = tuple(map(id, calls))
        if key not in self._graphs:  # the first time compiles
            _play(calls)
            self._graphs[key] = None
            return
        graph = self._graphs[key]
        if graph is None:
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph):
                    _play(calls)
            except RuntimeError as error:  # a program that copies from the host cannot be recorded
                print(f"qohort: programs are not recorded as a CUDA graph ({error})", file=sys.stderr)
                self._graphs = None
                _play(calls)
                return
            self._graphs[key] = graph
        graph.replay()


def _play(calls: Sequence[Call]) -> None:
    """Call programs one after the other."""
    for _, group in itertools.groupby(calls, type):
        alike = list(group)
        with denormals_as_zero():
            alike[0].play_all(alike)


class Slots:
    """Input tensors for consecutive calls of a program, filled together.

    Args:
        count: The number of calls.
        shape: The shape of the tensor of one call.
        dtype: Its dtype.
        device: Its device.
    """

    def __init__(self, count: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        size = int(np.prod(shape)) * dtype.itemsize
        padded = max(-(-size // ALIGNMENT) * ALIGNMENT, ALIGNMENT) // dtype.itemsize
        strides = (padded, *torch.empty(tuple(shape), device="meta").stride())
        on_gpu = device.type != "cpu"
        host = torch.zeros(count * padded, dtype=dtype, pin_memory=on_gpu)
        self._host = host.as_strided((count, *shape), strides)
        self._device = host.to(device).as_strided((count, *shape), strides) if on_gpu else self._host
        self.tensors = list(self._device)
        """The tensor of each call."""
        self.array: NDArray[Any] = self._host.numpy()
        """The tensors of all calls on the host, `[count, *shape]`."""

    def fill(self, values: NDArray[Any]) -> None:
        """Set the tensors of the first calls, `[n, *shape]`."""
        self.array[: len(values)] = values
        if self._device is not self._host:
            self._device[: len(values)].copy_(self._host[: len(values)], non_blocking=True)

    def read(self, count: int) -> NDArray[Any]:
        """Return the tensors of the first calls as written by the programs, `[count, *shape]`."""
        if self._device is not self._host:
            self._host[:count].copy_(self._device[:count])
        return self.array[:count]

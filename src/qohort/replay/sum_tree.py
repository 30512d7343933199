"""The sum tree: numbers of every member, drawn in proportion to their size."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from qohort.cohort.schedules import Floats

FAN = 8
"""Numbers, or nodes, under a node: what a line of a processor's cache holds."""


SUM, BEFORE, LARGEST = range(3)
"""What a node keeps of each below it: its sum, the sum of those before it, and its maximum."""


class SumTree:
    """Non-negative float64 numbers of every member, with a tree of their sums and maxima.

    A node keeps, for each of the `FAN` below it, its sum, the sum of those before it, and its maximum: a search looks
    at one line of the cache a level. A sum is always made anew from what is below it, so it depends on the numbers
    only and not on their history: nothing drifts.

    Args:
        members: M.
        size: Numbers of a member.
    """

    def __init__(self, members: int, size: int) -> None:
        import numba  # not at the top: it takes half a second, and only prioritised replay needs it

        blocks = -(-size // FAN)
        nodes = [max(1, -(-blocks // FAN))]  # of each level, from the one above the blocks of numbers to the root
        while nodes[-1] > 1:
            nodes.append(-(-nodes[-1] // FAN))
        self.values = _lines(members, blocks * FAN)
        """The numbers, and zeros beyond `size`: `[M, ...]`."""
        # The levels lie one after the other, the root last; `first` says where each one begins, and `below` what the
        # last node, or block of numbers, under it is.
        self._first = FAN * np.cumsum([0, *nodes[:-1]])
        self._below = np.array([blocks, *nodes[:-1]]) - 1
        self._nodes = _lines(members, 3, FAN * sum(nodes))
        compiled = numba.njit(cache=True)
        self._find, self._put, self._mend = compiled(_find), compiled(_put), compiled(_mend)

    @property
    def total(self) -> Floats:
        """The sum of each member's numbers: `[M]`."""
        total: Floats = self._nodes[:, SUM, -1] + self._nodes[:, BEFORE, -1]
        return total

    @property
    def maximum(self) -> Floats:
        """The largest of each member's numbers: `[M]`."""
        largest: Floats = self._nodes[:, LARGEST, -FAN:].max(1)
        return largest

    def find(self, mass: Floats) -> tuple[NDArray[np.int64], Floats]:
        """Where running sums pass `mass`: the index of each, and the number there, `[M, B]` each.

        Args:
            mass: `[M, B]`, in [0, total); never a number that is 0 is found, whatever the rounding.
        """
        index, value = np.empty(mass.shape, dtype=np.int64), np.empty(mass.shape)
        self._find(self._nodes, self._first, self._below, self.values, mass, index, value)
        return index, value

    def put(self, index: NDArray[np.int64], value: Floats) -> None:
        """Put numbers `[M, B]` at indices `[M, B]`; of two at the same index the later one counts."""
        self._put(self.values, index, value)
        self._mend(self._nodes, self._first, self.values, index)

    def fill(self, start: int, stop: int, value: Floats) -> None:
        """Put numbers `[M, 1]` or `[M, stop - start]` at the indices from `start` to before `stop`."""
        self.values[:, start:stop] = value
        blocks = np.arange(start // FAN, (stop - 1) // FAN + 1)
        self._mend(self._nodes, self._first, self.values, np.tile(FAN * blocks, (len(self.values), 1)))


def _lines(*shape: int) -> Floats:
    """Zeros that begin where a line of the cache does, as PyTorch's memory does and NumPy's does not."""
    zeros: Floats = torch.zeros(shape, dtype=torch.float64).numpy()
    return zeros


# Plain loops, compiled by Numba: level by level and not sample by sample, so that the processor has many independent
# loads under way, and without branches that it would guess wrong. The first look at a line, which the cache mostly has
# not, is a loop of its own (`seen`): so short that the next hundred looks begin while the first one waits for memory.
# Indices are unsigned: of others Numba asks at each use whether they are negative.
U = np.uint64


def _find(
    nodes: Floats,
    first: NDArray[np.int64],
    below: NDArray[np.int64],
    values: Floats,
    mass: Floats,
    index: NDArray[np.int64],
    value: Floats,
) -> None:
    fan, samples = U(FAN), U(mass.shape[1])
    node, seen = np.empty(mass.shape[1], dtype=np.uint64), np.empty(mass.shape[1])
    for m in range(mass.shape[0]):
        before, numbers, rest = nodes[m, BEFORE], values[m], mass[m].copy()
        node[:] = U(0)
        for level in range(len(first) - 1, -1, -1):
            for b in range(samples):
                seen[b] = before[U(first[level]) + fan * node[b] + U(4)]
            for b in range(samples):
                own = U(first[level]) + fan * node[b]
                place = own + U(4) * U(seen[b] <= rest[b])
                place += U(2) * U(before[place + U(2)] <= rest[b])
                place += U(before[place + U(1)] <= rest[b])
                rest[b] -= before[place]
                node[b] = min(fan * node[b] + place - own, U(below[level]))  # beyond it only by rounding
        for b in range(samples):
            seen[b] = numbers[fan * node[b]]
        for b in range(samples):
            place, total = fan * node[b], seen[b]
            passed = U(total <= rest[b])
            for step in range(U(1), U(FAN - 1)):
                total += numbers[place + step]
                passed += U(total <= rest[b])
            place += passed
            while numbers[place] == 0 and place > U(0):  # only by rounding, at the end, or where a member has diverged
                place -= U(1)
            index[m, b], value[m, b] = place, numbers[place]


def _put(values: Floats, index: NDArray[np.int64], value: Floats) -> None:
    for m in range(index.shape[0]):
        numbers = values[m]
        for b in range(index.shape[1]):
            numbers[U(index[m, b])] = value[m, b]


def _mend(nodes: Floats, first: NDArray[np.int64], values: Floats, index: NDArray[np.int64]) -> None:
    """Make the nodes above some numbers `[M, n]` anew; neighbours in `index` that share a node make it once."""
    fan = U(FAN)
    node = np.empty(index.shape[1], dtype=np.uint64)
    for m in range(index.shape[0]):
        sums, before, maxima, numbers = nodes[m, SUM], nodes[m, BEFORE], nodes[m, LARGEST], values[m]
        changed, last = U(0), ~U(0)
        for b in range(index.shape[1]):
            block = U(index[m, b]) // fan
            changed += U(block != last)
            node[changed - U(1)] = last = block
        for b in range(changed):
            total, largest = 0.0, 0.0
            for step in range(fan):
                number = numbers[fan * node[b] + step]
                total += number
                largest = max(largest, number)
            sums[node[b]], maxima[node[b]] = total, largest
        for level in range(len(first)):
            count, changed, last = changed, U(0), ~U(0)
            for b in range(count):
                above = node[b] // fan
                changed += U(above != last)
                node[changed - U(1)] = last = above
            for b in range(changed):
                own = U(first[level]) + fan * node[b]
                total, largest = 0.0, 0.0
                for place in range(own, own + fan):
                    before[place] = total
                    total += sums[place]
                    largest = max(largest, maxima[place])
                if level + 1 < len(first):
                    place = U(first[level + 1]) + node[b]
                    sums[place], maxima[place] = total, largest

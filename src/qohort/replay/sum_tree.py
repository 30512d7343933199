"""The sum tree, which samples indices in proportion to their priorities, for every member."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from qohort.cohort.schedules import Floats

FAN = 8
"""The number of children of a node: the number of float64 values in one cache line."""


SUM, BEFORE, LARGEST = range(3)
"""The statistics that a node stores per child: its sum, the sum of the children before it, and its maximum."""


class SumTree:
    """Non-negative float64 values of every member, with a tree of their sums and maxima.

    A node stores the sum, the sum of the children before it and the maximum of each of its `FAN` children, so a search
    reads one cache line per level. A changed sum is recomputed from the children of its node instead of being updated
    by a difference. It therefore depends only on the current values, and no rounding error accumulates.

    Args:
        members: The number of members, M.
        size: The number of values per member.
    """

    def __init__(self, members: int, size: int) -> None:
        import numba  # imported here because the import takes half a second, and only prioritised replay needs it

        blocks = -(-size // FAN)
        nodes = [max(1, -(-blocks // FAN))]  # per level, from the one above the blocks of values to the root
        while nodes[-1] > 1:
            nodes.append(-(-nodes[-1] // FAN))
        self.values = _lines(members, blocks * FAN)
        """The values, followed by zeros beyond `size`, `[M, ...]`."""
        # The levels are stored one after the other, the root last. `first` is the start of each level. `below` is the
        # index of the last node, or block of values, in the level below it.
        self._first = FAN * np.cumsum([0, *nodes[:-1]])
        self._below = np.array([blocks, *nodes[:-1]]) - 1
        self._nodes = _lines(members, 3, FAN * sum(nodes))
        compiled = numba.njit(cache=True)
        self._find, self._put, self._recompute = compiled(_find), compiled(_put), compiled(_recompute)

    @property
    def total(self) -> Floats:
        """The sum of the values of each member, `[M]`."""
        total: Floats = self._nodes[:, SUM, -1] + self._nodes[:, BEFORE, -1]
        return total

    @property
    def maximum(self) -> Floats:
        """The largest value of each member, `[M]`."""
        largest: Floats = self._nodes[:, LARGEST, -FAN:].max(1)
        return largest

    def find(self, mass: Floats) -> tuple[NDArray[np.int64], Floats]:
        """Find the values at which the cumulative sum exceeds `mass`.

        A value of 0 is never found, even with rounding errors.

        Args:
            mass: The cumulative sums to search for, in [0, total), `[M, B]`.

        Returns:
            The indices `[M, B]` and the values there `[M, B]`.
        """
        index, value = np.empty(mass.shape, dtype=np.int64), np.empty(mass.shape)
        self._find(self._nodes, self._first, self._below, self.values, mass, index, value)
        return index, value

    def put(self, index: NDArray[np.int64], value: Floats) -> None:
        """Set the values at indices `[M, B]`. If an index occurs twice, the later value is used.

        Args:
            index: The indices, `[M, B]`.
            value: The new values, `[M, B]`.
        """
        self._put(self.values, index, value)
        self._recompute(self._nodes, self._first, self.values, index)

    def fill(self, start: int, stop: int, value: Floats) -> None:
        """Set the values from `start` to `stop` (exclusive).

        Args:
            start: The first index.
            stop: The index after the last one.
            value: The new values, `[M, 1]` or `[M, stop - start]`.
        """
        self.values[:, start:stop] = value
        blocks = np.arange(start // FAN, (stop - 1) // FAN + 1)
        self._recompute(self._nodes, self._first, self.values, np.tile(FAN * blocks, (len(self.values), 1)))


def _lines(*shape: int) -> Floats:
    """Return zeros that are aligned to cache lines. PyTorch aligns its memory to them, NumPy does not."""
    zeros: Floats = torch.zeros(shape, dtype=torch.float64).numpy()
    return zeros


# Plain loops, compiled by Numba. They go level by level instead of sample by sample, so that many independent memory
# loads run at once, and they avoid branches that the CPU would mispredict. The first access to a cache line usually
# misses the cache. These accesses are in a short loop of their own (`seen`), so that hundreds of them overlap.
# Indices are unsigned, because Numba checks signed indices for negative values at each use.
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
                node[b] = min(fan * node[b] + place - own, U(below[level]))  # larger only by rounding
        for b in range(samples):
            seen[b] = numbers[fan * node[b]]
        for b in range(samples):
            place, total = fan * node[b], seen[b]
            passed = U(total <= rest[b])
            for step in range(U(1), U(FAN - 1)):
                total += numbers[place + step]
                passed += U(total <= rest[b])
            place += passed
            while numbers[place] == 0 and place > U(0):  # only by rounding at the end, or if a member has diverged
                place -= U(1)
            index[m, b], value[m, b] = place, numbers[place]


def _put(values: Floats, index: NDArray[np.int64], value: Floats) -> None:
    for m in range(index.shape[0]):
        numbers = values[m]
        for b in range(index.shape[1]):
            numbers[U(index[m, b])] = value[m, b]


def _recompute(nodes: Floats, first: NDArray[np.int64], values: Floats, index: NDArray[np.int64]) -> None:
    """Recompute the nodes above the values at `index [M, n]`. Neighbours in `index` that share a node do so once."""
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

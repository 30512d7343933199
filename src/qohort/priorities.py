"""Proportional prioritised replay (Schaul et al., 2016) on a sum tree of each member."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qohort.checking import PositiveInt, Range
from qohort.cohort import UniformStream
from qohort.exploration import Floats, Progress, Schedule, across_members
from qohort.replay import Batch, ReplaySpec, Ring

BLOCK = 8
"""Numbers under a node at the bottom of a tree: one line of a processor's cache."""


class SumTree:
    """Non-negative float64 numbers of every member, with a binary tree of the sums and maxima of blocks of them.

    Node 1 is the root, those below node k are 2k and 2k + 1, and those at the bottom stand for a block each. A sum is
    always made anew from what is below it, so it depends on the numbers only and not on their history: nothing
    drifts. That blocks are not split further keeps the trees of all members in the processor's cache.

    Args:
        members: M.
        size: Numbers of a member.
    """

    def __init__(self, members: int, size: int) -> None:
        import numba  # not at the top: it takes half a second, and only prioritised replay needs it

        blocks = 1 << max(0, (-(-size // BLOCK) - 1).bit_length())
        self.values: Floats = np.zeros((members, blocks * BLOCK))
        """The numbers, and zeros beyond `size`: `[M, ...]`."""
        self._sums, self._maxima = np.zeros((members, 2 * blocks)), np.zeros((members, 2 * blocks))
        compiled = numba.njit(cache=True)
        self._find, self._mend = compiled(_find), compiled(_mend)

    @property
    def total(self) -> Floats:
        """The sum of each member's numbers: `[M]`."""
        return self._sums[:, 1]

    @property
    def maximum(self) -> Floats:
        """The largest of each member's numbers: `[M]`."""
        return self._maxima[:, 1]

    def find(self, mass: Floats) -> tuple[NDArray[np.int64], Floats]:
        """Where running sums pass `mass`: the index of each, and the number there, `[M, B]` each.

        Args:
            mass: `[M, B]`, in [0, total); never a number that is 0 is found, whatever the rounding.
        """
        index, value = np.empty(mass.shape, dtype=np.int64), np.empty(mass.shape)
        self._find(self._sums, self.values, mass, index, value)
        return index, value

    def put(self, index: NDArray[np.int64], value: Floats) -> None:
        """Put numbers `[M, B]` at indices `[M, B]`; of two at the same index the later one counts."""
        self.values[np.arange(len(index))[:, None], index] = value
        self._mend(self._sums, self._maxima, self.values, index // BLOCK)

    def fill(self, start: int, stop: int, value: Floats) -> None:
        """Put numbers `[M, 1]` or `[M, stop - start]` at the indices from `start` to before `stop`."""
        self.values[:, start:stop] = value
        blocks = np.arange(start // BLOCK, (stop - 1) // BLOCK + 1)
        self._mend(self._sums, self._maxima, self.values, np.tile(blocks, (len(self.values), 1)))


# Plain loops, compiled by Numba: level by level and not sample by sample, so that the processor has many independent
# loads under way, and without branches, which it would guess wrong half of the time.


def _find(sums: Floats, values: Floats, mass: Floats, index: NDArray[np.int64], value: Floats) -> None:
    bottom, samples = sums.shape[1] // 2, mass.shape[1]
    node = np.empty(samples, dtype=np.int64)
    for m in range(mass.shape[0]):
        rest = mass[m].copy()
        node[:] = 1
        level = 1
        while level < bottom:
            for b in range(samples):
                left = sums[m, 2 * node[b]]
                right = int(rest[b] >= left) & int(sums[m, 2 * node[b] + 1] > 0)
                rest[b] -= right * left
                node[b] = 2 * node[b] + right
            level *= 2
        for b in range(samples):
            first = (node[b] - bottom) * BLOCK
            running, passed = 0.0, 0
            for one in range(first, first + BLOCK):
                running += values[m, one]
                passed += int(running <= rest[b])
            chosen = min(first + passed, first + BLOCK - 1)
            while values[m, chosen] == 0:  # only by rounding, at a block's end
                chosen -= 1
            index[m, b], value[m, b] = chosen, values[m, chosen]


def _mend(sums: Floats, maxima: Floats, values: Floats, blocks: NDArray[np.int64]) -> None:
    """Make the nodes above some blocks `[M, n]` anew."""
    bottom = sums.shape[1] // 2
    node = np.empty(blocks.shape[1], dtype=np.int64)
    for m in range(blocks.shape[0]):
        for b in range(len(node)):
            first = blocks[m, b] * BLOCK
            total, largest = 0.0, 0.0
            for one in range(first, first + BLOCK):
                total += values[m, one]
                largest = max(largest, values[m, one])
            node[b] = bottom + blocks[m, b]
            sums[m, node[b]], maxima[m, node[b]] = total, largest
        level = bottom
        while level > 1:
            for b in range(len(node)):
                node[b] //= 2
                left = 2 * node[b]
                sums[m, node[b]] = sums[m, left] + sums[m, left + 1]
                maxima[m, node[b]] = max(maxima[m, left], maxima[m, left + 1])
            level //= 2


class PrioritizedReplay(Ring):
    """A ring of the newest transitions, sampled in proportion to the priority p = (|TD error| + ε)^α.

    A batch is stratified: its k-th sample comes from the k-th of B equal parts of the priorities' sum. New
    transitions have the largest of the current priorities. The batch's `weight` is (N P)^-β over the largest of the
    batch; the loss applies it once. (Schaul et al., 2016, algorithm 1 and appendix B.2.1)

    Args:
        spec: See `ReplaySpec`.
        beta: The schedule of β, how much of the bias is corrected.
        capacity: Transitions a member, in env_steps; see `Ring`.
        n_step: Steps of a transition, n.
        alpha: α, how much priorities matter: 0 for not at all.
        epsilon: Added to |TD error|, in its units.
    """

    def __init__(
        self,
        spec: ReplaySpec,
        beta: Schedule,
        capacity: PositiveInt = 100_000,
        n_step: PositiveInt = 1,
        alpha: Annotated[float, Range(0, 1)] = 0.6,
        epsilon: Annotated[float, Range(0, above=True)] = 1e-6,
    ) -> None:
        super().__init__(spec, capacity, n_step)
        self._alpha, self._epsilon = alpha, epsilon
        members = len(spec.seeds)
        self._beta = across_members([beta] * members)
        self._tree = SumTree(members, self._transitions.slots)
        self._uniforms = UniformStream(spec.seeds, "replay", (spec.batch_size,), block=64)
        self._strata = np.arange(spec.batch_size)
        self._ready = 0  # transitions that have been given a priority since the start

    def sample(self, progress: Progress) -> Batch:
        """Draw `[M, B]` transitions, with their importance weights."""
        self._admit()
        total = self._tree.total[:, None]
        mass = (self._strata + self._uniforms.next()) / self._batch_size * total
        self._index, priority = self._tree.find(mass)
        batch = self._transitions.batch(self._index)
        weight = (self.complete * priority / total) ** -self._beta(progress)[:, None]
        weight /= weight.max(1, keepdims=True)
        batch["weight"] = torch.from_numpy(weight.astype(np.float32)).to(batch["reward"].device)
        return batch

    def feed_back(self, td_error: Tensor) -> None:
        """Give the newest batch its priorities."""
        size = td_error.cpu().numpy().astype(np.float64)
        self._tree.put(self._index, (np.abs(size) + self._epsilon) ** self._alpha)

    def _admit(self) -> None:
        """Give the transitions that have become complete the largest priority, and those overwritten none.

        Done when a batch is drawn, not at each step: the largest priority cannot have changed in between, as those
        added since have it too.
        """
        complete = self._added - self._incomplete
        if complete <= self._ready:
            return
        largest = np.where(self._tree.maximum > 0, self._tree.maximum, 1.0)[:, None]
        for start, stop in self._slots(max(self._ready, complete - self.capacity), complete):
            self._tree.fill(start, stop, largest)
        # What was overwritten since, but is not complete, is not to be drawn.
        for start, stop in self._slots(max(complete, self._ready), self._added):
            self._tree.fill(start, stop, np.zeros_like(largest))
        self._ready = complete

    def _slots(self, first: int, last: int) -> list[tuple[int, int]]:
        """The slots of the transitions from `first` to before `last`, in order of their adding: one range or two."""
        start, count = first % self.capacity, last - first
        stop = min(start + count, self.capacity)
        return [(low, high) for low, high in ((start, stop), (0, count - (stop - start))) if high > low]

    def state_dict(self) -> dict[str, Any]:
        """The transitions held and their priorities, the ring's position and the sampling stream."""
        return {
            **super().state_dict(),
            "priorities": torch.from_numpy(self._tree.values[:, : len(self)].copy()),
            "ready": self._ready,
            "uniforms": self._uniforms.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        super().load_state_dict(state)
        self._tree.fill(0, len(self), state["priorities"].numpy())
        self._ready = int(state["ready"])
        self._uniforms.load_state_dict(state["uniforms"])

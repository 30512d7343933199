"""Proportional prioritised replay (Schaul et al., 2016)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from qohort.cohort.held import across_members
from qohort.cohort.schedules import Progress, Schedule
from qohort.cohort.streams import UniformStream
from qohort.config.annotations import PositiveInt, Range
from qohort.replay.base import ReplaySpec
from qohort.replay.ring import Ring
from qohort.replay.sum_tree import SumTree
from qohort.replay.transition import Batch


class PrioritizedReplay(Ring):
    """A ring buffer sampled in proportion to priorities p = (|TD error| + ε)^α (Schaul et al., 2016, algorithm 1).

    A batch is a stratified sample: its k-th transition comes from the k-th of B equal parts of the sum of priorities
    (appendix B.2.1). New transitions get the largest priority. The `weight` of a batch is (N P)^-β, divided by
    its largest value in the batch. The loss applies it once.

    Args:
        spec: See `ReplaySpec`.
        beta: The schedule of β, the degree of the importance-sampling correction.
        capacity: Transitions per member; see `Ring`.
        n_step: The number of steps of a transition, n.
        alpha: α, the exponent of the priorities; 0 for uniform sampling.
        epsilon: Added to |TD error|, in the same units.
        new_priority: Of which priorities the largest is given to new transitions: those in the replay (`current`), or
            all that there have been (`ever`, as in the authors' pseudocode and DQN Zoo).
    """

    def __init__(
        self,
        spec: ReplaySpec,
        beta: Schedule,
        capacity: PositiveInt,
        n_step: PositiveInt = 1,
        alpha: Annotated[float, Range(0, 1)] = 0.6,
        epsilon: Annotated[float, Range(0, above=True)] = 1e-6,
        new_priority: Literal["current", "ever"] = "current",
    ) -> None:
        super().__init__(spec, capacity, n_step)
        self._alpha, self._epsilon = alpha, epsilon
        members = len(spec.seeds)
        self._beta = across_members([beta] * members)
        self._tree = SumTree(members, self.storage.slots)
        self._uniforms = UniformStream(spec.seeds, "replay", (spec.batch_size,), block=64)
        self._strata = np.arange(spec.batch_size)
        self._largest = np.ones(members) if new_priority == "ever" else None
        self._ready = 0  # number of transitions that have received a priority since the start

    def sample(self, progress: Progress) -> Batch:
        """Sample `[M, B]` transitions with their importance weights."""
        self._add_priorities()
        mass = self._strata + self._uniforms.next()
        mass *= (self._tree.total / self._batch_size)[:, None]
        self._index, priority = self._tree.find(mass)
        batch = self.storage.batch(self._index)
        # (N P)^-β divided by its maximum. N and the sum of priorities cancel.
        weight = (priority / priority.min(1, keepdims=True)) ** -self._beta(progress)[:, None]
        batch["weight"] = torch.from_numpy(weight.astype(np.float32)).to(batch["reward"].device)
        return batch

    def update_priorities(self, td_error: Tensor) -> None:
        """Update the priorities of the last batch."""
        error = np.abs(td_error.cpu().numpy()).astype(np.float64)
        error += self._epsilon
        priority = error**self._alpha
        if self._largest is not None:
            self._largest = np.maximum(self._largest, priority.max(1))
        self._tree.put(self._index, priority)

    def _add_priorities(self) -> None:
        """Give newly completed transitions the largest priority, and overwritten ones the priority 0.

        This is done when a batch is sampled instead of at each step. The result is the same, because the largest
        priority does not change in between.
        """
        complete = self._added - self._incomplete
        if complete <= self._ready:
            return
        current = np.where(self._tree.maximum > 0, self._tree.maximum, 1.0)
        largest = (current if self._largest is None else self._largest)[:, None]
        for start, stop in self._slots(max(self._ready, complete - self.capacity), complete):
            self._tree.fill(start, stop, largest)
        # Slots that were overwritten by transitions that are not complete yet must not be sampled.
        for start, stop in self._slots(max(complete, self._ready), self._added):
            self._tree.fill(start, stop, np.zeros_like(largest))
        self._ready = complete

    def _slots(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the slots of transitions number `first` to `last` (exclusive) as one or two ranges."""
        start, count = first % self.capacity, last - first
        stop = min(start + count, self.capacity)
        return [(low, high) for low, high in ((start, stop), (0, count - (stop - start))) if high > low]

    def state_dict(self) -> dict[str, Any]:
        """Return the stored transitions, their priorities, the position in the ring and the random stream."""
        return {
            **super().state_dict(),
            "priorities": torch.from_numpy(self._tree.values[:, : len(self)].copy()),
            **({} if self._largest is None else {"largest": torch.from_numpy(self._largest.copy())}),
            "ready": self._ready,
            "uniforms": self._uniforms.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        self._tree.fill(0, len(self), state["priorities"].numpy())
        if self._largest is not None:
            self._largest = state["largest"].numpy().copy()
        self._ready = int(state["ready"])
        self._uniforms.load_state_dict(state["uniforms"])

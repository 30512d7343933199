"""Proportional prioritised replay (Schaul et al., 2016)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from qohort.cohort.held import across_members
from qohort.cohort.schedules import Progress, Schedule
from qohort.cohort.streams import UniformStream
from qohort.config.annotations import PositiveInt, Range
from qohort.replay.base import Batch, ReplaySpec
from qohort.replay.ring import Ring
from qohort.replay.sum_tree import SumTree


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
        capacity: PositiveInt,
        n_step: PositiveInt = 1,
        alpha: Annotated[float, Range(0, 1)] = 0.6,
        epsilon: Annotated[float, Range(0, above=True)] = 1e-6,
    ) -> None:
        super().__init__(spec, capacity, n_step)
        self._alpha, self._epsilon = alpha, epsilon
        members = len(spec.seeds)
        self._beta = across_members([beta] * members)
        self._tree = SumTree(members, self._storage.slots)
        self._uniforms = UniformStream(spec.seeds, "replay", (spec.batch_size,), block=64)
        self._strata = np.arange(spec.batch_size)
        self._ready = 0  # transitions that have been given a priority since the start

    def sample(self, progress: Progress) -> Batch:
        """Draw `[M, B]` transitions, with their importance weights."""
        self._admit()
        mass = self._strata + self._uniforms.next()
        mass *= (self._tree.total / self._batch_size)[:, None]
        self._index, priority = self._tree.find(mass)
        batch = self._storage.batch(self._index)
        # (N P)^-β over the largest: N and the sum of priorities cancel.
        weight = (priority / priority.min(1, keepdims=True)) ** -self._beta(progress)[:, None]
        batch["weight"] = torch.from_numpy(weight.astype(np.float32)).to(batch["reward"].device)
        return batch

    def feed_back(self, td_error: Tensor) -> None:
        """Give the newest batch its priorities."""
        size = np.abs(td_error.cpu().numpy()).astype(np.float64)
        size += self._epsilon
        self._tree.put(self._index, size**self._alpha)

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

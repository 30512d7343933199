"""The dataset that drives the environment loop and yields the batches that Lightning trains on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch.utils.data import IterableDataset

from qohort.replay.transition import Batch


class EnvironmentLoop(Protocol):
    """The environment loop that `ReplayDataset` drives, implemented by `qohort.agent.learner.QLearning`."""

    def updates(self) -> int:
        """Return the number of updates in the whole budget."""

    def budget_left(self) -> bool:
        """Return whether another step of the environments fits in the budget."""

    def between_steps(self) -> None:
        """Do what is due before the next step: copy the target network, evaluate, call the callbacks."""

    def collect(self) -> int:
        """Step every environment once, store the transitions, and return the number of updates that are due."""

    def batches(self, count: int) -> Iterator[Any]:
        """Yield the `count` batches of one round of updates, or a block of many rounds; see `qohort.agent.rounds`."""


class ReplayDataset(IterableDataset[Batch]):
    """Yields batches from a replay that is filled while iterating.

    Iterating alternates between steps of the environments and the batches that are due, until the budget is spent.
    It starts from the current progress, so a resumed run continues where it stopped. The dataset has a length, so
    Lightning does not fetch a batch before the previous update is done.

    Args:
        loop: The environment loop.
    """

    def __init__(self, loop: EnvironmentLoop) -> None:
        self._loop = loop

    def __len__(self) -> int:
        """Return the number of updates in the whole budget."""
        # Lightning skips an epoch without batches, and with it the rest of the budget.
        return max(1, self._loop.updates())

    def __iter__(self) -> Iterator[Any]:
        """Step the environments and yield the batches that are due, until the budget is spent."""
        loop = self._loop
        while loop.budget_left():
            loop.between_steps()
            yield from loop.batches(loop.collect())

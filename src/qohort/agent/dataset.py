"""The environment loop as a dataset: the batches that Lightning iterates over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch.utils.data import IterableDataset

from qohort.replay.base import Batch


class EnvironmentLoop(Protocol):
    """What `ReplayDataset` drives: `qohort.agent.learner.QLearning`."""

    def updates(self) -> int:
        """The number of updates in the whole budget."""

    def budget_left(self) -> bool:
        """Whether another step of the environments fits in the budget."""

    def between_steps(self) -> None:
        """Evaluate, save, report: whatever is due before the next step."""

    def collect(self) -> int:
        """Step every environment once into the replay; the number of updates that are due after it."""

    def batches(self, count: int) -> Iterator[Batch]:
        """The batches of one round of updates."""


class ReplayDataset(IterableDataset[Batch]):
    """Batches from a replay that is filled as they are drawn.

    Iterating steps the environments, yields the batches that are due, and so on until the budget is spent.
    The length is known, so Lightning fetches no batch ahead of the update before it. Iterating starts from
    where the loop is, so a resumed run goes on.

    Args:
        loop: The environment loop.
    """

    def __init__(self, loop: EnvironmentLoop) -> None:
        self._loop = loop

    def __len__(self) -> int:
        """The number of updates in the whole budget."""
        return self._loop.updates()

    def __iter__(self) -> Iterator[Batch]:
        """Step, then yield what is due."""
        loop = self._loop
        while loop.budget_left():
            loop.between_steps()
            yield from loop.batches(loop.collect())

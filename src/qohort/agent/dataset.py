"""TODO agent.dataset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch.utils.data import IterableDataset

from qohort.cohort.schedules import Progress
from qohort.replay.base import Batch, Replay, Values


class EnvironmentLoop(Protocol):
    """What `ReplayDataset` drives: `QLearning`."""

    replay: Replay
    progress: Progress

    @property
    def values(self) -> Values:
        """The online networks' action values, without noise."""

    def updates(self) -> int:
        """Updates in the whole budget."""

    def budget_left(self) -> bool:
        """Whether another step of the environments fits in the budget."""

    def between_steps(self) -> None:
        """Evaluate, save, report: whatever is due before the next step."""

    def collect(self) -> int:
        """Step every environment once into the replay; the number of updates that are due after it."""


class ReplayDataset(IterableDataset[Batch]):
    """Batches from a replay that is filled as they are drawn.

    Iterating steps the environments, yields the batches that are due, and so on until the budget is spent.
    The length is known, so Lightning fetches no batch ahead of the step before it. Iterating starts from
    where the loop is, so a resumed run goes on.

    Args:
        loop: The environment loop.
    """

    def __init__(self, loop: EnvironmentLoop) -> None:
        self._loop = loop

    def __len__(self) -> int:
        """Updates in the whole budget."""
        return self._loop.updates()

    def __iter__(self) -> Iterator[Batch]:
        """Step, then yield what is due."""
        loop = self._loop
        while loop.budget_left():
            loop.between_steps()
            due = loop.collect()
            if due:
                loop.replay.refresh(loop.values)
            for _ in range(due):
                yield loop.replay.sample(loop.progress)

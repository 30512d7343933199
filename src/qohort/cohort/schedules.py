"""Progress of a cohort, and what depends on it: schedules of numbers, and what is due every N env_steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from qohort.config.annotations import Range

Floats = NDArray[np.float64]
Unit = Literal["env_steps", "gradient_steps", "episodes"]


@dataclass
class Progress:
    """How far a cohort has come.

    Attributes:
        budget: The env_steps that a member may take.
        episodes: Finished episodes of each member, `[M]`.
        env_steps: Environment steps taken by each member.
        gradient_steps: Updates of each member.
    """

    budget: int
    episodes: NDArray[np.int64]
    env_steps: int = 0
    gradient_steps: int = 0

    def count(self, unit: Unit) -> Floats | float:
        """How many `unit` each member has behind it: `[M]`, or one number where all have as many."""
        if unit == "episodes":
            return self.episodes.astype(np.float64)
        return float(getattr(self, unit))

    def state_dict(self) -> dict[str, Any]:
        """The three counters."""
        episodes = torch.from_numpy(self.episodes.copy())
        return {"env_steps": self.env_steps, "gradient_steps": self.gradient_steps, "episodes": episodes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        self.env_steps, self.gradient_steps = int(state["env_steps"]), int(state["gradient_steps"])
        self.episodes[:] = state["episodes"].numpy()


class Intervals:
    """What is due every N env_steps.

    Args:
        progress: The cohort's progress.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.last: dict[str, int] = {}
        """The env_steps at which each thing was last due."""

    def due(self, what: str, every: int | None) -> bool:
        """Whether a multiple of `every` env_steps was reached since this was last true; never where it is None."""
        now = self._progress.env_steps
        if every is None or now // every == self.last.get(what, 0) // every:
            return False
        self.last[what] = now
        return True

    def state_dict(self) -> dict[str, int]:
        """The env_steps at which each thing was last due."""
        return dict(self.last)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where `state` was taken."""
        self.last = dict(state)


class Schedule(Protocol):
    """A number that changes with progress: one of each member, made by `qohort.cohort.held.across_members`."""

    def __call__(self, progress: Progress) -> Floats:
        """The value of each member: `[M]`."""


@dataclass(frozen=True)
class ConstantSchedule:
    """The same value throughout.

    Attributes:
        value: The value.
    """

    foldable: ClassVar[tuple[str, ...]] = ("value",)

    value: Annotated[float, Range(0)]

    def __call__(self, progress: Progress) -> Floats:
        """The value of each member: `[M]`."""
        return np.full(progress.episodes.shape, self.value)


@dataclass(frozen=True)
class LinearSchedule:
    """From `start` to `end` in a straight line, then `end`.

    Attributes:
        start: The value at first.
        end: The value at the end.
        fraction: The part of the budget that the way takes; or
        duration: the count of `per` that it takes. Just one of the two is given.
        per: What `duration` counts.
    """

    foldable: ClassVar[tuple[str, ...]] = ("start", "end")

    start: Annotated[float, Range(0)]
    end: Annotated[float, Range(0)]
    fraction: Annotated[float, Range(0, 1, above=True)] | None = None
    duration: Annotated[int, Range(1)] | None = None
    per: Unit = "env_steps"

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.duration is None):
            raise ValueError("give either fraction (of the budget) or duration (a count), and set the other to null")
        if self.fraction is not None and self.per != "env_steps":
            raise ValueError(f"fraction counts env_steps: with per={self.per} give duration instead")

    def __call__(self, progress: Progress) -> Floats:
        """The value of each member: `[M]`."""
        duration = self.duration if self.fraction is None else progress.budget * self.fraction
        assert duration is not None
        done: Floats = np.minimum(progress.count(self.per) / duration, 1.0)
        return self.start + (self.end - self.start) * done


@dataclass(frozen=True)
class MultiplicativeSchedule:
    """Multiplied by `decay` at every `per`, never below `end`: max(end, start · decayⁿ).

    Attributes:
        start: The value at first.
        end: The least value.
        decay: The factor.
        per: What is counted: env_steps, gradient_steps or episodes.
    """

    foldable: ClassVar[tuple[str, ...]] = ("start", "end", "decay")

    start: Annotated[float, Range(0)]
    end: Annotated[float, Range(0)]
    decay: Annotated[float, Range(0, 1, above=True)]
    per: Unit = "gradient_steps"

    def __call__(self, progress: Progress) -> Floats:
        """The value of each member: `[M]`."""
        return np.maximum(self.end, self.start * self.decay ** progress.count(self.per))

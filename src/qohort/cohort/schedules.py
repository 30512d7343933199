"""TODO cohort.schedules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import numpy as np
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


class Schedule(Protocol):
    """A number that changes with progress; of each member, once `across_members` has made one schedule of theirs."""

    def __call__(self, progress: Progress) -> Floats:
        """The value of each member: `[M]`."""


@dataclass(frozen=True)
class Constant:
    """The same value throughout.

    Attributes:
        value: The value.
    """

    value: Annotated[float, Range(0)]

    def __call__(self, progress: Progress) -> Floats:
        """The value of each member: `[M]`."""
        return np.full(progress.episodes.shape, self.value)


@dataclass(frozen=True)
class Linear:
    """From `start` to `end` in a straight line, then `end`.

    Attributes:
        start: The value at first.
        end: The value at the end.
        fraction: The part of the budget that the way takes; or
        duration: the count of `per` that it takes. Just one of the two is given.
        per: What `duration` counts.
    """

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
class Multiplicative:
    """Multiplied by `decay` at every `per`, never below `end`: max(end, start · decayⁿ).

    Attributes:
        start: The value at first.
        end: The least value.
        decay: The factor.
        per: What is counted: env_steps, gradient_steps or episodes.
    """

    start: Annotated[float, Range(0)]
    end: Annotated[float, Range(0)]
    decay: Annotated[float, Range(0, 1, above=True)]
    per: Unit = "gradient_steps"

    def __call__(self, progress: Progress) -> Floats:
        """The value of each member: `[M]`."""
        return np.maximum(self.end, self.start * self.decay ** progress.count(self.per))

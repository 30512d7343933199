"""The progress of a cohort, and what depends on it: schedules, and events that are due every N env_steps."""

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
    """The progress of a cohort.

    Attributes:
        budget: The env_steps that a member may take.
        episodes: The number of finished episodes of each member, `[M]`.
        env_steps: The env_steps taken by each member.
        gradient_steps: The number of updates of each member.
    """

    budget: int
    episodes: NDArray[np.int64]
    env_steps: int = 0
    gradient_steps: int = 0

    def count(self, unit: Unit) -> Floats | float:
        """Return the count of `unit` so far: per member `[M]` for episodes, else one number for all members."""
        if unit == "episodes":
            return self.episodes.astype(np.float64)
        value: Floats | int = getattr(self, unit)
        return float(value) if isinstance(value, int) else value

    def at(self, env_steps: NDArray[np.int64], gradient_steps: NDArray[np.int64]) -> Progress:
        """Return the progress at several moments `[n]`, with which a schedule returns its values `[n, M]` at each."""
        moments = {"env_steps": env_steps, "gradient_steps": gradient_steps}
        columns: dict[str, Any] = {name: array[:, None].astype(np.float64) for name, array in moments.items()}
        return Progress(self.budget, self.episodes, **columns)

    def state_dict(self) -> dict[str, Any]:
        """Return the three counters."""
        episodes = torch.from_numpy(self.episodes.copy())
        return {"env_steps": self.env_steps, "gradient_steps": self.gradient_steps, "episodes": episodes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.env_steps, self.gradient_steps = int(state["env_steps"]), int(state["gradient_steps"])
        self.episodes[:] = state["episodes"].numpy()


class Intervals:
    """Tracks events that are due every N env_steps or gradient_steps.

    Args:
        progress: The cohort's progress.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.last: dict[str, int] = {}
        """The env_steps, or gradient_steps, at which each event was last due."""

    def due(self, what: str, every: int | None, per: Literal["env_steps", "gradient_steps"] = "env_steps") -> bool:
        """Return whether a multiple of `every` was reached since the event was last due.

        Args:
            what: The name of the event.
            every: The number of `per` between events; None for never.
            per: The unit of `every`.
        """
        now = int(getattr(self._progress, per))
        if every is None or now // every == self.last.get(what, 0) // every:
            return False
        self.last[what] = now
        return True

    def state_dict(self) -> dict[str, int]:
        """Return when each event was last due."""
        return dict(self.last)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore the state that `state_dict` returned."""
        self.last = dict(state)


class Schedule(Protocol):
    """A number per member that changes with progress.

    `qohort.cohort.held.across_members` merges the schedules of the members into one.
    """

    def __call__(self, progress: Progress) -> Floats:
        """Return the value of each member, `[M]`."""


@dataclass(frozen=True)
class ConstantSchedule:
    """A constant value.

    Attributes:
        value: The value.
    """

    foldable: ClassVar[tuple[str, ...]] = ("value",)

    value: Annotated[float, Range(0)]

    def __call__(self, progress: Progress) -> Floats:
        """Return the value of each member, `[M]`."""
        return np.full(progress.episodes.shape, self.value)


@dataclass(frozen=True)
class LinearSchedule:
    """Interpolates linearly from `start` to `end`, and stays at `end`.

    Attributes:
        start: The initial value.
        end: The final value.
        fraction: The fraction of the budget until `end` is reached. Set either this or `duration`.
        duration: The number of `per` until `end` is reached.
        per: The unit of `duration`: env_steps, gradient_steps or episodes.
        delay: The env_steps before which the value is `start`; `fraction` or `duration` is counted from then on.
    """

    foldable: ClassVar[tuple[str, ...]] = ("start", "end")

    start: Annotated[float, Range(0)]
    end: Annotated[float, Range(0)]
    fraction: Annotated[float, Range(0, 1, above=True)] | None = None
    duration: Annotated[int, Range(1)] | None = None
    per: Unit = "env_steps"
    delay: Annotated[int, Range(0)] = 0

    def __post_init__(self) -> None:
        if np.any(self.delay) and self.per != "env_steps":
            raise ValueError(f"delay counts env_steps: with per={self.per}, set it to 0")
        if (self.fraction is None) == (self.duration is None):
            raise ValueError("give either fraction (of the budget) or duration (a count), and set the other to null")
        if self.fraction is not None and self.per != "env_steps":
            raise ValueError(f"fraction counts the budget's env_steps: with per={self.per}, give duration instead")

    def __call__(self, progress: Progress) -> Floats:
        """Return the value of each member, `[M]`."""
        duration = self.duration if self.fraction is None else progress.budget * self.fraction
        assert duration is not None
        count = np.maximum(progress.count(self.per) - self.delay, 0.0)
        elapsed: Floats = np.minimum(count / duration, 1.0)
        return self.start + (self.end - self.start) * elapsed


@dataclass(frozen=True)
class MultiplicativeSchedule:
    """Decays exponentially to a minimum: max(end, start · decayⁿ), where n is the count of `per`.

    Attributes:
        start: The initial value.
        end: The minimum value.
        decay: The factor per count.
        per: The unit of n: env_steps, gradient_steps or episodes.
    """

    foldable: ClassVar[tuple[str, ...]] = ("start", "end", "decay")

    start: Annotated[float, Range(0)]
    end: Annotated[float, Range(0)]
    decay: Annotated[float, Range(0, 1, above=True)]
    per: Unit = "gradient_steps"

    def __call__(self, progress: Progress) -> Floats:
        """Return the value of each member, `[M]`."""
        return np.maximum(self.end, self.start * self.decay ** progress.count(self.per))


def follows_episodes(schedule: Schedule) -> bool:
    """Return whether a schedule may depend on the episodes that have ended, because it counts them or is unknown."""
    known = isinstance(schedule, ConstantSchedule | LinearSchedule | MultiplicativeSchedule)
    return not known or getattr(schedule, "per", "env_steps") == "episodes"

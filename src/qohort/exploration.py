"""Exploration: how actions are drawn from action values, and the schedules of their parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from qohort.checking import Range

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


T = TypeVar("T")


def across_members(objects: Sequence[T]) -> T:
    """One object whose numbers are the members' own, `[M]`, from each member's object.

    Numbers become arrays even where all are equal, since an array's power may differ from a number's in the last bit.

    Args:
        objects: Dataclasses of one kind: schedules, or what holds schedules. Only their numbers differ.
    """
    merged = copy.copy(objects[0])
    for field in fields(merged):  # type: ignore[arg-type]
        values = [getattr(one, field.name) for one in objects]
        if is_dataclass(values[0]):
            object.__setattr__(merged, field.name, across_members(values))
        elif isinstance(values[0], int | float):
            object.__setattr__(merged, field.name, np.array(values, dtype=np.float64))
    return merged


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


class Exploration(Protocol):
    """Draws actions."""

    name: str
    """What the parameter is called in the logs: `epsilon` or `temperature`."""

    def draws(self, actions: int) -> int:
        """How many uniform numbers one action needs."""

    def parameter(self, progress: Progress) -> Floats:
        """The parameter of each member now: `[M]`."""

    def act(self, values: Callable[[], Floats], parameter: Floats, uniforms: Floats, actions: int) -> NDArray[np.int64]:
        """Actions `[M, E]`.

        Args:
            values: Gives the action values `[M, E, A]`; called only where an action depends on them.
            parameter: `[M]`.
            uniforms: Uniform numbers `[M, E, draws]`.
            actions: A.
        """


@dataclass(frozen=True)
class EpsilonGreedy:
    """A uniformly random action with probability ε, otherwise the best one.

    Attributes:
        epsilon: The schedule of ε.
        spread: Of a member's E environments, the e-th (from 0) has ε^(1 + spread e / (E - 1)), as Ape-X's actors have
            (Horgan et al., 2018, appendix D, where it is 7); 0: all have ε.
    """

    epsilon: Schedule
    spread: Annotated[float, Range(0)] = 0.0
    name = "epsilon"

    def __post_init__(self) -> None:
        for key in ("value", "start", "end"):
            bound: Any = getattr(self.epsilon, key, 0.0)
            if bound > 1:
                raise ValueError(f"epsilon.{key}={bound} is out of range: a probability lies between 0 and 1")

    def draws(self, actions: int) -> int:
        """One number decides, one chooses."""
        return 2

    def parameter(self, progress: Progress) -> Floats:
        """ε of each member: `[M]`."""
        return self.epsilon(progress)

    def act(self, values: Callable[[], Floats], parameter: Floats, uniforms: Floats, actions: int) -> NDArray[np.int64]:
        """Actions `[M, E]`."""
        epsilon = parameter[:, None]
        environments = uniforms.shape[1]
        if environments > 1 and np.any(self.spread):
            place = np.arange(environments) / (environments - 1)
            epsilon = epsilon ** (1 + np.reshape(self.spread, (-1, 1)) * place)
        greedy = uniforms[..., 0] >= epsilon
        action = (uniforms[..., 1] * actions).astype(np.int64)
        if greedy.any():
            np.copyto(action, values().argmax(-1), where=greedy)
        return action


@dataclass(frozen=True)
class Boltzmann:
    """An action with probability proportional to exp(Q / temperature) (Sutton & Barto, 2018, eq. 2.11).

    Drawn by the Gumbel-max trick: argmax(Q / temperature - log(-log u)).

    Attributes:
        temperature: The schedule of the temperature, in units of Q.
    """

    temperature: Schedule
    name = "temperature"

    def __post_init__(self) -> None:
        for key in ("value", "start", "end"):
            bound: Any = getattr(self.temperature, key, 1.0)
            if bound <= 0:
                raise ValueError(f"temperature.{key}={bound} is out of range: a temperature is above 0")

    def draws(self, actions: int) -> int:
        """One number an action."""
        return actions

    def parameter(self, progress: Progress) -> Floats:
        """The temperature of each member: `[M]`."""
        return self.temperature(progress)

    def act(self, values: Callable[[], Floats], parameter: Floats, uniforms: Floats, actions: int) -> NDArray[np.int64]:
        """Actions `[M, E]`."""
        with np.errstate(divide="ignore"):  # u = 0 gives -inf: never chosen, as it should be
            gumbel = -np.log(-np.log(uniforms))
        chosen: NDArray[np.int64] = (values() / parameter[:, None, None] + gumbel).argmax(-1)
        return chosen

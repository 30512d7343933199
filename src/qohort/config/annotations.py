"""What a type annotation can say about a configuration key besides its type: bounds, length, role."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

Node = Mapping[str, Any]
"""A group of keys with a `_target_`: the configuration of a component."""


@dataclass(frozen=True)
class Range:
    """Bounds of a number.

    Attributes:
        low: Lower bound; None for no bound.
        high: Upper bound; None for no bound.
        above: Whether `low` itself is excluded.
        below: Whether `high` itself is excluded.
    """

    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        """Return whether a number is finite and within the bounds."""
        if not math.isfinite(value):
            return False
        if self.low is not None and (value <= self.low if self.above else value < self.low):
            return False
        return self.high is None or (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        """Return the bounds in words, as `above 0 and at most 1`."""
        low = "" if self.low is None else f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        high = "" if self.high is None else f"below {self.high:g}" if self.below else f"at most {self.high:g}"
        return " and ".join(filter(None, (low, high))) or "finite"


@dataclass(frozen=True)
class Sized:
    """Minimum number of elements of a list."""

    low: int


@dataclass(frozen=True)
class Role:
    """The type that a component must have and the arguments that the program passes to it.

    Attributes:
        kind: Import path of the class or protocol that the object made by `_target_` must have.
        given: Names of the parameters that the program passes, besides the node's keys.
        instead: Module and name of a class that does as well; the program passes it what is omitted. Empty for none.
    """

    kind: str
    given: tuple[str, ...] = ()
    instead: str = ""


PositiveInt = Annotated[int, Range(1)]


Count = Annotated[int, Range(0)]

"""TODO config.annotations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

Node = Mapping[str, Any]
"""A group of keys with a `_target_`."""


@dataclass(frozen=True)
class Range:
    """Bounds of a number.

    Attributes:
        low: The least value, None for none.
        high: The greatest value, None for none.
        above: Whether `low` itself is excluded.
        below: Whether `high` itself is excluded.
    """

    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        """Whether a finite number lies within the bounds."""
        if not math.isfinite(value):
            return False
        if self.low is not None and (value <= self.low if self.above else value < self.low):
            return False
        return self.high is None or (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        """The bounds in words."""
        low = "" if self.low is None else f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        high = "" if self.high is None else f"below {self.high:g}" if self.below else f"at most {self.high:g}"
        return " and ".join(filter(None, (low, high))) or "finite"


@dataclass(frozen=True)
class Sized:
    """The least number of elements of a list."""

    low: int


@dataclass(frozen=True)
class Role:
    """What a component must be, and what it is given.

    Attributes:
        kind: The class or protocol of what its `_target_` makes.
        given: The parameters that the program fills in, besides the node's keys.
    """

    kind: str
    given: tuple[str, ...] = ()


PositiveInt = Annotated[int, Range(1)]


Count = Annotated[int, Range(0)]

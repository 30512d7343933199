"""The search space of a study: intervals and choices, by key of the command line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

from qohort.config.annotations import Sized
from qohort.config.checks import check
from qohort.config.errors import ConfigError
from qohort.config.messages import format_value


@dataclass(frozen=True)
class Interval:
    """An interval of numbers; of integers if both bounds are integers.

    Attributes:
        low: Lower bound, included.
        high: Upper bound, included.
        log: Whether to sample on a logarithmic scale.
        step: Distance between values; None for 1 between integers, and for a continuous interval otherwise.
    """

    low: int | float
    high: int | float
    log: bool
    step: int | float | None

    def distribution(self) -> BaseDistribution:
        """Return the interval as a distribution of Optuna."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if isinstance(self.low, int) and isinstance(self.high, int):
            step = 1 if self.step is None else self.step
            if not isinstance(step, int) or step < 1:
                raise ValueError("step must be an integer of at least 1, as both bounds are integers")
            return IntDistribution(self.low, self.high, log=self.log, step=step)
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def value(self, proposed: Any) -> Any:
        """Return the value to try for a proposal of Optuna, rounded to a few significant digits."""
        if isinstance(proposed, int):
            return proposed
        if self.step is not None:
            return float(f"{proposed:.10g}")
        if self.low == self.high:
            return self.low
        if self.log:
            short = float(f"{proposed:.4g}")
        else:
            short = round(proposed, 3 - math.floor(math.log10(self.high - self.low)))
        return min(max(short, self.low), self.high)

    @property
    def samples(self) -> list[Any]:
        """Values that are checked before the study starts."""
        return [self.low, self.high]


@dataclass(frozen=True)
class Choices:
    """Values to choose among."""

    choices: Annotated[Sequence[Any], Sized(1)]

    def distribution(self) -> BaseDistribution:
        """Return the choices as a distribution of Optuna. Lists and mappings are stored as JSON text."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(list(self._named))

    def value(self, proposed: Any) -> Any:
        """Return the value to try for a proposal of Optuna."""
        return self._named[proposed]

    @property
    def samples(self) -> list[Any]:
        """Values that are checked before the study starts."""
        return list(self.choices)

    @property
    def _named(self) -> dict[Any, Any]:
        return {json.dumps(value) if isinstance(value, list | dict) else value: value for value in self.choices}


Space = Mapping[str, Interval | Choices]


def read_space(space: Mapping[str, Any]) -> Space:
    """Read the search space of a study.

    Args:
        space: The entries of `space` in `conf/tune.yaml`, by key. Entries that are null are left out.

    Raises:
        ConfigError: If an entry is neither an interval nor choices, or the space is empty.
    """
    read: dict[str, Interval | Choices] = {}
    for key, entry in space.items():
        path = f"space.{key}"
        if entry is None:
            continue
        if not isinstance(entry, Mapping) or not {"choices", "low", "high"} & set(entry):
            raise ConfigError(
                f"{path}={format_value(entry)} is not a search space: write {{low: A, high: B}} or {{choices: [A, B]}}"
            )
        if "choices" in entry:
            read[key] = check(Choices, entry, path)
        else:
            read[key] = check(Interval, {"log": False, "step": None, **entry}, path)
        try:
            read[key].distribution()
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}={format_value(entry)}: {' '.join(str(error).split())}") from error
    if not read:
        raise ConfigError("space={} searches nothing: give {KEY: {low: A, high: B}} or {KEY: {choices: [A, B]}}")
    return read

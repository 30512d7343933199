"""External results: published means from a CSV or YAML file. They are shown beside our runs and never tested."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qohort.config.errors import ConfigError
from qohort.config.messages import nearest
from qohort.report.cells import number
from qohort.statistics import Estimate

NEEDED = ("name", "environment", "mean", "n", "env_steps", "source")
SPREAD = ("std", "low", "high")


@dataclass(frozen=True)
class ExternalResult:
    """A published result in one environment.

    Attributes:
        name: Name of the agent.
        environment: Name of the environment, in `conf/env` or as Gymnasium has it.
        mean: Mean return.
        spread: Standard deviation of the runs' returns, or the interval of the mean (low, high).
        n: Number of runs.
        env_steps: Budget of a run.
        source: Where it was published.
    """

    name: str
    environment: str
    mean: float
    spread: float | tuple[float, float]
    n: int
    env_steps: int
    source: str

    @property
    def title(self) -> str:
        """The name, marked as published."""
        return f"{self.name} (published)"

    @property
    def note(self) -> str:
        """What the result is, in words."""
        return f"{self.name}: published, n={self.n}, {self.env_steps:,} env_steps, from {self.source}"

    @property
    def estimate(self) -> Estimate:
        """The mean with its interval, or with one standard deviation on both sides."""
        if isinstance(self.spread, tuple):
            return Estimate(self.mean, *self.spread)
        return Estimate(self.mean, self.mean - self.spread, self.mean + self.spread)

    def spread_text(self, digits: int) -> str:
        """Return the spread as text, as `± 16.1` or `[470.0, 500.0]`."""
        if isinstance(self.spread, tuple):
            return f"[{number(self.spread[0], digits)}, {number(self.spread[1], digits)}]"
        return f"± {number(self.spread, digits)}"


def read_external(file: Path) -> list[ExternalResult]:
    """Read external results.

    Args:
        file: A CSV file with a header, or a YAML file with a list of mappings, with the keys `name`, `environment`,
            `mean`, `std` or `low` and `high`, `n`, `env_steps` and `source`.

    Raises:
        ConfigError: If the file cannot be read or a row is wrong. The first row below the header is row 1.
    """
    if file.suffix not in (".csv", ".yaml", ".yml"):
        raise ConfigError(f"external={file} is not a .csv or .yaml file: give a file with one of these endings")
    try:
        text = file.read_text(encoding="utf-8-sig")
        rows = list(csv.DictReader(text.splitlines())) if file.suffix == ".csv" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, csv.Error, yaml.YAMLError) as error:
        raise ConfigError(f"external={file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(rows, list) or not rows:
        raise ConfigError(f"external={file} has no rows: it needs a list of rows with {', '.join(NEEDED)}, std")
    results: list[ExternalResult] = []
    for count, row in enumerate(rows, 1):
        try:
            result = _result(row)
            if any((one.name, one.environment) == (result.name, result.environment) for one in results):
                raise ConfigError(f"name={result.name} is there twice for {result.environment}: give each its own name")
        except ConfigError as error:
            raise ConfigError(f"{file}, row {count}: {error}") from error
        results.append(result)
    return results


def _result(row: Any) -> ExternalResult:
    """Return the result of a row, whose values are text in CSV."""
    if not isinstance(row, Mapping):
        raise ConfigError(f"{row} is not a row: write {', '.join(NEEDED)}, std")
    if None in row:  # of the CSV reader
        raise ConfigError("there are more cells than columns: quote a cell that has a comma")
    given = {str(key): str(value).strip() for key, value in row.items() if value not in (None, "")}
    for key in given:
        if key not in (*NEEDED, *SPREAD):
            raise ConfigError(f"{key} is not a column: {nearest(key, (*NEEDED, *SPREAD))}")
    for key in NEEDED:
        if not given.get(key):
            raise ConfigError(f"{key} is missing")
    mean = _number(given, "mean")
    return ExternalResult(
        given["name"],
        given["environment"],
        mean,
        _spread(given, mean),
        _count(given, "n"),
        _count(given, "env_steps"),
        given["source"],
    )


def _spread(given: Mapping[str, str], mean: float) -> float | tuple[float, float]:
    named = [key for key in SPREAD if key in given]
    if named == ["std"]:
        std = _number(given, "std")
        if std < 0:
            raise ConfigError(f"std={given['std']} is out of range: it must be at least 0")
        return std
    if named != ["low", "high"]:
        raise ConfigError(f"{' and '.join(named) or 'no spread'} given: give either std, or both low and high")
    low, high = _number(given, "low"), _number(given, "high")
    if not low <= mean <= high:
        raise ConfigError(f"mean={given['mean']} is not between low={given['low']} and high={given['high']}")
    return low, high


def _number(given: Mapping[str, str], key: str) -> float:
    try:
        value = float(given[key])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{key}={given[key]} is not a finite number")
    return value


def _count(given: Mapping[str, str], key: str) -> int:
    try:
        value = int(given[key])
    except ValueError:
        value = 0
    if value < 1:
        raise ConfigError(f"{key}={given[key]} is not a positive integer")
    return value


def by_environment(
    results: Sequence[ExternalResult], environments: Iterable[tuple[str, str]], file: Path
) -> dict[str, tuple[ExternalResult, ...]]:
    """Return the results of each environment of a report; others are left out.

    Args:
        results: The results.
        environments: The name of each environment in the report, and as Gymnasium has it.
        file: Their file, for the message.

    Raises:
        ConfigError: If no result is of an environment of the report.
    """
    found: dict[str, tuple[ExternalResult, ...]] = {}
    for name, own in dict(environments).items():
        names = (name, own, own.replace("/", "-"))
        if some := tuple(one for one in results if one.environment in names):
            found[name] = some
    if not found:
        have = ", ".join(dict.fromkeys(one.environment for one in results))
        raise ConfigError(f"external={file} has no row of an environment of this report: its rows are of {have}")
    return found

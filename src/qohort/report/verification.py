"""Verifies a report: trains some of its runs again, chosen at random, and compares the results."""

from __future__ import annotations

import csv
import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from omegaconf import DictConfig

from qohort.config.annotations import PositiveInt, Range
from qohort.config.checks import build_config
from qohort.config.errors import ConfigError
from qohort.config.identity import config_hash
from qohort.config.schema import TrainConfig
from qohort.report.ledger import made_differences, made_of
from qohort.report.retraining import retrain
from qohort.report.verdicts import Again, judge
from qohort.runs.directory import RunDirectory
from qohort.runs.training import train

COLUMNS = ("arm", "environment", "seed", "directory", "config_hash", "fingerprint", "final")
"""The columns of `scores.csv` that are used here."""
AGAIN = "write the report again"


@dataclass(frozen=True)
class VerifyConfig:
    """The configuration of a verification. `conf/verify.yaml` documents each key."""

    report: str
    sample: PositiveInt
    seed: Annotated[int, Range(0, 2**63 - 1)]
    level: Annotated[float, Range(0, 1, above=True, below=True)]


Row = Mapping[str, str]
"""A row of `scores.csv`."""


def verify(config: DictConfig) -> list[Again]:
    """Train some runs of a report again and compare them with the report.

    Args:
        config: The composed configuration, `conf/verify.yaml`.

    Returns:
        What each run ended with.

    Raises:
        ConfigError: If the report or a run's directory is missing or damaged; nothing was trained.
        RunsFailed: If the results contradict the report.
    """
    settings, rows = check_verification(config)
    drawn = draw_rows(rows, settings.sample, settings.seed)
    planned = [(row, load_run(row)) for row in drawn]
    print(f"{len(drawn)} of {len(rows)} runs, trained again:")
    runs = []
    for row, original in planned:
        runs.append(train_again(row, original))
        print(f"  {runs[-1]}", flush=True)
    recorded: dict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        recorded[name_of(row)][int(row["seed"])] = final_return(row)
    judge(runs, recorded, settings.level, "the report")
    return runs


def name_of(row: Row) -> str:
    """Return the arm and the environment of a row, in words."""
    return f"{row['arm']} on {row['environment']}"


def check_verification(config: DictConfig) -> tuple[VerifyConfig, list[Row]]:
    """Check the configuration of a verification, and return it and the rows of the report.

    Raises:
        ConfigError: If it is wrong, or there is no report.
    """
    settings: VerifyConfig = build_config(VerifyConfig, config)
    return settings, read_rows(Path(settings.report).expanduser())


def read_rows(report: Path) -> list[Row]:
    """Read the rows of the runs that a report counts.

    Args:
        report: The report's directory.

    Raises:
        ConfigError: If there is no report, or it counts no run.
    """
    file = report / "scores.csv"
    if not file.is_file():
        inside = sorted(report.glob("*/scores.csv"))
        hint = f"did you mean report={inside[0].parent}?" if inside else "write one with qohort report"
        raise ConfigError(f"report={report} is not a report, it has no scores.csv: {hint}")
    try:
        with file.open(newline="") as lines:
            rows: list[Row] = [row for row in csv.DictReader(lines) if row.get("status") == "finished"]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{file} cannot be read ({error}): {AGAIN}") from error
    if not rows:
        raise ConfigError(f"report={report} counts no run: there is nothing to verify")
    for row in rows:
        if absent := [key for key in COLUMNS if not row.get(key)]:
            raise ConfigError(f"{file} has a row without {absent[0]}: {AGAIN}")
        for key in ("seed", "final"):
            _check_number(row, key, file)
    return rows


def _check_number(row: Row, key: str, file: Path) -> None:
    """Check that a cell is a number, and that of a seed an integer.

    Raises:
        ConfigError: If not.
    """
    try:
        (int if key == "seed" else float)(row[key])
    except ValueError as error:
        raise ConfigError(f"{file} has a row with {key}={row[key]}, which is not a number: {AGAIN}") from error


def draw_rows(rows: Sequence[Row], sample: int, seed: int) -> list[Row]:
    """Return rows chosen at random. The choice does not depend on the order of the rows.

    Args:
        rows: All rows.
        sample: Number of rows to choose; all if there are fewer.
        seed: Seed of the choice.
    """
    ordered = sorted(rows, key=lambda row: (row["environment"], row["arm"], int(row["seed"])))
    return random.Random(seed).sample(ordered, min(sample, len(ordered)))


@dataclass(frozen=True)
class Original:
    """A run of the report: its configuration, and how it was made."""

    config: TrainConfig
    made: Mapping[str, Any]


def load_run(row: Row) -> Original:
    """Load the run of a row from its directory.

    Raises:
        ConfigError: If the directory cannot be read, or is not the one in the report.
    """
    directory = RunDirectory(Path(row["directory"]))
    try:
        config = build_config(TrainConfig, directory.config())
        manifest = json.loads((directory.path / "manifest.json").read_text())
        result = directory.result()
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{directory.path} is in the report but cannot be read: {error}") from error
    if not isinstance(manifest, dict):
        raise ConfigError(f"{directory.path} is in the report, but its manifest.json is damaged: train it again")
    if config_hash(config) != row["config_hash"] or config.seed != int(row["seed"]):
        raise ConfigError(f"{directory.path} has a config.yaml that is not the one in the report: {row['config_hash']}")
    if result is None or result.get("fingerprint") != row["fingerprint"]:
        raise ConfigError(
            f"{directory.path} has a result.json that is not the one in the report: write the report again"
        )
    return Original(config, made_of(manifest, (directory.path / "code.patch").is_file()))


def train_again(row: Row, original: Original) -> Again:
    """Train a run again, alone.

    Args:
        row: The run's row in the report.
        original: The run, loaded from its directory.
    """
    (trained,) = retrain(train, [original.config])
    changes = made_differences(original.made, trained.made)
    then, score = row["fingerprint"], final_return(row)
    return Again(name_of(row), int(row["seed"]), then, score, trained.fingerprint, trained.final, changes)


def final_return(row: Row) -> float:
    """Return the final return of a run in a report, whose scores may be of another metric."""
    return float(row.get("final_return") or row["final"])

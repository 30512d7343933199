"""Verifies a report: trains some of its runs again, chosen at random, and compares the results."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from omegaconf import DictConfig, OmegaConf

from qohort.config.annotations import PositiveInt, Range
from qohort.config.checks import build_config
from qohort.config.errors import ConfigError, RunsFailed
from qohort.config.identity import config_hash, config_tree, flat
from qohort.config.messages import format_value
from qohort.config.schema import TrainConfig
from qohort.runs.directory import RunDirectory
from qohort.runs.manifest import HISTORY
from qohort.runs.training import train


@dataclass(frozen=True)
class VerifyConfig:
    """The configuration of a verification. `conf/verify.yaml` documents each key."""

    report: str
    sample: PositiveInt
    seed: Annotated[int, Range(0, 2**63 - 1)]
    level: Annotated[float, Range(0, 1, above=True, below=True)]


Row = Mapping[str, str]
"""A row of `scores.csv`."""


@dataclass(frozen=True)
class Verdict:
    """The result of training a run again.

    Attributes:
        row: The run's row in the report.
        equal: Whether the fingerprint is the same.
        changes: What has changed since the run was trained: machine, versions, code.
        score: The new final return.
        rank: Rank of `score` among the report's scores of the same arm and environment, between 0 and 1.
    """

    row: Row
    equal: bool
    changes: tuple[str, ...]
    score: float
    rank: float


def verify(config: DictConfig) -> list[Verdict]:
    """Train some runs of a report again and compare them with the report.

    Args:
        config: The composed configuration, `conf/verify.yaml`.

    Returns:
        The result of each run.

    Raises:
        ConfigError: If the report or a run's directory is missing or damaged; nothing was trained.
        RunsFailed: If the results contradict the report.
    """
    settings, rows = check_verification(config)
    drawn = draw_rows(rows, settings.sample, settings.seed)
    planned = [(row, load_run(row)) for row in drawn]
    print(f"{len(drawn)} of {len(rows)} runs, trained again:")
    verdicts = []
    for row, original in planned:
        verdict = train_again(row, original, rows)
        print(f"  {tell(verdict)}", flush=True)
        verdicts.append(verdict)
    judge(verdicts, settings.level)
    return verdicts


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
        hint = f"did you mean report={inside[0].parent}?" if inside else "write one with scripts/report.py"
        raise ConfigError(f"report={report} is not a report, it has no scores.csv: {hint}")
    with file.open(newline="") as lines:
        rows: list[Row] = [row for row in csv.DictReader(lines) if row.get("status") == "finished"]
    if not rows:
        raise ConfigError(f"report={report} counts no run: there is nothing to verify")
    return rows


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
    """A run of the report: its configuration and its `manifest.json`."""

    config: TrainConfig
    manifest: Mapping[str, Any]


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
    if config_hash(config) != row["config_hash"] or config.seed != int(row["seed"]):
        raise ConfigError(f"{directory.path} has a config.yaml that is not the one in the report: {row['config_hash']}")
    if result is None or result.get("fingerprint") != row["fingerprint"]:
        raise ConfigError(
            f"{directory.path} has a result.json that is not the one in the report: write the report again"
        )
    return Original(config, manifest)


def train_again(row: Row, original: Original, rows: Sequence[Row]) -> Verdict:
    """Train a run again, alone, in a temporary directory.

    Args:
        row: The run's row in the report.
        original: The run, loaded from its directory.
        rows: All rows of the report.
    """
    trainer = replace(original.config.trainer, progress_bar=False)
    with tempfile.TemporaryDirectory(prefix="qohort-verify-") as folder:
        config = replace(original.config, trainer=trainer, output_dir=folder, logger={}, overwrite=False)
        with contextlib.redirect_stdout(io.StringIO()):  # hides the table of a single seed
            (result,) = train(OmegaConf.create(config_tree(config)))
        (file,) = Path(folder).rglob("manifest.json")
        manifest = json.loads(file.read_text())
    recorded = [
        final_return(one) for one in rows if (one["arm"], one["environment"]) == (row["arm"], row["environment"])
    ]
    equal = result["fingerprint"] == row["fingerprint"]
    score = float(result["final_return"])
    return Verdict(row, equal, tuple(changes(original.manifest, manifest)), score, rank(score, recorded))


def final_return(row: Row) -> float:
    """Return the final return of a run in a report, whose scores may be of another metric."""
    return float(row.get("final_return") or row["final"])


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences between two `manifest.json`, except how the runs were started, in words."""
    one, other = ({key: value for key, value in flat(each).items() if key not in HISTORY} for each in (then, now))
    return [
        f"{key.removeprefix('packages.')} {format_value(one.get(key))} then, {format_value(other.get(key))} now"
        for key in dict.fromkeys((*one, *other))
        if one.get(key) != other.get(key)
    ]


def rank(score: float, recorded: Sequence[float]) -> float:
    """Return the rank of a score among recorded scores, from near 0 below all to near 1 above all. Ties count half."""
    scores = np.asarray(recorded)
    below, ties = int((scores < score).sum()), int((scores == score).sum())
    return (below + ties / 2 + 0.5) / (len(scores) + 1)


def tell(verdict: Verdict) -> str:
    """Return a verdict in one line."""
    row = verdict.row
    name = f"{row['arm']} on {row['environment']}, seed {row['seed']}"
    if verdict.equal:
        return f"{name}: the same fingerprint, {row['fingerprint'][:8]}"
    scores = f"final evaluation {verdict.score:g}, in the report {final_return(row):g}"
    why = f"; what changed: {'; '.join(verdict.changes)}" if verdict.changes else ", and nothing else changed"
    return f"{name}: DIFFERENT FINGERPRINT ({scores}){why}"


def judge(verdicts: Sequence[Verdict], level: float) -> None:
    """Print whether the verdicts confirm the report.

    If fingerprints differ and machine, versions or code have changed, the scores are compared. The rank of a run among
    the recorded scores is uniform if only chance differs; the ranks are combined by Stouffer's method.

    Args:
        verdicts: The verdict on each run.
        level: Level of the test: the probability of ranks below which the scores count as different.

    Raises:
        RunsFailed: If a fingerprint differs although nothing has changed, or the scores are different.
    """
    from scipy.stats import norm

    unexplained = [verdict for verdict in verdicts if not verdict.equal and not verdict.changes]
    if unexplained:
        raise RunsFailed(
            f"{len(unexplained)} of {len(verdicts)} runs have a different result on the same machine with the same "
            "versions: the report does not hold"
        )
    others = [verdict for verdict in verdicts if not verdict.equal]
    if not others:
        print(f"verified: {len(verdicts)} of {len(verdicts)} runs ended with their fingerprints")
        return
    total = float(np.sum(norm.ppf([verdict.rank for verdict in others])) / np.sqrt(len(others)))
    probability = 2 * float(norm.sf(abs(total)))
    words = (
        f"machine, versions or code changed, so the scores of {len(others)} of {len(verdicts)} runs were compared "
        f"with those of the report: p = {probability:.2f}"
    )
    if probability < level:
        raise RunsFailed(f"{words}, less than level={level:g}: the report does not hold here")
    print(f"not contradicted, which is weaker than verified: {words}")

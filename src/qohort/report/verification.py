"""Receipts: runs of a report, drawn at random, trained again and compared with what the report says."""

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
from qohort.config.identity import config_hash, config_tree
from qohort.config.messages import as_typed
from qohort.config.schema import TrainConfig
from qohort.experiments.ablation import flat
from qohort.runs.directory import RunDirectory
from qohort.runs.manifest import HISTORY
from qohort.runs.training import train


@dataclass(frozen=True)
class VerifyConfig:
    """The configuration of a verification. `conf/verify.yaml` says what each key is."""

    report: str
    sample: PositiveInt
    seed: Annotated[int, Range(0, 2**63 - 1)]
    level: Annotated[float, Range(0, 1, above=True, below=True)]


Row = Mapping[str, str]
"""A row of `scores.csv`."""


@dataclass(frozen=True)
class Verdict:
    """What became of a run that was trained again.

    Attributes:
        row: The run, as the report has it.
        equal: Whether it ended with its fingerprint.
        changes: What is different from when it was trained: machine, versions, code.
        score: Its final evaluation now.
        rank: Where that lies among the scores that the report has of its arm and environment, between 0 and 1.
    """

    row: Row
    equal: bool
    changes: tuple[str, ...]
    score: float
    rank: float


def verify(config: DictConfig) -> list[Verdict]:
    """Train runs again and compare; what became of each.

    Raises:
        ConfigError: If the report, or a run's directory, is not there or not whole; nothing was trained then.
        RunsFailed: If a run ended otherwise than the report says.
    """
    settings: VerifyConfig = build_config(VerifyConfig, config)
    rows = read_rows(Path(settings.report).expanduser())
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


def read_rows(report: Path) -> list[Row]:
    """The runs that a report counts.

    Raises:
        ConfigError: If there is no report, or none in it.
    """
    file = report / "scores.csv"
    if not file.is_file():
        raise ConfigError(f"report={report} is not a report, it has no scores.csv: make one with scripts/report.py")
    with file.open(newline="") as lines:
        rows: list[Row] = [row for row in csv.DictReader(lines) if row.get("status") == "finished"]
    if not rows:
        raise ConfigError(f"report={report} counts no run: there is nothing to verify")
    return rows


def draw_rows(rows: Sequence[Row], sample: int, seed: int) -> list[Row]:
    """Runs at random, the same for any order of the rows.

    Args:
        rows: Of which.
        sample: How many; all, where there are fewer.
        seed: Of the draw.
    """
    ordered = sorted(rows, key=lambda row: (row["environment"], row["arm"], int(row["seed"])))
    return random.Random(seed).sample(ordered, min(sample, len(ordered)))


@dataclass(frozen=True)
class Original:
    """A run as it was: its configuration and what it was made with."""

    config: TrainConfig
    manifest: Mapping[str, Any]


def load_run(row: Row) -> Original:
    """The run of a row.

    Raises:
        ConfigError: If its directory is not there, or not what the report says.
    """
    directory = RunDirectory(Path(row["directory"]))
    try:
        config = build_config(TrainConfig, directory.config())
        manifest = json.loads((directory.path / "manifest.json").read_text())
        result = directory.result()
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{directory.path} cannot be read, which the report counts: {error}") from error
    if config_hash(config) != row["config_hash"] or config.seed != int(row["seed"]):
        raise ConfigError(f"{directory.path} has a config.yaml that is not the one in the report: {row['config_hash']}")
    if result is None or result["fingerprint"] != row["fingerprint"]:
        raise ConfigError(
            f"{directory.path} has a result.json that is not the one in the report: make the report again"
        )
    return Original(config, manifest)


def train_again(row: Row, original: Original, rows: Sequence[Row]) -> Verdict:
    """Train a run again, alone, in a temporary directory.

    Args:
        row: The run, as the report has it.
        original: The run, as its directory has it.
        rows: All runs of the report.
    """
    trainer = replace(original.config.trainer, progress_bar=False)
    with tempfile.TemporaryDirectory(prefix="qohort-verify-") as folder:
        config = replace(original.config, trainer=trainer, output_dir=folder, logger={}, overwrite=False)
        with contextlib.redirect_stdout(io.StringIO()):  # its table would be of one seed
            (result,) = train(OmegaConf.create(config_tree(config)))
        (file,) = Path(folder).rglob("manifest.json")
        manifest = json.loads(file.read_text())
    recorded = [
        float(one["final"]) for one in rows if (one["arm"], one["environment"]) == (row["arm"], row["environment"])
    ]
    equal = result["fingerprint"] == row["fingerprint"]
    score = float(result["final_return"])
    return Verdict(row, equal, tuple(changes(original.manifest, manifest)), score, rank(score, recorded))


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is different in two `manifest.json`, but how the runs came about."""
    one, other = ({key: value for key, value in flat(each).items() if key not in HISTORY} for each in (then, now))
    return [
        f"{key.removeprefix('packages.')} {as_typed(one.get(key))} then, {as_typed(other.get(key))} now"
        for key in dict.fromkeys((*one, *other))
        if one.get(key) != other.get(key)
    ]


def rank(score: float, recorded: Sequence[float]) -> float:
    """Where a score lies among others: 0.5 in their middle, near 0 below and near 1 above all; ties count half."""
    scores = np.asarray(recorded)
    below, ties = int((scores < score).sum()), int((scores == score).sum())
    return (below + ties / 2 + 0.5) / (len(scores) + 1)


def tell(verdict: Verdict) -> str:
    """A verdict in a line."""
    row = verdict.row
    name = f"{row['arm']} on {row['environment']}, seed {row['seed']}"
    if verdict.equal:
        return f"{name}: the same fingerprint, {row['fingerprint'][:8]}"
    scores = f"final evaluation {verdict.score:g}, in the report {float(row['final']):g}"
    why = f"; what changed: {'; '.join(verdict.changes)}" if verdict.changes else ", and nothing else changed"
    return f"{name}: ANOTHER FINGERPRINT ({scores}){why}"


def judge(verdicts: Sequence[Verdict], level: float) -> None:
    """Say what the verdicts come to.

    Where a run ended otherwise and machine, versions or code changed, the scores are compared: each run's rank among
    the recorded ones, which is uniform where nothing but chance differs, put together by Stouffer's method.

    Args:
        verdicts: Of each run.
        level: How improbable the ranks must be to be called different.

    Raises:
        RunsFailed: If a run ended otherwise where nothing changed, or the scores are different.
    """
    from scipy.stats import norm

    unexplained = [verdict for verdict in verdicts if not verdict.equal and not verdict.changes]
    if unexplained:
        raise RunsFailed(
            f"{len(unexplained)} of {len(verdicts)} runs ended otherwise, on the same machine with the same versions: "
            "the report does not hold"
        )
    others = [verdict for verdict in verdicts if not verdict.equal]
    if not others:
        print(f"verified: {len(verdicts)} of {len(verdicts)} runs ended with their fingerprints")
        return
    total = float(np.sum(norm.ppf([verdict.rank for verdict in others])) / np.sqrt(len(others)))
    probability = 2 * float(norm.sf(abs(total)))
    words = (
        f"machine, versions or code changed, so the scores of {len(others)} of {len(verdicts)} runs were compared: "
        f"as far from the report's as these, or farther, they lie by chance with probability {probability:.2f}"
    )
    if probability < level:
        raise RunsFailed(f"{words}, less than level={level:g}: the report does not hold here")
    print(f"not contradicted, which is less than verified: {words}")

"""Reproduces a ledger: trains some of its runs again from its commands, and compares the results."""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from qohort.config.annotations import PositiveInt, Range
from qohort.config.checks import build_config
from qohort.config.errors import ConfigError
from qohort.config.identity import config_hash, config_tree
from qohort.config.messages import format_value, nearest
from qohort.config.paths import check_directory
from qohort.config.schema import TrainConfig
from qohort.report.commands import compose
from qohort.report.ledger import Ledger, LedgerRow, LedgerRun, made_differences, read_ledger
from qohort.report.retraining import Trained, retrain
from qohort.report.verdicts import Again, judge
from qohort.runs.code import code_hash
from qohort.runs.listing import in_words, runs_in
from qohort.runs.training import train

SAMPLE = 3
"""Runs that are chosen if nothing is selected."""


@dataclass(frozen=True)
class ReproduceConfig:
    """The configuration of a reproduction. `conf/reproduce.yaml` documents each key."""

    name: str
    arm: str | None
    environment: str | None
    seeds: Sequence[int] | None
    sample: PositiveInt | None
    seed: Annotated[int, Range(0, 2**63 - 1)]
    level: Annotated[float, Range(0, 1, above=True, below=True)]
    output_dir: str | None
    ledger_dir: str


@dataclass(frozen=True)
class Draw:
    """Runs of a row that are trained again.

    Attributes:
        row: The row.
        runs: The runs.
        config: The configuration of the row, with the seed of the first run.
    """

    row: LedgerRow
    runs: Sequence[LedgerRun]
    config: TrainConfig


@dataclass(frozen=True)
class Plan:
    """What is trained again."""

    settings: ReproduceConfig
    ledger: Ledger
    draws: Sequence[Draw]


def plan(config: DictConfig) -> Plan:
    """Return what is trained again. Nothing is trained or written.

    Args:
        config: The composed configuration, `conf/reproduce.yaml`.

    Raises:
        ConfigError: If there is no such ledger, arm, environment or seed, or a command does not give the configuration
            that was recorded.
    """
    settings: ReproduceConfig = build_config(ReproduceConfig, config)
    ledger = read_ledger(Path(settings.ledger_dir), settings.name)
    chosen = _draw(_selected(ledger, settings), settings)
    loader = GlobalHydra.instance().config_loader()
    draws = [Draw(row, runs, _config_of(row, runs, loader)) for row, runs in chosen]
    bits = {draw.config.bits for draw in draws}
    if len(bits) > 1:
        words = " and ".join(sorted(bits))
        raise ConfigError(f"name={settings.name} has rows of bits={words}: choose some with arm=...")
    if settings.output_dir is not None:
        _check_output(Path(settings.output_dir), draws)
    return Plan(settings, ledger, draws)


def _selected(ledger: Ledger, settings: ReproduceConfig) -> list[tuple[LedgerRow, list[LedgerRun]]]:
    """Return the rows that `arm` and `environment` choose, with the runs that `seeds` chooses."""
    rows = list(ledger.rows)
    for key in ("arm", "environment"):
        value, known = getattr(settings, key), [getattr(row, key) for row in rows]
        if value is not None and value not in known:
            raise ConfigError(f"{key}={value} is not in the ledger {settings.name}: {nearest(value, set(known))}")
        rows = [row for row in rows if value in (None, getattr(row, key))]
    if settings.seeds is None:
        return [(row, list(row.runs)) for row in rows]
    there = {seed for row in rows for seed in row.seeds}
    if missing := sorted({*settings.seeds} - there):
        raise ConfigError(f"seeds={format_value(missing)} are not in the ledger: it has {in_words(sorted(there))}")
    chosen = [(row, [run for run in row.runs if run.seed in settings.seeds]) for row in rows]
    return [(row, runs) for row, runs in chosen if runs]


def _draw(
    rows: Sequence[tuple[LedgerRow, Sequence[LedgerRun]]], settings: ReproduceConfig
) -> list[tuple[LedgerRow, list[LedgerRun]]]:
    """Return the runs that `sample` chooses at random, in the order of the ledger."""
    everything = [(place, run) for place, (_, runs) in enumerate(rows) for run in runs]
    unselected = settings.arm is None and settings.seeds is None
    count = settings.sample or (SAMPLE if unselected else len(everything))
    numbers = random.Random(settings.seed).sample(range(len(everything)), min(count, len(everything)))
    drawn = [everything[number] for number in sorted(numbers)]
    chosen = [(row, [run for own, run in drawn if own == place]) for place, (row, _) in enumerate(rows)]
    return [(row, runs) for row, runs in chosen if runs]


def _config_of(row: LedgerRow, runs: Sequence[LedgerRun], loader: ConfigLoader) -> TrainConfig:
    """Return the configuration of a row.

    Raises:
        ConfigError: If its command gives another one today.
    """
    try:
        (config,) = compose(loader, [*row.overrides, f"seed={runs[0].seed}"])
    except ConfigError as error:
        raise ConfigError(f"{row.name}: its command does not fit any more: {error}") from error
    if (now := config_hash(config)) != row.hash8:
        raise ConfigError(
            f"{row.name}: its command gives the configuration {now} today, not the recorded {row.hash8}: "
            "check out the commit of the ledger"
        )
    return config


def _check_output(directory: Path, draws: Sequence[Draw]) -> None:
    """Check that none of the runs is finished in the output directory: nothing would be trained.

    Raises:
        ConfigError: If one is.
    """
    check_directory("output_dir", str(directory))
    if not directory.is_dir():
        return
    planned = {(draw.row.hash8, run.seed) for draw in draws for run in draw.runs}
    for run in runs_in(directory):
        if run.state == "finished" and (run.experiment.rpartition("-")[2], run.seed) in planned:
            raise ConfigError(
                f"output_dir={directory} has the finished run {run.directory}, which would not be trained again: give "
                "another directory"
            )


def reproduce(planned: Plan) -> list[Again]:
    """Train what is planned and compare it with the ledger.

    Raises:
        RunsFailed: If the results contradict the ledger.
    """
    settings, draws = planned.settings, planned.draws
    count = sum(len(draw.runs) for draw in draws)
    print(f"{count} of {sum(len(row.runs) for row in planned.ledger.rows)} runs of {settings.name}, trained again:")
    _tell_code(draws, planned.ledger)
    output = None if settings.output_dir is None else Path(settings.output_dir)
    runs = []
    for draw in draws:
        trained = retrain(train, [replace(draw.config, seed=run.seed) for run in draw.runs], output)
        for run, new in zip(draw.runs, trained, strict=True):
            runs.append(_again(draw.row, run, new, planned.ledger.made))
            print(f"  {runs[-1]}", flush=True)
    recorded = {draw.row.name: {run.seed: run.final for run in draw.row.runs} for draw in draws}
    judge(runs, recorded, settings.level, "the ledger")
    return runs


def _tell_code(draws: Sequence[Draw], ledger: Ledger) -> None:
    """Print a line before anything is trained if this code is not the one that made the rows."""
    others: dict[str, list[str]] = defaultdict(list)
    for draw in draws:
        made, now = ledger.made[draw.row.made], code_hash(config_tree(draw.config))
        if made.get("code") != now:
            others[f"{made.get('code')}, commit {str(made.get('commit'))[:8]}; now {now}"].append(draw.row.name)
    for words, names in others.items():
        print(f"made with other code ({words}): {', '.join(names)}", file=sys.stderr)


def _again(row: LedgerRow, run: LedgerRun, new: Trained, made: Mapping[str, Mapping[str, Any]]) -> Again:
    changes = made_differences(made[run.made or row.made], new.made)
    return Again(row.name, run.seed, run.fingerprint, run.final, new.fingerprint, new.final, changes)

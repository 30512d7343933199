"""Ablations that stop when they know: seeds come in groups, and after each group the comparisons are decided.

Every run is an ordinary run of a sweep, and the decisions are a function of the finished runs. So an interrupted
ablation resumes like any sweep: finished runs are skipped, and their groups are decided as before.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qohort.config.checks import build_config
from qohort.config.errors import ConfigError
from qohort.config.messages import format_value
from qohort.experiments.ablation import Ablation
from qohort.experiments.presentation import Show
from qohort.experiments.stopping import GROUP, SequentialConfig
from qohort.runs.directory import RunDirectory, evaluation_scores
from qohort.runs.files import write_atomically
from qohort.runs.metrics import RETURN, read_evaluations
from qohort.sequential import Decision, Design, decide, fewest_seeds

Cell = tuple[str, str]
"""An arm in an environment, by label and name."""


class Comparison(NamedTuple):
    """A comparison of two arms in one environment."""

    arm: str
    against: str
    environment: str

    @property
    def cells(self) -> tuple[Cell, Cell]:
        """The two arms in the environment."""
        return (self.arm, self.environment), (self.against, self.environment)


def comparisons(ablation: Ablation) -> list[Comparison]:
    """Return the comparisons of an ablation: each arm with the one it is measured against, in each environment."""
    return [
        Comparison(arm.label, arm.against, environment)
        for environment in ablation.manifest.environments
        for arm in ablation.arms
        if arm.label != arm.against
    ]


@dataclass(frozen=True)
class Progress:
    """How far a sequential ablation has come.

    Attributes:
        decisions: The decision of each comparison.
        seeds: The seeds that each arm was asked for, in each environment.
        missing: For comparisons that stopped because runs have no score: the seeds of these runs.
    """

    decisions: Mapping[Comparison, Decision]
    seeds: Mapping[Cell, tuple[int, ...]]
    missing: Mapping[Comparison, tuple[int, ...]]


@dataclass(frozen=True)
class SequentialAblation:
    """An ablation whose arms stop when their comparisons are decided.

    Attributes:
        ablation: The ablation.
        runs: The run directory of every seed of each arm in each environment.
        seeds: The seeds up to the maximum number, in the order in which they are trained: the smallest first.
        design: The groups and the family-wise error.
    """

    ablation: Ablation
    runs: Mapping[Cell, Mapping[int, RunDirectory]]
    seeds: tuple[int, ...]
    design: Design

    @classmethod
    def of(cls, ablation: Ablation, runs: Mapping[Cell, Mapping[int, RunDirectory]]) -> SequentialAblation:
        """Make it from an ablation and the directories of all its runs.

        Raises:
            ConfigError: If there are fewer seeds than `sequential.max_seeds`, or too few to decide anything.
        """
        settings = ablation.manifest.sequential
        where = f"ablation={ablation.name}: {GROUP}.max_seeds"
        seeds = sorted(next(iter(runs.values())))
        maximum = len(seeds) if settings.max_seeds is None else settings.max_seeds
        if maximum > len(seeds):
            raise ConfigError(f"{where}={maximum} is more than the {len(seeds)} seeds that there are: give more seeds")
        design = Design(maximum, settings.seeds_per_group, settings.alpha, len(comparisons(ablation)))
        if design.comparisons == 0:
            raise ConfigError(f"ablation={ablation.name} has only one arm: there is nothing to decide")
        fewest = fewest_seeds(design.alpha, design.comparisons)
        if maximum < fewest:
            raise ConfigError(
                f"{where}={maximum} can decide nothing: {design.comparisons} comparisons at "
                f"{GROUP}.alpha={design.alpha:g} need at least {fewest} seeds"
            )
        return cls(ablation, runs, tuple(seeds[:maximum]), design)

    @property
    def groups(self) -> list[tuple[int, ...]]:
        """The seeds of each group."""
        return [self.seeds[first:last] for first, last in itertools.pairwise((0, *self.design.stages))]

    @property
    def margins(self) -> dict[Comparison, float | None]:
        """The margin of each comparison, in the unit of the returns; None to not test equivalence."""
        manifest = self.ablation.manifest
        widths = {name: choice.high - choice.low for name, choice in manifest.environments.items()}
        margin = manifest.sequential.margin
        return {one: None if margin is None else margin * widths[one.environment] for one in comparisons(self.ablation)}

    def follow(
        self,
        train: Callable[[int, Sequence[Cell], Sequence[int]], None] | None = None,
        tell: Callable[[Progress], None] | None = None,
    ) -> Progress:
        """Go through the groups until every comparison is decided.

        Args:
            train: Trains a group, given its number, the arms that go on, and its seeds; None to use what is there.
            tell: Is called with the progress after each group.
        """
        scores: dict[Cell, dict[int, float]] = {cell: {} for cell in self.runs}
        progress = Progress(self._decide(scores), dict.fromkeys(self.runs, ()), {})
        for number, group in enumerate(self.groups):
            left = [
                one
                for one, decision in progress.decisions.items()
                if decision.verdict == "open" and one not in progress.missing
            ]
            cells = [cell for cell in self.runs if any(cell in one.cells for one in left)]
            if not cells:
                break
            if train is not None:
                train(number, cells, group)
            for cell in cells:
                read = {seed: read_score(self.runs[cell][seed], self.ablation.manifest.show) for seed in group}
                scores[cell] |= {seed: score for seed, score in read.items() if score is not None}
            without = {
                one: tuple(seed for seed in group if any(seed not in scores[cell] for cell in one.cells))
                for one in left
            }
            progress = Progress(
                self._decide(scores),
                {**progress.seeds} | {cell: (*progress.seeds[cell], *group) for cell in cells},
                {**progress.missing} | {one: seeds for one, seeds in without.items() if seeds},
            )
            if tell is not None:
                tell(progress)
        return progress

    def _decide(self, scores: Mapping[Cell, Mapping[int, float]]) -> dict[Comparison, Decision]:
        """Decide all comparisons. The pairs of a comparison end at the first seed without a score."""
        differences = {}
        for one in comparisons(self.ablation):
            ours, theirs = (scores[cell] for cell in one.cells)
            pairs = itertools.takewhile((ours.keys() & theirs.keys()).__contains__, self.seeds)
            differences[one] = np.array([ours[seed] - theirs[seed] for seed in pairs], dtype=np.float64)
        return decide(differences, self.design, self.margins)

    def begin(self, overwrite: bool) -> None:
        """Write the record before the first run.

        Args:
            overwrite: Whether all runs start over.

        Raises:
            ConfigError: If the ablation was begun with other settings, and has results by now.
        """
        if not overwrite and any(run.result() is not None for own in self.runs.values() for run in own.values()):
            self.check_record()
        record = record_of(self.ablation, self.runs)
        record.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(record, (json.dumps(self._settings(), indent=2) + "\n").encode())

    def check_record(self) -> None:
        """Check that the ablation was begun with these settings, if there is a record.

        Raises:
            ConfigError: If it was begun with others.
        """
        record = record_of(self.ablation, self.runs)
        own, before = self._settings(), read_record(record)
        if before is None or before == own:
            return
        key = next(key for key in own if own[key] != before.get(key))
        raise ConfigError(
            f"ablation={self.ablation.name} was begun with {key}={format_value(before.get(key))}, not "
            f"{format_value(own[key])}: the family-wise error holds only for settings that are chosen before the first "
            f"result; keep those of {record}, or start all runs over with overwrite=true"
        )

    def _settings(self) -> dict[str, Any]:
        settings = {**asdict(self.ablation.manifest.sequential), "max_seeds": self.design.max_seeds}
        return {f"{GROUP}.{key}": value for key, value in settings.items()} | {"seed": list(self.seeds)}


def record_of(ablation: Ablation, runs: Mapping[Cell, Mapping[int, RunDirectory]]) -> Path:
    """Return the file in `output_dir` that keeps how the arms of an ablation are stopped.

    The same experiments have the same file.

    Args:
        ablation: The ablation.
        runs: The run directory of every seed of each arm in each environment.
    """
    show = ablation.manifest.show
    firsts = {cell: next(iter(own.values())).path for cell, own in runs.items()}
    made = [(*one, *(firsts[cell].parent.name for cell in one.cells)) for one in comparisons(ablation)]
    other = [] if show.metric == RETURN else [show.metric]
    text = json.dumps([made, show.score, show.last if show.score == "last" else None, *other])
    name = f"{ablation.name.replace('/', '-')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"
    return next(iter(firsts.values())).parents[2] / GROUP / name


def read_record(file: Path) -> dict[str, Any] | None:
    """Return the content of a record; None if there is none.

    Raises:
        ConfigError: If it cannot be read.
    """
    if not file.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(file.read_text())
        return dict(content)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{file} is damaged: remove it to begin the sequential ablation anew") from error


def as_begun(ablation: Ablation, runs: Mapping[Cell, Mapping[int, RunDirectory]]) -> SequentialAblation | None:
    """Return an ablation with the sequential settings that it was begun with; None if it is not sequential.

    `until=decided` and `until=seeds` count. Without either, an ablation is sequential if it has a record.

    Args:
        ablation: The ablation.
        runs: The run directory of every seed of each arm in each environment.

    Raises:
        ConfigError: If the record is damaged or does not agree with `until=decided` and its settings.
    """
    if ablation.manifest.until == "decided":
        sequential = SequentialAblation.of(ablation, runs)
        sequential.check_record()
        return sequential
    content = read_record(record_of(ablation, runs)) if ablation.manifest.until is None else None
    if content is None:
        return None
    kept = {key.partition(".")[2]: value for key, value in content.items() if key.startswith(f"{GROUP}.")}
    manifest = replace(ablation.manifest, until="decided", sequential=build_config(SequentialConfig, kept))
    return SequentialAblation.of(replace(ablation, manifest=manifest), runs)


def read_score(run: RunDirectory, show: Show) -> float | None:
    """Return the score of a run that arms are compared by; None if it is not finished, or its metric is not finite.

    Args:
        run: Its directory.
        show: What the report shows.
    """
    if run.result() is None:
        return None
    env_steps, values = read_evaluations(run.metrics, show.metric)
    if not all(map(math.isfinite, values.tolist())):
        return None
    return evaluation_scores(env_steps.tolist(), values.tolist(), show.last)[show.score]


def describe(one: Comparison, progress: Progress, margin: float | None) -> str:
    """Return the decision of a comparison in one line.

    Args:
        one: The comparison.
        progress: The progress of the ablation.
        margin: The margin of the comparison.
    """
    decision = progress.decisions[one]
    words = {
        "higher": f"higher than {one.against}",
        "lower": f"lower than {one.against}",
        "equivalent": f"within {margin or 0:g} of {one.against}",
        "not told apart": f"not told apart from {one.against}",
        "open": f"not decided against {one.against}",
    }[decision.verdict]
    mean = "" if math.isnan(decision.difference) else f", mean difference {decision.difference:+.4g}"
    seeds = progress.missing.get(one, ())
    named = f"seed {seeds[0]} has" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))} have"
    stopped = f"; stopped: {named} no result" if decision.verdict == "open" and seeds else ""
    return f"{one.arm} on {one.environment}: {words} after {decision.seeds} seeds{mean}{stopped}"

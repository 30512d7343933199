"""Computes the statistics of an ablation's arms, which its tables and figures show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qohort.experiments.ablation import Ablation, Arm
from qohort.multiple_comparisons import DECIDED_BEFORE, NOT_DECIDED, Verdict, decide
from qohort.report.external import ExternalResult
from qohort.report.scores import SCORES, Scores
from qohort.report.variation import run_percentiles, run_range
from qohort.statistics import (
    Array,
    Band,
    Comparison,
    Estimate,
    Statistic,
    band,
    compare,
    estimate,
    interquartile_mean,
    mean,
    median,
    optimality_gap,
    performance_profile,
)

ACROSS = "all environments"

Verdicts = Mapping[tuple[str, str], Verdict]
"""Verdicts by name of the `Place` and label of the arm."""


AGGREGATES = {"IQM": interquartile_mean, "median": median, "mean": mean, "optimality gap": optimality_gap}


@dataclass(frozen=True)
class ArmSummary:
    """The statistics of an arm in one environment, or over all environments.

    Attributes:
        arm: The arm.
        count: Number of counted runs and of planned runs.
        aggregates: Statistics of the manifest's `show.score`, by the names in `AGGREGATES`. They are of returns in one
            environment and of normalised scores over several; the optimality gap is always of normalised scores. Empty
            if no run is counted.
        columns: The IQM of each score in `SCORES`.
        comparison: The comparison with the other arm; None for the baseline, or if either arm has no runs. If arms
            stopped when they were decided, it is of the seeds that both arms have.
        verdict: What is decided on the comparison, corrected for all of the report; None without comparison.
        scores: The manifest's `show.score` of each run, `[n]` for each environment.
    """

    arm: Arm
    count: tuple[int, int]
    aggregates: dict[str, Estimate]
    columns: dict[str, Estimate]
    comparison: Comparison | None
    verdict: Verdict | None
    scores: tuple[Array, ...]

    @property
    def name(self) -> str:
        """The arm's title, with the number of runs if some are missing."""
        counted, planned = self.count
        return self.arm.title if counted == planned else f"{self.arm.title} ({counted}/{planned} runs)"


@dataclass(frozen=True)
class Place:
    """All arms in one environment, or over all environments.

    Attributes:
        name: Name of the environment, or `ACROSS`.
        environments: The environments.
        arms: The statistics of each arm.
        external: Published results in the environment.
        title: Name in tables and figures; empty for `name`.
        order: Labels of the arms that are shown, in their order; None for all. All of `arms` are compared.
    """

    name: str
    environments: tuple[str, ...]
    arms: tuple[ArmSummary, ...]
    external: tuple[ExternalResult, ...] = ()
    title: str = ""
    order: tuple[str, ...] | None = None

    @property
    def heading(self) -> str:
        """Its name in tables and figures."""
        return self.title or self.name

    @property
    def shown(self) -> tuple[ArmSummary, ...]:
        """The arms that are shown, in their order."""
        return self.arms if self.order is None else tuple(self.of(label) for label in self.order)

    def of(self, label: str) -> ArmSummary:
        """Return the statistics of an arm by its label."""
        return next(one for one in self.arms if one.arm.label == label)


@dataclass(frozen=True)
class Curve:
    """A curve of an arm with its band, at points `x`, `[points]`."""

    x: Array
    band: Band


def normalise(ablation: Ablation, environment: str, scores: Array) -> Array:
    """Return normalised scores: the manifest's `low` of the environment becomes 0 and its `high` becomes 1."""
    choice = ablation.manifest.environments[environment]
    return (scores - choice.low) / (choice.high - choice.low)


def is_normalised(ablation: Ablation) -> bool:
    """Return whether there are returns for normalised scores. Runs without a manifest have none."""
    return all(math.isfinite(choice.high - choice.low) for choice in ablation.manifest.environments.values())


def aggregates_of(ablation: Ablation) -> dict[str, Statistic]:
    """Return the aggregates that a report shows: `AGGREGATES`, without the optimality gap if scores have no scale."""
    return {
        name: statistic
        for name, statistic in AGGREGATES.items()
        if is_normalised(ablation) or statistic is not optimality_gap
    }


def analyse(
    ablation: Ablation,
    scores: Scores,
    resamples: int,
    external: Mapping[str, tuple[ExternalResult, ...]] | None = None,
) -> list[Place]:
    """Compute the statistics of all arms in each environment, and over all environments if there are several.

    Args:
        ablation: The ablation.
        scores: The scores of its runs.
        resamples: Bootstrap resamples.
        external: Published results by environment; None for none. They are in no statistic.
    """
    environments = tuple(ablation.manifest.environments)
    places = [_place(ablation, scores, one, (one,), resamples) for one in environments]
    places = [replace(place, external=(external or {}).get(place.name, ())) for place in places]
    if len(environments) > 1 and is_normalised(ablation):
        places.append(_place(ablation, scores, ACROSS, environments, resamples))
    show = ablation.manifest.show
    order = None if show.arms is None else tuple(show.arms)
    places = [replace(place, title=show.titles.get(place.name, ""), order=order) for place in places]
    return with_verdicts(places, scores.sequential)


def with_verdicts(places: Sequence[Place], sequential: bool) -> list[Place]:
    """Return places with a verdict on each comparison. All comparisons of all places are one family.

    Args:
        places: The places.
        sequential: Whether arms stopped when they were decided. Then the p-values, which are of a fixed number of runs,
            do not hold, and every verdict refers to the table of decisions.
    """
    compared = [(place.name, one.comparison) for place in places for one in place.arms if one.comparison is not None]
    if sequential:
        verdicts = iter([NOT_DECIDED if name == ACROSS else DECIDED_BEFORE for name, _ in compared])
    else:
        verdicts = iter(decide([one.difference.value for _, one in compared], [one.p for _, one in compared]))
    return [
        replace(
            place,
            arms=tuple(one if one.comparison is None else replace(one, verdict=next(verdicts)) for one in place.arms),
        )
        for place in places
    ]


def verdicts_by_score(
    ablation: Ablation, scores: Scores, places: Sequence[Place], resamples: int
) -> dict[str, Verdicts]:
    """Return the verdicts on the same comparisons by each kind of score that is not chosen with hindsight.

    The comparisons by one score are one family. Nothing is returned if arms stopped when they were decided, since then
    there are no verdicts of a report.

    Args:
        ablation: The ablation.
        scores: The scores of its runs.
        places: Its statistics, which have the comparisons by the score that the report is of.
        resamples: Bootstrap resamples.
    """
    if scores.sequential:
        return {}
    made: dict[str, Verdicts] = {}
    for name in SCORES:
        if name == "best":
            continue
        compared = {
            (place.name, one.arm.label): one.comparison
            if name == ablation.manifest.show.score
            else _comparison(ablation, scores, one.arm, place.environments, name, resamples)
            for place in places
            for one in place.arms
            if one.comparison is not None
        }
        found = [one for one in compared.values() if one is not None]
        verdicts = decide([one.difference.value for one in found], [one.p for one in found])
        made[name] = dict(zip(compared, verdicts, strict=True))
    return made


def _place(ablation: Ablation, scores: Scores, name: str, environments: tuple[str, ...], resamples: int) -> Place:
    arms = (_summary(ablation, scores, arm, environments, resamples) for arm in ablation.arms)
    return Place(name, environments, tuple(arms))


def _strata(ablation: Ablation, scores: Scores, arm: str, environments: Sequence[str], column: str) -> list[Array]:
    """Return an arm's scores in each environment: returns for one environment, normalised scores for several."""
    raw = [scores.column(arm, one, column) for one in environments]
    if len(environments) == 1:
        return raw
    return [normalise(ablation, one, own) for one, own in zip(environments, raw, strict=True)]


def _summary(ablation: Ablation, scores: Scores, arm: Arm, environments: tuple[str, ...], resamples: int) -> ArmSummary:
    shown = ablation.manifest.show.score
    count = scores.count(arm.label, environments)
    ours = _strata(ablation, scores, arm.label, environments, shown)
    if not all(map(len, ours)):
        return ArmSummary(arm, count, {}, {}, None, None, ())
    raw = [scores.column(arm.label, one, shown) for one in environments]
    normalised = [normalise(ablation, one, own) for one, own in zip(environments, raw, strict=True)]
    aggregates = {
        name: estimate(statistic, normalised if statistic is optimality_gap else ours, resamples)
        for name, statistic in aggregates_of(ablation).items()
    }
    columns = {
        name: estimate(interquartile_mean, _strata(ablation, scores, arm.label, environments, name), resamples)
        for name in SCORES
    }
    comparison = _comparison(ablation, scores, arm, environments, shown, resamples)
    return ArmSummary(arm, count, aggregates, columns, comparison, None, tuple(ours))


def _comparison(
    ablation: Ablation, scores: Scores, arm: Arm, environments: Sequence[str], column: str, resamples: int
) -> Comparison | None:
    """Compare an arm with its other arm by a score; None if it is the baseline, or either has no runs.

    Over several environments, or if arms stopped, it is of the seeds that both have.
    """
    ours, theirs = (_strata(ablation, scores, label, environments, column) for label in (arm.label, arm.against))
    if arm.label == arm.against or not all(map(len, (*ours, *theirs))):
        return None
    seeds = [(scores.seeds(arm.label, one), scores.seeds(arm.against, one)) for one in environments]
    # With other numbers of runs, the environments would have other weights in each of the two.
    common = scores.sequential or len(environments) > 1
    if common and all(set(mine) & set(other) for mine, other in seeds):
        both = [sorted(set(mine) & set(other)) for mine, other in seeds]
        ours, theirs = (
            [
                own[[have[side].index(seed) for seed in some]]
                for own, have, some in zip(strata, seeds, both, strict=True)
            ]
            for side, strata in enumerate((ours, theirs))
        )
        return compare(interquartile_mean, ours, theirs, [True] * len(both), resamples)
    return compare(interquartile_mean, ours, theirs, [mine == other for mine, other in seeds], resamples)


def curves(scores: Scores, environment: str, ablation: Ablation, resamples: int) -> dict[str, Curve]:
    """Return the evaluations over env_steps with the band that the report shows, by label of the arm.

    Arms without runs have none.

    Args:
        scores: The scores of the runs.
        environment: The environment.
        ablation: The ablation.
        resamples: Bootstrap resamples.
    """
    made = {}
    for arm in ablation.arms:
        runs = scores.finished[arm.label, environment]
        if runs:
            values = np.stack([run.values for run in runs], axis=-1)
            made[arm.label] = Curve(runs[0].env_steps.astype(np.float64), _band(ablation, values, resamples))
    return made


def _band(ablation: Ablation, returns: Array, resamples: int) -> Band:
    match ablation.manifest.show.band:
        case "percentiles":
            return run_percentiles(returns)
        case "range":
            return run_range(returns)
        case _:
            return band(interquartile_mean, [returns], resamples)


def profiles(ablation: Ablation, scores: Scores, resamples: int, points: int = 61) -> dict[str, Curve]:
    """Return the performance profile of each arm over all environments, for arms that have runs in all of them.

    Args:
        ablation: The ablation.
        scores: The scores of its runs.
        resamples: Bootstrap resamples.
        points: Number of thresholds. They range from the lowest normalised score, or 0 if that is lower, to the
            highest one, or 1 if that is higher.
    """
    shown, environments = ablation.manifest.show.score, tuple(ablation.manifest.environments)
    strata = {
        arm.label: [normalise(ablation, one, scores.column(arm.label, one, shown)) for one in environments]
        for arm in ablation.arms
    }
    strata = {label: own for label, own in strata.items() if all(map(len, own))}
    if not strata:
        return {}
    everything = np.concatenate([part for own in strata.values() for part in own])
    low, high = min(0.0, everything.min()), max(1.0, everything.max())
    thresholds = np.linspace(low, high, points)
    return {label: Curve(thresholds, performance_profile(own, thresholds, resamples)) for label, own in strata.items()}

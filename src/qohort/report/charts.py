"""Selects the figures of a report and collects the data of their panels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from qohort.experiments.ablation import Ablation
from qohort.report.analysis import ACROSS, ArmSummary, Curve, Place, curves, profiles
from qohort.report.cells import column_name, is_of_returns
from qohort.report.external import ExternalResult
from qohort.report.figures import PUBLISHED, Chart, Forest, Pair
from qohort.report.scores import Scores
from qohort.report.tables import family
from qohort.statistics import Estimate

BOOTSTRAP = "95% bootstrap intervals"


def charts(ablation: Ablation, scores: Scores, places: Sequence[Place], resamples: int) -> list[Chart]:
    """Return the figures that the manifest selects.

    Args:
        ablation: The ablation.
        scores: The scores of its runs.
        places: The statistics of its arms.
        resamples: Bootstrap resamples.
    """
    shown = column_name(ablation, ablation.manifest.show.score)
    metric = "return" if is_of_returns(ablation) else ablation.manifest.show.metric
    selected = ablation.manifest.show.figures
    made = []
    forests: dict[str, tuple[str, str, Callable[[ArmSummary], Estimate | None], Callable[[Place], float | None]]] = {
        "scores": ("IQM of each arm", "return", _iqm, lambda place: _baseline(ablation, place)),
        "differences": (
            "Difference of IQM from the arm each is compared with",
            "difference of returns",
            lambda one: one.comparison.difference if one.comparison else None,
            lambda place: 0.0,
        ),
        "improvement": (
            "Probability that a run scores higher than one of the arm it is compared with",
            "probability of improvement",
            lambda one: one.comparison.improvement if one.comparison else None,
            lambda place: 0.5,
        ),
    }
    for key, (title, axis, value, line) in forests.items():
        if key in selected:
            compared = key != "scores"
            against = None if compared else ablation.manifest.baseline
            panels = [_forest(place, axis, metric, value, line(place), against) for place in places]
            if any(panel.rows for panel in panels):
                intervals = "95% score intervals" if key == "improvement" else BOOTSTRAP
                number = family(places)
                diamonds = f"diamonds: told apart after Holm's correction for {number} comparisons; empty: probably"
                notes = [f"{shown}, {count(places)}", intervals, *([diamonds] if number else [])]
                if key == "scores" and any(place.external for place in places):
                    panels = _with_external(places, panels)
                    notes.append("squares: published means with ± std or interval, not tested, listed below the tables")
                made.append(Chart(key, title, "; ".join(notes), panels))
    if "curves" in selected:
        for place in places:
            if place.name != ACROSS:
                found = curves(scores, place.name, ablation.arms, resamples)
                pairs = _pairs(place, found)
                if pairs:
                    pairs = [replace(pair, lines=_lines(place.external)) for pair in pairs]
                    title = f"Evaluation {_plural(metric)} on {place.name}"
                    note = f"{place.name}: IQM of {count([place])}; {BOOTSTRAP} at each point{_legend(place.external)}"
                    key = f"curves_{place.name.replace('/', '_')}"
                    made.append(Chart(key, title, note, pairs, ("env_steps", metric)))
    if "profiles" in selected:
        pairs = _pairs(places[-1], profiles(ablation, scores, resamples))
        if pairs:
            title = "Performance profiles: the fraction of runs above each normalised score"
            note = f"{shown}, {count(places)}; {BOOTSTRAP} at each point"
            axes = ("normalised score τ", "fraction of runs above τ")
            made.append(Chart("profiles", title, note, pairs, axes))
    return made


def count(places: Sequence[Place]) -> str:
    """Return the number of runs per arm, in words.

    Args:
        places: The statistics that a figure shows.
    """
    whole = places[-1:] if places[-1].name == ACROSS else places
    arms = [one for place in whole for one in place.arms]
    counted, planned = sum(one.count[0] for one in arms), sum(one.count[1] for one in arms)
    if counted < planned:
        return f"{counted} of {planned} runs, SOME ARE MISSING"
    single = [place for place in places if place.name != ACROSS]
    words = " or ".join(map(str, sorted({one.count[0] for place in single for one in place.arms if one.count[1]})))
    return f"{words} runs per arm" + (" in each environment" if len(places) > 1 else "")


def _iqm(one: ArmSummary) -> Estimate | None:
    return one.aggregates.get("IQM")


def _baseline(ablation: Ablation, place: Place) -> float | None:
    if not ablation.manifest.baseline:
        return None
    found = _iqm(place.of(ablation.manifest.baseline))
    return None if found is None else found.value


def _plural(metric: str) -> str:
    """Return the name of the metric for several values: `returns`, or that of another metric, as it is."""
    return "returns" if metric == "return" else metric


def _forest(
    place: Place,
    axis: str,
    metric: str,
    value: Callable[[ArmSummary], Estimate | None],
    line: float | None,
    against: str | None,
) -> Forest:
    """Return a panel: of scores, beside the arm `against`, or of comparisons if that is None."""
    compared = against is None
    arms = [one for one in place.arms if not compared or one.arm.label != one.arm.against]
    single, several = ("normalised score", "normalised scores") if place.name == ACROSS else (metric, _plural(metric))
    words = axis.replace("returns", several).replace("return", single)
    rows = [(_row_name(one, place, compared), value(one), _strength(one, against)) for one in arms]
    return Forest(place.name, words, rows, line, (0.0, 1.0) if "probability" in axis else None)


def _strength(one: ArmSummary, against: str | None) -> Literal[0, 1, 2]:
    """Return the strength of the verdict on an arm; 0 beside another arm than that which it is compared with."""
    return one.verdict.strength if one.verdict and against in (None, one.arm.against) else 0


def _with_external(places: Sequence[Place], panels: Sequence[Forest]) -> list[Forest]:
    """Return panels with a row for each published name. The panels of a figure have the same rows."""
    titles = dict.fromkeys(one.title for place in places for one in place.external)
    made = []
    for place, panel in zip(places, panels, strict=True):
        found = {one.title: one.estimate for one in place.external}
        made.append(replace(panel, rows=[*panel.rows, *((title, found.get(title), PUBLISHED) for title in titles)]))
    return made


def _lines(external: Sequence[ExternalResult]) -> tuple[tuple[str, float], ...]:
    """Return a letter and the mean of each published result."""
    return tuple((chr(ord("a") + index % 26), one.mean) for index, one in enumerate(external))


def _legend(external: Sequence[ExternalResult]) -> str:
    """Return what the letters of published results mean."""
    if not external:
        return ""
    words = (
        f"{letter} {one.name} (n={one.n}, {one.env_steps:,} env_steps)"
        for (letter, _), one in zip(_lines(external), external, strict=True)
    )
    return f"; dotted: published means at the end of training, {', '.join(words)}"


def _row_name(one: ArmSummary, place: Place, compared: bool) -> str:
    others = {arm.arm.against for arm in place.arms}
    return f"{one.name} vs {place.of(one.arm.against).arm.title}" if compared and len(others) > 1 else one.name


def _pairs(place: Place, found: Mapping[str, Curve]) -> list[Pair]:
    """Return a panel for each arm that has a curve, with the curve of the arm it is compared with."""
    compared = any(one.arm.label != one.arm.against for one in place.arms)
    pairs = []
    for one in place.arms:
        label, against = one.arm.label, one.arm.against
        if label not in found or (label == against and compared and len(found) > 1):
            continue
        beside = found.get(against) if label != against else None
        pairs.append(Pair(one.name, found[label], place.of(against).name if beside else "", beside))
    return pairs

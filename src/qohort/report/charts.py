"""Selects the figures of a report and collects the data of their panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from qohort.experiments.ablation import Ablation
from qohort.report.analysis import ACROSS, ArmSummary, Curve, Place
from qohort.report.cells import column_name, metric_name
from qohort.report.external import ExternalResult
from qohort.report.palette import BASELINE_DASHES
from qohort.report.panels import PUBLISHED, Chart, Forest, Line, Pair, Row, Runs, Strip, Together
from qohort.report.style import Look, looks
from qohort.report.tables import family

BOOTSTRAP = "95% bootstrap intervals"
BANDS = {
    "interval": f"IQM, {BOOTSTRAP} at each point",
    "percentiles": "the median run by the mean of its curve; dotted: the runs at the 5th and 95th percentile",
    "range": "IQM, band from the lowest to the highest run at each point",
}
"""What the bands of curves are, in words."""

Curves = Mapping[str, Mapping[str, Curve]]
"""Curves by environment and by label of the arm."""


def charts(ablation: Ablation, places: Sequence[Place], curves: Curves, profiles: Mapping[str, Curve]) -> list[Chart]:
    """Return the figures that are selected, with the titles and labels that are chosen.

    Args:
        ablation: The ablation.
        places: The statistics of its arms.
        curves: The evaluations of each environment.
        profiles: The performance profile of each arm; empty for none.
    """
    show, found = ablation.manifest.show, looks(ablation)
    single = [place for place in places if place.name != ACROSS]
    made: list[Chart] = []
    for figure in dict.fromkeys(show.figures):
        match figure:
            case "scores" | "differences" | "improvement":
                some = [_forests(ablation, places, figure, found)]
            case "runs":
                some = [_runs(ablation, places, found)]
            case "curves":
                some = [_curves(ablation, place, curves[place.name], found) for place in single]
            case "together":
                some = [_together(ablation, place, curves[place.name], found) for place in single]
            case "profiles":
                some = [_profiles(ablation, places, profiles, found)]
        made += [_titled(chart, figure, ablation) for chart in some if chart is not None]
    return made


def _titled(chart: Chart, figure: str, ablation: Ablation) -> Chart:
    """Return a figure with the title and the labels of axes that are chosen."""
    show = ablation.manifest.show
    title = show.titles.get(figure, chart.title)
    x, y = (show.labels.get(label, label) for label in chart.axes)
    panels: Any = [
        replace(panel, axis=show.labels.get(panel.axis, panel.axis)) if isinstance(panel, Forest | Strip) else panel
        for panel in chart.panels
    ]
    return replace(chart, title=title, axes=(x, y), panels=panels)


def _forests(
    ablation: Ablation,
    places: Sequence[Place],
    figure: Literal["scores", "differences", "improvement"],
    found: Mapping[str, Look],
) -> Chart | None:
    title, axis = {
        "scores": ("IQM of each arm", "return"),
        "differences": ("Difference of IQM from the arm each is compared with", "difference of returns"),
        "improvement": (
            "Probability that a run scores higher than one of the arm it is compared with",
            "probability of improvement",
        ),
    }[figure]
    panels = [_forest(ablation, place, figure, axis, found) for place in places]
    if not any(panel.rows for panel in panels):
        return None
    number = family(places)
    notes = [
        f"{column_name(ablation, ablation.manifest.show.score)}, {count(places)}",
        "95% score intervals" if figure == "improvement" else BOOTSTRAP,
        _baseline_words(ablation, figure),
    ]
    if number:
        of = " of IQMs" if figure == "improvement" else ""
        words = f"diamonds: the difference{of} is told apart, by Holm's correction for {number} comparisons"
        notes.append(f"{words}; empty diamonds: probably told apart")
    if figure == "scores" and any(place.external for place in places):
        panels = _with_external(places, panels)
        notes.append("squares: published means with ± std or interval, not tested, listed below the tables")
    return Chart(figure, title, "; ".join(filter(None, notes)), panels)


def _baseline_words(ablation: Ablation, figure: str) -> str:
    """Return how a forest plot marks the baseline; empty without one."""
    titles = [arm.title for arm in ablation.arms if arm.label == ablation.manifest.baseline]
    if not titles:
        return ""
    if figure == "scores":
        return f"bold and dashed line: the baseline, {titles[0]}"
    one = len({arm.against for arm in ablation.arms}) == 1
    return f"dashed line: equal to {f'the baseline, {titles[0]}' if one else 'the arm it is compared with'}"


def _forest(
    ablation: Ablation,
    place: Place,
    figure: Literal["scores", "differences", "improvement"],
    axis: str,
    found: Mapping[str, Look],
) -> Forest:
    """Return a panel of scores or of comparisons."""
    baseline = ablation.manifest.baseline
    compared = figure != "scores"
    arms = [one for one in place.shown if not compared or one.arm.label != one.arm.against]
    line = {"scores": _baseline(baseline, place), "differences": 0.0, "improvement": 0.5}[figure]
    rows = []
    for one in arms:
        estimate = one.aggregates.get("IQM")
        if compared:
            estimate = getattr(one.comparison, figure.removesuffix("s")) if one.comparison else None
        strength = _strength(one, None if compared else baseline)
        rows.append(Row(_row_name(one, place, compared), estimate, strength, found[one.arm.label]))
    words = _axis(ablation, place, axis)
    return Forest(place.heading, words, rows, line, (0.0, 1.0) if figure == "improvement" else None)


def _axis(ablation: Ablation, place: Place, axis: str) -> str:
    """Return the label of an axis of scores."""
    single, several = metric_name(ablation), metric_name(ablation, several=True)
    if place.name == ACROSS:
        single, several = "normalised score", "normalised scores"
    return axis.replace("returns", several).replace("return", single)


def _runs(ablation: Ablation, places: Sequence[Place], found: Mapping[str, Look]) -> Chart | None:
    """Return the figure of the scores of all runs in each environment."""
    panels = []
    for place in places:
        if place.name != ACROSS and any(one.scores for one in place.shown):
            rows = [
                Runs(one.name, one.scores[0], one.aggregates["IQM"], found[one.arm.label]) if one.scores else None
                for one in place.shown
            ]
            names = [one.name for one in place.shown]
            panels.append(Strip(place.heading, _axis(ablation, place, "return"), rows, names))
    if not panels:
        return None
    notes = [
        f"{column_name(ablation, ablation.manifest.show.score)}, {count(places)}",
        "a point per run, behind them their density; black: IQM",
        *(["bold: the baseline"] if ablation.manifest.baseline else []),
    ]
    return Chart("runs", "Every run", "; ".join(notes), panels)


def _curves(ablation: Ablation, place: Place, own: Mapping[str, Curve], found: Mapping[str, Look]) -> Chart | None:
    """Return the figure of the curves in an environment, a panel per arm."""
    pairs = _pairs(place, own, found)
    if not pairs:
        return None
    pairs = [replace(pair, lines=_lines(place.external)) for pair in pairs]
    band = ablation.manifest.show.band
    dashed = "; dashed: the arm it is compared with" if any(pair.beside for pair in pairs) else ""
    note = f"{place.heading}: {BANDS[band]}, {count([place])}{dashed}{_legend(place.external)}"
    key, title = f"curves_{_key(place)}", f"Evaluation {metric_name(ablation, several=True)} on {place.heading}"
    return Chart(key, title, note, pairs, ("env_steps", metric_name(ablation)), band != "percentiles")


def _together(ablation: Ablation, place: Place, own: Mapping[str, Curve], found: Mapping[str, Look]) -> Chart | None:
    """Return the figure of the curves in an environment, all arms in one pair of axes."""
    lines = _found_lines(place, own, found)
    if not lines:
        return None
    band = ablation.manifest.show.band
    dashed = "; dashed: the baseline" if ablation.manifest.baseline else ""
    note = f"{BANDS[band]}, {count([place])}{dashed}{_legend(place.external)}"
    key, title = (
        f"together_{_key(place)}",
        f"Evaluation {metric_name(ablation, several=True)} of all arms on {place.heading}",
    )
    panel = Together(place.heading, lines, _lines(place.external))
    return Chart(key, title, note, [panel], ("env_steps", metric_name(ablation)), band != "percentiles")


def _profiles(
    ablation: Ablation, places: Sequence[Place], profiles: Mapping[str, Curve], found: Mapping[str, Look]
) -> Chart | None:
    """Return the figure of performance profiles over all environments, all arms in one pair of axes."""
    lines = _found_lines(places[-1], profiles, found)
    if not lines:
        return None
    title = "Performance profiles: the fraction of runs above each normalised score"
    dashed = "; dashed: the baseline" if ablation.manifest.baseline else ""
    note = f"{column_name(ablation, ablation.manifest.show.score)}, {count(places)}; {BOOTSTRAP} at each point{dashed}"
    axes = ("normalised score τ", "fraction of runs above τ")
    return Chart("profiles", title, note, [Together(places[-1].heading, lines, legend=True)], axes)


def _key(place: Place) -> str:
    return place.name.replace("/", "_")


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


def _baseline(baseline: str, place: Place) -> float | None:
    found = place.of(baseline).aggregates.get("IQM") if baseline else None
    return None if found is None else found.value


def _strength(one: ArmSummary, against: str | None) -> Literal[0, 1, 2]:
    """Return the strength of the verdict on an arm; 0 beside another arm than that which it is compared with."""
    return one.verdict.strength if one.verdict and against in (None, one.arm.against) else 0


def _with_external(places: Sequence[Place], panels: Sequence[Forest]) -> list[Forest]:
    """Return panels with a row for each published name. The panels of a figure have the same rows."""
    titles = dict.fromkeys(one.title for place in places for one in place.external)
    made = []
    for place, panel in zip(places, panels, strict=True):
        found = {one.title: one.estimate for one in place.external}
        made.append(replace(panel, rows=[*panel.rows, *(Row(title, found.get(title), PUBLISHED) for title in titles)]))
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


def _found_lines(place: Place, curves: Mapping[str, Curve], found: Mapping[str, Look]) -> list[Line]:
    """Return the curves of the arms that are shown and have one, the baseline last, so that it is on top."""
    lines = [
        Line(one.name, curves[one.arm.label], found[one.arm.label]) for one in place.shown if one.arm.label in curves
    ]
    return sorted(lines, key=lambda line: line.look.baseline)


def _pairs(place: Place, curves: Mapping[str, Curve], found: Mapping[str, Look]) -> list[Pair]:
    """Return a panel for each arm that has a curve, with the curve of the arm it is compared with."""
    compared = any(one.arm.label != one.arm.against for one in place.arms)
    pairs = []
    for one in place.shown:
        label, against = one.arm.label, one.arm.against
        if label not in curves or (label == against and compared and len(curves) > 1):
            continue
        beside = None
        if label != against and against in curves:
            look = replace(found[against], dashes=BASELINE_DASHES)
            beside = Line(place.of(against).name, curves[against], look)
        pairs.append(Pair(Line(one.name, curves[label], replace(found[label], dashes="solid")), beside))
    return pairs

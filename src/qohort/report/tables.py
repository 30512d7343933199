"""The tables of a report."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from qohort.experiments.ablation import Ablation
from qohort.multiple_comparisons import CONFIRMED_LEVEL, LEVEL
from qohort.report.analysis import ACROSS, ArmSummary, Curve, Place, Verdicts, aggregates_of
from qohort.report.cells import NOTHING, Cell, Table, column_name, is_of_returns, number, with_columns
from qohort.report.external import ExternalResult
from qohort.report.scores import SCORES
from qohort.statistics import MIN_RUNS, Estimate


def tables(ablation: Ablation, places: Sequence[Place], by_score: Mapping[str, Verdicts]) -> list[Table]:
    """Return the tables of a report: for each environment, and over all, the scores, comparisons and kinds of score.

    Args:
        ablation: The ablation.
        places: The statistics of its arms.
        by_score: The verdicts by each kind of score; empty if there are none.
    """
    compared = any(arm.label != arm.against for arm in ablation.arms)
    made = []
    for place in places:
        own = [_scores_table(ablation, place), _columns_table(ablation, place)]
        if compared:
            own.insert(1, _comparison_table(ablation, place, places))
        if compared and by_score:
            own.append(_verdicts_table(ablation, place, by_score))
        made += [with_columns(table, ablation.manifest.show.columns) for table in own]
    return [table for table in made if table is not None]


def _scores_table(ablation: Ablation, place: Place) -> Table:
    aggregates = tuple(aggregates_of(ablation))
    best = _best(place)
    notes = [_scores_note(ablation), *_at_the_bound(ablation, place)]
    notes += [f"{one.note}. Not tested." for one in place.external]
    if best is not None:
        notes.append(
            f"Bold: the highest IQM of all arms, which is told apart from {_told_from(best, place)}. It is "
            "not compared with the other arms."
        )
    return Table(
        f"scores_{_key(place)}",
        _title(ablation, place),
        ("arm", "runs", *aggregates),
        (
            *(_scores(one, place, aggregates, one is best) for one in place.shown),
            *(_external(one, place, aggregates) for one in place.external),
        ),
        tuple(notes),
        ("runs", *(name.lower().replace(" ", "_") for name in aggregates)),
    )


def _scores_note(ablation: Ablation) -> str:
    """Return what the numbers of the scores are."""
    manifest = ablation.manifest
    budget = f" after {manifest.budget:,} env_steps" if manifest.budget else ""
    return (
        f"IQM: the mean of the middle half of the runs. Brackets: 95% bootstrap intervals over runs. A run's score is "
        f"its {column_name(ablation, manifest.show.score)}{budget}, each evaluation the mean of its episodes."
    )


def _at_the_bound(ablation: Ablation, place: Place) -> list[str]:
    """Return a line on the runs with exactly the highest score of all, if many have it, as at a limit of returns."""
    if place.name == ACROSS or not any(one.scores for one in place.shown):
        return []
    highest = max(float(one.scores[0].max()) for one in place.shown if one.scores)
    counts = {one.arm.title: int((one.scores[0] == highest).sum()) for one in place.shown if one.scores}
    runs = sum(len(one.scores[0]) for one in place.shown if one.scores)
    if sum(counts.values()) < max(MIN_RUNS, runs / 20):
        return []
    listed = ", ".join(f"{title} {count}" for title, count in counts.items() if count)
    return [
        f"Runs with exactly the highest score, {number(highest, decimals(place))}: {listed}. If that is the limit of "
        "the environment, differences near it are smaller than those of the agents."
    ]


def _comparison_table(ablation: Ablation, place: Place, places: Sequence[Place]) -> Table:
    keys = ("compared_with", "runs", "difference", "p", "p_holm", "verdict", "improvement", "seeds_needed")
    shown = column_name(ablation, ablation.manifest.show.score)
    return Table(
        f"comparison_{_key(place)}",
        f"{place.heading}: comparisons of arms, {shown}{_missing(place)}",
        comparison_columns(places),
        tuple(_comparison(one, place) for one in place.shown if one.arm.label != one.arm.against),
        _comparison_notes(place, places),
        keys=keys,
    )


def _comparison_notes(place: Place, places: Sequence[Place]) -> tuple[str, ...]:
    """Return how the comparisons were made, for a reader who has the table alone."""
    tested = family(places)
    if not tested:
        return ()
    notes = [
        "Brackets: 95% intervals, not corrected. p: paired by seed where the arms have the same seeds; the larger of "
        "that of the bootstrap interval and of Student's t with the bootstrap's standard error. Verdicts: Holm's "
        f"correction for {tested} comparisons, below {CONFIRMED_LEVEL:g} higher or lower, below {LEVEL:g} probably. "
        "Arms are compared with the named arm alone, not with each other. Seeds needed: for a test at 5% of this "
        "comparison alone with power 80%, over the interval of the difference."
    ]
    apart = [one.arm.title for one in place.shown if _interval_alone(one)]
    if apart:
        notes.append(
            f"{_listed(apart)}: the uncorrected interval excludes 0, but the corrected p-value is at least {LEVEL:g}, "
            "so there is no verdict."
        )
    return tuple(notes)


def _interval_alone(one: ArmSummary) -> bool:
    """Return whether the interval of a difference excludes 0 without a verdict."""
    if one.comparison is None or one.verdict is None or one.verdict.word != "not told apart":
        return False
    return not one.comparison.difference.low <= 0 <= one.comparison.difference.high


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _columns_table(ablation: Ablation, place: Place) -> Table:
    return Table(
        f"columns_{_key(place)}",
        f"{place.heading}: IQM of each kind of score, {_kind(ablation, place)}{_missing(place)}",
        ("arm", "runs", *(column_name(ablation, name) for name in SCORES)),
        tuple(_columns(one, place) for one in place.shown),
        keys=("runs", *SCORES),
    )


def _verdicts_table(ablation: Ablation, place: Place, by_score: Mapping[str, Verdicts]) -> Table:
    shown = column_name(ablation, ablation.manifest.show.score)
    return Table(
        f"columns_verdicts_{_key(place)}",
        f"{place.heading}: verdicts by each kind of score{_missing(place)}",
        ("arm", "compared with", *(column_name(ablation, name) for name in by_score)),
        tuple(
            (Cell(one.arm.title), Cell(place.of(one.arm.against).arm.title), *_verdicts(one, place, by_score))
            for one in place.shown
            if one.arm.label != one.arm.against
        ),
        (
            "In parentheses: p after Holm's correction for all comparisons by that score. The verdicts of this report "
            f"are by the {shown}. Choosing the score after seeing the results is not corrected.",
        ),
        ("compared_with", *by_score),
    )


def _verdicts(one: ArmSummary, place: Place, by_score: Mapping[str, Verdicts]) -> list[Cell]:
    found = [verdicts.get((place.name, one.arm.label)) for verdicts in by_score.values()]
    return [
        Cell(NOTHING)
        if verdict is None
        else Cell(verdict.word, "" if math.isnan(verdict.corrected) else f"({p_text(verdict.corrected)})")
        for verdict in found
    ]


def _title(ablation: Ablation, place: Place) -> str:
    shown = column_name(ablation, ablation.manifest.show.score)
    return f"{place.heading}: {shown}, {_kind(ablation, place)}{_missing(place)}"


def _kind(ablation: Ablation, place: Place) -> str:
    plain = "returns" if is_of_returns(ablation) else "as logged"
    return "normalised scores" if place.name == ACROSS else plain


def _missing(place: Place) -> str:
    counted, planned = (sum(one.count[side] for one in place.arms) for side in (0, 1))
    return f" ({counted} of {planned} runs: some are missing)" if counted < planned else ""


def _best(place: Place) -> ArmSummary | None:
    """Return the arm with the highest IQM if the report tells it apart from what it is compared with; None if not.

    For an arm that others are compared with, that is if all of these are lower.
    """
    ranked = [one for one in place.arms if "IQM" in one.aggregates]
    if not ranked:
        return None
    best = max(ranked, key=lambda one: one.aggregates["IQM"].value)
    own, others = best.verdict, [one.verdict for one in _compared_with(best, place)]
    lower = [other is not None and other.word == "lower" for other in others]
    if own is not None:
        return best if own.word == "higher" and all(lower) else None
    return best if lower and all(lower) else None


def _compared_with(arm: ArmSummary, place: Place) -> list[ArmSummary]:
    return [one for one in place.arms if one.arm.against == arm.arm.label and one is not arm]


def _told_from(best: ArmSummary, place: Place) -> str:
    """Return what the best arm is told apart from, in words."""
    own = [] if best.verdict is None else [place.of(best.arm.against).arm.title]
    return " and ".join([*own, *(["every arm that is compared with it"] if _compared_with(best, place) else [])])


def _key(place: Place) -> str:
    return place.name.replace(" ", "_").replace("/", "_")


def _external(one: ExternalResult, place: Place, aggregates: Sequence[str]) -> tuple[Cell, ...]:
    mean = Cell(number(one.mean, decimals(place)), one.spread_text(decimals(place)))
    return (Cell(one.title), Cell(str(one.n)), *(mean if name == "mean" else Cell(NOTHING) for name in aggregates))


def _scores(one: ArmSummary, place: Place, aggregates: Sequence[str], best: bool) -> tuple[Cell, ...]:
    cells = [
        estimate_cell(one.aggregates.get(name), 3 if name == "optimality gap" else decimals(place))
        for name in aggregates
    ]
    if one.scores and min(map(len, one.scores)) < MIN_RUNS:  # the interval of so few runs would be too narrow
        runs = ", ".join(number(score, decimals(place)) for scores in one.scores for score in scores)
        cells[0] = Cell(cells[0].text, f"runs: {runs}")
    cells[0] = replace(cells[0], strong=best)
    return (Cell(one.arm.title), _runs(one), *cells)


def _columns(one: ArmSummary, place: Place) -> tuple[Cell, ...]:
    cells = [estimate_cell(one.columns.get(name), decimals(place)) for name in SCORES]
    return (Cell(one.arm.title), _runs(one), *cells)


def _comparison(one: ArmSummary, place: Place) -> tuple[Cell, ...]:
    other = place.of(one.arm.against)
    runs = Cell(f"{_runs(one)}, {_runs(other)}") if _runs(one) != _runs(other) else _runs(one)
    first = (Cell(one.arm.title), Cell(other.arm.title), runs)
    if one.comparison is None or one.verdict is None:
        return (*first, *[Cell(NOTHING)] * 6)
    return (
        *first,
        estimate_cell(one.comparison.difference, decimals(place), sign=True),
        Cell(p_text(one.verdict.p)),
        Cell(p_text(one.verdict.corrected)),
        Cell(one.verdict.word),
        estimate_cell(one.comparison.improvement, 2),
        Cell(seeds(one.comparison.seeds_needed)),
    )


def comparison_columns(places: Sequence[Place]) -> tuple[str, ...]:
    """Return the headings of the comparisons. That of the corrected p-value has the size of its family."""
    return (
        "arm",
        "compared with",
        "runs",
        "difference of IQM",
        "p, uncorrected",
        f"p, Holm ({family(places)} comparisons)",
        "verdict (Holm)",
        "probability of improvement",
        "seeds needed",
    )


def family(places: Sequence[Place]) -> int:
    """Return the number of comparisons that verdicts are corrected for."""
    return next((one.verdict.family for place in places for one in place.arms if one.verdict is not None), 0)


def comparisons_csv(places: Sequence[Place]) -> str:
    """Return the comparisons as CSV, unrounded. A row for each one that was made, in every environment and over all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    interval = ("difference", "difference_low", "difference_high", "p_uncorrected", "p_holm", "comparisons", "verdict")
    improvement = ("improvement", "improvement_low", "improvement_high")
    needed = ("seeds_needed", "seeds_needed_low", "seeds_needed_high")
    writer.writerow(("arm", "compared_with", "environment", *interval, *improvement, *needed))
    for place in places:
        for one in place.arms:
            if one.comparison is not None and one.verdict is not None:
                tested = (*one.comparison.difference, *one.verdict, *one.comparison.improvement)
                values = (*tested, *one.comparison.seeds_needed)
                writer.writerow((one.arm.label, one.arm.against, place.name, *values))
    return text.getvalue()


def curves_csv(curves: Mapping[str, Mapping[str, Curve]], drawn: str) -> str:
    """Return the curves of the figures as CSV, unrounded: a row for each evaluation of each arm.

    Args:
        curves: By environment, and label of the arm.
        drawn: What they are: a name of `BANDS`, which is a column of every row.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("environment", "arm", "band", "env_steps", "value", "low", "high"))
    for environment, own in curves.items():
        for label, curve in own.items():
            points = zip(curve.x, *curve.band, strict=True)
            writer.writerows((environment, label, drawn, int(x), *map(float, values)) for x, *values in points)
    return text.getvalue()


def p_text(p: float) -> str:
    """Return a p-value as text with two digits, since more are not certain from a few thousand bootstrap draws."""
    if math.isnan(p):
        return NOTHING
    if p < 0.001:
        return "< 0.001"
    if p >= 0.1:
        return f"{p:.2f}"
    places = 4 if p < 0.01 else 3
    return f"{math.floor(p * 10**places) / 10**places:.{places}f}"  # down, so that 0.05 never stands for less


def seeds(needed: Estimate) -> str:
    """Return the number of seeds needed in words, as the range that the interval of the difference leaves open."""
    if math.isnan(needed.low):
        return NOTHING
    if math.isinf(needed.low):
        return "no difference seen"
    low, high = (_two_digits(bound) for bound in (needed.low, needed.high))
    if needed.high <= MIN_RUNS:
        return f"{MIN_RUNS} or fewer"
    return f"{low} or more" if math.isinf(needed.high) else f"{low} to {high}"


def _two_digits(seeds: float) -> str:
    """Return a number of seeds with two significant digits."""
    return f"{float(f'{seeds:.2g}'):,.0f}"


def _runs(one: ArmSummary) -> Cell:
    counted, planned = one.count
    return Cell(str(counted) if counted == planned else f"{counted} of {planned}")


def decimals(place: Place) -> int:
    """Return the number of decimals of scores: 1 for large scores, 3 for small ones."""
    values = [abs(one.aggregates["mean"].value) for one in place.arms if one.aggregates]
    return 1 if max(values, default=0) >= 10 else 3


def estimate_cell(estimate: Estimate | None, digits: int, sign: bool = False) -> Cell:
    """Return a cell with an estimate and its interval.

    Args:
        estimate: The estimate; None for an empty cell.
        digits: Number of decimals.
        sign: Whether positive numbers have a plus sign.
    """
    if estimate is None:
        return Cell(NOTHING)
    text = number(estimate.value, digits, sign)
    if math.isnan(estimate.low):
        return Cell(text)
    return Cell(text, f"[{number(estimate.low, digits, sign)}, {number(estimate.high, digits, sign)}]")

"""The tables of a report."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from qohort.experiments.ablation import Ablation
from qohort.report.analysis import ACROSS, ArmSummary, Place, aggregates_of
from qohort.report.cells import NOTHING, Cell, Table, column_name, is_of_returns, number
from qohort.report.external import ExternalResult
from qohort.report.scores import SCORES
from qohort.statistics import MIN_RUNS, Estimate


def tables(ablation: Ablation, places: Sequence[Place]) -> list[Table]:
    """Return the tables of a report: for each environment, and over all, the scores, comparisons and kinds of score.

    Args:
        ablation: The ablation.
        places: The statistics of its arms.
    """
    made = []
    aggregates = tuple(aggregates_of(ablation))
    for place in places:
        missing = [one for one in place.arms if one.count[0] < one.count[1]]
        counted = sum(one.count[0] for one in place.arms), sum(one.count[1] for one in place.arms)
        remark = f" ({counted[0]} of {counted[1]} runs: some are missing)" if missing else ""
        plain = "returns" if is_of_returns(ablation) else "as logged"
        kind = "normalised scores" if place.name == ACROSS else plain
        shown = column_name(ablation, ablation.manifest.show.score)
        made += [
            Table(
                f"scores_{_key(place)}",
                f"{place.name}: {shown}, {kind}{remark}",
                ("arm", "runs", *aggregates),
                (
                    *(_scores(one, place, aggregates) for one in place.arms),
                    *(_external(one, place, aggregates) for one in place.external),
                ),
                tuple(f"{one.note}. Not tested." for one in place.external),
            ),
            Table(
                f"comparison_{_key(place)}",
                f"{place.name}: comparisons of arms, {shown}{remark}",
                comparison_columns(places),
                tuple(_comparison(one, place) for one in place.arms if one.arm.label != one.arm.against),
            ),
            Table(
                f"columns_{_key(place)}",
                f"{place.name}: IQM of each kind of score, {kind}{remark}",
                ("arm", "runs", *(column_name(ablation, name) for name in SCORES)),
                tuple(_columns(one, place) for one in place.arms),
            ),
        ]
    compared = any(arm.label != arm.against for arm in ablation.arms)
    return [table for table in made if compared or not table.key.startswith("comparison_")]


def _key(place: Place) -> str:
    return place.name.replace(" ", "_").replace("/", "_")


def _external(one: ExternalResult, place: Place, aggregates: Sequence[str]) -> tuple[Cell, ...]:
    mean = Cell(number(one.mean, decimals(place)), one.spread_text(decimals(place)))
    return (Cell(one.title), Cell(str(one.n)), *(mean if name == "mean" else Cell(NOTHING) for name in aggregates))


def _scores(one: ArmSummary, place: Place, aggregates: Sequence[str]) -> tuple[Cell, ...]:
    cells = [
        estimate_cell(one.aggregates.get(name), 3 if name == "optimality gap" else decimals(place))
        for name in aggregates
    ]
    if one.scores and min(map(len, one.scores)) < MIN_RUNS:  # the interval of so few runs would be too narrow
        runs = ", ".join(number(score, decimals(place)) for scores in one.scores for score in scores)
        cells[0] = Cell(cells[0].text, f"runs: {runs}")
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
    improvement = ("improvement", "improvement_low", "improvement_high", "seeds_needed")
    writer.writerow(("arm", "compared_with", "environment", *interval, *improvement))
    for place in places:
        for one in place.arms:
            if one.comparison is not None and one.verdict is not None:
                tested = (*one.comparison.difference, *one.verdict, *one.comparison.improvement)
                values = (*tested, one.comparison.seeds_needed)
                writer.writerow((one.arm.label, one.arm.against, place.name, *values))
    return text.getvalue()


def p_text(p: float) -> str:
    """Return a p-value as text, with as many decimals as its verdict depends on."""
    if math.isnan(p):
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{math.floor(p * 10_000) / 10_000:.4f}" if p < 0.1 else f"{p:.2f}"


def seeds(needed: float) -> str:
    """Return the number of seeds needed, in words."""
    if math.isnan(needed):
        return NOTHING
    return "no difference seen" if math.isinf(needed) else f"{needed:,.0f}" if needed <= 10_000 else "over 10,000"


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

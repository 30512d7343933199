"""The report of a study of sensitivity: tables and figures.

Intervals are of bootstrap draws over seeds: all arms, environments and settings are resampled together, and everything
that is computed from their means, the choice of settings included, is computed again.
"""

from __future__ import annotations

import csv
import io
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rich.table
from rich.console import Console

from qohort.config.messages import format_value
from qohort.experiments.sensitivity import Place, Results, SensitivityStudy
from qohort.report.cells import NOTHING, Cell, Table, latex, markdown, number
from qohort.report.sensitivity_figures import Curves, Dimensions, Plane, draw
from qohort.runs.files import write_atomically
from qohort.sensitivity import NEAR_PEAK, Tuned, by_number_tuned, effective_dimensionality, normalised, sensitivity
from qohort.statistics import MIN_RUNS, Array, Estimate, bounds, estimate, interquartile_mean, mean

STRETCHED = 2.0
"""The highest score of an environment above which a table says that the scale does not suit it."""
CHUNK = 50
"""Bootstrap draws that are computed at once, for the memory that they take."""


class ArmSensitivity(NamedTuple):
    """How an arm depends on its hyperparameters."""

    tuned: Estimate
    shared: Estimate
    lost: Estimate
    by_number: list[Tuned]
    dimensionality: int


def analyse(study: SensitivityStudy, found: Results) -> list[ArmSensitivity]:
    """Return the sensitivity of each arm, with intervals.

    Args:
        study: The study.
        found: What it has found.
    """
    axes, runs = len(study.grid), found.scores.shape[-1]
    scores = normalised(found.performance, axes)
    value = sensitivity(scores, axes)
    drawn = _draws(found.scores, axes, study.settings.resamples)
    arms = []
    for a in range(len(study.arms)):
        estimates = []
        for own, draws in zip((value.tuned, value.shared, value.lost), drawn, strict=True):
            low, high = bounds(draws[a], [runs], mean)
            estimates.append(Estimate(float(own[a]), float(low), float(high)))
        by_number = by_number_tuned(scores[a], study.default)
        tuned, shared, lost = estimates
        arms.append(ArmSensitivity(tuned, shared, lost, by_number, effective_dimensionality(by_number)))
    return arms


def _draws(scores: Array, axes: int, resamples: int) -> tuple[Array, Array, Array]:
    """Return bootstrap draws of the tuned score, the shared one and the sensitivity, `[A, resamples]` each.

    Args:
        scores: `[A, E, *grid, seeds]`.
        axes: The number of hyperparameters.
        resamples: The number of draws.
    """
    runs = scores.shape[-1]
    index = np.random.default_rng(0).integers(runs, size=(resamples, runs))
    parts = []
    for first in range(0, resamples, CHUNK):
        means = np.moveaxis(scores[..., index[first : first + CHUNK]].mean(-1), -1, 0)
        drawn = sensitivity(normalised(means, axes), axes)
        parts.append((drawn.tuned.T, drawn.shared.T, drawn.lost.T))
    tuned, shared, lost = (np.concatenate(pieces, axis=-1) for pieces in zip(*parts, strict=True))
    return tuned, shared, lost


def write_sensitivity(study: SensitivityStudy, found: Results) -> tuple[Path, list[Table]]:
    """Write tables, scores and figures of a study, and return their directory and the tables."""
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells every glyph that a PDF has
    arms = analyse(study, found)
    directory = Path(study.settings.reports_dir) / study.settings.name
    made = list(tables(study, found, arms))
    files: dict[Path, bytes] = {
        directory / "table.md": "\n".join(map(markdown, made)).encode(),
        directory / "table.tex": "\n".join(map(latex, made)).encode(),
        directory / "scores.csv": scores_csv(study, found).encode(),
    }
    for key, figure in figures(study, found, arms).items():
        for kind in ("png", "pdf"):
            files[directory / "figures" / f"{key}.{kind}"] = draw(figure, kind)
    (directory / "figures").mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        write_atomically(path, content)
    return directory, made


def print_tables(tables: Sequence[Table]) -> None:
    """Print tables on stdout."""
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 100)
    for table in tables:
        shown = rich.table.Table(title=table.title, title_justify="left")
        for index, heading in enumerate(table.columns):
            shown.add_column(heading, justify="right" if index else "left")
        for row in table.rows:
            shown.add_row(*map(str, row))
        console.print(shown)


def tables(study: SensitivityStudy, found: Results, arms: Sequence[ArmSensitivity]) -> Iterator[Table]:
    """Yield the tables of a study."""
    names, seeds = list(study.grid), found.scores.shape[-1]
    rows = []
    for a, (name, arm) in enumerate(zip(study.arms, arms, strict=True)):
        tuned = arm.by_number[arm.dimensionality].keys
        keys = f"({', '.join(names[axis] for axis in tuned)})" if tuned else ""
        dimensionality = Cell(f"{arm.dimensionality} of {len(names) - len(study.without(a))}", keys)
        rows.append((Cell(name), *map(_score_cell, (arm.tuned, arm.shared, arm.lost)), dimensionality))
    yield Table(
        "sensitivity",
        "Performance and its sensitivity to hyperparameters",
        ("arm", "tuned per environment", "one setting for all", "sensitivity", "effective dimensionality"),
        tuple(rows),
        (
            f"Scores of {len(arms)} arms × {len(study.environments)} environments × "
            f"{study.number_of_settings} settings × {seeds} seeds; an arm that lacks a hyperparameter counts at each "
            "of its values. 0 and 1 are the 5th and the 95th percentile of all arms and settings in an environment. "
            "Sensitivity is the first score less the second. Effective dimensionality is how many hyperparameters must "
            f"be tuned for {NEAR_PEAK:.0%} of the first score, the others at their defaults (Adkins et al., 2024).",
            "These scores are those of settings that were chosen by the same runs, so they are biased upwards."
            + (f" No intervals: they need {MIN_RUNS} seeds." if seeds < MIN_RUNS else " Intervals: 95%, over seeds."),
            *_stretched(study, found),
            *_failures(study, found),
        ),
    )
    chosen = []
    for a, label in enumerate(study.arms):
        chosen.append((Cell(label), Cell("all"), *_values(study, a, int(found.shared[a]))))
        for e, environment in enumerate(study.environments):
            chosen.append((Cell(label), Cell(environment), *_values(study, a, int(found.tuned[a, e]))))
    yield Table("settings", "The chosen settings", ("arm", "environment", *names), tuple(chosen))
    yield _confirmed(study, found)


def _values(study: SensitivityStudy, arm: int, setting: int) -> list[Cell]:
    """Return the values of a setting, without those of hyperparameters that the arm lacks."""
    without = study.without(arm)
    return [Cell(NOTHING if key in without else format_value(value)) for key, value in study.values(setting).items()]


def _failures(study: SensitivityStudy, found: Results) -> list[str]:
    """Return a line for each arm with runs that failed."""
    return [
        f"{study.arms[place.arm]} in {study.environments[place.environment]}: "
        + ("1 run failed, and counts" if found.failed[place] == 1 else f"{found.failed[place]} runs failed, and count")
        + " as the lowest score of the environment."
        for place in study.places
        if found.failed[place]
    ]


def _stretched(study: SensitivityStudy, found: Results) -> list[str]:
    """Return a line for each environment in which a few settings are far above all others."""
    axes = (0, *range(2, found.performance.ndim))
    low, high = np.percentile(found.performance, (5, 95), axis=axes)
    span = np.ptp(found.performance, axis=axes)
    highest = normalised(found.performance, len(study.grid)).max(axes)
    lines = []
    for e, name in enumerate(study.environments):
        if low[e] == high[e] and span[e] > 0:
            lines.append(f"In {name} nine of ten settings are equal, so its scores are on no common scale.")
        elif highest[e] > STRETCHED:
            lines.append(
                f"In {name} the best setting has a score of {number(float(highest[e]), 1)}, far above the 95th "
                "percentile, so this environment weighs most in the means and in what is computed from them."
            )
    return lines


def _score_cell(score: Estimate) -> Cell:
    """Return a score with its interval."""
    interval = "" if np.isnan(score.low) else f"[{number(score.low, 2)}, {number(score.high, 2)}]"
    return Cell(number(score.value, 2), interval)


def _confirmed(study: SensitivityStudy, found: Results) -> Table:
    """Return the table of the chosen settings on new seeds, which is free of the bias of choosing."""
    rows = []
    for a, arm in enumerate(study.arms):
        of_all, of_each = [], []
        for e in range(len(study.environments)):
            place = Place(a, e)
            of_all.append(_returns_cell(found.confirmed[place, int(found.shared[a])]))
            of_each.append(_returns_cell(found.confirmed[place, int(found.tuned[place])]))
        rows += [(Cell(arm), Cell("one for all"), *of_all), (Cell(arm), Cell("per environment"), *of_each)]
    return Table(
        "new_seeds",
        f"Final returns of the chosen settings on {len(study.settings.new_seeds)} new seeds",
        ("arm", "setting", *study.environments),
        tuple(rows),
        (
            "IQM with 95% interval. The setting for all environments has the highest mean rank among all arms and "
            "settings (Patterson et al., 2024). The new seeds took no part in the choice.",
        ),
    )


def _returns_cell(returns: Sequence[float]) -> Cell:
    """Return final returns in a cell: their IQM with interval, or the runs themselves if they are few."""
    whole = [value for value in returns if not np.isnan(value)]
    note = f"({len(returns) - len(whole)} failed)" if len(whole) < len(returns) else ""
    if len(whole) < MIN_RUNS:
        return Cell(", ".join(number(value, 1) for value in whole) or NOTHING, note)
    middle = estimate(interquartile_mean, [np.asarray(whole)])
    return Cell(number(middle.value, 1), f"[{number(middle.low, 1)}, {number(middle.high, 1)}] {note}".rstrip())


def scores_csv(study: SensitivityStudy, found: Results) -> str:
    """Return every run of the grid as a line: arm, environment, hyperparameters, seed, score."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("arm", "environment", *study.grid, "seed", study.settings.score))
    flat = found.scores.reshape(len(study.arms), len(study.environments), -1, found.scores.shape[-1])
    for place in study.places:
        for setting, row in enumerate(flat[place]):
            values = [format_value(value) for value in study.values(setting).values()]
            for seed, score in zip(study.settings.seeds, row, strict=True):
                names = (study.arms[place.arm], study.environments[place.environment])
                writer.writerow((*names, *values, seed, repr(float(score))))
    return file.getvalue()


def figures(
    study: SensitivityStudy, found: Results, arms: Sequence[ArmSensitivity]
) -> dict[str, Plane | Dimensions | Curves]:
    """Return the figures of a study by the name of their files."""
    performance, keys = found.performance, list(study.grid)
    best: dict[tuple[str, str], list[Array]] = {}
    for axis, key in enumerate(keys):
        others = tuple(other + 1 for other in range(len(keys)) if other != axis)
        for e, environment in enumerate(study.environments):
            own = [performance[a, e][None].max(others)[0] for a in range(len(arms))]
            best[environment, key] = [
                np.full_like(one, np.nan) if key in study.without(a) else one for a, one in enumerate(own)
            ]
    return {
        "plane": Plane(study.arms, [(arm.lost, arm.tuned) for arm in arms]),
        "dimensions": Dimensions(study.arms, [[one.score for one in arm.by_number] for arm in arms], NEAR_PEAK),
        "curves": Curves(
            study.arms,
            study.environments,
            {key: [format_value(value) for value in axis.values] for key, axis in study.grid.items()},
            best,
            {"final": "final return", "auc": "area under the curve"}[study.settings.score],
        ),
    }

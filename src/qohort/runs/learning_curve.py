"""Draws the learning curves of a run and of a cohort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qohort.statistics import interquartile_mean

BLUE, ORANGE = "#0072B2", "#D55E00"
"""Colours of Okabe and Ito's palette, which colour-blind readers can distinguish."""


Rows = Sequence[Mapping[str, Any]]


def moving_average(scores: Sequence[float], window: int = 20) -> NDArray[np.float64]:
    """Return the moving average: the mean of each score and up to `window - 1` scores before it.

    Args:
        scores: The scores, `[n]`.
        window: Number of scores in a full window.

    Returns:
        `[n]`.
    """
    sums = np.cumsum(np.concatenate(([0.0], scores)))
    ends = np.arange(1, len(scores) + 1)
    starts = np.maximum(ends - window, 0)
    averages: NDArray[np.float64] = (sums[ends] - sums[starts]) / (ends - starts)
    return averages


def column(rows: Rows, name: str) -> tuple[list[int], list[float]]:
    """Return the env_steps and values of the rows that have a metric."""
    kept = [(row["env_steps"], row[name]) for row in rows if row.get(name) is not None]
    return [x for x, _ in kept], [y for _, y in kept]


def draw_run(path: Path, rows: Rows, title: str) -> None:
    """Draw a member's episode returns, their moving average, and its evaluations.

    Args:
        path: The PNG to write.
        rows: The run's metric rows.
        title: The figure's title.
    """
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    steps, returns = column(rows, "train/return")
    axes.plot(steps, returns, ".", color=BLUE, alpha=0.25, markersize=3, label="training episode")
    axes.plot(steps, moving_average(returns), color=BLUE, linewidth=1.5, label="mean of 20 episodes")
    axes.plot(*column(rows, "eval/return"), "o-", color=ORANGE, markersize=4, label="greedy evaluation")
    _finish(figure, path, title)


def draw_cohort(path: Path, members: Sequence[Rows], title: str) -> None:
    """Draw a cohort's evaluations: a thin line for each member, and the interquartile mean.

    Args:
        path: The PNG to write.
        members: The metric rows of each run.
        title: The figure's title.
    """
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    curves = [column(rows, "eval/return") for rows in members]
    for index, (steps, returns) in enumerate(curves):
        axes.plot(steps, returns, color=BLUE, alpha=0.45, linewidth=1, label=None if index else "one seed")
    common = curves[0][0]
    middle = interquartile_mean([np.stack([returns for _, returns in curves], axis=-1)])
    axes.plot(common, middle, "o-", color=ORANGE, markersize=4, linewidth=2, label=f"IQM of {len(curves)} seeds")
    _finish(figure, path, title)


def _finish(figure: Figure, path: Path, title: str) -> None:
    axes = figure.axes[0]
    axes.set_title(title, loc="left")
    axes.set_xlabel("env_steps")
    axes.set_ylabel("return of an episode")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
    FigureCanvasAgg(figure).print_png(str(path))  # type: ignore[no-untyped-call]

"""Draws the learning curves of a run and of a cohort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
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


class RunFigure:
    """Draws a member's episode returns, their moving average, and its evaluations.

    The figure is made once and drawn with the data of one run after the other, at less than half the cost of a figure
    for each run: a cohort may have hundreds of members.
    """

    def __init__(self) -> None:
        self._figure = Figure(figsize=(7, 4), dpi=120)
        self._axes = self._figure.add_axes((0.125, 0.12, 0.855, 0.8))
        self._axes.ticklabel_format(axis="y", scilimits=(-3, 4))  # so that every label fits into the margin
        (self._episodes,) = self._axes.plot([], ".", color=BLUE, alpha=0.25, markersize=3, label="training episode")
        (self._average,) = self._axes.plot([], color=BLUE, linewidth=1.5, label="mean of 20 episodes")
        (self._evaluations,) = self._axes.plot([], "o-", color=ORANGE, markersize=4, label="greedy evaluation")
        _dress(self._axes)

    def draw(self, path: Path, rows: Rows, title: str) -> None:
        """Draw a run.

        Args:
            path: The PNG to write.
            rows: The run's metric rows.
            title: The figure's title.
        """
        steps, returns = column(rows, "train/return")
        self._episodes.set_data(steps, returns)
        self._average.set_data(steps, moving_average(returns))
        self._evaluations.set_data(*column(rows, "eval/return"))
        self._axes.set(xlim=(0, 1), ylim=(0, 1), autoscale_on=True)  # of a run without data, not of the one before
        self._axes.relim()
        self._axes.autoscale_view()
        self._axes.set_title(title, loc="left")
        _write(self._figure, path)


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
    axes.set_title(title, loc="left")
    _dress(axes)
    _write(figure, path)


def _dress(axes: Axes) -> None:
    axes.set_xlabel("env_steps")
    axes.set_ylabel("return of an episode")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")


def _write(figure: Figure, path: Path) -> None:
    quickly = {"compress_level": 1}  # a tenth larger, a fifth faster
    FigureCanvasAgg(figure).print_png(str(path), pil_kwargs=quickly)  # type: ignore[no-untyped-call]

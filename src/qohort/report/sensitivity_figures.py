"""The figures of a study of sensitivity."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qohort.report.palette import GREY, PALETTE, STYLE, WIDE
from qohort.statistics import Array, Estimate

MARKERS = "osD^vPX"


@dataclass(frozen=True)
class Plane:
    """The performance-sensitivity plane (Adkins et al., 2024).

    Attributes:
        arms: The names of the arms.
        points: The sensitivity and the score tuned per environment of each arm.
    """

    arms: Sequence[str]
    points: Sequence[tuple[Estimate, Estimate]]


@dataclass(frozen=True)
class Dimensions:
    """The score of each arm by the number of tuned hyperparameters.

    Attributes:
        arms: The names of the arms.
        scores: The scores of each arm, for 0 to all hyperparameters.
        near: The part of the last score that is near enough.
    """

    arms: Sequence[str]
    scores: Sequence[Sequence[float]]
    near: float


@dataclass(frozen=True)
class Curves:
    """The performance at each value of each hyperparameter, with the best values of the others.

    Attributes:
        arms: The names of the arms.
        environments: The names of the environments, a row of panels each.
        values: The values of each hyperparameter, a column of panels each.
        best: The performance of each arm `[values]`, by environment and hyperparameter; NaN if it lacks that.
        axis: The label of the performance.
    """

    arms: Sequence[str]
    environments: Sequence[str]
    values: Mapping[str, Sequence[str]]
    best: Mapping[tuple[str, str], Sequence[Array]]
    axis: str


def draw(figure: Plane | Dimensions | Curves, format: Literal["png", "pdf"]) -> bytes:
    """Draw a figure and return the content of its file."""
    with mpl.rc_context(STYLE):
        drawing = Figure(figsize=(WIDE / 2, 2.8), dpi=200, layout="constrained")
        if isinstance(figure, Plane):
            _draw_plane(drawing, figure)
        elif isinstance(figure, Dimensions):
            _draw_dimensions(drawing, figure)
        else:
            _draw_curves(drawing, figure)
        file = io.BytesIO()
        # Without dates and versions, the same runs give the same bytes.
        drawing.savefig(file, format=format, metadata={"CreationDate": None} if format == "pdf" else {"Software": None})
    return file.getvalue()


def _look(arm: int) -> dict[str, Any]:
    """Return the colour and the marker of an arm, the same in each figure."""
    return {"color": PALETTE[arm % len(PALETTE)], "marker": MARKERS[arm % len(MARKERS)]}


def _draw_plane(drawing: Figure, figure: Plane) -> None:
    axes = drawing.subplots()
    for arm, (x, y) in enumerate(figure.points):
        widths = [
            None if np.isnan(one.low) else [[max(0.0, one.value - one.low)], [max(0.0, one.high - one.value)]]
            for one in (x, y)
        ]
        look = {**_look(arm), "markersize": 5, "linewidth": 1, "linestyle": "", "label": figure.arms[arm]}
        axes.errorbar(x.value, y.value, xerr=widths[0], yerr=widths[1], **look)
    axes.set_xlabel("sensitivity (lower is better)")
    axes.set_ylabel("score tuned per environment")
    _finish(axes)
    drawing.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=7)


def _draw_dimensions(drawing: Figure, figure: Dimensions) -> None:
    axes = drawing.subplots()
    for arm, scores in enumerate(figure.scores):
        look = _look(arm)
        (line,) = axes.plot(range(len(scores)), scores, markersize=4, linewidth=1.2, **look)
        line.set_label(figure.arms[arm])
        axes.axhline(figure.near * scores[-1], color=look["color"], linewidth=0.6, linestyle=(0, (4, 2)))
    axes.set_xticks(range(len(figure.scores[0])))
    axes.set_xlabel("tuned hyperparameters")
    axes.set_ylabel("score")
    axes.set_title(f"dashed: {figure.near:.0%} of the score of tuning all", loc="left", color=GREY, fontsize=7)
    _finish(axes)
    drawing.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=7)


def _draw_curves(drawing: Figure, figure: Curves) -> None:
    rows, columns = len(figure.environments), len(figure.values)
    drawing.set_size_inches(max(WIDE / 2, 2.3 * columns), 0.9 + 1.45 * rows)
    grid = drawing.subplots(rows, columns, squeeze=False, sharex="col", sharey="row")
    for row, environment in enumerate(figure.environments):
        for column, (key, values) in enumerate(figure.values.items()):
            axes = grid[row, column]
            for arm, best in enumerate(figure.best[environment, key]):
                (line,) = axes.plot(range(len(values)), best, markersize=3.5, linewidth=1.2, **_look(arm))
                if row == column == 0:
                    line.set_label(figure.arms[arm])
            axes.set_xticks(range(len(values)), values)
            axes.set_xlim(-0.3, len(values) - 0.7)
            if column == 0:
                axes.set_title(environment, loc="left", fontweight="bold")
            if row == rows - 1:
                axes.set_xlabel(key)
            _finish(axes)
    drawing.supylabel(f"{figure.axis}, the others at their best", fontsize=8)
    drawing.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=7)


def _finish(axes: Axes) -> None:
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)

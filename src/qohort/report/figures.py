"""Draws the figures of a report in one style, with colours that colour-blind readers can distinguish.

Each figure can be drawn at any width, for print and for narrow screens.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qohort.report.analysis import Curve
from qohort.runs.learning_curve import BLUE, ORANGE
from qohort.statistics import Estimate

GREY = "#595959"


PUBLISHED = -1
"""In place of the strength of a verdict: a published result, which is not tested."""


WIDE, NARROW = 7.0, 3.7
"""Widths of figures in inches."""


STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
    "pdf.fonttype": 42,
    "svg.hashsalt": "qohort",
}


@dataclass(frozen=True)
class Forest:
    """A forest plot, one panel of a figure: estimates with their intervals, one per row.

    Attributes:
        title: Title of the panel.
        axis: Label of the x-axis.
        rows: Name and estimate (None for none) of each row, and the `strength` of the verdict on it: 0 is drawn as a
            blue circle, 1 as an empty orange diamond, 2 as a filled one, and `PUBLISHED` as a grey square.
        line: Position of the reference line; None for no line.
        limits: Limits of the x-axis; None to fit the data.
    """

    title: str
    axis: str
    rows: Sequence[tuple[str, Estimate | None, int]]
    line: float | None
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Pair:
    """An arm's curve and the curve of the arm it is compared with, one panel of a figure.

    Attributes:
        name: Name of the arm.
        curve: Its curve.
        other: Name of the other arm; empty for none.
        beside: The curve of the other arm; None for none.
        lines: Names and means of published results, drawn as horizontal lines.
    """

    name: str
    curve: Curve
    other: str
    beside: Curve | None
    lines: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Chart:
    """A figure.

    Attributes:
        key: Name of its files.
        title: Title, shown above the figure.
        note: Number of runs and kind of intervals, drawn inside the figure.
        panels: The panels, all of one type.
        axes: Labels of the axes of `Pair` panels.
    """

    key: str
    title: str
    note: str
    panels: Sequence[Forest] | Sequence[Pair]
    axes: tuple[str, str] = ("", "")


def draw(chart: Chart, format: Literal["png", "pdf"], width: float = WIDE) -> bytes:
    """Draw a figure and return the content of its file.

    Args:
        chart: The figure.
        format: `png` or `pdf`.
        width: Width in inches.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, 3), dpi=200, layout="constrained")
        forests = [panel for panel in chart.panels if isinstance(panel, Forest)]
        pairs = [panel for panel in chart.panels if isinstance(panel, Pair)]
        if forests:
            _draw_forests(figure, forests, columns=min(len(forests), 1 if width < WIDE else 3))
        else:
            _draw_pairs(figure, pairs, chart.axes, columns=min(len(pairs), 2 if width < WIDE else 4))
        figure.suptitle(_wrapped(chart.note, width), fontsize=7, color=GREY, x=0.01, ha="left")
        file = io.BytesIO()
        # Without dates and versions, the same runs give the same bytes.
        metadata = {"CreationDate": None} if format == "pdf" else {"Software": None}
        figure.savefig(file, format=format, metadata=metadata)
    return file.getvalue()


def _wrapped(text: str, width: float) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, int(width * 20)))


def _draw_forests(figure: Figure, panels: Sequence[Forest], columns: int) -> None:
    lines = math.ceil(len(panels) / columns)
    count = max(len(panel.rows) for panel in panels)
    figure.set_size_inches(figure.get_figwidth(), 0.35 + lines * (0.19 * count + 0.75))
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for index, axes in enumerate(grid.flat):
        if index >= len(panels):
            axes.set_axis_off()
            continue
        panel = panels[index]
        _draw_forest(axes, panel)
        axes.tick_params(labelleft=index % columns == 0)


def _draw_forest(axes: Axes, panel: Forest) -> None:
    if panel.line is not None and math.isfinite(panel.line):
        axes.axvline(panel.line, color=GREY, linewidth=0.8, linestyle=(0, (4, 2)), zorder=0)
    for y, (_, estimate, strength) in enumerate(panel.rows):
        if estimate is None:
            continue
        color, mark = {PUBLISHED: (GREY, "s"), 0: (BLUE, "o")}.get(strength, (ORANGE, "D"))
        if math.isfinite(estimate.low):
            axes.plot(
                (estimate.low, estimate.high), (y, y), color=color, linewidth=2.2, alpha=0.55, solid_capstyle="butt"
            )
        face = "white" if strength == 1 else color
        axes.plot(estimate.value, y, mark, color=color, markerfacecolor=face, markersize=4)
    axes.set_yticks(range(len(panel.rows)), [name for name, _, _ in panel.rows])
    axes.set_ylim(len(panel.rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    if panel.limits is not None:
        axes.set_xlim(panel.limits[0] - 0.02, panel.limits[1] + 0.02)
    axes.set_title(panel.title, loc="left", fontweight="bold")
    axes.set_xlabel(panel.axis)
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))


def _draw_pairs(figure: Figure, panels: Sequence[Pair], names: tuple[str, str], columns: int) -> None:
    lines = math.ceil(len(panels) / columns)
    figure.set_size_inches(figure.get_figwidth(), 0.9 + 1.35 * lines)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for index, axes in enumerate(grid.flat):
        if index >= len(panels):
            axes.set_axis_off()
            continue
        panel = panels[index]
        if panel.beside is not None:
            _draw_curve(axes, panel.beside, GREY, (0, (4, 1.5)))
            axes.set_title(panel.other, loc="right", color=GREY, fontsize=7)
        for index_of, (name, mean) in enumerate(panel.lines):
            axes.axhline(mean, color=GREY, linewidth=0.7, linestyle=":", zorder=0)
            place = {"x": 0.02 + 0.06 * (index_of % 16), "y": mean, "va": "bottom", "fontsize": 6, "color": GREY}
            axes.text(s=name, transform=axes.get_yaxis_transform(), **place)
        _draw_curve(axes, panel.curve, BLUE, "-")
        axes.set_title(panel.name, loc="left", color=BLUE, fontweight="bold")
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(3))
        axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(_short))
        axes.tick_params(labelbottom=index + columns >= len(panels))
        axes.grid(color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
    figure.supxlabel(names[0], fontsize=8)
    figure.supylabel(names[1], fontsize=8)


def _draw_curve(axes: Axes, curve: Curve, color: str, dashes: Any) -> None:
    axes.plot(curve.x, curve.band.value, color=color, linewidth=1.3, linestyle=dashes)
    axes.fill_between(curve.x, curve.band.low, curve.band.high, color=color, alpha=0.2, linewidth=0)


def _short(value: float, position: int | None) -> str:
    """Return a tick label in thousands or millions."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}".replace("-", "−")

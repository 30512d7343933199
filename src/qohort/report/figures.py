"""Draws the figures of a report in one style: an arm has the same colour in every figure, and the baseline is dashed.

Each figure can be drawn at any width, for print and for narrow screens.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qohort.report.analysis import Curve
from qohort.report.palette import GREY, STYLE, WIDE
from qohort.report.panels import PUBLISHED, Chart, Forest, Line, Pair, Runs, Strip, Together
from qohort.report.style import Look
from qohort.statistics import Array

VIOLIN = 10
"""Runs from which on a density is drawn behind the points."""


@dataclass(frozen=True)
class Size:
    """The size of a figure in inches; no height for what its rows need. `params` are matplotlib's settings besides."""

    width: float = WIDE
    height: float | None = None
    params: Any = field(default_factory=dict)


def draw(chart: Chart, formats: Sequence[Literal["png", "pdf"]], size: Size) -> dict[str, bytes]:
    """Draw a figure and return the content of its file in each format.

    Args:
        chart: The figure.
        formats: The formats.
        size: Its size.
    """
    contents = {}
    with mpl.rc_context({**STYLE, **size.params}):
        figure = Figure(figsize=(size.width, 3), dpi=200, layout="constrained")
        _draw_panels(figure, chart)
        if size.height is not None:
            figure.set_size_inches(size.width, size.height)
        figure.suptitle(_wrapped(chart.note, size.width), fontsize=7, color=GREY, x=0.01, ha="left")
        figure.draw_without_rendering()  # the layout takes long: it is computed once for all formats
        figure.set_layout_engine("none")
        for axes in figure.axes:  # where the labels of curves go depends on the size of everything else
            if labels := getattr(axes, "line_labels", None):
                _spread(axes, labels)
        for format in formats:
            # Without dates and versions, the same runs give the same bytes.
            metadata = {"CreationDate": None} if format == "pdf" else {"Software": None}
            file = io.BytesIO()
            figure.savefig(file, format=format, metadata=metadata)
            contents[str(format)] = file.getvalue()
    return contents


def _draw_panels(figure: Figure, chart: Chart) -> None:
    narrow, panels = _is_narrow(figure), chart.panels
    if forests := [panel for panel in panels if isinstance(panel, Forest)]:
        _draw_rows(figure, forests, _draw_forest, [len(panel.rows) for panel in forests], 1 if narrow else 3)
    elif strips := [panel for panel in panels if isinstance(panel, Strip)]:
        _draw_rows(figure, strips, _draw_strip, [1.3 * len(panel.names) for panel in strips], 1 if narrow else 3)
    elif together := [panel for panel in panels if isinstance(panel, Together)]:
        _draw_together(figure, together, chart)
    else:
        pairs = [panel for panel in panels if isinstance(panel, Pair)]
        _draw_pairs(figure, pairs, chart, columns=min(len(pairs), 2 if narrow else 4))


def _is_narrow(figure: Figure) -> bool:
    return bool(figure.get_figwidth() < 0.6 * WIDE)


def _wrapped(text: str, width: float) -> str:
    return "\n".join(textwrap.wrap(text, int(width * 17.5)))


def _draw_rows(figure: Figure, panels: Sequence[Any], draw_panel: Any, heights: Sequence[float], most: int) -> None:
    """Draw panels that share their rows, side by side.

    Args:
        figure: The figure.
        panels: The panels.
        draw_panel: Draws one of them in axes.
        heights: Rows of each panel.
        most: Panels beside each other.
    """
    columns = min(len(panels), most)
    lines = math.ceil(len(panels) / columns)
    figure.set_size_inches(figure.get_figwidth(), 0.35 + lines * (0.19 * max(heights) + 0.75))
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for index, axes in enumerate(grid.flat):
        if index >= len(panels):
            axes.set_axis_off()
            continue
        draw_panel(axes, panels[index])
        axes.tick_params(labelleft=index % columns == 0)


def _draw_forest(axes: Axes, panel: Forest) -> None:
    if panel.line is not None and math.isfinite(panel.line):
        axes.axvline(panel.line, color=GREY, linewidth=0.8, linestyle=(0, (4, 2)), zorder=0)
    for y, row in enumerate(panel.rows):
        if row.estimate is None:
            continue
        color = GREY if row.look is None else row.look.color
        mark = "s" if row.strength == PUBLISHED else "D" if row.strength else "o"
        bounds = row.estimate.low, row.estimate.high
        if math.isfinite(row.estimate.low):
            axes.plot(bounds, (y, y), color=color, linewidth=2.2, alpha=0.55, solid_capstyle="butt")
        face = "white" if row.strength == 1 else color
        axes.plot(row.estimate.value, y, mark, color=color, markerfacecolor=face, markersize=4)
    _finish_rows(axes, panel, [row.name for row in panel.rows], [row.look for row in panel.rows])


def _draw_strip(axes: Axes, panel: Strip) -> None:
    found = [row.scores for row in panel.rows if row is not None]
    low, high = min(one.min() for one in found), max(one.max() for one in found)
    for y, row in enumerate(panel.rows):
        if row is None:
            continue
        if len(row.scores) >= VIOLIN and row.scores.std() > 0:
            _draw_violin(axes, y, row)
        apart = _beeswarm(row.scores, (high - low) / 60)
        axes.plot(row.scores, y + apart, ".", color=row.look.color, markersize=3.2, alpha=0.65, markeredgewidth=0)
        axes.plot((row.estimate.value,) * 2, (y - 0.36, y + 0.36), color="black", linewidth=1.1, solid_capstyle="butt")
    _finish_rows(axes, panel, panel.names, [None if row is None else row.look for row in panel.rows])


def _draw_violin(axes: Axes, y: float, row: Runs) -> None:
    """Draw the density of the scores, from the lowest to the highest one."""
    from scipy.stats import gaussian_kde

    x = np.linspace(row.scores.min(), row.scores.max(), 101)
    density = gaussian_kde(row.scores)(x)
    half = 0.4 * density / density.max()
    axes.fill_between(x, y - half, y + half, color=row.look.color, alpha=0.15, linewidth=0)


def _beeswarm(scores: Array, width: float) -> Array:
    """Return how far up or down each point is moved, so that points of close scores are apart.

    Args:
        scores: The scores, `[n]`.
        width: Scores closer than this are at one place.
    """
    places = np.floor(scores / width) if width > 0 else np.zeros_like(scores)
    moved = np.zeros(len(scores))
    for place in np.unique(places):
        index = np.flatnonzero(places == place)
        ranks = np.arange(len(index)) - (len(index) - 1) / 2
        moved[index[np.argsort(scores[index], kind="stable")]] = ranks * min(0.11, 0.72 / max(1, len(index) - 1))
    return moved


def _finish_rows(axes: Axes, panel: Forest | Strip, names: Sequence[str], found: Sequence[Look | None]) -> None:
    """Draw the names, axes and title of a panel with a row per arm. The baseline's name is in bold."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    for tick, look in zip(axes.yaxis.get_major_ticks(len(names)), found, strict=True):
        if look is not None and look.baseline:
            tick.label1.set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    if isinstance(panel, Forest) and panel.limits is not None:
        axes.set_xlim(panel.limits[0] - 0.02, panel.limits[1] + 0.02)
    axes.set_title(panel.title, loc="left", fontweight="bold")
    axes.set_xlabel(panel.axis)
    if isinstance(panel, Forest) and panel.limits is not None:
        axes.set_xticks(np.linspace(*panel.limits, 5))  # with the reference line in the middle
    else:
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))


def _draw_pairs(figure: Figure, panels: Sequence[Pair], chart: Chart, columns: int) -> None:
    lines = math.ceil(len(panels) / columns)
    figure.set_size_inches(figure.get_figwidth(), 0.9 + 1.35 * lines)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for index, axes in enumerate(grid.flat):
        if index >= len(panels):
            axes.set_axis_off()
            continue
        panel = panels[index]
        if panel.beside is not None:
            _draw_curve(axes, panel.beside, chart.filled, 0.2)
            axes.set_title(panel.beside.name, loc="right", color=_ink(panel.beside.look.color), fontsize=7)
        _draw_published(axes, panel.lines)
        _draw_curve(axes, panel.arm, chart.filled, 0.2)
        axes.set_title(panel.arm.name, loc="left", color=_ink(panel.arm.look.color), fontweight="bold")
        axes.tick_params(labelbottom=index + columns >= len(panels))
        _finish_curves(axes, 3)
    figure.supxlabel(chart.axes[0], fontsize=mpl.rcParams["axes.labelsize"])
    figure.supylabel(chart.axes[1], fontsize=mpl.rcParams["axes.labelsize"])


def _draw_together(figure: Figure, panels: Sequence[Together], chart: Chart) -> None:
    width, most = figure.get_figwidth(), max(len(panel.arms) for panel in panels)
    height = 0.5 + len(panels) * max(2.0, 0.55 * width, 0.16 * most + 0.6)
    legend = 0.15 * math.ceil(most / 2) if _is_narrow(figure) and any(panel.legend for panel in panels) else 0.0
    figure.set_size_inches(width, height + legend)
    for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False).flat, panels, strict=True):
        for line in panel.arms:
            _draw_curve(axes, line, chart.filled, 0.2 if len(panel.arms) < 4 else 0.1)
        _draw_published(axes, panel.lines)
        axes.set_title(panel.title, loc="left", fontweight="bold")
        _finish_curves(axes, 5)
        axes.set_xlabel(chart.axes[0])
        axes.set_ylabel(chart.axes[1])
        axes.margins(x=0)
        if panel.legend:
            _draw_legend(figure, panel.arms)
        else:
            axes.line_labels = [_label(axes, line) for line in panel.arms]


def _draw_legend(figure: Figure, lines: Sequence[Line]) -> None:
    """Draw a legend to the right of the axes, or below them in a narrow figure."""
    ordered = sorted(lines, key=lambda line: -float(line.curve.band.value.mean()))
    handles = [Line2D([], [], color=line.look.color, linestyle=line.look.dashes, linewidth=1.3) for line in ordered]
    narrow = _is_narrow(figure)
    found = figure.legend(
        handles,
        [line.name for line in ordered],
        loc="outside lower center" if narrow else "outside right upper",
        ncols=2 if narrow else 1,
        frameon=False,
        fontsize=7,
        handlelength=2.6,
    )
    for text, line in zip(found.get_texts(), ordered, strict=True):
        text.set_fontweight("bold" if line.look.baseline else "normal")


def _label(axes: Axes, line: Line) -> Any:
    """Put the name of an arm at the end of its curve, to the right of the axes."""
    last = float(line.curve.band.value[-1])
    return axes.annotate(
        line.name,
        xy=(1.0, last),
        xycoords=axes.get_yaxis_transform(),
        xytext=(12, 0),
        textcoords="offset points",
        va="center",
        fontsize=7,
        color=_ink(line.look.color),
        fontweight="bold" if line.look.baseline else "normal",
        annotation_clip=False,
        arrowprops={
            "arrowstyle": "-",
            "color": line.look.color,
            "linewidth": 0.6,
            "shrinkA": 1,
            "shrinkB": 0,
            "relpos": (0, 0.5),  # from the left end of the name
        },
    )


def _ink(color: str) -> Any:
    """Return a colour of text on white: the colour itself, darkened to the contrast of 4.5 that WCAG 2 asks for."""
    rgb = np.array(to_rgb(color))
    while 1.05 / (_luminance(rgb) + 0.05) < 4.5:
        rgb = rgb * 0.95
    return tuple(rgb)


def _luminance(rgb: Array) -> float:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ np.array([0.2126, 0.7152, 0.0722]))


def _spread(axes: Axes, labels: Sequence[Any]) -> None:
    """Move the labels of curves up or down until none covers another one, in the order of the curves' ends."""
    points = 72 / axes.figure.dpi
    ends = [axes.transData.transform((0, label.xy[1]))[1] * points for label in labels]
    box = axes.get_window_extent()
    order = sorted(range(len(labels)), key=lambda index: ends[index])
    height = min(8.5, (box.y1 - box.y0) * points / max(1, len(labels)))
    places = spread([ends[index] for index in order], height, box.y0 * points, box.y1 * points)
    for index, place in zip(order, places, strict=True):
        labels[index].set_position((12, place - ends[index]))


def spread(wanted: Sequence[float], height: float, low: float, high: float) -> list[float]:
    """Return places that are at least a height apart and as near to the wanted ones as that allows.

    Places that are too close form a block around their mean, and blocks that touch are joined (isotonic regression).

    Args:
        wanted: The wanted places, in order.
        height: The smallest distance.
        low: The lowest place.
        high: The highest place; it gives way to the distance.
    """
    blocks: list[tuple[float, int]] = []  # mean of the wanted places less the height of those before, and their number
    for index, place in enumerate(wanted):
        block = (place - index * height, 1)
        while blocks and blocks[-1][0] > block[0]:
            mean, count = blocks.pop()
            block = ((mean * count + block[0] * block[1]) / (count + block[1]), count + block[1])
        blocks.append(block)
    top = high - (len(wanted) - 1) * height
    starts = [max(low, min(mean, max(low, top))) for mean, count in blocks for _ in range(count)]
    return [start + index * height for index, start in enumerate(starts)]


def _draw_published(axes: Axes, lines: Sequence[tuple[str, float]]) -> None:
    for index, (name, mean) in enumerate(lines):
        axes.axhline(mean, color=GREY, linewidth=0.7, linestyle=":", zorder=0)
        place: Any = {"x": 0.02 + 0.06 * (index % 16), "y": mean, "va": "bottom", "fontsize": 6, "color": GREY}
        axes.text(s=name, transform=axes.get_yaxis_transform(), **place)


def _finish_curves(axes: Axes, ticks: int) -> None:
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(ticks))
    axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(_short))
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_curve(axes: Axes, line: Line, filled: bool, alpha: float) -> None:
    curve: Curve = line.curve
    look = line.look
    axes.plot(curve.x, curve.band.value, color=look.color, linewidth=1.3, linestyle=look.dashes)
    if filled:
        axes.fill_between(curve.x, curve.band.low, curve.band.high, color=look.color, alpha=alpha, linewidth=0)
    else:
        for bound in (curve.band.low, curve.band.high):
            axes.plot(curve.x, bound, color=look.color, linewidth=0.7, linestyle=(0, (1, 1.2)), alpha=0.9)


def _short(value: float, position: int | None) -> str:
    """Return a tick label in thousands or millions."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}".replace("-", "−")

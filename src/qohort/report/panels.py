"""The panels of figures, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from qohort.report.analysis import Curve
from qohort.report.style import Look
from qohort.statistics import Array, Estimate

PUBLISHED = -1
"""In place of the strength of a verdict: a published result, which is not tested."""


class Row(NamedTuple):
    """A row of a forest plot.

    Attributes:
        name: Name of the arm.
        estimate: Its estimate; None for none.
        strength: The `strength` of the verdict on it: 0 is drawn as a circle, 1 as an empty diamond, 2 as a filled one,
            and `PUBLISHED` as a grey square.
        look: Its look; None for a published result.
    """

    name: str
    estimate: Estimate | None
    strength: int
    look: Look | None = None


@dataclass(frozen=True)
class Forest:
    """A forest plot, one panel of a figure: estimates with their intervals, one per row.

    Attributes:
        title: Title of the panel.
        axis: Label of the x-axis.
        rows: The rows.
        line: Position of the reference line; None for no line.
        limits: Limits of the x-axis; None to fit the data.
    """

    title: str
    axis: str
    rows: Sequence[Row]
    line: float | None
    limits: tuple[float, float] | None = None


class Line(NamedTuple):
    """The curve of an arm, with its name and its look."""

    name: str
    curve: Curve
    look: Look


@dataclass(frozen=True)
class Pair:
    """An arm's curve and the curve of the arm it is compared with, one panel of a figure.

    Attributes:
        arm: The arm.
        beside: The other arm; None for none.
        lines: Names and means of published results, drawn as horizontal lines.
    """

    arm: Line
    beside: Line | None
    lines: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Together:
    """The curves of all arms in one pair of axes, one panel of a figure.

    Attributes:
        title: Title of the panel.
        arms: The arms.
        lines: Names and means of published results, drawn as horizontal lines.
        legend: Whether names are in a legend beside the axes, highest curve first, for curves with one end.
    """

    title: str
    arms: Sequence[Line]
    lines: tuple[tuple[str, float], ...] = ()
    legend: bool = False


class Runs(NamedTuple):
    """The scores of an arm's runs, `[n]`, with their estimate."""

    name: str
    scores: Array
    estimate: Estimate
    look: Look


@dataclass(frozen=True)
class Strip:
    """The scores of all runs, one point per run and one row per arm, one panel of a figure.

    Attributes:
        title: Title of the panel.
        axis: Label of the x-axis.
        rows: The arms; None for an arm without runs, whose name is `names`.
        names: Names of the arms.
    """

    title: str
    axis: str
    rows: Sequence[Runs | None]
    names: Sequence[str]


@dataclass(frozen=True)
class Chart:
    """A figure.

    Attributes:
        key: Name of its files.
        title: Title, shown above the figure.
        note: Number of runs and kind of intervals, drawn inside the figure.
        panels: The panels, all of one type.
        axes: Labels of the axes of panels of curves.
        filled: Whether the bands of curves are filled. If not, their bounds are curves of runs.
    """

    key: str
    title: str
    note: str
    panels: Sequence[Forest] | Sequence[Pair] | Sequence[Together] | Sequence[Strip]
    axes: tuple[str, str] = ("", "")
    filled: bool = True

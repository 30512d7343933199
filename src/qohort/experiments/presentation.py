"""What a report shows and how it looks. Nothing here enters a run's configuration or its hash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from qohort.config.annotations import PositiveInt, Range
from qohort.config.errors import ConfigError
from qohort.config.messages import nearest

Figure = Literal["scores", "differences", "improvement", "curves", "together", "runs", "profiles"]


FIGURES: tuple[Figure, ...] = ("scores", "differences", "improvement", "curves", "together", "runs", "profiles")
"""The figures of a report, in their order."""


COMPARABLE = ("final", "last", "auc")
"""The scores that a manifest may compare arms by. The best evaluation is not one, since it is chosen with hindsight."""


COLUMNS = (
    "runs",
    "iqm",
    "median",
    "mean",
    "optimality_gap",
    "compared_with",
    "difference",
    "p",
    "p_holm",
    "verdict",
    "improvement",
    "seeds_needed",
    "final",
    "last",
    "auc",
    "best",
)
"""The columns that tables may have, besides the arm."""

Inches = Annotated[float, Range(1, 40)]


@dataclass(frozen=True)
class Show:
    """What a report shows, and how. `docs/ablations.md` says what each key is.

    Attributes:
        score: The score that arms are compared by. A manifest has one of `COMPARABLE`. A report may also have `best`.
        metric: The metric of evaluations that scores are of, as `eval/return`.
        last: Number of evaluations in the mean of the last evaluations.
        figures: The figures to draw.
        title: Title of the page; None for the manifest's.
        arms: Labels of the arms to show, in their order; None for all. Arms that are not shown are still counted in
            the correction for many comparisons.
        titles: Titles by label of an arm, name of an environment or name of a figure.
        labels: Labels of axes by the label that they replace.
        colors: Colours of arms by label, as matplotlib writes colours.
        columns: Columns of tables, in their order; None for all.
        band: What the bands of curves are: the interval of the IQM, the runs at the 5th, 50th and 95th percentile, or
            the range from the lowest to the highest run.
        width: Width of figures in inches; the page draws narrower ones for narrow screens.
        height: Height of figures in inches; None for what their rows need.
        matplotlib: A style file of matplotlib, or the name of one of its styles.
    """

    score: str
    metric: str
    last: PositiveInt
    figures: Sequence[Figure]
    title: str | None = None
    arms: Sequence[str] | None = None
    titles: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    colors: Mapping[str, str] = field(default_factory=dict)
    columns: Sequence[str] | None = None
    band: Literal["interval", "percentiles", "range"] = "interval"
    width: Inches = 7.0
    height: Inches | None = None
    matplotlib: str | None = None


def check_comparable(show: Show) -> None:
    """Check that a manifest compares arms by a score that it may choose.

    Raises:
        ConfigError: If not.
    """
    if show.score not in COMPARABLE:
        raise ConfigError(f"show.score={show.score} is not one of the choices: {nearest(show.score, COMPARABLE)}")

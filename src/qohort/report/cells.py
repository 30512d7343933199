"""A table of a report, and its formats Markdown and LaTeX."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qohort.experiments.ablation import Ablation
from qohort.runs.metrics import RETURN

NOTHING = "–"
"""Text of a cell without a value."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: Its text.
        note: A note below or after it, such as an interval.
        strong: Whether it is printed in bold: the highest of its column, where that is told apart from the others.
    """

    text: str
    note: str = ""
    strong: bool = False

    def __str__(self) -> str:
        """Return text and note on one line."""
        return f"{self.text} {self.note}".rstrip()


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        key: Identifier in files.
        title: Title.
        columns: Headings of the columns.
        rows: The cells. The first one of a row is the arm.
        notes: Lines below the table.
        keys: Names of the columns in `COLUMNS`, but for the first one; empty if columns cannot be chosen.
    """

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


def with_columns(table: Table, wanted: Sequence[str] | None) -> Table | None:
    """Return a table with the wanted columns in their order; None if it has none of them.

    Args:
        table: The table.
        wanted: Names in `COLUMNS`; None for all.
    """
    if wanted is None or not table.keys:
        return table
    places = [0, *(table.keys.index(key) + 1 for key in wanted if key in table.keys)]
    if len(places) == 1:
        return None
    columns = tuple(table.columns[place] for place in places)
    return replace(table, columns=columns, rows=tuple(tuple(row[place] for place in places) for row in table.rows))


def column_name(ablation: Ablation, name: str) -> str:
    """Return the heading of a column of `SCORES`, or of a metric of `metrics.jsonl`."""
    last = ablation.manifest.show.last
    words = {
        "final": "final evaluation",
        "last": f"mean of the last {last} evaluations",
        "auc": "area under the curve",
        "best": "best evaluation (with hindsight)",
    }[name]
    return words if is_of_returns(ablation) else f"{words}, {ablation.manifest.show.metric}"


def metric_name(ablation: Ablation, several: bool = False) -> str:
    """Return the name of the metric on an axis: `return`, or that of another metric, as it is.

    Args:
        ablation: The ablation.
        several: Whether it is of several values: `returns`.
    """
    words = "returns" if several else "return"
    return words if is_of_returns(ablation) else ablation.manifest.show.metric


def is_of_returns(ablation: Ablation) -> bool:
    """Return whether the scores are of the returns of evaluations, not of another metric."""
    return ablation.manifest.show.metric == RETURN


def number(value: float, digits: int, sign: bool = False) -> str:
    """Return a number as text with a typographic minus sign, and no minus before a zero."""
    rounded = round(value, digits) + 0.0
    return f"{rounded:{'+' if sign and rounded else ''},.{digits}f}".replace("-", "−")


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.text}** {cell.note}".rstrip() if cell.strong else str(cell)
    return text.replace("|", r"\|")


def markdown(table: Table) -> str:
    """Return a table in Markdown."""
    head = f"| {' | '.join(table.columns)} |\n|{'---|' * len(table.columns)}\n"
    rows = "".join(f"| {' | '.join(map(_markdown_cell, row))} |\n" for row in table.rows)
    notes = "".join(f"\n{note}\n" for note in table.notes)
    return f"**{table.title}**\n\n{head}{rows}{notes}"


GREEK = {"α": "alpha", "β": "beta", "γ": "gamma", "ε": "epsilon", "λ": "lambda", "τ": "tau"}


SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    **{character: f"\\{character}" for character in "#$%&_"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "−": "$-$",
    "±": r"$\pm$",
    "–": "--",
    "×": r"$\times$",
    **{letter: f"$\\{name}$" for letter, name in GREEK.items()},
}


def latex_text(text: str) -> str:
    """Return a text with LaTeX's special characters escaped."""
    return "".join(SPECIAL.get(character, character) for character in text)


def _latex_heading(text: str) -> str:
    """Return a heading in LaTeX, on several lines if it is long."""
    lines = r" \\ ".join(latex_text(line) for line in textwrap.wrap(text, 12))
    return rf"\shortstack[r]{{{lines}}}" if len(text) > 12 else lines


def _latex_cell(cell: Cell) -> str:
    text = latex_text(cell.text)
    return f"{rf'{chr(92)}textbf{{{text}}}' if cell.strong else text} {latex_text(cell.note)}".rstrip()


def latex(table: Table) -> str:
    """Return a table in LaTeX, with the label `tab:` and its key. It needs the packages booktabs and graphicx.

    A table that is wider than the text is made narrower with all that is in it.
    """
    body = "".join(f"    {' & '.join(map(_latex_cell, row))} \\\\\n" for row in table.rows)
    head = " & ".join(map(_latex_heading, table.columns))
    notes = "".join(f"  \\par\\raggedright {latex_text(note)}\n" for note in table.notes)
    return (
        "\\begin{table}\n  \\centering\\scriptsize\\setlength{\\tabcolsep}{3pt}\n"
        f"  \\caption{{{latex_text(table.title)}.}}\n  \\label{{tab:{table.key}}}\n"
        "  \\setbox0=\\hbox{%\n"
        f"  \\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}\n"
        f"    \\toprule\n    {head} \\\\\n    \\midrule\n{body}    \\bottomrule\n"
        "  \\end{tabular}}%\n"
        "  \\ifdim\\wd0>\\linewidth\\resizebox{\\linewidth}{!}{\\box0}\\else\\box0\\fi\n"
        f"{notes}\\end{{table}}\n"
    )

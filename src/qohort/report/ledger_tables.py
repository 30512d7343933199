"""Tables of a manual or a README that are made from the ledger, and not typed.

`results/tables.yaml` says what each table shows. A page has a block for it, which `fill` replaces:

    <!-- table: NAME -->

    | ... |

    <!-- end -->

What is not a result of runs, as a speed, is a table of `results/measurements.yaml` with its command, machine and date.
`results/without_receipts/` has results of runs whose fingerprints were not kept, a file for each table. Such a table is
shown as it was typed until there is a ledger for it.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from qohort.config.annotations import PositiveInt
from qohort.config.checks import build_config
from qohort.config.errors import ConfigError
from qohort.config.messages import nearest
from qohort.multiple_comparisons import Verdict, decide
from qohort.report.cells import NOTHING, Table, number
from qohort.report.external import ExternalResult, read_external
from qohort.report.ledger import Ledger, LedgerRow, LedgerRun, read_ledger
from qohort.report.sensitivity import analyse, tables
from qohort.report.sensitivity_ledger import read_found
from qohort.report.tables import estimate_cell, p_text, seeds
from qohort.statistics import Comparison, compare, estimate, interquartile_mean

BLOCK = re.compile(r"(^<!-- table: (\S+) -->\n)(.*?)(\n<!-- end -->$)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Shown:
    """A row of a table.

    Attributes:
        arm: The arm's label.
        environment: The environment; null if the arm has one only.
        seeds: The seeds; null for all.
        label: What the first column says; null for the arm's title.
        published: The name of the published result beside it, in `published.csv`; null for none.
    """

    arm: str
    environment: str | None = None
    seeds: Sequence[int] | None = None
    label: str | None = None
    published: str | None = None


@dataclass(frozen=True)
class TableSpec:
    """A table, as `results/tables.yaml` declares it.

    Attributes:
        ledger: The ledger with its runs; null for a table of measurements.
        measured: The table of measurements that it repeats; null for a table of runs.
        columns: What each column shows, a key of `COLUMNS`, by heading. For measurements a column's heading there.
        rows: The rows; null for all of the ledger.
        labels: For measurements: the first cell of each row; null for those of the measurements.
        layout: `rows`: a row for each arm. `runs`: a row for each run, with the columns `seed`, `final`, `best`, `auc`.
            `study`: a table of a study of sensitivity.
        part: For the layout `study`: which of its tables; the columns are those that it has.
        score: The score that statistics are of.
        side_by_side: Number of parts of the table that stand side by side.
    """

    ledger: str | None = None
    measured: str | None = None
    columns: Mapping[str, str] | None = None
    rows: Sequence[Shown] | None = None
    labels: Sequence[str] | None = None
    layout: Literal["rows", "runs", "study"] = "rows"
    part: Literal["sensitivity", "settings", "new_seeds"] = "sensitivity"
    score: Literal["final", "best", "auc"] = "final"
    side_by_side: PositiveInt = 1


@dataclass(frozen=True)
class Measured:
    """Typed numbers, with where they come from.

    Attributes:
        what: What was measured.
        command: The command that measures it again.
        machine: The machine.
        date: The day on which it was published.
        commit: The commit that published it.
        columns: Headings; empty for numbers that stand in sentences only.
        rows: Cells.
        quotes: The numbers that stand in sentences.
    """

    what: str
    command: str
    machine: str
    date: str
    commit: str
    columns: Sequence[Any] = ()
    rows: Sequence[Sequence[Any]] = ()
    quotes: Sequence[str] = ()


@dataclass(frozen=True)
class Line:
    """A row of a table with its statistics.

    Attributes:
        shown: What the table says of it.
        row: The row of the ledger.
        runs: The runs that are shown.
        score: The score that statistics are of.
        comparison: The comparison with the row's other arm; None for none.
        verdict: The verdict on it, corrected for all comparisons of the ledger.
        published: The published result beside it.
    """

    shown: Shown
    row: LedgerRow
    runs: Sequence[LedgerRun]
    score: str
    comparison: Comparison | None
    verdict: Verdict | None
    published: ExternalResult | None

    @property
    def scores(self) -> list[float]:
        """The score of each run."""
        return [float(getattr(run, self.score)) for run in self.runs]


def _iqm(line: Line) -> str:
    return str(estimate_cell(estimate(interquartile_mean, [np.array(line.scores)]), 1))


def _mean(line: Line) -> str:
    return f"{number(statistics.mean(line.scores), 1)} ± {number(statistics.stdev(line.scores), 1)}"


def _of_comparison(text: Callable[[Comparison], str]) -> Callable[[Line], str]:
    return lambda line: "" if line.comparison is None else text(line.comparison)


def _of_verdict(text: Callable[[Verdict], str]) -> Callable[[Line], str]:
    return lambda line: "" if line.verdict is None else text(line.verdict)


def _published(line: Line) -> str:
    one = line.published
    if one is None:
        return NOTHING
    spread = f"± {one.spread:g}" if isinstance(one.spread, float) else one.spread_text(2)
    return f"{one.mean:g}".replace("-", "−") + f" {spread} ({one.name})"


COLUMNS: Mapping[str, Callable[[Line], str]] = {
    "label": lambda line: line.shown.label or line.row.title,
    "code": lambda line: f"`{line.shown.label or line.row.title}`",
    "environment": lambda line: line.row.env,
    "runs": lambda line: ", ".join(f"{score:g}" for score in line.scores),
    "count": lambda line: str(len(line.runs)),
    "iqm": _iqm,
    "mean": _mean,
    "difference": _of_comparison(lambda one: str(estimate_cell(one.difference, 1, sign=True))),
    "improvement": _of_comparison(lambda one: str(estimate_cell(one.improvement, 2))),
    "seeds_needed": _of_comparison(lambda one: seeds(one.seeds_needed)),
    "p": _of_verdict(lambda one: p_text(one.p)),
    "p_holm": _of_verdict(lambda one: p_text(one.corrected)),
    "verdict": _of_verdict(lambda one: one.word),
    "published": _published,
}
"""What a column may show of a row."""
OF_A_RUN = ("seed", "final", "best", "auc")
"""What a column may show of a run, with the layout `runs`."""


class Results:
    """The directory `results/`: ledgers, measurements, published results, and the tables made of them.

    Args:
        directory: The directory.

    Raises:
        ConfigError: If a file is damaged, or two tables have the same name.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tables: dict[str, TableSpec] = _read_all(TableSpec, directory / "tables.yaml")
        self.measured: dict[str, Measured] = _read_all(Measured, directory / "measurements.yaml")
        files = sorted((directory / "without_receipts").glob("*.yaml"))
        self.without_receipts: dict[str, Measured] = {file.stem: _read(Measured, _load(file), file) for file in files}
        if twice := self.measured.keys() & (self.tables.keys() | self.without_receipts.keys()):
            raise ConfigError(f"{directory} has {min(twice)} twice: give each table its own name")

    def has_ledger(self, name: str) -> bool:
        """Return whether a table is made from a ledger that is there."""
        spec = self.tables.get(name)
        return spec is not None and (self.directory / "ledger" / f"{spec.ledger}.yaml").is_file()

    @cached_property
    def published(self) -> list[ExternalResult]:
        """The published results."""
        return read_external(self.directory / "published.csv")

    def typed(self, name: str) -> Measured | None:
        """Return the typed numbers of this name; None for none."""
        return self.measured.get(name) or self.without_receipts.get(name)

    def table(self, name: str) -> str:
        """Return a table in Markdown.

        Args:
            name: Its name.

        Raises:
            ConfigError: If there is none, or it names what does not exist.
        """
        typed = self.typed(name)
        if typed is not None and not self.has_ledger(name):
            return markdown(typed.columns, typed.rows)
        if name not in self.tables:
            known = {*self.tables, *self.measured, *self.without_receipts}
            raise ConfigError(f"table {name} is not in {self.directory}: {nearest(name, known)}")
        spec = self.tables[name]
        try:
            return self._measured(spec) if spec.ledger is None else self._of_runs(spec)
        except ConfigError as error:
            raise ConfigError(f"table {name}: {error}") from error

    def _measured(self, spec: TableSpec) -> str:
        """Return a table that repeats measurements with other headings."""
        typed = self.typed(spec.measured or "")
        if typed is None:
            raise ConfigError(f"measured={spec.measured} is not there: {nearest(str(spec.measured), self.measured)}")
        columns = spec.columns or {heading: heading for heading in typed.columns}
        for heading in columns.values():
            if heading not in typed.columns:
                raise ConfigError(f"columns: {heading} is not a heading there: {nearest(heading, typed.columns)}")
        places = [list(typed.columns).index(heading) for heading in columns.values()]
        labels = spec.labels or [row[0] for row in typed.rows]
        rows = [
            [label if place == 0 else row[place] for place in places]
            for label, row in zip(labels, typed.rows, strict=True)
        ]
        return markdown(list(columns), rows)

    def _of_runs(self, spec: TableSpec) -> str:
        ledger = read_ledger(self.directory / "ledger", str(spec.ledger))
        if spec.layout == "study":
            table = next(one for one in self._study(ledger) if one.key == spec.part)
            return markdown(table.columns, [[str(cell) for cell in row] for row in table.rows])
        lines = self._lines(spec, ledger)
        columns = spec.columns or {}
        known = COLUMNS if spec.layout == "rows" else OF_A_RUN
        for kind in columns.values():
            if kind not in known:
                raise ConfigError(f"columns: {kind} is not something that a column shows: {nearest(kind, known)}")
        if spec.layout == "runs":
            texts = [[_of_run(run, kind) for kind in columns.values()] for line in lines for run in line.runs]
            return markdown(list(columns), texts)
        return markdown(*_side_by_side(columns, lines, spec.side_by_side))

    def _study(self, ledger: Ledger) -> Iterator[Table]:
        """Yield the tables of a study of sensitivity, as its report has them."""
        study, found = read_found(ledger)
        return tables(study, found, analyse(study, found))

    def _lines(self, spec: TableSpec, ledger: Ledger) -> list[Line]:
        compared = comparisons(ledger, spec.score)
        shown = spec.rows or [Shown(row.arm, row.environment) for row in ledger.rows]
        return [self._line(one, ledger, spec.score, compared) for one in shown]

    def _line(
        self, shown: Shown, ledger: Ledger, score: str, compared: Mapping[str, tuple[Comparison, Verdict]]
    ) -> Line:
        row = next((row for row in ledger.rows if _is(row, shown)), None)
        if row is None:
            raise ConfigError(
                f"arm={shown.arm} is not in the ledger: {nearest(shown.arm, {row.arm for row in ledger.rows})}"
            )
        runs = [run for run in row.runs if shown.seeds is None or run.seed in shown.seeds]
        if shown.seeds is not None and len(runs) < len(shown.seeds):
            raise ConfigError(f"{row.name} does not have all seeds {list(shown.seeds)} in the ledger")
        published = None
        if shown.published is not None:
            published = next(
                (one for one in self.published if (one.name, one.environment) == (shown.published, row.env)), None
            )
            if published is None:
                raise ConfigError(f"published={shown.published} on {row.env} is not in published.csv")
        comparison, verdict = compared.get(row.name, (None, None))
        return Line(shown, row, runs, score, comparison, verdict, published)


def _read_all(schema: type[Any], file: Path) -> dict[str, Any]:
    """Return what a file has, by name; nothing if there is no file."""
    return {name: _read(schema, node, file) for name, node in _load(file).items()} if file.is_file() else {}


def _load(file: Path) -> Mapping[str, Any]:
    tree: Mapping[str, Any] = yaml.safe_load(file.read_text()) or {}
    return tree


def _read(schema: type[Any], node: Any, file: Path) -> Any:
    try:
        return build_config(schema, node)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def _is(row: LedgerRow, shown: Shown) -> bool:
    return row.arm == shown.arm and shown.environment in (None, row.environment)


def _of_run(run: LedgerRun, kind: str) -> str:
    value = getattr(run, kind)
    return str(value) if kind == "seed" else number(value, 1)


def comparisons(ledger: Ledger, score: str) -> dict[str, tuple[Comparison, Verdict]]:
    """Return the comparison of each arm with the arm it is compared with, and the verdict, as a report has them.

    Runs are paired if both arms have the same seeds. All comparisons of the ledger are one family.

    Args:
        ledger: The ledger.
        score: The score, as `final`.
    """
    found = {}
    for row in ledger.rows:
        other = next((one for one in ledger.rows if (one.arm, one.environment) == (row.against, row.environment)), None)
        if other is not None and row.arm != row.against:
            paired = row.seeds == other.seeds
            found[row.name] = compare(interquartile_mean, [row.scores(score)], [other.scores(score)], [paired])
    verdicts = decide([one.difference.value for one in found.values()], [one.p for one in found.values()])
    return {name: (one, verdict) for (name, one), verdict in zip(found.items(), verdicts, strict=True)}


def _side_by_side(columns: Mapping[str, str], lines: Sequence[Line], parts: int) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells, with the rows in several parts beside each other."""
    texts = [[COLUMNS[kind](line) for kind in columns.values()] for line in lines]
    height = -(-len(texts) // parts)
    empty = [""] * len(columns)
    stacks = [texts[part * height : (part + 1) * height] for part in range(parts)]
    rows = [
        [cell for stack in stacks for cell in (stack[place] if place < len(stack) else empty)]
        for place in range(height)
    ]
    return [*columns] * parts, rows


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def fill(text: str, results: Results) -> str:
    """Return a page with its tables made anew.

    Args:
        text: The page.
        results: What they are made from.

    Raises:
        ConfigError: If a table cannot be made.
    """
    return BLOCK.sub(lambda found: f"{found[1]}\n{results.table(found[2])}\n{found[4]}", text)

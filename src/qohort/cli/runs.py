"""List runs: qohort runs [PATH] [env=…] [agent=…] [state=…] [--json]."""

from __future__ import annotations

import fnmatch
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qohort.cli.arguments import arguments_of, check_options, fail, path_of
from qohort.cli.streams import lenient_streams
from qohort.config.errors import ConfigError
from qohort.config.messages import nearest
from qohort.runs.listing import STATES, Run, age, as_json, differences, groups, in_table, in_words, runs_in, size
from qohort.statistics import format_returns

USAGE = """qohort runs [PATH] [env=NAME] [agent=NAME] [state=STATE] [--json]

Lists the runs in PATH (outputs by default). NAME may have * and ?. STATE is one of: """
FILTERS = ("env", "agent", "state")
HEADINGS = ("env", "experiment", "seeds", "state", "final return", "age", "size", "differs from its preset in")
DIFFERS = 40
"""The least width of the last column, in characters."""


@lenient_streams()
def main() -> None:
    """Print a table with a line for each experiment, or a JSON object for each run."""
    paths, filters, as_objects = _read(arguments_of(USAGE + ", ".join(STATES)))
    try:
        runs = [run for path in paths for run in runs_in(path)]
    except ConfigError as error:
        fail(str(error))
    runs = [run for run in runs if _passes(run, filters)]
    if as_objects:
        for run in runs:
            print(json.dumps(as_json(run)))
    elif not runs:
        print(f"no runs in {', '.join(map(str, paths))}" + (" that fit" if filters else ""))
    else:
        _print(runs)


def _read(arguments: Sequence[str]) -> tuple[list[Path], dict[str, str], bool]:
    """Return the paths, the filters and whether JSON is wanted."""
    paths: list[Path] = []
    filters = {}
    check_options(arguments, ["--json"])
    for argument in arguments:
        key, sign, value = argument.partition("=")
        if argument == "--json":
            continue
        if sign and not Path(argument).exists():
            if key not in FILTERS:
                fail(f"{argument} is not a filter: {nearest(key, FILTERS)}")
            if key == "state" and value not in STATES:
                fail(f"state={value} is not a state: {nearest(value, STATES)}")
            if not value:
                fail(f"{key}= has no value: give a name, which may have * and ?")
            filters[key] = value
        else:
            paths.append(path_of(argument))
    return paths or [Path("outputs")], filters, "--json" in arguments


def _passes(run: Run, filters: dict[str, str]) -> bool:
    """Return whether a run fits all filters."""
    agent = run.experiment.rpartition("-")[0]
    values = {"env": run.env, "agent": agent, "state": run.state}
    return all(fnmatch.fnmatch(values[key], pattern) for key, pattern in filters.items())


def _print(runs: Sequence[Run]) -> None:
    """Print a table with a line for each experiment, and the reason of each failure.

    A narrow terminal gets two tables, the second one with the keys in which experiments differ.
    """
    live = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=None if live else 160, highlight=False)
    rows: list[dict[str, str]] = []
    notes = []
    for some in groups(runs):
        counts = Counter(run.state for run in some)
        scores = [run.score for run in some if run.score is not None]
        config = next((run.config for run in some if run.config is not None), None)
        differs = {} if config is None else differences(config)
        cells = (
            some[0].env,
            some[0].experiment,
            in_words([run.seed for run in some]),
            ", ".join(f"{count} {state}" if len(some) > 1 else state for state, count in counts.items()),
            _short(format_returns(scores)) if scores else "",
            age(max(run.modified for run in some)),
            size(sum(run.size for run in some)),
            _first({key: ours for key, (_, ours) in differs.items()}),
        )
        rows.append(dict(zip(HEADINGS, cells, strict=True)))
        notes += _notes(some)
    if _width(HEADINGS[:-1], rows) + DIFFERS <= console.width:
        console.print(_table(HEADINGS, rows))
    else:
        _print_narrow(console, rows)
    for note in notes:
        console.print(Text(note), soft_wrap=not live)


def _print_narrow(console: Console, rows: Sequence[Mapping[str, str]]) -> None:
    """Print what fits in a narrow terminal, sizes last, and below it the keys in which experiments differ."""
    environments = {row["env"] for row in rows}
    headings = HEADINGS[1:-1] if len(environments) == 1 else HEADINGS[:-1]
    if len(environments) == 1:
        console.print(f"env: {environments.pop()}")
    console.print(_table(headings if _width(headings, rows) <= console.width else headings[:-1], rows))
    if differing := [row for row in rows if row[HEADINGS[-1]]]:
        console.print()
        console.print(_table((HEADINGS[1], HEADINGS[-1]), differing))


def _width(headings: Sequence[str], rows: Sequence[Mapping[str, str]]) -> int:
    """Return the width of a table with some of the columns, in characters, with two spaces after each."""
    return sum(max(len(heading), *(len(row[heading]) for row in rows)) + 2 for heading in headings)


def _table(headings: Sequence[str], rows: Sequence[Mapping[str, str]]) -> Table:
    """Return a table with some of the columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading in ("age", "size"))
    for row in rows:
        table.add_row(*(row[heading] for heading in headings))
    return table


def _first(differs: Mapping[str, Any], length: int = 120) -> str:
    """Return the first keys with their values, and how many more there are."""
    # The keys of another component come last: its class says more.
    classes = tuple(key.removesuffix("_target_") for key in differs if key.endswith("._target_"))
    ordered = sorted(differs, key=lambda key: key.startswith(classes) and not key.endswith("._target_"))
    words = ["=".join(in_table(key, differs[key])) for key in ordered]
    count = next((n for n in range(len(words), 0, -1) if len(", ".join(words[:n])) <= length), min(len(words), 1))
    return ", ".join(words[:count]) + (f", and {len(words) - count} more" if count < len(words) else "")


def _notes(runs: Sequence[Run]) -> list[str]:
    """Return a line for each state of an experiment's runs that needs one."""
    lines: dict[str, list[int]] = {}
    for run in runs:
        if run.detail or run.problem:
            words = f"{run.state} {run.detail}".strip() if run.detail else f"config.yaml cannot be read: {run.problem}"
            lines.setdefault(words, []).append(run.seed)
    where = runs[0].directory.parent
    return [f"{where}, seed{'s' * (len(seeds) > 1)} {in_words(seeds)}: {words}" for words, seeds in lines.items()]


def _short(text: str) -> str:
    """Return IQM and interval only."""
    return text.partition(", mean")[0].replace("95% interval ", "")

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

from qohort.cli.arguments import arguments_of, check_options, fail, path_of
from qohort.cli.streams import lenient_streams
from qohort.config.errors import ConfigError
from qohort.config.messages import format_value, nearest
from qohort.runs.listing import STATES, Run, age, as_json, differences, groups, in_words, runs_in, size
from qohort.statistics import format_returns

USAGE = """qohort runs [PATH] [env=NAME] [agent=NAME] [state=STATE] [--json]

Lists the runs in PATH (outputs by default). NAME may have * and ?. STATE is one of: """
FILTERS = ("env", "agent", "state")


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
    """Print a table with a line for each experiment, and the reason of each failure."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("env", "experiment", "seeds", "state", "final return", "age", "size", "differs from its preset in"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("age", "size"))
    notes = []
    for some in groups(runs):
        counts = Counter(run.state for run in some)
        scores = [run.score for run in some if run.score is not None]
        config = next((run.config for run in some if run.config is not None), None)
        differs = {} if config is None else differences(config)
        table.add_row(
            some[0].env,
            some[0].experiment,
            in_words([run.seed for run in some]),
            ", ".join(f"{count} {state}" if len(some) > 1 else state for state, count in counts.items()),
            _short(format_returns(scores)) if scores else "",
            age(max(run.modified for run in some)),
            size(sum(run.size for run in some)),
            _first({key: ours for key, (_, ours) in differs.items()}),
        )
        notes += _notes(some)
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(table)
    for note in notes:
        print(note)


def _first(differs: Mapping[str, Any], length: int = 120) -> str:
    """Return the first keys with their values, and how many more there are."""
    words = [f"{key}={format_value(value)}" for key, value in differs.items()]
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

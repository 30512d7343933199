"""The keys in which two runs differ: qohort diff RUN RUN."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qohort.cli.arguments import arguments_of, check_options, fail, path_of
from qohort.cli.streams import lenient_streams
from qohort.config.errors import ConfigError
from qohort.config.identity import config_tree, flat
from qohort.runs.listing import Run, groups, in_table, runs_in

USAGE = """qohort diff RUN RUN

Lists the keys in which two runs differ, with their values, and says whether other code made them. RUN is the directory
of a run, or of an experiment, which stands for its first seed."""
NOT_COMPARED = ("output_dir", "overwrite", "retry_failed", "other_code")


@lenient_streams()
def main() -> None:
    """Print the keys in which two runs differ."""
    arguments = arguments_of(USAGE)
    check_options(arguments, [])
    if len(arguments) != 2:
        fail(f"diff needs two runs, got {len(arguments)}: qohort diff RUN RUN")
    try:
        runs = [_run(path_of(one)) for one in arguments]
    except ConfigError as error:
        fail(str(error))
    trees = [flat(config_tree(run.config)) for run in runs if run.config is not None]
    keys = [key for key in dict.fromkeys([*trees[0], *trees[1]]) if key not in NOT_COMPARED]
    differing = [key for key in keys if trees[0].get(key) != trees[1].get(key)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("key", *_names([run.directory for run in runs])):
        table.add_column(heading, overflow="fold")
    for key in differing:
        name, _ = in_table(key, None)
        table.add_row(name, *(in_table(key, tree[key])[1] if key in tree else "" for tree in trees))
    if any(run.score is not None for run in runs):
        table.add_row("final return", *(run.state if run.score is None else f"{run.score:.1f}" for run in runs))
    if not differing:
        print("the two runs have the same configuration")
    if table.row_count:
        width = None if sys.stdout.isatty() else 160
        Console(file=sys.stdout, width=width, highlight=False).print(table)
    if runs[0].code != runs[1].code:
        print("they were made with different code")


def _names(directories: Sequence[Path]) -> list[str]:
    """Return directories without the parents that they share; the run's own directory always stays."""
    shared = min(len(one.parts) for one in directories) - 1
    while len({one.parts[:shared] for one in directories}) > 1:
        shared -= 1
    return [str(Path(*one.parts[shared:])) for one in directories]


def _run(path: Path) -> Run:
    """Return the run in a directory; for an experiment's directory, that of its first seed.

    Raises:
        ConfigError: If there is none, there are those of several experiments, or its configuration cannot be read.
    """
    found = list(groups(runs_in(path, named=True)))
    if len(found) != 1:
        several = f"those of {len(found)} experiments" if found else "no runs"
        raise ConfigError(f"{path} has {several}: give a run's directory, as qohort runs shows them")
    if found[0][0].config is None:
        raise ConfigError(f"{path} has a config.yaml that this version cannot read: {found[0][0].problem}")
    return found[0][0]

"""Delete runs: qohort rm RUN [RUN ...] [--yes]."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from qohort.cli.arguments import arguments_of, check_options, fail, path_of
from qohort.cli.streams import lenient_streams
from qohort.config.errors import ConfigError
from qohort.runs.directory import RunDirectory
from qohort.runs.listing import Run, groups, in_words, is_locked, runs_in, size

USAGE = """qohort rm RUN [RUN ...] [--yes]

Deletes runs, after asking. RUN is the directory of a run, or of an experiment, which stands for all of its seeds. A run
that a process is training is not deleted. --yes does not ask."""


@lenient_streams()
def main() -> None:
    """Delete runs."""
    arguments = arguments_of(USAGE)
    check_options(arguments, ["--yes"])
    paths = [path_of(one) for one in arguments if one != "--yes"]
    if not paths:
        fail("rm needs a run: qohort rm RUN")
    try:
        runs = [run for path in paths for run in _runs(path)]
    except ConfigError as error:
        fail(str(error))
    for some in groups(runs):
        seeds = in_words([run.seed for run in some])
        print(f"{some[0].directory.parent}, seeds {seeds}: {size(sum(run.size for run in some))}")
    if "--yes" not in arguments and not _agreed(len(runs)):
        print("nothing was deleted")
        sys.exit(1)
    _delete(runs)
    print(f"deleted {len(runs)} {'run' if len(runs) == 1 else 'runs'}")


def _runs(path: Path) -> list[Run]:
    """Return the runs in a directory of a run or of an experiment.

    Raises:
        ConfigError: If it is another directory, one may not be deleted, or a process is training one of them.
    """
    runs = runs_in(path, named=True)
    if not runs or any(run.directory not in (path, path / run.directory.name) for run in runs):
        raise ConfigError(f"{path} is not the directory of a run or of an experiment, as qohort runs shows them")
    for run in runs:
        directory = RunDirectory(run.directory)
        if is_locked(directory):
            raise ConfigError(f"{run.directory} is in use by {directory.holder()}: stop it first")
        for one in (run.directory.resolve(), run.directory.parent):
            if not os.access(one, os.W_OK | os.X_OK):
                raise ConfigError(f"{run.directory} cannot be deleted: you may not write to {one}")
    return runs


def _agreed(count: int) -> bool:
    """Return whether the user wants the runs to be deleted."""
    if not sys.stdin.isatty():
        print("qohort: add --yes to delete them", file=sys.stderr)
        return False
    return input(f"delete {count} {'run' if count == 1 else 'runs'}? [y/N] ").strip().lower() in ("y", "yes")


def _delete(runs: Sequence[Run]) -> None:
    """Delete the directories of runs, and that of an experiment of which nothing is left but its figure."""
    for run in runs:
        directory = RunDirectory(run.directory)
        shutil.rmtree(run.directory.resolve())
        if run.directory.is_symlink():
            run.directory.unlink()
        directory.lock_file.unlink(missing_ok=True)
    for parent in {run.directory.parent for run in runs}:
        if not list(parent.glob("seed-*")):
            shutil.rmtree(parent)

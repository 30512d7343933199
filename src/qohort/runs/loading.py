"""Loads policies: of runs, and exported ones."""

from __future__ import annotations

from pathlib import Path

from qohort.runs.directory import RunDirectory
from qohort.runs.evaluating import read_member, stored_config
from qohort.runs.exported import is_exported, read_exported
from qohort.runs.policy import Policy, policy_of


def load(run: str | Path, checkpoint: str | None = None) -> Policy:
    """Load the policy of a run, from its final checkpoint or else from its newest undamaged one; or an exported policy.

    Loading imports and calls the classes that the configuration names, so load only what you trust.

    Args:
        run: A run directory, `<output_dir>/<env>/<agent>-<hash8>/seed-<n>`, or a directory that `qohort export` wrote.
        checkpoint: A file in the run's `checkpoints/`; None for that choice.

    Raises:
        ConfigError: If it is not a run directory, has no checkpoint, or its environment cannot be made.
    """
    path = Path(run).expanduser()
    if is_exported(path):
        return read_exported(path)
    directory = RunDirectory(path)
    config = stored_config(directory)
    return policy_of(read_member(directory, config, checkpoint), directory, config)

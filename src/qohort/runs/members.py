"""The members of a cohort with their run directories, and the check for results of other code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qohort.cohort.program import usable_mode
from qohort.config.errors import ConfigError
from qohort.config.identity import config_tree
from qohort.config.paths import check_place
from qohort.config.schema import TrainConfig
from qohort.runs.code import code_hash
from qohort.runs.directory import RunDirectory
from qohort.runs.loggers import Sink


@dataclass
class Member:
    """A member of a cohort: its configuration and its run directory."""

    config: TrainConfig
    directory: RunDirectory
    sinks: list[Sink] = field(default_factory=list)
    """What gets the member's rows besides its loggers."""


def members_of(configs: Sequence[TrainConfig]) -> list[Member]:
    """Return the members with these configurations, with `compile` set to a mode that works on this machine.

    Args:
        configs: The configuration of each member of a cohort.
    """
    mode: Any = usable_mode(configs[0].compile)
    ready = [replace(config, compile=mode) for config in configs]
    return [Member(config, RunDirectory.of(config)) for config in ready]


def other_code(member: Member) -> str | None:
    """Return the code hashes of a run then and now, in words; None if the run was made with the current code."""
    then, now = member.directory.code(), code_hash(config_tree(member.config))
    return None if then == now else f"{then or 'unknown'} then, {now} now"


def check_places(members: Sequence[Member]) -> None:
    """Check that the members' directories are there or can be made, permissions apart.

    Raises:
        ConfigError: If not.
    """
    for member in members:
        check_place(member.directory.path.absolute(), str(member.directory.path))


def check_code(members: Sequence[Member]) -> None:
    """Check that interrupted runs were made with the current code, or that `other_code=allow`.

    Raises:
        ConfigError: If an interrupted run was made with other code and `other_code=refuse`.
    """
    for member in members:
        config, directory = member.config, member.directory
        not_resumed = config.overwrite or directory.result() is not None or directory.failure() is not None
        if config.other_code == "allow" or not_resumed or directory.resumable_step() is None:
            continue
        if made := other_code(member):
            raise ConfigError(
                f"{directory.path} is interrupted and was made with other code ({made}): resume it anyway with "
                "other_code=allow, or start over with overwrite=true"
            )

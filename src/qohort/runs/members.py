"""The members of a cohort as runs: where each goes, and whether this code may go on with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from qohort.cohort.program import usable_mode
from qohort.config.errors import ConfigError
from qohort.config.identity import config_tree
from qohort.config.schema import TrainConfig
from qohort.runs.code import code_hash
from qohort.runs.directory import RunDirectory


@dataclass
class Member:
    """A member of a cohort: what it is and where it goes."""

    config: TrainConfig
    directory: RunDirectory


def members_of(configs: Sequence[TrainConfig]) -> list[Member]:
    """The members with these configurations, and where they go."""
    mode: Any = usable_mode(configs[0].compile)
    ready = [replace(config, compile=mode) for config in configs]
    return [Member(config, RunDirectory.of(config)) for config in ready]


def other_code(member: Member) -> str | None:
    """How the code that made a run differs from the code that runs now, in words; None where it does not."""
    then, now = member.directory.code(), code_hash(config_tree(member.config))
    return None if then == now else f"{then or 'unknown'} then, {now} now"


def check_code(members: Sequence[Member]) -> None:
    """Refuse to resume what other code has begun.

    Raises:
        ConfigError: If a run is interrupted, was made with other code, and `other_code` does not allow it.
    """
    for member in members:
        config, directory = member.config, member.directory
        begins = config.overwrite or directory.result() is not None or directory.failure() is not None
        if config.other_code == "allow" or begins or directory.resumable_step() is None:
            continue
        if made := other_code(member):
            raise ConfigError(
                f"{directory.path} is interrupted and was made with other code ({made}): other_code=allow resumes it all "
                "the same, overwrite=true starts over"
            )

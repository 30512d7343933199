"""Checks a configuration before anything is made of it."""

from __future__ import annotations

from omegaconf import DictConfig

from qohort.config.members import check_config
from qohort.runs.checking import check_accelerator, check_bits, check_environment, check_tracking
from qohort.runs.members import Member, check_code, check_places, members_of
from qohort.runs.room import check_room


def prepare(config: DictConfig, resumes: bool = True) -> list[Member]:
    """Check a configuration and its environment, and return its members. Nothing is written.

    Args:
        config: The composed configuration.
        resumes: Whether to refuse interrupted runs that were made with other code.

    Raises:
        ConfigError: On the first mistake.
    """
    configs = check_config(config)
    check_bits(configs[0])
    check_accelerator(configs[0])
    check_tracking(configs[0])
    members = members_of(configs)
    check_places(members)
    if resumes:
        check_code(members)
    spaces = check_environment(configs[0])
    if unfinished := [member for member in members if member.config.overwrite or member.directory.result() is None]:
        check_room(unfinished, *spaces)
    return members

"""Qohort from Python: `qohort.compose`, `qohort.train` and `qohort.load`."""

from __future__ import annotations

from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from qohort.config.composition import Sources, parser_of, project_directory
from qohort.config.errors import ConfigError
from qohort.config.mistakes import plain
from qohort.runs.loading import load
from qohort.runs.policy import Policy

__all__ = ["Policy", "compose", "load", "train"]


def compose(*overrides: str) -> DictConfig:
    """Return the configuration of a run, as the command line composes it.

    Args:
        overrides: Settings as on the command line, for example `"agent=rainbow"`, `"seed=[0,1,2]"`.

    Raises:
        ConfigError: If there is no such option or key.
    """
    sources = Sources("train", project=project_directory())
    try:
        with parser_of(sources):
            return hydra.compose("train", list(overrides))
    except HydraException as error:
        raise ConfigError(plain(str(error))) from error


def train(*overrides: str) -> list[dict[str, Any]]:
    """Train a cohort, as `qohort train` does, and return the content of `result.json` of each member.

    A run that is finished is not trained again, and one that was interrupted is resumed.

    Args:
        overrides: Settings as on the command line.

    Raises:
        ConfigError: If the configuration is invalid; nothing was written.
        RunsFailed: If members have failed; the others are finished.
    """
    from qohort.runs.training import train as train_members

    return train_members(compose(*overrides))

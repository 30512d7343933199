"""Qohort from Python: `qohort.compose`, `qohort.train` and `qohort.load`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import hydra
from omegaconf import DictConfig

from qohort.config.composition import Sources, parser_of, project_directory
from qohort.config.errors import ConfigError
from qohort.config.mistakes import explain
from qohort.config.overrides import check_choices, parse_override
from qohort.runs.loading import load
from qohort.runs.policy import Policy

__all__ = ["Policy", "compose", "load", "train"]

EXAMPLE = 'qohort.train("env=acrobot", "seed=3")'


def compose(*overrides: str) -> DictConfig:
    """Return the configuration of a run, as the command line composes it.

    Args:
        overrides: Settings as on the command line, for example `"agent=rainbow"`, `"seed=[0,1,2]"`.

    Raises:
        ConfigError: If there is no such option or key. The messages are those of the command line.
    """
    _check_words(overrides)
    sources = Sources("train", project=project_directory())
    with parser_of(sources) as parser:
        parsed = [parse_override(parser, text) for text in overrides]
        for one in parsed:
            if one.is_sweep_override():
                raise ConfigError(
                    f"{one.input_line} is a sweep, which is for the command line, qohort train -m: give one value"
                )
        check_choices(parsed, sources)
        try:
            return hydra.compose("train", list(overrides))
        except Exception as error:
            told = explain(error, overrides, sources)
    raise told


def _check_words(overrides: Sequence[object]) -> None:
    """Check that overrides are texts, and none of them an option of the command.

    Raises:
        ConfigError: If not.
    """
    for one in overrides:
        if not isinstance(one, str) or re.match(r"[\w.]+=\S+ +[\w.]+=", one):
            raise ConfigError(f"{one!r} is not one override: give each as a string of its own, as in {EXAMPLE}")
        if one in ("-m", "--multirun"):
            raise ConfigError(f"{one} is for the command line: a sweep is qohort train -m there")
        if one.startswith("-"):
            raise ConfigError(f"{one} is an option of the command line: give overrides only, as in {EXAMPLE}")


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

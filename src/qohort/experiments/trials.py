"""Trials: runs with the same settings on several seeds."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

from qohort.config.annotations import Range, Sized
from qohort.config.composition import override
from qohort.config.errors import ConfigError
from qohort.config.members import check_config
from qohort.config.messages import format_value
from qohort.config.mistakes import compose
from qohort.config.schema import TrainConfig
from qohort.runs.members import Member

Settings = Mapping[str, Any]
"""Values by key of `conf/train.yaml`, as on the command line of `qohort train`."""


Seeds = Annotated[Sequence[Annotated[int, Range(0, 2**63 - 1)]], Sized(1)]
"""The seeds of a trial."""


class Trial(NamedTuple):
    """Runs that differ in their seed alone.

    Attributes:
        settings: Everything that they set but the seed, `output_dir` and `budget` included.
        seeds: The seed of each run.
    """

    settings: Settings
    seeds: tuple[int, ...]


def check_name(name: str) -> None:
    """Check the name of a study, which is that of its files.

    Raises:
        ConfigError: If it cannot be.
    """
    if not re.fullmatch(r"\w[\w-]*(/\w[\w-]*)*", name):
        raise ConfigError(f"name={name} is not a file name: use letters, digits, _ and -, with / for a folder")


def check_seeds(seeds: Mapping[str, Seeds]) -> None:
    """Check that no key has a seed twice.

    Args:
        seeds: The seeds by key.

    Raises:
        ConfigError: If one has.
    """
    for key, some in seeds.items():
        if len(set(some)) < len(some):
            raise ConfigError(f"{key}={format_value(some)} has a seed twice: each run needs a different seed")


def trial_configs(trial: Trial) -> list[TrainConfig]:
    """Return the configuration of each run of a trial.

    Raises:
        ConfigError: If the configuration is invalid.
    """
    settings = dict(trial.settings)
    output_dir = settings.pop("output_dir")
    config = _config_of(tuple(override(key, value) for key, value in settings.items()))
    return [replace(config, seed=seed, output_dir=output_dir) for seed in trial.seeds]


@functools.cache  # composing takes a tenth of a second, and each trial is composed several times
def _config_of(texts: tuple[str, ...]) -> TrainConfig:
    return check_config(compose("train", [*texts, "seed=0"]))[0]


def is_done(member: Member) -> bool:
    """Return whether a member is finished or has failed."""
    return member.directory.result() is not None or member.directory.failure() is not None


def counted(number: int, thing: str) -> str:
    """Return a number of things in words."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"

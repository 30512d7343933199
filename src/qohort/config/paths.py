"""TODO config.paths."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

from qohort.config.errors import ConfigError
from qohort.config.schema import TrainConfig


def check_output(config: TrainConfig) -> None:
    """Check that `output_dir` is a directory, or can become one.

    Raises:
        ConfigError: If it cannot be written.
    """
    check_directory("output_dir", config.output_dir)


def check_directory(key: str, value: str) -> None:
    """Check that the directory that a key names is one, or can become one.

    Raises:
        ConfigError: If it cannot be written.
    """
    path = Path(value).absolute()
    try:
        existing = next(one for one in (path, *path.parents) if one.exists())
    except OSError as error:  # a name too long
        raise ConfigError(f"{key}={value} cannot be made: {error.strerror}") from error
    if not existing.is_dir():
        raise ConfigError(f"{key}={value} cannot be made: {existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{key}={value} cannot be written: you may not write to {existing}")

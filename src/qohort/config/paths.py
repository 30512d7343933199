"""Checks that output directories can be created and written."""

from __future__ import annotations

import os
from pathlib import Path

from qohort.config.errors import ConfigError
from qohort.config.schema import TrainConfig


def check_output(config: TrainConfig) -> None:
    """Check that `output_dir` is a writable directory or can be created.

    Raises:
        ConfigError: If it is not.
    """
    check_directory("output_dir", config.output_dir)


def check_directory(key: str, value: str) -> None:
    """Check that a path is a writable directory or can be created.

    Args:
        key: The configuration key, for messages.
        value: The path.

    Raises:
        ConfigError: If it is not.
    """
    path = Path(value).absolute()
    try:
        existing = next(one for one in (path, *path.parents) if one.exists())
    except OSError as error:  # e.g. the name is too long
        raise ConfigError(f"{key}={value} cannot be made: {error.strerror}") from error
    if not existing.is_dir():
        raise ConfigError(f"{key}={value} cannot be made: {existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{key}={value} cannot be written: you may not write to {existing}")

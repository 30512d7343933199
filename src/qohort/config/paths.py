"""Checks that output directories can be created and written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qohort.config.errors import ConfigError
from qohort.config.schema import TrainConfig

PATH_KEYS = ("output_dir", "reports_dir", "run", "runs", "external", "style", "to", "ledger_dir")
"""Keys that are paths."""
HUB = "hub:"
"""What `to` begins with if it is not a path but the name of a repository of the Hugging Face Hub."""


def expand_paths(config: DictConfig) -> None:
    """Replace `~` in the configuration's paths, and make them absolute if Hydra has changed the directory.

    With `hydra.job.chdir=true` Hydra runs a job in a directory of its own, but a path is meant from where the command
    was typed.

    Args:
        config: The composed configuration; it is changed.
    """
    moved = HydraConfig.initialized() and bool(HydraConfig.get().job.chdir)
    for key in PATH_KEYS:
        try:
            value = OmegaConf.select(config, key)
        except OmegaConfBaseException:  # it is reported when all keys are resolved
            continue
        start = Path(HydraConfig.get().runtime.cwd) if moved else Path()
        if isinstance(value, str) and value and not value.startswith(HUB):
            config[key] = str(start / Path(value).expanduser())
        elif isinstance(value, ListConfig) and all(isinstance(one, str) for one in value):
            config[key] = [str(start / Path(one).expanduser()) for one in value]


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
    existing = check_place(path, f"{key}={value}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{key}={value} cannot be written: you may not write to {existing}")


def check_place(path: Path, name: str) -> Path:
    """Check that a directory is there or can be made, permissions apart, and return what of its path is there.

    Args:
        path: An absolute path.
        name: What a message calls it.

    Raises:
        ConfigError: If not.
    """
    try:
        existing = next(one for one in (path, *path.parents) if _is_there(one))
        if not existing.is_dir():
            what = "a link to nowhere" if existing.is_symlink() and not existing.exists() else "not a directory"
            raise ConfigError(f"{name} cannot be made: {existing} is {what}")
    except OSError as error:  # e.g. the name is too long
        raise ConfigError(f"{name} cannot be made: {error.strerror}") from error
    return existing


def _is_there(path: Path) -> bool:
    """Return whether a path is there; a link to nowhere is."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def check_writable(key: str, value: str) -> None:
    """Check the same as `check_directory`, and that a directory can be made, which permissions alone do not say.

    Args:
        key: The configuration key, for messages.
        value: The path.

    Raises:
        ConfigError: If not.
    """
    check_directory(key, value)
    existing = next(one for one in (Path(value).absolute(), *Path(value).absolute().parents) if one.exists())
    try:
        os.rmdir(tempfile.mkdtemp(dir=existing, prefix=".qohort-"))
    except OSError as error:
        raise ConfigError(f"{key}={value} cannot be written: no directory can be made in {existing}") from error

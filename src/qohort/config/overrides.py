"""Parses overrides and checks that the options they choose exist."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import ListConfig

from qohort.config.composition import Sources, groups_of, options_of
from qohort.config.errors import ConfigError
from qohort.config.messages import format_value, nearest

LAUNCHERS = {
    "joblib": ("joblib", "joblib"),
    "ray": ("ray", "ray"),
    "submitit_local": ("submitit", "slurm"),
    "submitit_slurm": ("submitit", "slurm"),
}
"""For each launcher that Hydra does not include: its plugin, and the extra of Qohort that installs it."""


def parse_override(parser: OverridesParser, text: str) -> Override:
    """Parse one override.

    Args:
        parser: Hydra's parser.
        text: The override, as on the command line.

    Raises:
        ConfigError: If it cannot be parsed.
    """
    if not re.match(r"~.|[+]{0,2}[^=+~]+=", text):
        raise ConfigError(f"{text!r} is not a setting: write key=value")
    try:
        override = parser.parse_overrides([text])[0]
    except HydraException as error:
        raise ConfigError(
            f"{text!r} cannot be read: write key=value with no space around =, close every bracket and quote, "
            "and quote special characters"
        ) from error
    if override.package is not None:
        raise ConfigError(f"{text!r} names a package with @, which is not supported: write {override.key_or_group}=...")
    return override


HYDRA_GROUPS = (
    "hydra/launcher",
    "hydra/sweeper",
    "hydra/job_logging",
    "hydra/hydra_logging",
    "hydra/output",
    "hydra/env",
)
"""The groups of Hydra's own settings that a command line may choose of."""


def check_choices(overrides: Sequence[Override], sources: Sources) -> None:
    """Check that the options that overrides choose exist.

    Args:
        overrides: The overrides of one job.
        sources: The files of the configuration.

    Raises:
        ConfigError: If an option does not exist, or its override has the wrong form.
    """
    defaults = groups_of(sources)
    for override in overrides:
        group = override.key_or_group
        if group == "hydra/launcher":
            _check_launcher(str(override.value()))
        if group.startswith("hydra/") and group not in HYDRA_GROUPS and not options_of(group, sources):
            raise ConfigError(
                f"{override.input_line} chooses of a group that Hydra lacks: {nearest(group, HYDRA_GROUPS)}"
            )
        options = options_of(group, sources) if group in defaults else []
        if not options or override.is_sweep_override():
            continue
        if override.is_delete():
            raise ConfigError(
                f"{override.input_line} deletes a group that is needed: write {group}=NAME with one of "
                f"{', '.join(options)}"
            )
        if override.is_add():
            raise ConfigError(
                f"{override.input_line} adds a group that exists already: write {group}=NAME without the +"
            )
        value: Any = override.value()
        if isinstance(value, list) and len(value) > 1 and not isinstance(defaults[group], ListConfig):
            names = ",".join(map(str, value))
            raise ConfigError(
                f"{group}={format_value(value)} is a list: choose one, or run each with -m {group}={names}"
            )
        if value is None and defaults[group] is None:
            continue
        for choice in value if isinstance(value, list) else [value]:
            if choice not in options and "${" not in str(choice):
                name = str(choice).removesuffix(".yaml").removeprefix(f"{group}/")
                keys = f"; set keys one by one, as {group}.{next(iter(choice))}=VALUE" if _has_keys(choice) else ""
                raise ConfigError(
                    f"{group}={format_value(choice)} is not one of the choices: {nearest(name, options)}{keys}"
                )


def _has_keys(value: Any) -> bool:
    return isinstance(value, dict) and bool(value)


def _check_launcher(name: str) -> None:
    """Check that the plugin of a launcher is installed.

    Raises:
        ConfigError: If it is not.
    """
    plugin, extra = LAUNCHERS.get(name, ("", ""))
    if extra and find_spec(f"hydra_plugins.hydra_{plugin}_launcher") is None:
        raise ConfigError(f"hydra/launcher={name} needs a plugin that is not installed: pip install 'qohort[{extra}]'")

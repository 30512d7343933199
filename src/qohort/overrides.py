"""Reading overrides: what each says, the jobs that a sweep of them makes, and whether what they choose is there."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import ListConfig

from qohort.checking import nearest, show
from qohort.composition import Sources, groups_of, options_of
from qohort.errors import ConfigError

LAUNCHERS = {
    "joblib": ("joblib", "joblib"),
    "ray": ("ray", "ray"),
    "submitit_local": ("submitit", "slurm"),
    "submitit_slurm": ("submitit", "slurm"),
}
"""Of each launcher that is not Hydra's own: its plugin, and our extra that brings it."""


def parse_override(parser: OverridesParser, text: str) -> Override:
    """One override.

    Raises:
        ConfigError: If it is none.
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


def jobs_of(texts: Sequence[str], parse: Callable[[str], Override], search: Sequence[str]) -> Iterator[list[str]]:
    """The overrides of each job of a sweep, but those that differ only in their seed as one.

    Args:
        texts: The overrides of the command line.
        parse: Reads one.
        search: An override that tells where else configurations are.
    """
    from qohort.ablation import asked, cells

    ablations = asked(texts, GlobalHydra.instance().config_loader(), search)
    for some in [cell.overrides for ablation in ablations for cell in cells(ablation)] if ablations else [texts]:
        for job in itertools.product(*(_values(parse(text)) for text in some)):
            yield list(job)


def _values(override: Override) -> list[str]:
    """An override with each value that it sweeps over."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():  # an interval, for a sweeper that can draw from it: its ends
        interval: Any = override.value()
        return [f"{key}={interval.start}", f"{key}={interval.end}"]
    try:
        values = list(override.sweep_string_iterator())
    except (HydraException, ValueError, TypeError) as error:
        raise ConfigError(
            f"{override.input_line} is no sweep: give plain values, as {key}=A,B, or one range, choice or glob"
        ) from error
    if not values:
        raise ConfigError(f"{override.input_line} has no values to sweep over")
    if key == "seed" and not any(value.startswith("[") for value in values):
        return [f"seed=[{','.join(values)}]"]
    return [f"{key}={value}" for value in values]


def check_choices(overrides: Sequence[Override], sources: Sources) -> None:
    """Check that what is chosen of a group is there.

    Raises:
        ConfigError: If it is not.
    """
    defaults = groups_of(sources)
    for override in overrides:
        group = override.key_or_group
        if group == "hydra/launcher":
            _check_launcher(str(override.value()))
        options = options_of(group, sources) if group in defaults else []
        if not options or override.is_sweep_override():
            continue
        if override.is_delete():
            raise ConfigError(
                f"{override.input_line} takes away what is needed: choose with {group}=NAME among {', '.join(options)}"
            )
        if override.is_add():
            raise ConfigError(f"{override.input_line} adds what is there already: write {group}=NAME without the +")
        value: Any = override.value()
        if isinstance(value, list) and len(value) > 1 and not isinstance(defaults[group], ListConfig):
            names = ",".join(map(str, value))
            raise ConfigError(f"{group}={show(value)} is a list: choose one, or run each with -m {group}={names}")
        for choice in value if isinstance(value, list) else [value]:
            if choice not in options and "${" not in str(choice):
                raise ConfigError(f"{group}={show(choice)} is not one of the choices: {nearest(str(choice), options)}")


def _check_launcher(name: str) -> None:
    """Check that the plugin of a launcher is installed.

    Raises:
        ConfigError: If it is not.
    """
    plugin, extra = LAUNCHERS.get(name, ("", ""))
    if extra and find_spec(f"hydra_plugins.hydra_{plugin}_launcher") is None:
        raise ConfigError(f"hydra/launcher={name} needs a plugin that is not installed: pip install 'qohort[{extra}]'")

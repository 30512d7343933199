"""Expands the overrides of a sweep into the overrides of its jobs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from qohort.config.errors import ConfigError


def jobs_of(texts: Sequence[str], parse: Callable[[str], Override], search: Sequence[str]) -> Iterator[list[str]]:
    """Yield the overrides of each job of a sweep. Jobs that differ only in their seed are yielded as one.

    Args:
        texts: The overrides of the command line.
        parse: Parses one override.
        search: The override that adds a directory to Hydra's search path, if there is one.

    Raises:
        ConfigError: If an ablation or a sweep cannot be read.
    """
    from qohort.experiments.ablation import ablations_in, cells

    ablations = ablations_in(texts, GlobalHydra.instance().config_loader(), search)
    for some in [cell.overrides for ablation in ablations for cell in cells(ablation)] if ablations else [texts]:
        for job in itertools.product(*(_values(parse(text)) for text in some)):
            yield list(job)


def _values(override: Override) -> list[str]:
    """Return one override for each value that an override sweeps over."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():  # an interval, for a sweeper that can sample from it: its two bounds
        interval: Any = override.value()
        return [f"{key}={interval.start}", f"{key}={interval.end}"]
    try:
        values = list(override.sweep_string_iterator())
    except (HydraException, ValueError, TypeError) as error:
        raise ConfigError(
            f"{override.input_line} is not a sweep: give plain values, as {key}=A,B, or one range, choice or glob"
        ) from error
    if not values:
        raise ConfigError(f"{override.input_line} has no values to sweep over")
    if key == "seed" and not any(value.startswith("[") for value in values):
        return [f"seed=[{','.join(values)}]"]
    return [f"{key}={value}" for value in values]

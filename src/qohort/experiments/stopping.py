"""When the arms of an ablation stop: the keys `until` and `sequential` of a manifest and of the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from hydra.core.override_parser.types import Override

from qohort.config.annotations import PositiveInt, Range
from qohort.config.errors import ConfigError

UNTIL = "until"
GROUP = "sequential"
DEFAULTS: Mapping[str, Any] = {"max_seeds": None, "seeds_per_group": 5, "margin": None, "alpha": 0.05}


@dataclass(frozen=True)
class SequentialConfig:
    """How arms are stopped with `until=decided` (`qohort.sequential`).

    Attributes:
        max_seeds: Number of seeds at which every arm stops; None for all seeds of the manifest.
        seeds_per_group: Number of seeds between tests.
        margin: Mean difference of normalised scores below which arms are equivalent; None to not test equivalence.
        alpha: Family-wise error over all arms and environments.
    """

    max_seeds: PositiveInt | None
    seeds_per_group: PositiveInt
    margin: Annotated[float, Range(0, above=True)] | None
    alpha: Annotated[float, Range(0, 1, above=True, below=True)]


def is_stopping_key(override: Override) -> bool:
    """Return whether an override sets `until` or a key of `sequential`, which are not keys of a run."""
    return override.key_or_group.partition(".")[0] in (UNTIL, GROUP)


def with_stopping(tree: Mapping[str, Any], overrides: Sequence[Override]) -> dict[str, Any]:
    """Return a manifest with `until` and all keys of `sequential`: those of overrides, its own and the defaults.

    Args:
        tree: The manifest.
        overrides: Overrides of the command line; others are ignored.

    Raises:
        ConfigError: If an override of these keys does not have the form key=value, with one value.
    """
    until, own = tree.get(UNTIL), tree.get(GROUP, {})
    if not isinstance(own, Mapping):
        return {**tree, UNTIL: until}
    settings = {**DEFAULTS, **own}
    for override in filter(is_stopping_key, overrides):
        key = override.key_or_group.partition(".")[2]
        if override.is_delete() or override.is_add() or override.is_sweep_override() or override.key_or_group == GROUP:
            raise ConfigError(
                f"{override.input_line} has not the right form: write {UNTIL}=decided, {UNTIL}=seeds or "
                f"{GROUP}.KEY=VALUE with KEY one of {', '.join(DEFAULTS)}"
            )
        if key:
            settings[key] = override.value()
        else:
            until = override.value()
    return {**tree, UNTIL: until, GROUP: settings}

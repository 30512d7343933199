"""Folding: the numbers, besides the seed, in which the members of a cohort may differ.

A component declares them as a class attribute: `foldable = ("tau",)` lets each member have its own `tau`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qohort.config.errors import ConfigError
from qohort.config.targets import locate

RUN_NUMBERS = ("gamma", "max_grad_norm")
"""Keys of the run itself, not of a component, that may differ between members."""

GROUPS = ("optimizer", "lr_schedule", "exploration", "bootstrap", "target_network")
"""The groups whose components may declare foldable numbers."""


def foldable_keys(config: Mapping[str, Any]) -> list[str]:
    """Return the keys in which the members of a cohort may differ, for the components of a configuration.

    Args:
        config: The configuration as nested mappings; nodes with a `_target_` are components.
    """
    keys = list(RUN_NUMBERS)
    for group in GROUPS:
        if group in config:
            keys += _declared(config[group], group)
    if "optimizer.lr" not in keys:  # then all members share one learning rate, and so its schedule
        keys = [key for key in keys if not key.startswith("lr_schedule.")]
    return keys


def _declared(node: Any, path: str) -> Iterator[str]:
    """Yield the keys of the numbers that a component and its nested components declare foldable."""
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        return
    try:
        component = locate(node["_target_"], path)
    except ConfigError:  # the checks of the configuration report it
        return
    for name in getattr(component, "foldable", ()):
        if name not in node:
            continue
        if isinstance(node[name], Mapping):
            yield from _declared(node[name], f"{path}.{name}")
        else:
            yield f"{path}.{name}"

"""Folding: in which numbers, besides the seed, the members of one cohort may differ.

A component declares its own: `foldable = ("tau",)` in its class names the numbers of it that a member may hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qohort.config.checks import locate
from qohort.config.errors import ConfigError

RUN_NUMBERS = ("gamma", "max_grad_norm")
"""Numbers of a run itself, not of a component, that each member holds."""

GROUPS = ("optimizer", "lr_schedule", "exploration", "bootstrap", "target_network")
"""The groups whose components may declare foldable numbers."""


def foldable_keys(config: Mapping[str, Any]) -> list[str]:
    """The keys in which the members of a cohort may differ under a configuration.

    Args:
        config: A configuration as nested mappings; nodes with a `_target_` are components.
    """
    keys = list(RUN_NUMBERS)
    for group in GROUPS:
        if group in config:
            keys += _declared(config[group], group)
    if "optimizer.lr" not in keys:  # then one learning rate is shared by all members, and so is its schedule
        keys = [key for key in keys if not key.startswith("lr_schedule.")]
    return keys


def _declared(node: Any, path: str) -> Iterator[str]:
    """The numbers that a component, or a component within it, declares."""
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        return
    try:
        component = locate(node["_target_"], path)
    except ConfigError:  # the checks of the configuration say what is wrong with it
        return
    for name in getattr(component, "foldable", ()):
        if name not in node:
            continue
        if isinstance(node[name], Mapping):
            yield from _declared(node[name], f"{path}.{name}")
        else:
            yield f"{path}.{name}"

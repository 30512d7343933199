"""Labels: the name of a run in directories, tables and figures.

A label is the name of the agent's preset followed by the switches that differ from it: `agent=dqn bootstrap=double` is
`dqn+double`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from qohort.config.composition import Sources, parser_of

GROUPS = ("bootstrap", "head", "replay", "target_network", "exploration", "optimizer")
"""The groups that define an agent. Networks and environments belong to the task."""

_presets: dict[str, Mapping[str, Any]] = {}


def label_of(config: DictConfig) -> Any:
    """Return the label of a composed configuration; its `agent` unchanged if that is not the name of a preset."""
    agent = config.get("agent")
    preset = _preset(agent) if isinstance(agent, str) else None
    if not preset:
        return agent
    tree: Any = OmegaConf.to_container(config)
    return "+".join((agent, *_departures(preset, tree)))


def _departures(preset: Mapping[str, Any], tree: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the switches that differ from the preset."""
    for group in GROUPS:
        name = _choice(tree, group)
        if name is not None and name != _choice(preset, group):
            yield name
    n_step = _value(tree, "replay", "n_step", 1)
    if n_step != _value(preset, "replay", "n_step", 1):
        yield f"{n_step}-step"
    for flag in ("dueling", "noisy"):
        value = bool(_value(tree, "network", flag, False))
        if value != bool(_value(preset, "network", flag, False)):
            yield flag if value else f"no_{flag}"


def _choice(tree: Mapping[str, Any], group: str) -> str | None:
    """Return the chosen option of a group: its class in snake case, or the loss of a head that has a `loss`."""
    target, loss = _value(tree, group, "_target_", None), _value(tree, group, "loss", None)
    if not isinstance(target, str):
        return None
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", target.rpartition(".")[2]).lower()
    return loss if group == "head" and isinstance(loss, str) else words


def _value(tree: Mapping[str, Any], group: str, key: str, default: Any) -> Any:
    node = tree.get(group)
    return node.get(key, default) if isinstance(node, Mapping) else default


def _preset(agent: str) -> Mapping[str, Any] | None:
    """Return the configuration of a preset without overrides; None if there is no such preset."""
    if agent not in _presets:
        if GlobalHydra.instance().is_initialized():
            _presets[agent] = _compose(agent)
        else:
            with parser_of(Sources("train")):
                _presets[agent] = _compose(agent)
    return _presets[agent] or None


def _compose(agent: str) -> Mapping[str, Any]:
    loader = GlobalHydra.instance().config_loader()
    if agent not in loader.get_group_options("agent"):
        return {}
    composed = loader.load_configuration("train", [f"agent={agent}"], run_mode=RunMode.RUN, from_shell=False)
    tree: Any = OmegaConf.to_container(composed)
    return tree if tree.get("agent") == agent else {}

"""Writes settings as an experiment file, so that they can be used as `experiment=<name>`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import yaml
from omegaconf import OmegaConf


def experiment_text(settings: Mapping[str, Any], groups: Collection[str], header: Sequence[str]) -> str:
    """Return the content of an experiment file.

    Args:
        settings: Values by key, as on the command line. `experiment` names the experiment file that they extend.
        groups: The keys that are groups.
        header: Lines of the comment at the top of the file.
    """
    base = settings.get("experiment")
    defaults: list[Any] = [] if base is None else [f"/experiment/{base}"]
    tree = OmegaConf.create()
    for key, value in settings.items():
        if key in groups:
            defaults += [] if key == "experiment" else [{f"override /{key}": value}]
        else:
            OmegaConf.update(tree, key.lstrip("+"), value)
    parts = ["# @package _global_\n", *(f"# {line}\n" for line in header)]
    if defaults:
        parts.append(_yaml({"defaults": defaults}) + "\n")
    return "".join([*parts, _yaml(OmegaConf.to_container(tree))])


class _Dumper(yaml.SafeDumper):
    """Writes lists of scalars in one line and everything else with one entry per line, indented."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent the elements of a list too."""
        super().increase_indent(flow, False)


def _represent_list(dumper: _Dumper, values: list[Any]) -> yaml.Node:
    flat = not any(isinstance(value, list | dict) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=flat)


_Dumper.add_representer(list, _represent_list)


def _yaml(tree: Any) -> str:
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)

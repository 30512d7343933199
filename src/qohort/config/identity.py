"""Identity of an experiment: runs with the same `hash8` share a directory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from qohort.config.schema import TrainConfig, evaluation_interval

NOT_HASHED = (
    *("seed", "output_dir", "overwrite", "retry_failed", "other_code"),
    *("logger", "log_every", "checkpoint", "trainer", "bits"),
)
"""Keys that do not identify an experiment: seed, paths, logging, checkpoints, Trainer and bits."""


ADDED: Mapping[str, Mapping[str, Any]] = {
    "MLP": {"dueling_gradient": 1.0, "initialization": "torch"},
    "ConvNetwork": {"spectral_norm": False, "pool": None, "dueling_gradient": 1.0},
    "HardTarget": {"per": "env_steps"},
    "LinearSchedule": {"delay": 0},
    "PrioritizedReplay": {"new_priority": "current"},
    "ImpalaNetwork": {"layer_norm": False, "spectral_norm": False, "pool": None, "dueling_gradient": 1.0},
}
"""The keys of Qohort's classes that are younger than `hash8`, with their defaults."""


def config_tree(config: TrainConfig) -> dict[str, Any]:
    """Return a member's configuration as nested mappings, the content of `config.yaml`."""
    return dataclasses.asdict(config)


def experiment_tree(config: TrainConfig) -> dict[str, Any]:
    """Return the part of a configuration that identifies the experiment: all keys but `NOT_HASHED`."""
    tree = {key: value for key, value in config_tree(config).items() if key not in NOT_HASHED}
    del tree["env"]["deterministic"]  # a check, which does not change what is learned
    del tree["env"]["workers"]  # processes, which change no bit
    del tree["evaluation"]["video_at"]  # videos, which change no bit
    for key, default in (("env", {}), ("still_steps", None)):
        if tree["evaluation"][key] == default:
            del tree["evaluation"][key]
    if not config.info_metrics:
        del tree["info_metrics"]
    if not config.env.action_mask:
        del tree["env"]["action_mask"]
    if config.env.frame_stack == 1:
        del tree["env"]["frame_stack"], tree["env"]["frame_padding"]
    return tree


def config_hash(config: TrainConfig) -> str:
    """Return `hash8`, the eight hexadecimal digits that identify an experiment in directory names.

    Omitted keys count as set to their defaults, which `qohort.config.checks` fills in. Qohort's own classes are hashed
    by name without their module, so that moving a file does not rename a run. Nor does a key that was added since, if
    it is at its default (`ADDED`).
    """
    tree = _without_added(_without_modules(experiment_tree(config)))
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _without_modules(node: Any) -> Any:
    """Return a configuration in which Qohort's classes and environment ids have no module."""
    if isinstance(node, Mapping):
        return {key: _without_modules(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_without_modules(value) for value in node]
    if isinstance(node, str) and node.startswith("qohort."):
        return node.rpartition(":" if ":" in node else ".")[2]
    return node


def _without_added(node: Any) -> Any:
    """Return a configuration without the keys of `ADDED` that have their default."""
    if isinstance(node, list):
        return [_without_added(value) for value in node]
    if not isinstance(node, Mapping):
        return node
    added = ADDED.get(str(node.get("_target_")), {})
    return {key: _without_added(value) for key, value in node.items() if key not in added or value != added[key]}


def config_difference(theirs: TrainConfig, ours: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Return the keys in which two experiments differ, with both values; None for a key that one does not have.

    The label of the arm is not compared.

    Args:
        theirs: The configuration of the first value of each pair.
        ours: The configuration of the second value of each pair.
    """
    one, other = named_keys([dataclasses.replace(config, agent="-") for config in (theirs, ours)])
    keys = dict.fromkeys((*one, *other))
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def named_keys(configs: Sequence[TrainConfig]) -> list[dict[str, Any]]:
    """Return the keys of each `experiment_tree`, with dots, by whose values experiments are told apart.

    `evaluation.every` is left out if it follows the budget in all of them: they differ in their budget then.

    Args:
        configs: The configurations of experiments that are compared.
    """
    trees = [flat(experiment_tree(config)) for config in configs]
    if all(config.evaluation.every == evaluation_interval(config.budget) for config in configs):
        for tree in trees:
            del tree["evaluation.every"]
    return trees


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping with dotted keys."""
    pairs: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            pairs.update(flat(value, f"{prefix}{key}."))
        else:
            pairs[f"{prefix}{key}"] = value
    return pairs

"""Identity: which runs are the same experiment, and so share a directory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from qohort.config.schema import TrainConfig

NOT_HASHED = (
    *("seed", "output_dir", "overwrite", "retry_failed", "other_code"),
    *("logger", "log_every", "checkpoint", "trainer"),
)
"""Keys that do not say what an experiment is: the seed, paths, logging, progress, the device, checkpoints."""


def config_tree(config: TrainConfig) -> dict[str, Any]:
    """A member's configuration as plain mappings, as `config.yaml` holds it."""
    return dataclasses.asdict(config)


def experiment_tree(config: TrainConfig) -> dict[str, Any]:
    """The part of a configuration that says what an experiment is."""
    return {key: value for key, value in config_tree(config).items() if key not in NOT_HASHED}


def config_hash(config: TrainConfig) -> str:
    """Eight hexadecimal digits of what an experiment is, `hash8` in the names of directories.

    Keys that a configuration leaves out count as their defaults (`qohort.config.checks` fills them in), and Qohort's
    own classes by their names without their modules: moving a file renames no run.
    """
    tree = _without_modules(experiment_tree(config))
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _without_modules(node: Any) -> Any:
    """A configuration in which Qohort's classes, and the ids of its environments, have no module."""
    if isinstance(node, Mapping):
        return {key: _without_modules(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_without_modules(value) for value in node]
    if isinstance(node, str) and node.startswith("qohort."):
        return node.rpartition(":" if ":" in node else ".")[2]
    return node

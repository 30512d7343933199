"""TODO config.identity."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass

from qohort.config.schema import TrainConfig

NOT_HASHED = ("seed", "output_dir", "overwrite", "retry_failed", "logger", "checkpoint")
"""What changes neither weights nor metric rows, besides `trainer.progress_bar`."""


def config_tree(config: TrainConfig) -> dict[str, Any]:
    """A member's configuration as plain mappings, as `config.yaml` holds it."""
    return dataclasses.asdict(config)


def experiment_tree(config: TrainConfig) -> dict[str, Any]:
    """What of a configuration says what an experiment is: without seed and output."""
    tree = {key: value for key, value in config_tree(config).items() if key not in NOT_HASHED}
    tree["trainer"] = {key: value for key, value in tree["trainer"].items() if key != "progress_bar"}
    return tree


def config_hash(config: TrainConfig) -> str:
    """Eight hexadecimal digits of what an experiment is: equal for runs that differ in seed or in output only."""
    return hashlib.sha256(json.dumps(experiment_tree(config), sort_keys=True, default=str).encode()).hexdigest()[:8]

"""Trains recorded runs again, to compare them with what was recorded."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from qohort.config.identity import config_tree
from qohort.config.schema import TrainConfig
from qohort.report.ledger import made_of
from qohort.runs.directory import RunDirectory
from qohort.runs.members import members_of


@dataclass(frozen=True)
class Trained:
    """What a run ended with.

    Attributes:
        seed: The seed.
        final: The last evaluation.
        fingerprint: The fingerprint.
        made: How it was made, from `made_of`.
    """

    seed: int
    final: float
    fingerprint: str
    made: Mapping[str, Any]


def retrain(
    train: Callable[[DictConfig], Any], configs: Sequence[TrainConfig], output_dir: Path | None = None
) -> list[Trained]:
    """Train runs that differ only in their seed, as one cohort, without loggers and without output.

    Args:
        train: `qohort.runs.training.train`.
        configs: The configuration of each run.
        output_dir: Where to; None for a temporary directory, which is deleted.
    """
    with tempfile.TemporaryDirectory(prefix="qohort-again-") as temporary:
        folder = str((output_dir or Path(temporary)).absolute())
        trainer = replace(configs[0].trainer, progress_bar=False)
        ready = [replace(one, trainer=trainer, output_dir=folder, logger={}, overwrite=False) for one in configs]
        tree = {**config_tree(ready[0]), "seed": [one.seed for one in ready], "arm": ready[0].agent}
        with contextlib.redirect_stdout(io.StringIO()):  # hides the summary
            train(OmegaConf.create(tree))
        return [_read(member.directory) for member in members_of(ready)]


def _read(directory: RunDirectory) -> Trained:
    result = directory.result() or {}
    made = made_of(directory.manifest(), (directory.path / "code.patch").is_file())
    return Trained(result["seed"], float(result["final_return"]), result["fingerprint"], made)

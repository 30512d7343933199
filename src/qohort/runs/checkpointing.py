"""Saves checkpoints during training, one file per member, and a last one when training is asked to stop."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import CheckpointIO

from qohort.agent.callbacks import CohortCallback, Learner
from qohort.cohort.schedules import Intervals
from qohort.cohort.state import merge_states, split_state
from qohort.config.errors import Interrupted
from qohort.config.schema import TrainConfig
from qohort.runs.checkpoints import KEPT, blocks_in, drop_unused_blocks, load, step_name
from qohort.runs.files import write_atomically
from qohort.runs.interruption import STOP


class Checkpointing(CohortCallback):
    """Saves a checkpoint at intervals of env_steps and of minutes, and at a signal that asks to stop.

    Args:
        config: The first member's configuration.
    """

    by_rounds = True

    def __init__(self, config: TrainConfig) -> None:
        self._config = config

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the intervals at the current step and time."""
        progress = cast(Any, pl_module).progress
        self._intervals = Intervals(progress)
        self._intervals.last = dict.fromkeys(("checkpoint", "clock"), progress.env_steps)
        self._saved = time.monotonic()

    def on_env_step(self, trainer: pl.Trainer, module: Learner) -> None:
        """Save a checkpoint if one is due. `qohort.runs.training` saves the final one.

        Raises:
            Interrupted: If a signal asked to stop; a checkpoint was saved.
        """
        if module.finished and (STOP.signal is None or module.evaluated_at == module.progress.env_steps):
            return
        checkpoint = self._config.checkpoint
        by_clock = self._intervals.due("clock", 100) and time.monotonic() - self._saved > 60 * checkpoint.minutes
        if self._intervals.due("checkpoint", checkpoint.every) or by_clock:
            self._save(trainer, module)
        if STOP.signal is not None:
            self._stop(trainer, module, STOP.signal)

    def _save(self, trainer: pl.Trainer, module: Learner) -> None:
        trainer.save_checkpoint(step_name(module.progress.env_steps))
        self._saved = time.monotonic()

    def _stop(self, trainer: pl.Trainer, module: Learner, reason: str) -> None:
        env_steps = module.progress.env_steps
        at = f"interrupted by {reason} at {env_steps:,} of {self._config.budget:,} env_steps"
        if env_steps == 0:
            raise Interrupted(f"{at}: the same command starts over")
        self._save(trainer, module)
        command = "the same command" + (" without overwrite=true" if self._config.overwrite else "")
        raise Interrupted(f"{at} and saved: {command} resumes the run")


class MemberCheckpointIO(CheckpointIO):
    """Splits a cohort's checkpoint into one file per member, and merges these files when loading.

    A member's file is the same as if the member had trained alone, so members can be resumed in another cohort.
    Lightning's path is only a file name, the same in each member's `checkpoints/`.

    Args:
        directories: The members' run directories.
    """

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = [directory / "checkpoints" for directory in directories]
        self.failed_members: set[int] = set()
        """Indices of members that have failed and are no longer saved."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write the checkpoint of every member, and delete all but the newest `KEPT` and the final one."""
        name = Path(path).name
        for m, directory in enumerate(self._directories):
            if m in self.failed_members:
                continue
            directory.mkdir(parents=True, exist_ok=True)
            rest, replay = _without_replay(checkpoint)
            part = split_state(rest, m)
            if replay is not None:
                part["qohort"]["replay"] = blocks_in(directory).store(split_state(replay, m, copy=False))
            write_atomically(directory / name, partial(torch.save, part))
            for old in sorted(directory.glob("step-*.ckpt"))[:-KEPT]:
                old.unlink()
            drop_unused_blocks(directory)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the checkpoint of every member and merge them."""
        name = Path(path).name
        parts = [load(directory / name) for directory in self._directories]
        replays = [part["qohort"].pop("replay", None) for part in parts]
        joined: dict[str, Any] = merge_states(parts)
        if replays[0] is not None:
            restored = [blocks_in(one).restore(replay) for one, replay in zip(self._directories, replays, strict=True)]
            joined["qohort"]["replay"] = merge_states(restored, blocks_in(self._directories[0]).join)
        return joined

    def remove_checkpoint(self, path: Any) -> None:
        """Delete the checkpoint of every member."""
        for directory in self._directories:
            (directory / Path(path).name).unlink(missing_ok=True)
            drop_unused_blocks(directory)


def _without_replay(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Return a checkpoint without the state of its replay, and that state."""
    rest = {**checkpoint, "qohort": dict(checkpoint["qohort"])}
    return rest, rest["qohort"].pop("replay", None)

"""Checkpoints: one file per member, written atomically through Lightning's `CheckpointIO`.

The large tensors of a replay are in `blocks/`, which the checkpoints of a run share; see `qohort.runs.blocks`.
"""

from __future__ import annotations

import contextlib
import sys
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning_fabric.plugins import CheckpointIO

from qohort.cohort.state import merge_states, split_state
from qohort.runs.blocks import Blocks, references
from qohort.runs.files import write_atomically

FINAL = "final.ckpt"
"""Name of the checkpoint of a finished run."""


KEPT = 2
"""Number of checkpoints that are kept, besides the final one."""


def step_name(env_steps: int) -> str:
    """Return the name of the checkpoint at `env_steps`. Names sort by env_steps."""
    return f"step-{env_steps:012d}.ckpt"


def newest_step(directory: Path) -> int | None:
    """Return the env_steps of the newest undamaged checkpoint of a run; None if there is none."""
    for path in sorted((directory / "checkpoints").glob("step-*.ckpt"), reverse=True):
        if is_whole(path):
            return int(path.stem.partition("-")[2])
        print(f"qohort: {path} is damaged and was skipped", file=sys.stderr)
    return None


def is_whole(path: Path) -> bool:
    """Return whether a checkpoint is undamaged, by the checksums of its zip format and of its blocks."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return False
        return _blocks(path.parent).are_whole(_replay(load(path)))
    except (OSError, zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, UnpicklingError):
        return False


def _blocks(checkpoints: Path) -> Blocks:
    return Blocks(checkpoints / "blocks")


def _replay(checkpoint: Mapping[str, Any]) -> Any:
    """Return the state of the replay in a checkpoint; None if it has none."""
    return checkpoint["qohort"].get("replay")


def drop_unused_blocks(checkpoints: Path) -> None:
    """Delete the blocks to which no checkpoint of a folder refers."""
    if (checkpoints / "blocks").is_dir():
        used: set[str] = set()
        for path in checkpoints.glob("*.ckpt"):
            # A damaged one is never resumed from.
            with contextlib.suppress(OSError, EOFError, RuntimeError, UnpicklingError):
                used.update(references(_replay(load(path))))
        _blocks(checkpoints).keep_only(used)


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
                part["qohort"]["replay"] = _blocks(directory).store(split_state(replay, m, copy=False))
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
            restored = [_blocks(one).restore(replay) for one, replay in zip(self._directories, replays, strict=True)]
            joined["qohort"]["replay"] = merge_states(restored, _blocks(self._directories[0]).join)
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


def load(path: Path) -> dict[str, Any]:
    """Load a member's checkpoint to the CPU. It holds only tensors, numbers and containers.

    Large tensors of the replay are references; see `qohort.runs.blocks`.
    """
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return checkpoint

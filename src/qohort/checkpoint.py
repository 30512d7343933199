"""Checkpoints: a file of its own for each member, whole or not there, through Lightning's `CheckpointIO`."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import CheckpointIO

from qohort.cohort import merge_states, split_state

FINAL = "final.ckpt"
KEPT = 2


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, even if the machine stops.

    The temporary file is in the same directory, since only a rename within a filesystem is atomic.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def step_name(env_steps: int) -> str:
    """The name of the checkpoint at `env_steps`; names sort by age."""
    return f"step-{env_steps:012d}.ckpt"


def newest_step(directory: Path) -> int | None:
    """The env_steps of the newest resumable checkpoint of a run, None without one."""
    names = sorted((directory / "checkpoints").glob("step-*.ckpt"))
    return int(names[-1].stem.partition("-")[2]) if names else None


class MemberCheckpointIO(CheckpointIO):
    """Splits a cohort's checkpoint into its members', and joins members' checkpoints to a cohort's.

    A member's file is what it would be had the member trained alone, so a cohort may be packed otherwise
    when it is resumed. Lightning's path is a bare name, the same in each member's `checkpoints/`.

    Args:
        directories: The members' run directories.
    """

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = [directory / "checkpoints" for directory in directories]

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write every member's part, and keep the newest two (and only the final one, once it is written)."""
        name = Path(path).name
        for m, directory in enumerate(self._directories):
            directory.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            torch.save(split_state(checkpoint, m), buffer)
            write_atomically(directory / name, buffer.getvalue())
            resumable = sorted(directory.glob("step-*.ckpt"))
            for old in resumable if name == FINAL else resumable[:-KEPT]:
                old.unlink()

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read every member's part and join them."""
        name = Path(path).name
        parts = [load(directory / name) for directory in self._directories]
        joined: dict[str, Any] = merge_states(parts)
        return joined

    def remove_checkpoint(self, path: Any) -> None:
        """Remove every member's part."""
        for directory in self._directories:
            (directory / Path(path).name).unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """A member's checkpoint, on the CPU; plain tensors, numbers and containers only."""
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return checkpoint

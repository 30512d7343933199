"""Checkpoints: one file per member, written atomically through Lightning's `CheckpointIO`."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning_fabric.plugins import CheckpointIO

from qohort.cohort.state import merge_states, split_state

FINAL = "final.ckpt"
"""Name of the checkpoint of a finished run."""


TEMPORARY = re.compile(r"[.].*[.]tmp-\w+")
"""Pattern of the names of files that are being written."""


KEPT = 2
"""Number of checkpoints that are kept, besides the final one."""


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Write a file so that it is complete or absent, even if the machine stops.

    The temporary file is in the same directory, since a rename is only atomic within a filesystem.

    Args:
        path: The file.
        content: Its content, or a function that writes it to the open file.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.tmp-")
    try:
        with os.fdopen(handle, "wb") as file:
            if callable(content):
                content(file)
            else:
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
    """Return whether a checkpoint is undamaged, by the checksums of its zip format."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, NotImplementedError, EOFError):
        return False


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
            # One member after the other, straight to the file: a replay may fill most of the memory.
            write_atomically(directory / name, partial(torch.save, split_state(checkpoint, m)))
            for old in sorted(directory.glob("step-*.ckpt"))[:-KEPT]:
                old.unlink()

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the checkpoint of every member and merge them."""
        name = Path(path).name
        parts = [load(directory / name) for directory in self._directories]
        joined: dict[str, Any] = merge_states(parts)
        return joined

    def remove_checkpoint(self, path: Any) -> None:
        """Delete the checkpoint of every member."""
        for directory in self._directories:
            (directory / Path(path).name).unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """Load a member's checkpoint to the CPU. It holds only tensors, numbers and containers."""
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return checkpoint

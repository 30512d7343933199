"""Checkpoints: a file of its own for each member, whole or not there, through Lightning's `CheckpointIO`."""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import CheckpointIO

from qohort.cohort.state import merge_states, split_state

FINAL = "final.ckpt"


TEMPORARY = re.compile(r"[.].*[.]tmp-\w+")
"""The names of files that are being written."""


KEPT = 2


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, even if the machine stops.

    The temporary file is in the same directory, since only a rename within a filesystem is atomic.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.tmp-")
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
    """The env_steps of the newest whole checkpoint of a run, None without one; damaged ones are passed over."""
    for path in sorted((directory / "checkpoints").glob("step-*.ckpt"), reverse=True):
        if is_whole(path):
            return int(path.stem.partition("-")[2])
        print(f"qohort: {path} is damaged, and passed over", file=sys.stderr)
    return None


def is_whole(path: Path) -> bool:
    """Whether a checkpoint's every byte is as it was written: torch's format is a zip file, with checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, NotImplementedError, EOFError):
        return False


class MemberCheckpointIO(CheckpointIO):
    """Splits a cohort's checkpoint into its members', and joins members' checkpoints to a cohort's.

    A member's file is what it would be had the member trained alone, so a cohort may be packed otherwise
    when it is resumed. Lightning's path is a bare name, the same in each member's `checkpoints/`.

    Args:
        directories: The members' run directories.
    """

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = [directory / "checkpoints" for directory in directories]
        self.left_out: set[int] = set()
        """Members that have failed: nothing more is saved of them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write every member's part, and keep the newest two; the final one besides."""
        name = Path(path).name
        for m, directory in enumerate(self._directories):
            if m in self.left_out:
                continue
            directory.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            torch.save(split_state(checkpoint, m), buffer)
            write_atomically(directory / name, buffer.getvalue())
            for old in sorted(directory.glob("step-*.ckpt"))[:-KEPT]:
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

"""The files of checkpoints: their names, which of them are whole, and reading one.

The large tensors of a replay are in `blocks/`, which the checkpoints of a run share; see `qohort.runs.blocks`.
"""

from __future__ import annotations

import contextlib
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # this imports torch, which is slow, and lists of runs do without it
    from qohort.runs.blocks import Blocks

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
        return blocks_in(path.parent).are_whole(_replay(load(path)))
    except (OSError, zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, UnpicklingError):
        return False


def blocks_in(checkpoints: Path) -> Blocks:
    """Return the blocks of a folder of checkpoints."""
    from qohort.runs.blocks import Blocks

    return Blocks(checkpoints / "blocks")


def _replay(checkpoint: Mapping[str, Any]) -> Any:
    """Return the state of the replay in a checkpoint; None if it has none."""
    return checkpoint.get("qohort", {}).get("replay")


def drop_unused_blocks(checkpoints: Path) -> None:
    """Delete the blocks to which no checkpoint of a folder refers."""
    if (checkpoints / "blocks").is_dir():
        from qohort.runs.blocks import references

        used: set[str] = set()
        for path in checkpoints.glob("*.ckpt"):
            # A damaged one is never resumed from.
            with contextlib.suppress(OSError, EOFError, RuntimeError, UnpicklingError):
                used.update(references(_replay(load(path))))
        blocks_in(checkpoints).keep_only(used)


def load_whole(path: Path) -> dict[str, Any]:
    """Load a checkpoint as `load` does, after its checksums are compared.

    Raises:
        RuntimeError: If they differ.
        zipfile.BadZipFile: If the file is not of a checkpoint's format.
    """
    with zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:
            raise RuntimeError("the checksums differ")
    return load(path)


def load(path: Path) -> dict[str, Any]:
    """Load a member's checkpoint to the CPU. It holds only tensors, numbers and containers.

    Large tensors of the replay are references; see `qohort.runs.blocks`.
    """
    import torch

    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return checkpoint

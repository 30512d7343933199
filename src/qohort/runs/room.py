"""Checks that replays fit into memory and checkpoints onto the disk, before anything is allocated."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from hydra.utils import instantiate

from qohort.cohort.held import per_member
from qohort.cohort.program import Compiler
from qohort.config.errors import ConfigError
from qohort.config.schema import TrainConfig
from qohort.environments.frames import stored_frames
from qohort.environments.tensor.registry import tensor_environment
from qohort.networks.branches import branches_of
from qohort.replay.base import Replay, ReplaySpec
from qohort.runs.checkpoints import KEPT
from qohort.runs.members import Member

NOT_CHECKED = 256 * 2**20
"""Replays of all members up to this size, in bytes, are not checked."""


def replay_bytes(members: Sequence[TrainConfig], space: spaces.Space[Any], actions: int) -> int:
    """Return the size of the replays of a cohort, in bytes, without allocating them.

    Args:
        members: The members' configurations.
        space: The observation space.
        actions: The number of actions, with branches as a `BranchedActions`.
    """
    first, device = members[0], torch.device("meta")
    gamma = per_member([member.gamma for member in members], torch.device("cpu"))
    sizes = (first.env.num_envs, first.batch_size, first.train_every)
    seeds = [member.seed for member in members]
    frames = stored_frames(first, space, tensor_environment(first.env) is not None)
    numbers = (*sizes, gamma, seeds, first.budget)
    spec = ReplaySpec(space, *numbers, device, Compiler("none"), frames, branches_of(actions))
    replay: Replay = instantiate(first.replay, _partial_=True)(spec=spec)
    return replay.nbytes


def check_room(members: Sequence[Member], space: spaces.Space[Any], actions: int) -> None:
    """Check that the replays fit into memory, and the checkpoints onto the disk.

    The replay is in memory once. While a checkpoint is saved, three of them are on the disk, which share what has not
    changed: at most three replays.

    Args:
        members: The members that will be trained.
        space: The observation space.
        actions: The number of actions, with branches as a `BranchedActions`.

    Raises:
        ConfigError: If they do not fit. The message has the arithmetic.
    """
    count, config = len(members), members[0].config
    whole = replay_bytes([member.config for member in members], space, actions)
    each = whole // count
    if whole < NOT_CHECKED:
        return
    slots = min(config.replay.get("capacity", config.budget), config.budget)
    sizes = f"{count} × {slots:,} transitions of {each // slots:,} bytes are {_gb(whole)}"
    remedy = "lower replay.capacity or the number of seeds in a cohort"
    on_gpu = config.trainer.accelerator != "cpu" and torch.cuda.is_available()
    if on_gpu and whole > (free := torch.cuda.mem_get_info()[0]):
        raise ConfigError(f"the replay does not fit on the GPU: {sizes}, and {_gb(free)} are free; {remedy}")
    available = available_memory()
    if available is not None and whole > available:
        more = " while a checkpoint is saved" if on_gpu else ""
        raise ConfigError(
            f"the replay does not fit into memory{more}: {sizes}, but {_gb(available)} are available; {remedy}"
        )
    place = Path(config.output_dir).absolute()
    existing = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    # A run that is resumed has a part of it on the disk, and needs room to read it, twice if it is joined with others.
    stored = sum(map(_stored_bytes, members))
    needed = max((KEPT + 1) * whole - stored, min(count, 2) * whole if stored else 0)
    if config.checkpoint.replay and needed > free:
        there = f" ({_gb(stored)} are there)" if stored else ""
        raise ConfigError(
            f"the checkpoints do not fit on the disk of output_dir={config.output_dir}: {sizes}, of which up to "
            f"{KEPT + 1} checkpoints are kept, {_gb(needed)}{there}, but {_gb(free)} are free; {remedy}, or set "
            "checkpoint.replay=false, with which resuming is not exact"
        )


def _stored_bytes(member: Member) -> int:
    """Return the size of what the checkpoints of a run have of its replay, if it will be resumed."""
    if member.config.overwrite:
        return 0
    return sum(block.stat().st_size for block in (member.directory.path / "checkpoints" / "blocks").glob("*"))


def available_memory() -> int | None:
    """Return the bytes that this process may still allocate; None where the system does not say.

    It is what the machine has available, or what its control group allows, as a container or a SLURM job has one.
    """
    found = []
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    try:
        group = Path("/sys/fs/cgroup") / Path("/proc/self/cgroup").read_text().split("::")[1].strip().lstrip("/")
        for one in (group, *group.parents):
            limit = one / "memory.max"
            if limit.is_file() and (text := limit.read_text().strip()) != "max":
                stat = dict(line.split() for line in (one / "memory.stat").read_text().splitlines())
                used = int((one / "memory.current").read_text()) - int(stat.get("inactive_file", 0))
                found.append(max(0, int(text) - used))
            if one == Path("/sys/fs/cgroup"):
                break
    except (OSError, IndexError, ValueError):
        pass
    return min(found, default=None)


def _gb(size: int) -> str:
    """Return a size in gigabytes."""
    return f"{size / 1e9:.1f} GB"

"""Replays that do not fit into memory, and checkpoints that do not fit onto the disk, are told before they are made."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from qohort.cohort.program import Compiler
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.config.errors import ConfigError
from qohort.config.members import check_config
from qohort.replay.base import ReplaySpec
from qohort.runs import room
from qohort.runs.members import members_of

PICTURES = spaces.Box(0, 255, (4, 84, 84), np.uint8)
GB = 10**9


def members(*overrides):
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        return members_of(check_config(compose("train", ["compile=none", *overrides])))


@pytest.mark.parametrize(
    "replay", ["uniform", "uniform replay.n_step=3", "prioritized", "lambda target_network=none", "none"]
)
def test_the_estimate_is_the_size_of_the_arrays(replay):
    some = members("seed=[0,1,2]", f"replay={replay.split()[0]}", *replay.split()[1:], "budget=5000")
    configs = [one.config for one in some]
    first = configs[0]
    space = spaces.Box(-1, 1, (3, 5), np.float32)
    sizes = (first.env.num_envs, first.batch_size, first.train_every)
    spec = ReplaySpec(space, *sizes, torch.full((3,), 0.99), [0, 1, 2], 5000, torch.device("cpu"), Compiler("none"))
    made = instantiate(first.replay, _partial_=True)(spec=spec)
    stored = sum(array.nbytes for array in made.storage.arrays.values())
    assert room.replay_bytes(configs, space, 2) == stored


def test_what_does_not_fit_is_told_with_the_arithmetic(monkeypatch):
    some = members("seed=[0,1,2,3,4]", "replay.capacity=100000", "budget=1000000")
    each = 100_000 * (2 * 4 * 84 * 84 + 8 + 4 + 4)
    monkeypatch.setattr(room, "available_memory", lambda: 24 * GB)
    with pytest.raises(ConfigError) as told:
        room.check_room(some, PICTURES, 2)
    assert str(told.value) == (
        f"the replay does not fit into memory: 5 × 100,000 transitions of {each // 100_000:,} bytes are "
        f"{5 * each / GB:.1f} GB, but 24.0 GB are available; lower replay.capacity or the number of seeds in a cohort"
    )
    monkeypatch.setattr(room, "available_memory", lambda: 35 * GB)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000 * GB))
    room.check_room(some, PICTURES, 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=80 * GB))
    with pytest.raises(ConfigError, match=r"^the checkpoints do not fit on the disk of output_dir=outputs: .*84\.7 GB"):
        room.check_room(some, PICTURES, 2)


def test_small_replays_are_not_looked_at(monkeypatch):
    monkeypatch.setattr(room, "available_memory", lambda: 0)
    room.check_room(members("seed=[0,1]"), spaces.Box(-1, 1, (4,)), 2)


def test_the_system_says_what_is_available():
    available = room.available_memory()
    assert available is not None
    assert 10**7 < available < 10**14

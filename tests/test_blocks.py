"""Large replays in checkpoints: what has not changed is not written again, and a run without its replay goes on."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st

from qohort.agent.update_plan import UpdatePlan
from qohort.cohort.schedules import Progress
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.config.errors import Interrupted
from qohort.runs import blocks, checkpoints
from qohort.runs.blocks import Blocks, references
from qohort.runs.checkpointing import MemberCheckpointIO
from qohort.runs.checkpoints import drop_unused_blocks, is_whole, newest_step
from qohort.runs.training import train


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 64)


def files(folder: Path) -> dict[str, int]:
    """The blocks in a folder, with the times at which they were written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_only_blocks_that_changed_are_written(tmp_path):
    store = Blocks(tmp_path / "blocks")
    ring = torch.arange(256, dtype=torch.uint8).reshape(1, 64, 4)  # four blocks of 16 rows
    store.store({"ring": ring})
    before = files(store.folder)
    assert len(before) == 4
    ring[0, 20] = 0  # in the second block
    state = store.store({"ring": ring})
    after = files(store.folder)
    assert len(after) == 5
    assert {name: after[name] for name in before} == before
    assert torch.equal(store.restore(state)["ring"], ring)
    store.keep_only(set(references(state)))
    assert len(files(store.folder)) == 4
    assert torch.equal(store.restore(state)["ring"], ring)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.float32, torch.float64])
def test_a_state_comes_back_as_it_was(dtype, tmp_path):
    store = Blocks(tmp_path / "blocks")
    whole = torch.arange(2 * 50 * 3).reshape(2, 50, 3).to(dtype)
    state = {
        "arrays": {"large": whole[1:], "small": whole[:1, :1], "strided": whole.transpose(0, 1)},
        "members": [whole[0, :2], whole[0]],
        "added": 7,
        "none": None,
    }
    stored = store.store(state)
    assert stored["added"] == 7
    assert isinstance(stored["arrays"]["large"], dict)
    small = stored["arrays"]["small"]
    assert small.untyped_storage().nbytes() == small.nbytes  # else all of `whole` would be saved with it
    restored = store.restore(stored)
    for name, tensor in state["arrays"].items():
        assert restored["arrays"][name].dtype == dtype
        assert torch.equal(restored["arrays"][name], tensor)
    assert all(map(torch.equal, restored["members"], state["members"]))


def a_checkpoint(rings: torch.Tensor, step: int):
    return {"state_dict": {"online.weight": torch.full((len(rings), 3), float(step))},
            "qohort": {"progress": {"env_steps": step}, "replay": {"ring": rings, "added": step}}}  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_newest_two_checkpoints_are_whole_whatever_is_written(data, tmp_path_factory):
    """Two members with rings of their own: random rows are written, saved and restored, beside plain copies."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    io = MemberCheckpointIO(folders)
    rings = torch.zeros((2, 40, 8), dtype=torch.uint8)
    saved = {}
    for step in range(1, data.draw(st.integers(1, 6), "saves") + 1):
        for _ in range(data.draw(st.integers(0, 4), "writes")):
            start, length = data.draw(st.integers(0, 39)), data.draw(st.integers(1, 20))
            rings[:, start : start + length] = data.draw(st.integers(0, 255))
            rings[1, start] = data.draw(st.integers(0, 255))
        written = data.draw(st.integers(1, 40), "slots")
        io.save_checkpoint(a_checkpoint(rings[:, :written], step), f"step-{step:012d}.ckpt")
        saved[step] = rings[:, :written].clone()
        for known in sorted(saved)[-2:]:
            loaded = io.load_checkpoint(f"step-{known:012d}.ckpt")
            assert torch.equal(loaded["qohort"]["replay"]["ring"], saved[known])
            assert loaded["qohort"]["replay"]["added"] == known
        for folder in folders:
            kept = [checkpoints.load(path) for path in (folder / "checkpoints").glob("*.ckpt")]
            used = {name for one in kept for name in references(one["qohort"])}
            there = folder / "checkpoints/blocks"
            assert used == (set(files(there)) if there.is_dir() else set())


@pytest.mark.parametrize("damage", ["a byte changed", "truncated", "missing"])
def test_a_checkpoint_with_a_damaged_block_is_passed_over(damage, tmp_path, capsys):
    io = MemberCheckpointIO([tmp_path])
    ring = torch.arange(200, dtype=torch.uint8).reshape(1, 50, 4)
    io.save_checkpoint(a_checkpoint(ring, 1), "step-000000000001.ckpt")
    older = set(files(tmp_path / "checkpoints/blocks"))
    ring[0, 49] = 0
    io.save_checkpoint(a_checkpoint(ring, 2), "step-000000000002.ckpt")
    assert newest_step(tmp_path) == 2
    (new,) = set(files(tmp_path / "checkpoints/blocks")) - older
    block = tmp_path / "checkpoints/blocks" / new
    content = bytearray(block.read_bytes())
    content[3] ^= 1
    block.unlink()
    if damage != "missing":
        block.write_bytes(content if damage == "a byte changed" else content[:-1])
    assert newest_step(tmp_path) == 1
    assert "step-000000000002.ckpt is damaged and was skipped" in capsys.readouterr().err
    io.save_checkpoint(a_checkpoint(ring, 3), "step-000000000003.ckpt")
    if damage != "a byte changed":  # a block of the right size is not read again while training
        assert is_whole(tmp_path / "checkpoints/step-000000000003.ckpt")


@pytest.mark.parametrize("replaced", [0, 1, 2, 3, 4, 99])
def test_a_save_that_is_cut_off_anywhere_harms_nothing(replaced, tmp_path, monkeypatch):
    """Four blocks and the checkpoint: the write of one of them fails, or none."""
    io = MemberCheckpointIO([tmp_path])
    ring = torch.arange(256, dtype=torch.uint8).reshape(1, 64, 4)
    io.save_checkpoint(a_checkpoint(ring, 1), "step-000000000001.ckpt")
    calls = iter(range(100))

    def replace(source, target):
        if next(calls) == replaced:
            raise OSError("no space left on device")
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    later = 255 - ring
    if replaced < 5:
        with pytest.raises(OSError, match="no space"):
            io.save_checkpoint(a_checkpoint(later, 2), "step-000000000002.ckpt")
    else:
        io.save_checkpoint(a_checkpoint(later, 2), "step-000000000002.ckpt")
    assert newest_step(tmp_path) == (1 if replaced < 5 else 2)
    assert torch.equal(io.load_checkpoint("step-000000000001.ckpt")["qohort"]["replay"]["ring"], ring)
    io.save_checkpoint(a_checkpoint(later, 3), "step-000000000003.ckpt")
    assert torch.equal(io.load_checkpoint("step-000000000003.ckpt")["qohort"]["replay"]["ring"], later)


SAVING = """
import resource, sys, torch
from pathlib import Path
from qohort.runs.checkpointing import MemberCheckpointIO
rings = torch.randint(0, 256, (2, 50_000, 84 * 84), dtype=torch.uint8)
io = MemberCheckpointIO([Path(sys.argv[1]) / name for name in ("first", "second")])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for step in (1, 2):
    rings[:, :100] += 1
    checkpoint = {"state_dict": {}, "qohort": {"replay": {"frames": rings}}}
    io.save_checkpoint(checkpoint, f"step-{step}.ckpt")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / before)
    print(sum(path.stat().st_blocks * 512 for path in Path(sys.argv[1]).rglob("*") if path.is_file()) / rings.nbytes)
"""


@pytest.mark.slow
def test_saving_takes_no_memory_and_little_disk(tmp_path):
    """100,000 transitions of Atari in two members: 706 MB."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.check_output([sys.executable, "-c", SAVING, str(tmp_path)], env=environment, text=True)
    memory, disk, memory_again, disk_again = map(float, out.split())
    assert max(memory, memory_again) < 1.1
    assert 1 <= disk < 1.01
    assert disk_again < 1.06  # a block of 16 MiB of each member


# Without the replay.


def test_the_plan_by_hand():
    plan = UpdatePlan(train_every=4, gradient_steps=2, first=10)
    assert [plan.due_by(n) for n in (0, 11, 12, 15, 16, 100)] == [0, 0, 2, 2, 4, 46]
    assert plan.due_by(np.array([11, 12, 16])).tolist() == [0, 2, 4]
    assert [plan.env_steps_of(n) for n in (1, 2, 3, 46)] == [12, 12, 16, 100]
    progress = Progress(200, np.zeros(1, dtype=np.int64), env_steps=17, gradient_steps=4)
    assert plan.wait_for_replay(progress) == 28  # the first multiple of 4 from 27 on
    assert [plan.due_by(n) for n in (17, 27, 28, 32)] == [4, 4, 6, 8]
    assert plan.due_by(np.array([17, 27, 28, 32])).tolist() == [4, 4, 6, 8]
    assert [plan.env_steps_of(n) for n in (5, 7)] == [28, 32]
    again = UpdatePlan(train_every=4, gradient_steps=2, first=10)
    again.load_state_dict(plan.state_dict())
    progress.env_steps, progress.gradient_steps = 29, 6
    assert again.wait_for_replay(progress) == 40
    assert [again.due_by(n) for n in (39, 40, 44)] == [6, 8, 10]


def test_before_learning_starts_the_plan_waits_for_a_whole_replay():
    plan = UpdatePlan(train_every=1, gradient_steps=1, first=10)
    assert plan.wait_for_replay(Progress(50, np.zeros(1, dtype=np.int64), env_steps=6)) == 16
    assert [plan.due_by(n) for n in (10, 15, 16, 17)] == [0, 0, 1, 2]


def trained(*overrides):
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        return train(compose("train", list(overrides)))


def interrupted(monkeypatch, *overrides):
    """Train up to the first checkpoint."""
    save = MemberCheckpointIO.save_checkpoint

    def stopping(self, checkpoint, path, storage_options=None):
        save(self, checkpoint, path)
        raise Interrupted("stop here")

    with monkeypatch.context() as patched:
        patched.setattr(MemberCheckpointIO, "save_checkpoint", stopping)
        with pytest.raises(Interrupted):
            trained(*overrides)


SMALL = (
    *("seed=[3,4]", "budget=600", "learning_starts=60", "batch_size=20", "compile=none", "logger=none"),
    *("evaluation.every=600", "evaluation.episodes=1", "evaluation.max_episode_steps=20", "checkpoint.every=202"),
    *("train_every=1", "gradient_steps=1", "trainer.progress_bar=false"),
)


@pytest.mark.parametrize("more", [("env.backend=gymnasium",), (), ("agent=pqn", "env.num_envs=4", "train_every=40")])
def test_a_run_goes_on_without_its_replay(more, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(blocks, "BLOCK", 2**24)
    overrides = (*SMALL, "checkpoint.replay=false", f"output_dir={tmp_path}", *more)
    interrupted(monkeypatch, *overrides)
    (checkpoint,) = tmp_path.glob("*/*/seed-3/checkpoints/step-*.ckpt")
    step = int(checkpoint.stem.partition("-")[2])
    state = checkpoints.load(checkpoint)["qohort"]
    results = trained(*overrides)
    told = capsys.readouterr().err
    if "agent=pqn" in more:  # a rollout is small
        assert "replay" in state
        assert "has no replay" not in told
        return
    assert "replay" not in state
    assert f"no update before {step + 60:,} env_steps" in told
    skipped = 60 - 1
    assert [result["gradient_steps"] for result in results] == [600 - 60 + 1 - skipped] * 2


def test_what_a_checkpoint_has_counts_and_not_what_the_command_asks_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(blocks, "BLOCK", 2**24)
    short = (*SMALL, "budget=250", "checkpoint.every=101", "env.backend=gymnasium")
    undisturbed = trained(*short, f"output_dir={tmp_path / 'a'}")
    resumed = (*short, f"output_dir={tmp_path / 'b'}")
    interrupted(monkeypatch, *resumed)
    results = trained(*resumed, "checkpoint.replay=false")
    assert "has no replay" not in capsys.readouterr().err
    assert [one["fingerprint"] for one in results] == [one["fingerprint"] for one in undisturbed]


def test_a_run_without_updates_left_takes_the_rest_of_its_budget(tmp_path, monkeypatch):
    """It stops before the first update, and the budget ends before the replay is filled anew."""
    overrides = (*SMALL, "learning_starts=450", "evaluation.every=200", "checkpoint.every=200")
    overrides = (*overrides, "checkpoint.replay=false", "env.backend=gymnasium", f"output_dir={tmp_path}")
    interrupted(monkeypatch, *overrides)
    results = trained(*overrides)
    assert [(one["env_steps"], one["gradient_steps"]) for one in results] == [(600, 0)] * 2


@pytest.mark.slow
@pytest.mark.matrix
def test_members_with_other_updates_behind_them_do_not_resume_as_one_cohort(tmp_path, monkeypatch):
    """Seed 3 was resumed without a replay and skips updates, seed 4 was not; both are at the same env_steps."""
    monkeypatch.setattr(blocks, "BLOCK", 2**24)
    common = (*SMALL, "checkpoint.replay=false", "env.backend=gymnasium", f"output_dir={tmp_path}")
    interrupted(monkeypatch, *common, "seed=3")
    interrupted(monkeypatch, *common, "seed=3")
    interrupted(monkeypatch, *common, "seed=4", "checkpoint.every=404")
    assert len([*tmp_path.glob("*/*/seed-*/checkpoints/step-000000000404.ckpt")]) == 2
    results = trained(*common)
    assert {one["seed"]: one["gradient_steps"] for one in results} == {3: 541 - 2 * 59, 4: 541 - 59}


def test_a_damaged_block_is_not_taken_for_one_of_the_same_content(tmp_path):
    io = MemberCheckpointIO([tmp_path])
    ring = torch.arange(200, dtype=torch.uint8).reshape(1, 50, 4)
    io.save_checkpoint(a_checkpoint(ring, 1), "step-000000000001.ckpt")
    block = min((tmp_path / "checkpoints/blocks").iterdir())
    block.write_bytes(bytes(block.stat().st_size))
    assert newest_step(tmp_path) is None
    for path in (tmp_path / "checkpoints").glob("step-*.ckpt"):  # as a run does that does not resume from it
        path.unlink()
    drop_unused_blocks(tmp_path / "checkpoints")
    io.save_checkpoint(a_checkpoint(ring, 1), "step-000000000001.ckpt")
    assert newest_step(tmp_path) == 1

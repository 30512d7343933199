"""Environments in processes are the same environments: `env.workers` changes no bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from matrix import matrix
from qohort.agent.acting import _environments
from qohort.cohort.program import Compiler
from qohort.config.errors import ConfigError
from qohort.config.schema import EnvironmentConfig
from qohort.environments.workers import WorkerEnded
from test_exactness import run

SMALL = ("compile=none", "env.backend=gymnasium", "env.num_envs=3")


def environments(workers, seeds=(0, 1, 2), num_envs=3, id="CartPole-v1", **kwargs):
    config = EnvironmentConfig(id, num_envs, kwargs, [], backend="gymnasium", workers=workers)
    return _environments(config, seeds, Compiler("none"))


def played(vector, steps, rng):
    """What every step returns."""
    told = []
    for _ in range(steps):
        observation, reward, terminated, truncated, info = vector.step(rng.integers(2, size=vector.num_envs))
        told.append((observation.copy(), reward.copy(), terminated.copy(), truncated.copy()))
        if "final_obs" in info:
            told.append(info["final_obs"].copy())
        told.append(vector.beyond_bounds())
    return told


@pytest.mark.parametrize("workers", [0, 2])
def test_a_lost_life_is_told(workers):
    vector = environments(workers, seeds=(0,), num_envs=3, id="grumpy:Lively-v0", every=0)
    try:
        vector.reset()
        told = [vector.step(np.zeros(3, np.int64))[4]["life_lost"].tolist() for _ in range(9)]
    finally:
        vector.close()
    assert told == [[step in (1, 8)] * 3 for step in range(9)]  # the second of an episode of seven, and of the next


@pytest.mark.parametrize("workers", matrix([1, 2, 4, 99], [2]))
def test_processes_return_what_one_process_returns(workers):
    ours, theirs = environments(workers), environments(0)
    try:
        assert np.array_equal(ours.reset()[0], theirs.reset()[0])
        rng = [np.random.default_rng(1) for _ in range(2)]
        assert repr(played(ours, 60, rng[0])) == repr(played(theirs, 60, rng[1]))
        state = ours.state_dict()
        assert state == theirs.state_dict()
        resumed = environments(1)
        try:
            assert np.array_equal(resumed.load_state_dict(state), theirs.observations)
            assert repr(played(resumed, 30, rng[0])) == repr(played(theirs, 30, rng[1]))
        finally:
            resumed.close()
    finally:
        ours.close()
    assert not any(process.is_alive() for process in ours._processes)


@pytest.mark.parametrize("workers", matrix([2, 4], [2]))
def test_a_member_whose_environment_fails_stands_still_in_all_processes(workers):
    every = "grumpy:Grumpy-v0"
    ours, theirs = environments(workers, id=every, every=9), environments(0, id=every, every=9)
    try:
        assert np.array_equal(ours.reset()[0], theirs.reset()[0])
        rng = [np.random.default_rng(1) for _ in range(2)]
        for _ in range(20):
            assert repr(played(ours, 1, rng[0])) == repr(played(theirs, 1, rng[1]))
            told = [
                {
                    m: (one[:2], one.failure.reason, one.failure.seed, one.failure.actions)
                    for m, one in vector.failures.items()
                }
                for vector in (ours, theirs)
            ]
            assert told[0] == told[1]
        assert 0 < len(ours.failures) < 3
    finally:
        ours.close()


@pytest.mark.slow
@pytest.mark.matrix
def test_a_process_that_ends_is_told():
    vector = environments(2, id="grumpy:Grumpy-v0", dies=True, every=1)
    try:
        vector.reset()
        with pytest.raises(WorkerEnded, match=r"of the environments 0 to 3 has ended with exit code -9"):
            played(vector, 5, np.random.default_rng(0))
    finally:
        vector.close()


@pytest.mark.slow
@pytest.mark.matrix
def test_processes_ignore_signals_from_their_first_moment() -> None:
    script = """
import os, signal
from qohort.config.schema import EnvironmentConfig
from qohort.environments.workers import SIGNALS, WorkerVectorEnv

if __name__ == "__main__":
    config = EnvironmentConfig("CartPole-v1", 1, {}, [], backend="gymnasium", workers=2)
    vector = WorkerVectorEnv(config, [0, 1], "environments")
    for process in vector._processes:
        for number in SIGNALS:
            os.kill(process.pid, number)
    vector.reset()
    vector.close()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.matrix
def test_an_episode_that_does_not_repeat_is_told():
    ours = environments(2, id="grumpy:Grumpy-v0", every=0)
    try:
        ours.reset()
        state = ours.state_dict()
        state["members"][1]["observations"][2] = "00"
        with pytest.raises(ConfigError, match="does not repeat episode 0"):
            ours.load_state_dict(state)
    finally:
        ours.close()


def test_tensor_environments_have_no_processes():
    with pytest.raises(ConfigError, match=r"env.workers=2: env.id=CartPole-v1 is a tensor environment"):
        _environments(EnvironmentConfig("CartPole-v1", 1, {}, [], workers=2), [0], Compiler("none"))


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("workers", [2, 3])
def test_a_run_has_the_same_fingerprint(tmp_path: Path, workers: int) -> None:
    alone = run(tmp_path / "alone", [3, 5], *SMALL)
    assert run(tmp_path / "processes", [3, 5], *SMALL, f"env.workers={workers}") == alone


@pytest.mark.slow
@pytest.mark.matrix
def test_a_signal_to_all_processes_saves_the_run(tmp_path: Path) -> None:
    def command(directory: str, workers: int) -> list[str]:
        settings = ["seed=3", "budget=6000", "learning_starts=60", "batch_size=16", "logger=none", "network.hidden=[8]"]
        settings += [
            "trainer.progress_bar=false",
            f"env.workers={workers}",
            f"output_dir={tmp_path / directory}",
            *SMALL,
        ]
        return [sys.executable, str(Path(__file__).parents[1] / "scripts" / "train.py"), *settings]

    def fingerprint(directory: str) -> str:
        (file,) = (tmp_path / directory).rglob("result.json")
        return str(json.loads(file.read_text())["fingerprint"])

    process = subprocess.Popen(command("stopped", 2), stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "stopped").rglob("metrics.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "interrupted by SIGTERM at " in errors
    deadline = time.monotonic() + 10
    while subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, text=True).stdout:
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.1)
    subprocess.run(command("stopped", 3), check=True)
    subprocess.run(command("undisturbed", 0), check=True)
    assert fingerprint("stopped") == fingerprint("undisturbed")

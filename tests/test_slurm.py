"""A sweep on SLURM: jobs that are preempted, or run out of time, are queued again, and all ends as if undisturbed."""

import json
import os
import shutil
import subprocess
import sys
import time
from importlib import util
from pathlib import Path

import pytest

import wandb_file

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "scripts" / "slurm_cluster.sh"
SWEEP = (
    "env=cartpole,acrobot",
    "seed=0,1",
    "budget=6000",
    "learning_starts=60",
    "batch_size=16",
    "log_every=50",
    "evaluation.every=2000",
    "evaluation.episodes=2",
    "evaluation.max_episode_steps=50",
    "checkpoint.every=1000000",  # none but those that a signal asks for
    "compile=none",
    "trainer.progress_bar=false",
)
MISSING = [name for name in ("munged", "slurmctld", "slurmd") if shutil.which(name, path="/usr/sbin:/usr/bin") is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.skipif(bool(MISSING), reason=f"SLURM is not installed (apt-get install slurm-wlm munge): no {MISSING}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd needs root"),
    pytest.mark.skipif(
        util.find_spec("submitit") is None, reason="submitit is not installed: pip install 'qohort[slurm]'"
    ),
]


@pytest.fixture
def cluster(tmp_path):
    """The environment of a one-node cluster's user."""
    folder = tmp_path / "slurm"
    subprocess.run([CLUSTER, "start", folder], check=True)
    yield os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    subprocess.run([CLUSTER, "stop", folder], check=True)


def command(directory, *overrides):
    return [sys.executable, "scripts/train.py", "-m", *SWEEP, f"output_dir={directory}", *overrides]


def outcome(directory):
    """Of each run: the fingerprint; and that W&B has each of its rows once."""
    found = {}
    for path in sorted(directory.glob("*/*/seed-*")):
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        (file,) = path.glob("wandb/offline-run-*/*.wandb")
        assert wandb_file.history(file) == rows
        assert wandb_file.exit_code(file) == 0
        found[path.relative_to(directory).as_posix()] = json.loads((path / "result.json").read_text())["fingerprint"]
    return found


def wait_for(what, seconds):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_sweep_on_slurm_survives_requeueing(tmp_path, cluster):
    """One job is taken from its node by `scontrol requeue`, the other gets SLURM's warning that its time is up."""
    directory = tmp_path / "preempted"
    sweep = subprocess.Popen(
        command(directory, "hydra/launcher=submitit_slurm"), cwd=ROOT, env=cluster, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(lambda: len([one for one in directory.glob("*/*/*/metrics.jsonl") if one.stat().st_size]) == 4, 120)
        jobs = subprocess.run(["squeue", "-h", "-r", "-o", "%i"], env=cluster, capture_output=True, text=True)
        first, second = jobs.stdout.split()
        subprocess.run(["scontrol", "requeue", first], env=cluster, check=True)
        subprocess.run(["scancel", "--signal=USR2", second], env=cluster, check=True)
        wait_for(lambda: len(list(directory.glob("*/*/*/checkpoints/step-*.ckpt"))) == 4, 30)
        assert not list(directory.glob("*/*/*/result.json"))
        _, errors = sweep.communicate(timeout=240)
    finally:
        sweep.kill()
    assert sweep.returncode == 0, errors
    for job in (first, second):
        log = (directory / ".submitit" / job / f"{job}_0_log.out").read_text()
        assert log.count("Starting with") == 2
    undisturbed = tmp_path / "undisturbed"
    done = subprocess.run(command(undisturbed), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(outcome(undisturbed)) == 4
    assert outcome(directory) == outcome(undisturbed)

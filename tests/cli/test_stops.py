"""Each way to stop a command, tried on real processes: what it says, what is saved, and that the same command goes on.

The table in docs/sweeps.md has a row for each of these tests.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import wandb_file

ROOT = Path(__file__).parents[2]
SETTINGS = (
    *("budget=6000", "learning_starts=60", "batch_size=16", "log_every=50", "network.hidden=[8]"),
    *("evaluation.every=1000", "evaluation.episodes=2", "evaluation.max_episode_steps=50", "compile=none"),
)
WALL_TIMES = ("wall_s", "env_steps_per_s")


def command(directory, *overrides, script="train"):
    return [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *overrides, *SETTINGS, f"output_dir={directory}"]


def start(directory, *overrides, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(command(directory, *overrides), cwd=ROOT, text=True, start_new_session=True, **options)


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def steps_taken(directory):
    """The env_steps of the last row that is on the disk."""
    lines = [line for file in directory.glob("*/*/*/metrics.jsonl") for line in file.read_text().splitlines()[-2:-1]]
    return max((json.loads(line)["env_steps"] for line in lines), default=0)


def finish(directory, *overrides):
    done = subprocess.run(command(directory, *overrides), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def outcome(directory):
    """Of each member, its fingerprint and its rows; W&B's rows are the same, if it was on."""
    found = {}
    for path in sorted(directory.glob("*/*/seed-*")):
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        files = list(path.glob("wandb/offline-run-*/*.wandb"))
        assert len(files) <= 1
        for file in files:
            assert wandb_file.history(file) == rows
            assert wandb_file.exit_code(file) == 0
        kept = [{key: value for key, value in row.items() if key not in WALL_TIMES} for row in rows]
        found[path.parent.name, path.name] = json.loads((path / "result.json").read_text())["fingerprint"], kept
    return found


QUIET = ("seed=[0,1]", "logger=none", "trainer.progress_bar=false")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    finish(directory, *QUIET)
    return outcome(directory)


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_saves(number, tmp_path, undisturbed):
    process = start(tmp_path, *QUIET)
    wait_for(lambda: list(tmp_path.glob("*/*/seed-1/metrics.jsonl")))
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert f"interrupted by {signal.Signals(number).name} at " in errors
    finish(tmp_path, *QUIET)
    assert outcome(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.matrix
def test_nohup_keeps_a_run_from_stopping(tmp_path, undisturbed):
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    process = start(tmp_path, *QUIET, **ignore)
    wait_for(lambda: list(tmp_path.glob("*/*/seed-1/metrics.jsonl")))
    process.send_signal(signal.SIGHUP)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert outcome(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.matrix
def test_a_closed_pipe_stops_nothing(tmp_path, undisturbed):
    """As `| head -1` does: nobody reads any more what the run prints."""
    process = start(tmp_path, *QUIET[:-1], stderr=subprocess.STDOUT)
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert outcome(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.matrix
def test_an_ascii_terminal_gets_what_it_can_show(tmp_path, undisturbed):
    process = start(tmp_path, *QUIET, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "final return" in output
    assert outcome(tmp_path) == undisturbed


COMPILER = """#!/bin/sh
if ls {runs}/*/*/*/manifest.json >/dev/null 2>&1; then touch "{mark}"; sleep 3; fi
exec g++ "$@"
"""


@pytest.mark.slow
@pytest.mark.matrix
def test_ctrl_c_while_a_compiler_runs(tmp_path):
    """The signal also ends the C++ compiler. That is no failure of the program, which would run in another mode."""
    compiler, mark = tmp_path / "slow-g++", tmp_path / "compiling"
    compiler.write_text(COMPILER.format(mark=mark, runs=tmp_path / "runs"))
    compiler.chmod(0o755)
    environment = {**os.environ, "CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    overrides = (*QUIET, "budget=300")
    process = subprocess.Popen(
        [*command(tmp_path / "runs", *overrides)[:-1], f"output_dir={tmp_path / 'runs'}", "compile=inductor"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    wait_for(mark.exists, 120)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "interrupted by SIGINT" in errors
    assert "cannot do" not in errors
    for manifest in (tmp_path / "runs").glob("*/*/*/manifest.json"):
        assert json.loads(manifest.read_text())["compile_fallbacks"] == {}


def children(process):
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid=,comm="], capture_output=True, text=True).stdout
    processes = (line.split(None, 2) for line in listed.splitlines())
    parents = {int(pid): (int(parent), name) for pid, parent, name in processes}
    found, added = {process}, True
    while added:
        added = {pid for pid, (parent, _) in parents.items() if parent in found} - found
        found |= added
    return {pid: parents[pid][1] for pid in found if pid in parents}


@pytest.mark.slow
@pytest.mark.matrix
def test_a_dead_wandb_service_ends_no_run(tmp_path, undisturbed):
    process = start(tmp_path, "seed=[0,1]", "trainer.progress_bar=false")
    wait_for(lambda: len(list(tmp_path.glob("*/*/*/wandb/offline-run-*/*.wandb"))) == 2)
    wait_for(lambda: steps_taken(tmp_path) > 0)
    services = [pid for pid, name in children(process.pid).items() if name.startswith(("wandb-core", "gpu_stats"))]
    assert services
    for pid in services:
        os.kill(pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "WandbSink" in errors
    assert "metrics.jsonl has them all" in errors
    for path in tmp_path.glob("*/*/*/wandb"):
        subprocess.run(["rm", "-r", path], check=True)
    assert outcome(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.matrix
def test_the_workers_of_a_sweep_that_was_killed_save_and_end(tmp_path):
    overrides = ("-m", "env=cartpole,acrobot", "seed=0,1", "logger=none", "hydra/launcher=joblib", "budget=9000")
    process = start(tmp_path / "a", *overrides, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list((tmp_path / "a").glob("*/*/seed-*/metrics.jsonl"))) >= 2)
    time.sleep(1)
    workers = set(children(process.pid)) - {process.pid}
    assert workers
    process.kill()
    process.wait()

    def gone():
        left = [pid for pid in workers if Path(f"/proc/{pid}/cmdline").exists()]
        return not [pid for pid in left if b"loky" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    wait_for(gone, 30)
    assert list((tmp_path / "a").glob("*/*/seed-*/checkpoints/step-*.ckpt"))
    finish(tmp_path / "a", *overrides)
    finish(tmp_path / "b", *overrides[:-2], overrides[-1])
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b") != {}


RAINBOW = ("agent=rainbow", "seed=[0,1]", "checkpoint.every=200", "trainer.progress_bar=false")
WAYS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def stopped_at_random(generator, directory, ways):
    """One process after the other on the same runs, each stopped at a random moment; how often that was in time."""
    stops = 0
    for way in ways:
        process = start(directory, *RAINBOW, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(generator.uniform(2, 9))
        if process.poll() is None:
            os.killpg(process.pid, way)
            stops += 1
        process.wait()
    finish(directory, *RAINBOW)
    return stops


@pytest.mark.slow
def test_stopped_at_100_random_moments(tmp_path):
    """Until there were 100 stops, each of the four ways as often. Runs that end meanwhile start anew elsewhere."""
    finish(tmp_path / "undisturbed", *RAINBOW)
    expected, stops, generator = outcome(tmp_path / "undisturbed"), 0, random.Random(0)
    number = 0
    while stops < 100:
        directory = tmp_path / str(number)
        stops += stopped_at_random(generator, directory, [WAYS[(number + one) % 4] for one in range(4)])
        assert outcome(directory) == expected, number
        number += 1


def test_the_table_of_stops_has_a_row_for_each_way():
    text = (ROOT / "docs" / "sweeps.md").read_text()
    for word in ("Ctrl-C", "SIGTERM", "SIGHUP", "SIGUSR1", "kill -9", "closed pipe", "full disk", "W&B", "compiler"):
        assert word in text, word

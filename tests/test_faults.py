"""Whatever ends a run, the same command afterwards ends as if nothing had happened: kills, damage, a full disk."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import wandb
from hydra import compose, initialize_config_dir

import qohort.runs.checkpoints
import qohort.runs.files
import wandb_file
from matrix import MARKS, matrix
from qohort.agent.evaluation import Evaluator
from qohort.agent.learner import QLearning
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.config.errors import RunsFailed
from qohort.runs.directory import RunDirectory
from qohort.runs.interruption import StopRequest
from qohort.runs.training import train

SETTINGS = (
    "seed=[3,4]",
    "budget=600",
    "learning_starts=60",
    "batch_size=16",
    "log_every=50",
    "evaluation.every=200",
    "evaluation.episodes=2",
    "evaluation.max_episode_steps=50",
    "checkpoint.every=100",
    "compile=none",
    "env.backend=gymnasium",  # which takes one step at a time
    "trainer.progress_bar=false",
)
WALL_TIMES = ("wall_s", "env_steps_per_s")


def run(directory, *overrides):
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        train(compose("train", [*SETTINGS, f"output_dir={directory}", *overrides]))


def in_a_process(prepare, directory, *overrides):
    """Train in a process of its own, after `prepare` has been called in it."""

    def target():
        os.setsid()
        prepare()
        run(directory, *overrides)

    wandb.teardown()  # a process of its own has its own service of W&B, which ends with it
    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    return process


def outcome(directory):
    """Of each member: the fingerprint, the rows, and W&B's rows and exit code."""
    members = {}
    for path in sorted(directory.glob("*/*/seed-*")):
        result = json.loads((path / "result.json").read_text())
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        (file,) = path.glob("wandb/offline-run-*/*.wandb")
        assert wandb_file.history(file) == rows
        assert wandb_file.exit_code(file) == 0
        assert not [file for file in path.rglob(".*") if "tmp" in file.name]
        kept = [{key: value for key, value in row.items() if key not in WALL_TIMES} for row in rows]
        members[path.name] = result["fingerprint"], kept
    assert list(members) == ["seed-3", "seed-4"]
    return members


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    process = in_a_process(lambda: None, directory)
    process.join()
    assert process.exitcode == 0
    return outcome(directory)


def kill_at(point, name, count):
    """Let the `count`-th write of a file with this in its name end the process, at `point` of the write."""
    seen = 0
    replace = os.replace

    def killing_replace(source, target):
        nonlocal seen
        seen += name in Path(target).name
        if seen == count and name in Path(target).name:
            if point == "mid temporary file":
                os.truncate(source, os.path.getsize(source) // 2)
            if point == "after the rename":
                replace(source, target)
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    qohort.runs.files.os.replace = killing_replace


POINTS = [
    ("mid temporary file", "step-", 5),
    pytest.param("before the rename", "step-", 6, marks=MARKS),
    pytest.param("after the rename", "step-", 5, marks=MARKS),
    pytest.param("before the rename", "final", 1, marks=MARKS),
    ("before the rename", "result", 2),
]


@pytest.mark.parametrize(("point", "name", "count"), POINTS)
def test_killed_at_a_point(point, name, count, tmp_path, undisturbed):
    process = in_a_process(lambda: kill_at(point, name, count), tmp_path)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    run(tmp_path)
    assert outcome(tmp_path) == undisturbed


def kill_at_random(seed, directory):
    """One process after the other on the same runs, each killed at a random moment, then one to the end."""
    moments = random.Random(seed)
    kills = 0
    for _ in range(4):
        process = in_a_process(lambda: None, directory)
        process.join(moments.uniform(0.1, 0.9))
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
    run(directory)
    return kills


def test_killed_at_random_moments(tmp_path, undisturbed):
    assert kill_at_random(1, tmp_path) >= 1
    assert outcome(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 7))
def test_killed_at_more_random_moments(seed, tmp_path, undisturbed):
    kill_at_random(seed, tmp_path)
    assert outcome(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no second filesystem here")
def test_killed_with_tmpdir_on_another_filesystem(tmp_path, undisturbed, monkeypatch):
    assert os.stat("/dev/shm").st_dev != os.stat(tmp_path).st_dev
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    process = in_a_process(lambda: kill_at("before the rename", "step-", 5), tmp_path)
    process.join()
    run(tmp_path)
    assert outcome(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("damage", matrix(["truncated", "emptied", "a byte changed"], ["a byte changed"]))
def test_a_damaged_newest_checkpoint_is_passed_over(damage, tmp_path, undisturbed, capfd):
    process = in_a_process(lambda: kill_at("after the rename", "step-", 8), tmp_path)
    process.join()
    newest = max(tmp_path.glob("*/*/seed-4/checkpoints/step-*.ckpt"))
    assert newest.name == "step-000000000400.ckpt"
    content = bytearray(newest.read_bytes())
    if damage == "a byte changed":
        content[len(content) // 2] ^= 1
    newest.write_bytes({"truncated": content[: len(content) // 2], "emptied": b""}.get(damage, bytes(content)))
    process = in_a_process(lambda: kill_at("before the rename", newest.name, 1), tmp_path)
    process.join()
    assert not newest.exists()  # removed when the run was resumed from the one before
    assert (newest.parent / "step-000000000300.ckpt").exists()
    run(tmp_path)
    assert f"{newest} is damaged and was skipped" in capfd.readouterr().err
    assert outcome(tmp_path) == undisturbed


def test_a_full_disk(tmp_path, undisturbed):
    """A file that may not grow stands for a disk without room: the write fails, and nothing whole is lost."""

    def no_room():
        kill = qohort.runs.checkpointing.MemberCheckpointIO.save_checkpoint
        saves = 0

        def save(self, *arguments, **keywords):
            nonlocal saves
            saves += 1
            if saves == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
            kill(self, *arguments, **keywords)

        qohort.runs.checkpointing.MemberCheckpointIO.save_checkpoint = save

    process = in_a_process(no_room, tmp_path)
    process.join()
    assert process.exitcode == 1
    assert [path.name for path in sorted(tmp_path.glob("*/*/seed-3/checkpoints/*"))] == [
        "step-000000000100.ckpt",
        "step-000000000200.ckpt",
    ]
    run(tmp_path)
    assert outcome(tmp_path) == undisturbed


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here (it takes root)")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("room", matrix([40_000, 160_000, 320_000], [160_000]))
def test_a_file_system_that_is_really_full(room, small_disk, undisturbed):
    ballast = small_disk / "ballast"
    free = shutil.disk_usage(small_disk).free
    ballast.write_bytes(bytes(free - room))
    process = in_a_process(lambda: None, small_disk)
    process.join()
    assert process.exitcode == 1
    ballast.unlink()
    run(small_disk)
    assert outcome(small_disk) == undisturbed


@pytest.mark.slow
@pytest.mark.matrix
def test_checkpoints_by_the_clock(tmp_path, undisturbed):
    rarely = ("checkpoint.every=100000", "checkpoint.minutes=1e-9")
    process = in_a_process(lambda: kill_at("after the rename", "step-", 4), tmp_path, *rarely)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [path.name for path in sorted(tmp_path.glob("*/*/seed-4/checkpoints/*"))] == [
        "step-000000000100.ckpt",
        "step-000000000200.ckpt",
    ]
    run(tmp_path)
    assert outcome(tmp_path) == undisturbed


def signal_at(env_steps, number):
    """Let this process get a signal once it has taken this many steps."""
    collect = QLearning.collect

    def collect_and_signal(learner):
        due = collect(learner)
        if learner.progress.env_steps == env_steps:
            os.kill(os.getpid(), number)
        return due

    QLearning.collect = collect_and_signal


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(one, marks=MARKS) for one in (signal.SIGINT, signal.SIGUSR1))]
)
def test_a_signal_ends_training_at_the_next_step_saved(number, tmp_path, undisturbed):
    process = in_a_process(lambda: signal_at(137, number), tmp_path, "checkpoint.every=100000")
    process.join()
    assert process.exitcode == 1  # an exception, as any launcher can report it
    (saved,) = tmp_path.glob("*/*/seed-4/checkpoints/step-*.ckpt")
    assert saved.name == "step-000000000137.ckpt"
    run(tmp_path)
    assert outcome(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.matrix
def test_two_processes_do_not_train_the_same_run(tmp_path, undisturbed):
    """The second one leaves it to the first one; a lock of a process that is gone is none."""
    first = in_a_process(lambda: None, tmp_path)
    until = time.monotonic() + 30
    while not list(tmp_path.glob("*/*/seed-4/metrics.jsonl")) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGSTOP)
    run(tmp_path)
    run(tmp_path, "overwrite=true")
    assert list(tmp_path.glob("*/*/seed-4/metrics.jsonl"))
    assert not list(tmp_path.glob("*/*/*/result.json"))
    os.killpg(first.pid, signal.SIGKILL)
    first.join()
    run(tmp_path)
    assert outcome(tmp_path) == undisturbed


def test_what_is_in_the_final_checkpoint_is_finished_from_it(tmp_path, undisturbed, monkeypatch):
    """The result of one member cannot be written; the other's is, and the same command writes the first one's later."""
    write = RunDirectory.write_result

    def fail_for_seed_3(directory, config):
        if config.seed == 3:
            raise OSError(28, "No space left on device")
        return write(directory, config)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "write_result", fail_for_seed_3)
        with pytest.raises(
            RunsFailed, match=r"not be written of seed 3: OSError: \[Errno 28\].* same command writes it$"
        ):
            run(tmp_path)
    assert [path.parent.name for path in tmp_path.glob("*/*/*/result.json")] == ["seed-4"]
    monkeypatch.setattr(QLearning, "__init__", lambda *_: pytest.fail("it was trained again"))
    run(tmp_path)
    assert outcome(tmp_path) == undisturbed


@pytest.mark.parametrize("what", ["RunFigure", "RunFigure.draw"])
def test_a_figure_that_cannot_be_drawn_costs_no_result(what, tmp_path, undisturbed, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(f"qohort.runs.training.{what}", fail)
    run(tmp_path)
    assert capsys.readouterr().err.count("learning_curve.png could not be drawn: RuntimeError: no fonts") == 2
    assert outcome(tmp_path) == undisturbed


@pytest.mark.parametrize("when", matrix(["a logger cannot be opened", "killed meanwhile"], ["killed meanwhile"]))
def test_an_old_result_is_kept_until_the_new_run_has_started(when, tmp_path, monkeypatch):
    run(tmp_path, "logger=none")
    before = {path: path.read_bytes() for path in tmp_path.rglob("result.json")}
    assert len(before) == 2

    def fail(*_):
        if when == "killed meanwhile":
            os._exit(9)
        raise RuntimeError("no logger")

    def prepare():
        qohort.runs.training.open_loggers = fail

    process = in_a_process(prepare, tmp_path, "logger=none", "overwrite=true")
    process.join()
    assert process.exitcode == (9 if when == "killed meanwhile" else 1)
    monkeypatch.setattr(QLearning, "__init__", lambda *_: pytest.fail("it was trained again"))
    run(tmp_path, "logger=none")
    assert {path: path.read_bytes() for path in tmp_path.rglob("result.json")} == before
    assert not list(tmp_path.rglob("*.before"))


def test_an_error_before_the_first_checkpoint_says_that_the_command_starts_over(tmp_path, monkeypatch):
    monkeypatch.setattr(QLearning, "collect", lambda _: 1 / 0)
    with pytest.raises(
        RunsFailed, match="nothing was saved yet; correct the cause, then the same command starts over; "
    ):
        run(tmp_path)


def test_an_error_in_training_is_one_line_and_its_traceback_a_file(tmp_path, undisturbed, monkeypatch, capsys):
    collect = QLearning.collect

    def fail(learner):
        if learner.progress.env_steps == 250:
            raise RuntimeError("out of luck")
        return collect(learner)

    with monkeypatch.context() as patch:
        patch.setattr(QLearning, "collect", fail)
        with pytest.raises(RunsFailed) as told:
            run(tmp_path)
    file = next(tmp_path.glob("*/*/seed-3")) / "traceback.txt"
    assert str(told.value) == (
        "training of seed 3, 4 stopped at 250 env_steps by RuntimeError: out of luck; the checkpoint of 200 env_steps "
        f"is safe; correct the cause, then the same command goes on from there; the traceback is in {file}"
    )
    assert "in fail" in file.read_text()
    capsys.readouterr()
    run(tmp_path)
    assert "seeds 3-4: resumed at 200 env_steps\n" in capsys.readouterr().out
    assert outcome(tmp_path) == undisturbed


@pytest.mark.parametrize("round", [200, pytest.param(600, marks=MARKS)])
def test_a_signal_in_an_evaluation_is_not_waited_for(round, tmp_path, undisturbed, monkeypatch):
    """The last evaluation, at 600 env_steps, too: it is repeated when the run is resumed."""

    def signal_in_the_evaluation():
        evaluate = Evaluator.__call__

        def evaluate_and_signal(evaluator, values, at, *rest):
            def values_and_signal(observation):
                if at == round:
                    os.kill(os.getpid(), signal.SIGTERM)
                return values(observation)

            return evaluate(evaluator, values_and_signal, at, *rest)

        Evaluator.__call__ = evaluate_and_signal

    process = in_a_process(signal_in_the_evaluation, tmp_path, "checkpoint.every=100000")
    process.join()
    assert process.exitcode == 1
    (saved,) = tmp_path.glob("*/*/seed-4/checkpoints/step-*.ckpt")
    assert saved.name == f"step-{round:012d}.ckpt"
    rows = [json.loads(line) for line in (saved.parents[1] / "metrics.jsonl").read_text().splitlines()]
    assert round not in [row["env_steps"] for row in rows if "eval/return" in row]
    run(tmp_path)
    assert outcome(tmp_path) == undisturbed


def test_forked_processes_have_their_own_signals_and_no_lock(tmp_path):
    """A simulator in a process of its own can be ended, and does not keep a run locked that its parent has left."""
    stop, directory = StopRequest(), RunDirectory(tmp_path / "seed-0")
    os.register_at_fork(after_in_child=stop.forget)
    with stop:
        assert directory.lock()
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        directory.unlock()
        until = time.monotonic() + 10
        while not RunDirectory(tmp_path / "seed-0").lock():  # once the child has begun
            assert time.monotonic() < until
            time.sleep(0.05)
        until = time.monotonic() + 10
        while child.exitcode is None and time.monotonic() < until:
            child.terminate()  # again: a child that has given back the lock may not have given back its signals yet
            child.join(0.5)
        assert child.exitcode == -signal.SIGTERM

"""Every logger gets every row of `metrics.jsonl`, once, also in a cohort, after a resume and after a failure."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import wandb.util
from hydra import compose, initialize_config_dir

import wandb_file
from qohort.agent.tensor_evaluation import TensorEvaluator
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.config.errors import ConfigError
from qohort.experiments.sweep import sweep_name
from qohort.runs.loggers import LightningSink, RunInfo, WandbSink
from qohort.runs.metrics import METRICS, CohortRecorder, MemberLog
from qohort.runs.training import train
from qohort.runs.wandb_runs import _packages

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "train.py"
SHORT = ("budget=400", "learning_starts=60", "log_every=50", "evaluation.every=200", "evaluation.episodes=2")
QUICK = ("evaluation.max_episode_steps=50", "checkpoint.every=100", "compile=none", "trainer.progress_bar=false")


def settings(directory, *overrides):
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        return compose("train", [*SHORT, *QUICK, "seed=[3,4]", f"output_dir={directory}", *overrides])


def runs(directory):
    return sorted(path.parent for path in directory.glob("*/*/seed-*/metrics.jsonl"))


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def wandb_files(run):
    return list(run.glob("wandb/offline-run-*/*.wandb"))


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)


def test_each_logger_has_each_members_rows(tmp_path):
    train(settings(tmp_path, "logger=[wandb,csv,tensorboard]"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert [run.name for run in runs(tmp_path)] == ["seed-3", "seed-4"]
    for run in runs(tmp_path):
        rows = rows_of(run)
        assert {key for row in rows for key in row} - {"train/temperature"} == METRICS.keys() - {"train/temperature"}
        (file,) = wandb_files(run)
        assert wandb_file.history(file) == rows
        assert wandb_file.exit_code(file) == 0
        with (run / "csv" / "metrics.csv").open() as lines:
            table = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(lines)]
        by_step: dict[float, dict[str, float]] = {}
        for row in rows:
            by_step.setdefault(row["env_steps"], {}).update(row)
        merged: dict[float, dict[str, float]] = {}
        for row in table:
            merged.setdefault(row.pop("step"), {}).update(row)
        assert merged == {step: pytest.approx(row) for step, row in by_step.items()}
        events = EventAccumulator(str(run / "tensorboard"))
        events.Reload()
        seen = [(event.step, event.value) for event in events.Scalars("eval/return")]
        assert seen == [(row["env_steps"], pytest.approx(row["eval/return"])) for row in rows if "eval/return" in row]


SECRETS = {
    "WANDB_API_KEY": "0f3c55e1d09a4b7b8c1f26aa7d9e4b3c5a6f7081",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYNOTAREALKEY0",
    "QOHORT_TEST_SECRET": "8c1f-not-for-any-file",
}


@pytest.mark.slow
@pytest.mark.matrix
def test_a_sweep_is_a_group_and_tells_no_secret(tmp_path):
    """Group: the sweep; job type: the agent; tags as given; and nothing of the environment in any file."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")} | SECRETS
    command = [sys.executable, "scripts/train.py", "-m", *SHORT, *QUICK, f"output_dir={tmp_path}", "seed=3,4"]
    sweep = [*command, "gamma=0.9,0.99", "logger.wandb.tags=[first, second]"]
    done = subprocess.run(sweep, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(runs(tmp_path)) == 4
    for run in runs(tmp_path):
        (file,) = wandb_files(run)
        told = wandb_file.run(file)
        assert told.run_group == sweep_name(sweep[3:])
        assert told.job_type == "dqn"
        assert list(told.tags) == ["first", "second"]
        assert told.display_name == run.relative_to(tmp_path).as_posix()
        assert wandb_file.history(file) == rows_of(run)
        parts = [record.SerializeToString() for record in wandb_file.records(file)]
        for secret in map(str.encode, SECRETS.values()):
            assert not any(secret in part for part in parts)
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert not any(secret.encode() in path.read_bytes() for secret in SECRETS.values()), path
    synced = subprocess.run(
        f"wandb sync --dry-run {tmp_path}/*/*/seed-*/wandb/offline-run-*",  # the README's line
        shell=True,
        env=environment | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert "Would sync 4 run(s)" in synced.stdout + synced.stderr


def test_the_name_of_a_sweep_is_that_of_what_is_compared():
    name = sweep_name(["env=cartpole,acrobot", "gamma=0.9,0.99", "seed=range(0,10)"])
    assert name is not None
    assert re.fullmatch("env=cartpole,acrobot_gamma=0.9,0.99-[0-9a-f]{8}", name)
    more = ["seed=range(0,30)", "gamma=0.9,0.99", "output_dir=elsewhere", "env=cartpole,acrobot", "logger=[wandb,csv]"]
    assert sweep_name([*more, "hydra/launcher=joblib", "overwrite=true", "trainer.progress_bar=false"]) == name
    assert sweep_name(["env=cartpole,acrobot", "gamma=0.9,0.98"]) != name
    assert sweep_name(["seed=1,2"]) is None
    long = sweep_name([f"env.kwargs.key_{n}='${{seed}} a:{n}'" for n in range(30)])
    assert long is not None
    assert len(long) < 128


def test_every_run_is_finished_although_one_of_them_cannot_be(tmp_path, capsys):
    """An error in one logger's end is told, keeps no other one open and ends no run."""
    ended = []

    class Sink:
        def __init__(self, name):
            self.name = name

        def log(self, row):
            pass

        def finish(self, failed):
            ended.append((self.name, failed))
            if self.name == "b":
                raise OSError("no room")

    recorder = CohortRecorder([tmp_path / "0.jsonl", tmp_path / "1.jsonl"])
    for log, names in zip(recorder.logs, ("ab", "cd"), strict=True):
        for name in names:
            log.open_sink(Sink(name))
    recorder.finish({1})
    assert "failed and gets no more rows (OSError: no room); metrics.jsonl has them all" in capsys.readouterr().err
    assert sorted(ended) == [("a", False), ("b", False), ("c", True), ("d", True)]


def test_a_resumed_run_has_every_row_once(tmp_path, monkeypatch):
    class Stop(BaseException):
        pass

    evaluate = TensorEvaluator.__call__

    def stop_at_the_end(self, values, round, without, stop):
        if round == 400:
            raise Stop
        return evaluate(self, values, round, without, stop)

    with monkeypatch.context() as patch:
        patch.setattr(TensorEvaluator, "__call__", stop_at_the_end)
        with pytest.raises(Stop):
            train(settings(tmp_path))
    for run in runs(tmp_path):
        (file,) = wandb_files(run)
        assert wandb_file.exit_code(file) == 1
        assert wandb_file.history(file) == rows_of(run)
    train(settings(tmp_path))
    for run in runs(tmp_path):
        (file,) = wandb_files(run)
        assert wandb_file.exit_code(file) == 0
        rows = rows_of(run)
        assert wandb_file.history(file) == rows
        losses = [row["env_steps"] for row in rows if "train/loss" in row]
        assert losses == sorted(set(losses))
        assert [row["env_steps"] for row in rows if "eval/return" in row] == [200, 400]


def test_wandb_needs_no_account_and_asks_nothing(tmp_path, monkeypatch, capfd):
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    train(settings(tmp_path / "outputs", "seed=3"))
    assert "wandb" not in capfd.readouterr().err.lower()


def test_packages_are_read_once_for_all_runs_of_a_process(tmp_path, monkeypatch):
    read, working_set = [], wandb.util.working_set
    monkeypatch.setattr(wandb.util, "working_set", lambda: read.append(1) or working_set())
    _packages.cache_clear()
    train(settings(tmp_path))
    assert len(read) == 1
    first, second = (file.read_text() for file in tmp_path.rglob("requirements.txt"))
    assert first == second
    assert f"torch=={torch.__version__.partition('+')[0]}" in first


def test_rows_wait_for_wandb_together(tmp_path):
    class Handed(list):
        settings = SimpleNamespace(sync_dir=str(tmp_path / "none"))

        def log(self, row, step):
            assert step == row["n"]
            self.append(row)

        def finish(self, exit_code):
            self.append(exit_code)

    sink = WandbSink.__new__(WandbSink)
    sink._run, sink._known, sink._next, sink._waiting, sink._handed_on = Handed(), 0, 0, [], float("inf")
    for n in range(99):
        sink.log({"n": n})
    assert sink._run == []
    sink.log({"n": 99})
    assert sink._run == [{"n": n} for n in range(100)]
    sink._handed_on = 0.0  # long ago
    sink.log({"n": 100})
    assert sink._run[100:] == [{"n": 100}]
    sink.log({"n": 101})
    sink.finish(failed=True)
    assert sink._run[101:] == [{"n": 101}, 1]


def test_numbers_that_json_lacks_are_null(tmp_path: Path):
    log = MemberLog(tmp_path / "metrics.jsonl")
    log.log({"env_steps": 1, "train/loss": float("nan"), "train/q_mean": float("inf"), "train/grad_norm": 0.5})
    log.finish(False)
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row == {"env_steps": 1, "train/loss": None, "train/q_mean": None, "train/grad_norm": 0.5}


def test_an_unknown_mode_of_wandb_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        config = compose("train", [f"output_dir={tmp_path}/outputs"])
    with pytest.raises(ConfigError, match=r"WANDB_MODE=ofline is not one of W&B's modes: did you mean offline"):
        train(config)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("logger.wandb.project=team/project", "logger.wandb: .*Invalid project name 'team/project'"),
        (f"logger.wandb.tags=[{'x' * 70}]", "logger.wandb: .*70 characters"),
    ],
)
def test_what_wandb_would_refuse_is_told_before_anything_is_touched(override, message, tmp_path):
    train(settings(tmp_path))
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    with pytest.raises(ConfigError, match=message):
        train(settings(tmp_path, override, "overwrite=true"))
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.matrix
def test_online_without_a_key_or_a_server_is_told_before_anything_is_touched(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(ConfigError, match=r"^WANDB_MODE=online, but W&B cannot be used \("):
        train(settings(tmp_path))
    assert not list(tmp_path.iterdir())


def test_one_id_of_an_agent_for_several_members_is_made_several(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "agent7")
    train(settings(tmp_path))
    names = sorted(file.name for run in runs(tmp_path) for file in wandb_files(run))
    assert len(set(names)) == 2
    assert all(name.startswith("run-agent7-") for name in names)


def test_null_is_skipped_where_a_logger_takes_only_numbers(tmp_path):
    sink = LightningSink(tmp_path, RunInfo("seed-0", "group", "dqn", {}), "tensorboard")
    sink.log({"env_steps": 1, "eval/return": None, "train/loss": 0.5})
    sink.finish(False)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert "eval/return" not in events.Tags()["scalars"]
    assert [event.value for event in events.Scalars("train/loss")] == [0.5]


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("variable", ["SLURM_PROCID", "RANK", "LOCAL_RANK"])
def test_a_single_process_logs_whatever_rank_it_is_told(variable, tmp_path):
    """The rank is read when Lightning is imported, so this takes a process of its own."""
    overrides = "budget=100 learning_starts=20 batch_size=8 evaluation.every=50 evaluation.episodes=1 compile=none"
    command = [sys.executable, str(SCRIPT), *overrides.split(), "seed=1", "logger=csv", f"output_dir={tmp_path}"]
    done = subprocess.run(command, env={**os.environ, variable: "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("*/*/seed-1/csv/metrics.csv")
    assert len(file.read_text().splitlines()) > 2


def test_speed_is_counted_without_compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 130.0, 134.0])
    monkeypatch.setattr("qohort.runs.metrics.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    recorder = CohortRecorder([tmp_path / "0.jsonl"])
    assert recorder.speed(500, compiling_s=25.0) == 100.0  # of 30 seconds, 25 were compiling
    assert recorder.speed(700, compiling_s=25.0) == 50.0

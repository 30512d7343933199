"""Every logger gets every row of `metrics.jsonl`, once, also in a cohort, after a resume and after a failure."""

import csv
import json
import os
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import wandb_file
from qohort.cli import CONFIG_DIRECTORY
from qohort.evaluation import Evaluator
from qohort.tracking import METRICS, MemberLog, WandbSink
from qohort.training import train

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


def test_each_logger_has_each_members_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("QOHORT_TEST_SECRET", "8c1f-not-for-any-file")
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
        for path in run.rglob("*"):
            assert path.is_dir() or b"8c1f-not-for-any-file" not in path.read_bytes()


def test_a_resumed_run_has_every_row_once(tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    evaluate = Evaluator.__call__

    def stop_at_the_end(self, values, round):
        if round == 400:
            raise Stop
        return evaluate(self, values, round)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "__call__", stop_at_the_end)
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


def test_rows_wait_for_wandb_together(tmp_path):
    class Handed(list):
        def log(self, row):
            self.append(row)

        def finish(self, exit_code):
            self.append(exit_code)

    sink = WandbSink.__new__(WandbSink)
    sink._run, sink._waiting, sink._handed_on = Handed(), [], float("inf")
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

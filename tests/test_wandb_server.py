"""W&B online, against a stand-in of its server: one run per member for life, `wandb sync`, `wandb agent`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from hydra import compose, initialize_config_dir

from matrix import matrix
from qohort.agent.tensor_evaluation import TensorEvaluator
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.runs.training import train
from qohort.runs.wandb_agent import summary
from qohort.runs.wandb_runs import VARIABLES, wandb_agent
from wandb_server import ENTITY, WandbServer, wandb_server

ROOT = Path(__file__).parents[1]
SHORT = ("budget=400", "learning_starts=60", "log_every=50", "evaluation.every=200", "evaluation.episodes=2")
QUICK = ("evaluation.max_episode_steps=50", "checkpoint.every=100", "compile=none", "trainer.progress_bar=false")


def settings(directory: Path, *overrides: str) -> Any:
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        return compose("train", [*SHORT, *QUICK, "seed=[3,4]", f"output_dir={directory}", *overrides])


def runs(directory: Path) -> list[Path]:
    return sorted(path.parent for path in directory.glob("*/*/seed-*/metrics.jsonl"))


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_clock(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without the columns in which a repeated stretch differs from the first time."""
    return [{key: value for key, value in row.items() if key not in ("wall_s", "env_steps_per_s")} for row in rows]


def run_id(run: Path) -> str:
    return str(json.loads((run / "manifest.json").read_text())["run_id"])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with wandb_server() as server:
        wandb.teardown()  # what it has read of the environment
        wandb_agent.cache_clear()
        for key, value in server.environment().items():
            monkeypatch.setenv(key, value)
        yield server
        wandb.teardown()
        wandb_agent.cache_clear()
        assert server.unknown == []


class Stop(BaseException):
    """Ends training as a kill would, after the newest rows were sent."""


def stop_at(monkeypatch: pytest.MonkeyPatch, env_steps: int, config: Any) -> None:
    """Train until the evaluation at `env_steps`; the newest checkpoint is older."""
    evaluate = TensorEvaluator.__call__

    def stopping(self: TensorEvaluator, values: Any, round: int, *rest: Any) -> Any:
        if round == env_steps:
            raise Stop
        return evaluate(self, values, round, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(TensorEvaluator, "__call__", stopping)
        with pytest.raises(Stop):
            train(config)


def test_a_resumed_run_continues_its_run_in_wandb(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, 400, settings(tmp_path, "checkpoint.every=300"))
    ids = [run_id(run) for run in runs(tmp_path)]
    sent = {id: server.runs[id].history() for id in ids}
    assert sorted(server.runs) == sorted(ids)
    for run, id in zip(runs(tmp_path), ids, strict=True):
        assert sent[id] == rows_of(run)
        assert max(row["env_steps"] for row in sent[id]) > 300  # from the checkpoint on, rows are made again
        assert server.runs[id].exit_code == 1
    train(settings(tmp_path, "checkpoint.every=300"))
    assert sorted(server.runs) == sorted(ids)
    for run, id in zip(runs(tmp_path), ids, strict=True):
        stored, rows = server.runs[id], rows_of(run)
        assert run_id(run) == id
        assert without_clock(stored.history()) == without_clock(rows)
        assert stored.history()[: len(sent[id])] == sent[id]
        assert stored.exit_code == 0
        assert stored.values["groupName"] == f"{run.parent.parent.name}/{run.parent.name}"
        assert stored.values["jobType"] == "dqn"
        assert stored.config()["seed"] == int(run.name.removeprefix("seed-"))


def test_a_run_that_starts_over_is_another_run_in_wandb(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, 200, settings(tmp_path, "checkpoint.every=300", "seed=3"))
    (run,) = runs(tmp_path)
    first = run_id(run)
    before = server.runs[first].history()
    train(settings(tmp_path, "seed=3"))  # without a checkpoint: from the beginning, with the same rows
    assert run_id(run) == first
    assert without_clock(server.runs[first].history()) == without_clock(rows_of(run))
    assert server.runs[first].history()[: len(before)] == before
    finished = server.runs[first].history()
    train(settings(tmp_path, "seed=3", "overwrite=true"))
    assert run_id(run) != first
    assert server.runs[first].history() == finished
    assert server.runs[run_id(run)].history() == rows_of(run)


def sync(directory: Path) -> None:
    """The line of the manual."""
    line = f"{sys.executable} -m wandb sync {directory}/*/*/seed-*/wandb/offline-run-*"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, env={**os.environ, "WANDB_MODE": "online"})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("killed", matrix([False, True], [True]))
def test_wandb_sync_before_and_after_a_resume_gives_each_row_once(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    stop_at(monkeypatch, 400, settings(tmp_path, "checkpoint.every=300", "seed=3"))
    (run,) = runs(tmp_path)
    if killed:  # what `finish` writes is not there
        (note,) = run.glob("wandb/offline-run-*/rows.json")
        note.unlink()
    sync(tmp_path)
    id = run_id(run)
    assert server.runs[id].history() == rows_of(run)
    train(settings(tmp_path, "seed=3"))
    sync(tmp_path)
    assert set(server.runs) == ({id, f"{id}-1"} if killed else {id})
    stored = server.runs[f"{id}-1" if killed else id]
    assert without_clock(stored.history()) == without_clock(rows_of(run))
    assert stored.exit_code == 0


def test_members_of_an_agent_have_runs_of_their_own(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent's run has the IQM over the seeds, also of those that were finished before."""
    train(settings(tmp_path, "seed=3", "evaluation.every=100"))
    finished = set(server.runs)
    chosen = tmp_path / "config.yaml"
    chosen.write_text("wandb_version: 1\noptimizer.lr:\n  value: 0.001\n")
    given = {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "agent7", "WANDB_SWEEP_PARAM_PATH": str(chosen)}
    for key, value in {**given, "WANDB_PROJECT": "search"}.items():
        monkeypatch.setenv(key, value)
    wandb.teardown()
    wandb_agent.cache_clear()
    train(settings(tmp_path, "seed=[3,4,5]", "evaluation.every=100"))
    assert not any(name in os.environ for name in VARIABLES)
    made = set(server.runs) - finished
    assert made == {"agent7", *(run_id(run) for run in runs(tmp_path)[1:])}
    assert {server.runs[id].project for id in made} == {"search"}
    assert {id: server.runs[id].values.get("sweep") for id in made} == dict.fromkeys(made) | {"agent7": "sweep1"}
    curves = [
        {row["env_steps"]: row["eval/return"] for row in rows_of(run) if "eval/return" in row} for run in runs(tmp_path)
    ]
    expected = [{"env_steps": step, **summary([curve[step] for curve in curves])} for step in (100, 200, 300, 400)]
    assert server.runs["agent7"].history() == [pytest.approx(row) for row in expected]
    assert server.runs["agent7"].exit_code == 0
    assert server.runs["agent7"].config()["optimizer.lr"] == 0.001
    assert server.runs["agent7"].config()["seed"] == [3, 4, 5]


def test_the_summary_of_a_cohort() -> None:
    assert summary([1.0, 2.0, 4.0, 100.0]) == {
        "eval/return": 3.0,  # the IQM leaves out the best and the worst quarter
        "eval/return_mean": 26.75,
        "eval/return_min": 1.0,
        "eval/return_max": 100.0,
    }


@pytest.mark.parametrize("file", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_sweeps_are_commands_of_train(file: Path) -> None:
    sweep = yaml.safe_load(file.read_text())
    assert sweep["command"][1:] == ["-m", "qohort", "train", "${args_no_hyphens}"]
    choices = {
        key: node.get("values", [node.get("value", node.get("min"))]) for key, node in sweep["parameters"].items()
    }
    for n in range(max(map(len, choices.values()))):
        overrides = [f"{key}={values[n % len(values)]}" for key, values in choices.items()]
        with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
            assert len(compose("train", overrides).seed) > 1
    assert sweep["metric"]["name"] in summary([1.0])


@pytest.mark.slow
def test_an_agent_trains_what_its_sweep_asks_for(server: WandbServer, tmp_path: Path) -> None:
    """The commands of the manual: `wandb sweep`, then `wandb agent`."""
    sweep = yaml.safe_load((ROOT / "sweeps" / "components.yaml").read_text())
    sweep["command"][0] = sys.executable
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    wandb_command = [sys.executable, "-m", "wandb"]
    made = subprocess.run([*wandb_command, "sweep", "sweep.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert f"wandb agent {ENTITY}/qohort/sweep1" in made.stdout + made.stderr
    server.sweep = yaml.safe_dump(sweep)
    short = dict(text.split("=") for text in (*SHORT, *QUICK))
    server.jobs = [{**short, "seed": "[0,1]", "agent": "dqn", "optimizer.lr": lr} for lr in (0.001, 0.01)]
    agent = [*wandb_command, "agent", "--count", "2", f"{ENTITY}/qohort/sweep1"]
    done = subprocess.run(agent, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert len(runs(tmp_path / "outputs")) == 4
    for n in (1, 2):
        stored = server.runs[f"agentrun{n}"]
        assert [row["env_steps"] for row in stored.history()] == [200, 400]
        assert stored.exit_code == 0
        assert stored.values["sweep"] == "sweep1"
    for run in runs(tmp_path / "outputs"):
        assert server.runs[run_id(run)].history() == rows_of(run)
        assert "sweep" not in server.runs[run_id(run)].values


def test_a_sweep_of_hydra_under_an_agent_is_refused(tmp_path: Path) -> None:
    given = {**os.environ, "WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "agent7"}
    command = [sys.executable, "-m", "qohort", "train", "-m", "seed=0,1", "compile=none", f"output_dir={tmp_path}/runs"]
    done = subprocess.run(command, env=given, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "leave out -m, and give the seeds as a list, seed=[0,1,2]" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not any(tmp_path.iterdir())

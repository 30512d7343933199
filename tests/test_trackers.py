"""Loggers of Lightning by their `_target_`: one for each member, each row once, also after a resume."""

import csv
import importlib.util
import json
import sqlite3
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from pytorch_lightning.loggers import Logger

from qohort.agent.tensor_evaluation import TensorEvaluator
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.config.errors import ConfigError
from qohort.runs.loggers import RunInfo
from qohort.runs.trackers import TrackerSink
from qohort.runs.training import train

SHORT = ("budget=400", "learning_starts=60", "log_every=50", "evaluation.every=200", "evaluation.episodes=2")
QUICK = ("evaluation.max_episode_steps=50", "checkpoint.every=300", "compile=none", "trainer.progress_bar=false")


class Server:
    """What a tracking server has: rows, hyperparameters, names and ends of its runs."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.hyperparameters: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.names: dict[str, str] = {}
        self.ends: dict[str, list[str]] = defaultdict(list)


SERVER = Server()


class Remote(Logger):
    """A logger that continues the run whose id it is given."""

    def __init__(self, run_name: str | None = None, project: str = "", run_id: str | None = None) -> None:
        super().__init__()
        self._id = run_id or f"run{len(SERVER.names)}"
        SERVER.names.setdefault(self._id, f"{project}:{run_name}")

    @property
    def name(self) -> str:
        return "remote"

    @property
    def version(self) -> str:
        return self._id

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step == metrics["env_steps"]
        SERVER.rows[self._id].append(dict(metrics))

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        SERVER.hyperparameters[self._id].append(params)

    def finalize(self, status: str) -> None:
        SERVER.ends[self._id].append(status)


class Stop(BaseException):
    """Ends training as a kill would, after the newest rows were sent."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setitem(globals(), "SERVER", Server())
    return SERVER


def settings(directory: Path, *overrides: str) -> Any:
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        return compose("train", [*SHORT, *QUICK, "seed=[3,4]", f"output_dir={directory}", *overrides])


def train_interrupted(monkeypatch: pytest.MonkeyPatch, config: Any) -> None:
    """Train until the last evaluation; the newest checkpoint is older. Then train to the end."""
    evaluate = TensorEvaluator.__call__

    def stopping(self: TensorEvaluator, values: Any, round: int, *rest: Any) -> Any:
        if round == 400:
            raise Stop
        return evaluate(self, values, round, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(TensorEvaluator, "__call__", stopping)
        with pytest.raises(Stop):
            train(config)
    train(config)


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_clock(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in ("wall_s", "env_steps_per_s")} for row in rows]


def test_each_member_has_a_logger_that_gets_every_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    remote = f"+logger.remote={{_target_: {__name__}.Remote, project: mine}}"
    table = "+logger.table={_target_: pytorch_lightning.loggers.CSVLogger}"
    train_interrupted(monkeypatch, settings(tmp_path, "logger=none", remote, table))
    runs = sorted(tmp_path.glob("*/*/seed-*"))
    assert [run.name for run in runs] == ["seed-3", "seed-4"]
    assert list(server.names.values()) == [f"mine:{run.relative_to(tmp_path).as_posix()}" for run in runs]
    for run, id in zip(runs, server.names, strict=True):
        rows = rows_of(run)
        assert without_clock(server.rows[id]) == without_clock(rows)
        (hyperparameters,) = server.hyperparameters[id]
        assert hyperparameters["seed"] == int(run.name.removeprefix("seed-"))
        assert hyperparameters["optimizer.lr"] > 0
        assert server.ends[id] == ["failed", "success"]
        (file,) = (run / "loggers" / "table").rglob("metrics.csv")
        with file.open() as lines:
            written = list(csv.DictReader(lines))
        for key in ("train/return", "train/loss", "eval/return"):
            expected = [(row["env_steps"], row[key]) for row in rows if key in row]
            assert [(int(row["step"]), float(row[key])) for row in written if row[key]] == expected


def test_a_killed_process_has_noted_every_row(tmp_path: Path, server: Server) -> None:
    info = RunInfo("seed-0", "group", "dqn", {})
    node = {"_target_": f"{__name__}.Remote"}
    sink = TrackerSink(tmp_path, info, "remote", node)
    for step in range(12):
        sink.log({"env_steps": step, "train/loss": None})
    resumed = TrackerSink(tmp_path, info, "remote", node)  # the first one was not finished
    for step in range(15):
        resumed.log({"env_steps": step, "train/loss": None})
    assert server.rows == {"run0": [{"env_steps": step} for step in range(15)]}
    assert server.hyperparameters == {"run0": [{}]}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("WandbLogger", "each member needs its own: use logger=wandb"),
        ("CometLogger", "logger.mine needs the package comet-ml: pip "),
        ("CSVLogger, nme: x", "unknown key logger.mine.nme=x: did you"),
    ],
)
def test_what_a_cohort_cannot_log_to_is_refused_before_anything_is_made(
    node: str, message: str, tmp_path: Path
) -> None:
    target = f"+logger.mine={{_target_: pytorch_lightning.loggers.{node}}}"
    with pytest.raises(ConfigError, match=message):
        train(settings(tmp_path / "outputs", "logger=none", target))
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow-skinny is not installed")
def test_mlflow_gets_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "mlflow.db"
    config = settings(tmp_path / "outputs", "logger=mlflow", f"logger.mlflow.tracking_uri=sqlite:///{store}")
    train_interrupted(monkeypatch, config)
    runs = sorted((tmp_path / "outputs").glob("*/*/seed-*"))
    with sqlite3.connect(store) as database:
        found = database.execute("select name, run_uuid, status from runs order by name").fetchall()
        assert [name for name, _, _ in found] == [run.relative_to(tmp_path / "outputs").as_posix() for run in runs]
        for (_, id, status), run in zip(found, runs, strict=True):
            assert status == "FINISHED"
            query = "select step, value from metrics where run_uuid = ? and key = ? order by step, value"
            for key in ("train/return", "train/loss", "eval/return", "gradient_steps"):
                expected = sorted((row["env_steps"], row[key]) for row in rows_of(run) if key in row)
                stored = database.execute(query, (id, key)).fetchall()
                assert stored == [(step, pytest.approx(value)) for step, value in expected]
            lr = database.execute("select value from params where run_uuid = ? and key = 'optimizer.lr'", (id,))
            assert float(lr.fetchone()[0]) > 0

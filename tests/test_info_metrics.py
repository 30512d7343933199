"""Numbers in the info of an episode's last step become metrics."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

sys.path.insert(0, str(Path(__file__).parent))
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.config.errors import ConfigError
from qohort.environments.checked import named_numbers, numbers_of
from qohort.runs.evaluations import evaluate
from test_masks import resumed, run

SHORT = (
    "env.id=masked:Rooms-v0",
    "compile=none",
    "logger=none",
    "trainer.progress_bar=false",
    "network.hidden=[8]",
    "budget=200",
    "batch_size=16",
    "learning_starts=50",
    "evaluation.every=100",
    "evaluation.episodes=4",
    "info_metrics=[is_success,steps]",
)


def rows(directory: Path, seed: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in next(directory.glob(f"*/*/seed-{seed}/metrics.jsonl")).open()]


def test_numbers_are_found_in_an_info() -> None:
    info = {"a": True, "b": np.float32(0.5), "c": "text", "d": np.array(3), "e": [1, 2], "f": None}
    found = named_numbers(info, ["a", "b", "c", "d", "e", "f", "g"])
    np.testing.assert_equal(found, [1.0, 0.5, np.nan, 3.0, np.nan, np.nan, np.nan])
    assert numbers_of(info) == ["a", "b", "d"]
    assert named_numbers(None, ["a"]) != named_numbers(info, ["a"])


@pytest.mark.slow
@pytest.mark.matrix
def test_they_are_in_the_rows_of_episodes_and_evaluations(tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    alone = run(tmp_path / "alone", [3], *SHORT)
    pair = run(tmp_path / "pair", [3, 0], *SHORT)
    assert alone[3] == pair[3] != pair[0]
    for seed in (3, 0):
        episodes = [row for row in rows(tmp_path / "pair", seed) if "train/return" in row]
        assert len(episodes) > 20
        for row in episodes:  # an episode is a success if it has a reward, and counts its steps itself
            assert row["train/is_success"] == row["train/return"]
            assert row["train/steps"] == row["train/length"]
        evaluations = [row for row in rows(tmp_path / "pair", seed) if "eval/return" in row]
        assert len(evaluations) == 2
        for row in evaluations:
            assert row["eval/is_success"] == row["eval/return"]
            assert row["eval/steps"] == row["eval/length"]
    assert "info_metrics" not in capfd.readouterr().err
    workers = (*SHORT, "env.workers=1")
    assert run(tmp_path / "workers", [3], *workers) == alone
    resumed(monkeypatch, tmp_path / "resumed", 3, SHORT, alone[3])


def evaluated(capfd: Any, directory: Path, *overrides: str) -> tuple[list[dict[str, Any]], str, str]:
    """What an evaluation of the runs in a directory returns, prints and reports."""
    (experiment,) = directory.glob("*/*")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        config = compose("evaluate", [f"run={experiment}", "episodes=6", "epsilon=0.5", *overrides])
    outcomes = evaluate(config)
    for outcome in outcomes:
        run = Path(outcome["settings"]["run"])
        assert json.loads((run / "evaluation.json").read_text()) == json.loads(json.dumps(outcome))
    return outcomes, *capfd.readouterr()


def test_evaluations_of_trained_runs_have_them(tmp_path: Path, capfd: Any) -> None:
    run(tmp_path, [3, 0], *SHORT)
    capfd.readouterr()
    outcomes, printed, errors = evaluated(capfd, tmp_path)
    assert not errors
    for outcome in outcomes:
        assert list(outcome["info_metrics"]) == ["is_success", "steps"]
        assert outcome["info_metrics"]["is_success"] == {"mean": outcome["mean"], "values": outcome["returns"]}
        assert outcome["info_metrics"]["steps"]["values"] == outcome["lengths"]
        assert f"{outcome['mean']:.4g} │ {np.mean(outcome['lengths']):.4g} │" in re.sub(" +", " ", printed)
    assert re.search(r"is_success ┃ +mean steps ┃", printed)
    files = sorted(file.name for file in tmp_path.glob("*/*/seed-3/evaluations/*"))
    others, printed, errors = evaluated(capfd, tmp_path, "info_metrics=[steps,nope]")
    assert list(others[0]["info_metrics"]) == ["steps", "nope"]
    assert others[0]["info_metrics"]["nope"] == {"mean": None, "values": [None] * 6}
    assert others[0]["returns"] == outcomes[0]["returns"]
    assert errors.count("had no number 'nope' at the end of any episode; its numbers are is_success, steps") == 2
    assert len(list(tmp_path.glob("*/*/seed-3/evaluations/*"))) == len(files) + 1
    with pytest.raises(ConfigError, match=r"info_metrics=\[a,a\] has a name twice"):
        evaluated(capfd, tmp_path, "info_metrics=[a,a]")


def test_a_name_that_never_appears_is_reported_once(tmp_path: Path, capfd: Any) -> None:
    run(tmp_path, [0], *SHORT, "info_metrics=[text,is_success]")
    told = "had no number 'text' at the end of any episode so far; its numbers are is_success, steps"
    assert capfd.readouterr().err.count(told) == 1
    assert not any("train/text" in row or "eval/text" in row for row in rows(tmp_path, 0))
    assert any("eval/is_success" in row for row in rows(tmp_path, 0))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["info_metrics=[return]"], r"info_metrics=\['return'\]: train/return is a metric already"),
        (["info_metrics=[loss]"], "train/loss is a metric already"),
        (["info_metrics=[a,a]"], "give different names"),
        (["env.id=CartPole-v1"], "is a tensor environment, which has no info: set env.backend=gymnasium"),
        (["info_metrics=is_success"], "info_metrics=is_success"),
    ],
)
def test_names_that_cannot_be_are_refused(tmp_path: Path, overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        run(tmp_path, [0], *SHORT, *overrides)
    assert not any(tmp_path.iterdir())

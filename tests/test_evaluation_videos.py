"""Videos of evaluations while training: where they are, what they show, and that the run does not notice."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v2 as imageio
import pytest
from hydra import compose, initialize_config_dir

import wandb_file
from qohort.agent.tensor_evaluation import TensorEvaluator
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.config.errors import ConfigError
from qohort.runs.training import train

SHORT = ("budget=400", "learning_starts=60", "log_every=50", "evaluation.every=200", "evaluation.episodes=2")
QUICK = ("evaluation.max_episode_steps=20", "checkpoint.every=300", "compile=none", "trainer.progress_bar=false")


def settings(directory: Path, *overrides: str) -> Any:
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        return compose("train", [*SHORT, *QUICK, "seed=[3,4]", f"output_dir={directory}", *overrides])


def runs(directory: Path) -> list[Path]:
    return sorted(path.parent for path in directory.glob("*/*/seed-*/metrics.jsonl"))


def results(directory: Path) -> list[str]:
    return [json.loads((run / "result.json").read_text())["fingerprint"] for run in runs(directory)]


class Stop(BaseException):
    pass


def test_chosen_evaluations_are_filmed_and_the_run_does_not_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    train(settings(tmp_path / "plain", "logger=none"))
    filmed = settings(tmp_path / "filmed", "evaluation.video_at=[150,400]")  # the first one is that of 200
    evaluate = TensorEvaluator.__call__

    def stopping(self: TensorEvaluator, values: Any, round: int, *rest: Any) -> Any:
        if round == 400:
            raise Stop
        return evaluate(self, values, round, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(TensorEvaluator, "__call__", stopping)
        with pytest.raises(Stop):
            train(filmed)
    train(filmed)
    assert results(tmp_path / "filmed") == results(tmp_path / "plain")
    for plain, run in zip(runs(tmp_path / "plain"), runs(tmp_path / "filmed"), strict=True):
        assert plain.relative_to(tmp_path / "plain") == run.relative_to(tmp_path / "filmed")
        names = ["evaluation-000000000200.mp4", "evaluation-000000000400.mp4"]
        assert sorted(file.name for file in (run / "videos").iterdir()) == names
        for name in names:
            frames = imageio.mimread(run / "videos" / name)
            assert 5 < len(frames) <= 21  # the first observation, and one for each step
            assert frames[0].shape == (400, 600, 3)
        (file,) = run.glob("wandb/offline-run-*/*.wandb")
        history = wandb_file.history(file)
        with_video = [row for row in history if any(key.startswith("eval/video") for key in row)]
        assert [row["env_steps"] for row in with_video] == [200, 400]
        assert all("eval/return" in row for row in with_video)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [{key: value for key, value in row.items() if "video" not in key} for row in history] == rows


def test_a_video_that_cannot_be_made_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(path: Path, fps: float) -> None:
        raise OSError("no room")

    monkeypatch.setattr("qohort.runs.evaluating.open_writer", broken)
    train(settings(tmp_path, "evaluation.video_at=[200]", "logger=none"))
    assert "no video of the evaluation at 200 env_steps: OSError: no room" in capsys.readouterr().err
    assert len(results(tmp_path)) == 2
    assert not any(any((run / "videos").iterdir()) for run in runs(tmp_path))


class Blind(gym.Wrapper[Any, Any, Any, Any]):
    """An environment without pictures."""

    def render(self) -> Any:
        raise RuntimeError("it is dark")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("evaluation.video_at=[500]",), r"evaluation.video_at=500 is after the last of 400 env_steps"),
        (("evaluation.video_at=[0]",), r"evaluation.video_at\[?.*0"),
        (
            ("evaluation.video_at=[9]", f"env.wrappers=[{{_target_: {__name__}.Blind}}]"),
            r"evaluation.video_at=\[9\]: env.id=CartPole-v1 cannot render with render_mode=rgb_array: it is dark",
        ),
    ],
)
def test_what_cannot_be_filmed_is_refused(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        train(settings(tmp_path / "outputs", *overrides))
    assert not any(tmp_path.iterdir())

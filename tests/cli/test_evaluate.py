"""scripts/evaluate.py on a tiny run: what it prints and writes, that it repeats, what it refuses."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from qohort.cohort.stacking import CohortNetwork
from qohort.cohort.streams import member_seed
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.networks.vectors import SparseMLP
from qohort.runs.checkpoints import load
from qohort.runs.directory import RunDirectory
from qohort.runs.evaluating import load_config, load_member, summary
from qohort.runs.training import train
from qohort.runs.video import tile_videos

SCRIPTS = Path(__file__).parents[2] / "scripts"
BLIND = """
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

class Blind(CartPoleEnv):
    metadata = {"render_modes": []}

    def __init__(self):
        super().__init__()

gym.register("Blind-v0", Blind, max_episode_steps=500)
"""


def python(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300)


def train_here(output: Path, settings: str) -> Path:
    """Train in this process, which saves the imports, and return the run directory."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        train(compose("train", [*settings.split(), f"output_dir={output}"]))
    (config,) = output.glob("*/*/*/config.yaml")
    return config.parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a final checkpoint."""
    output = tmp_path_factory.mktemp("outputs")
    settings = "seed=3 budget=600 learning_starts=100 compile=none logger=none evaluation.every=300"
    return train_here(output, settings + " evaluation.episodes=2 trainer.progress_bar=false")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run directory, for one test."""
    return Path(shutil.copytree(trained, tmp_path / "seed-3"))


class Evaluate:
    """Calls the script in this process, which saves importing torch each time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capfd = monkeypatch, capfd

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        script = str(SCRIPTS / "evaluate.py")
        self._monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as error:
            code = int(error.code or 0)
        return code, *self._capfd.readouterr()


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Evaluate:
    return Evaluate(monkeypatch, capfd)


def frames_of(video: Path) -> list[np.ndarray]:
    with imageio.get_reader(video) as reader:
        return list(reader.iter_data())


def written(run: Path) -> dict:
    return json.loads((run / "evaluation.json").read_text())


@pytest.mark.slow
@pytest.mark.matrix
def test_as_typed_with_a_video_prints_and_writes_it_all(run: Path) -> None:
    done = python("evaluate.py", f"run={run}", "episodes=7", "video=true")
    assert done.returncode == 0, done.stderr
    outcome = written(run)
    assert outcome["settings"]["episodes"] == 7
    assert (outcome["checkpoint"], outcome["env_steps"]) == ("checkpoints/final.ckpt", 600)
    assert (outcome["env"], outcome["agent"], outcome["trained_seed"]) == ("CartPole-v1", "dqn", 3)
    assert len(outcome["returns"]) == len(outcome["lengths"]) == 7
    assert outcome["returns"] == outcome["lengths"]  # CartPole pays 1 a step
    assert outcome["min"] == min(outcome["returns"]) <= outcome["mean"] <= max(outcome["returns"]) == outcome["max"]
    assert outcome["interval"][0] <= outcome["mean"] <= outcome["interval"][1]
    told = f"written to {run}: evaluation.json, "
    for text in ("95% interval", f"{outcome['mean']:.2f}", told, outcome["video"]):
        assert text in done.stdout
    frames = frames_of(run / outcome["video"])
    assert len(frames) == outcome["lengths"][0] + 1
    assert frames[0].shape == (400, 600, 3)
    assert {path.name for path in run.iterdir() if path.name not in ("evaluation.json", "evaluations", "videos")} == {
        *("checkpoints", "config.yaml", "manifest.json", "metrics.jsonl", "learning_curve.png", "result.json")
    }


def test_the_same_command_twice_is_the_same_and_a_video_changes_no_episode(run: Path, evaluate: Evaluate) -> None:
    command = (f"run={run}", "episodes=4", "epsilon=0.3", "seed=5")
    code, _, errors = evaluate(*command)
    assert (code, errors) == (0, "")
    first = (run / "evaluation.json").read_bytes()
    evaluate(*command)
    assert (run / "evaluation.json").read_bytes() == first
    evaluate(*command, "video=true")
    filmed = written(run)
    video = (run / filmed["video"]).read_bytes()
    evaluate(*command, "video=true")
    assert (run / filmed["video"]).read_bytes() == video
    assert filmed["returns"] == json.loads(first)["returns"]


def test_each_evaluation_keeps_a_file_of_its_own(run: Path, evaluate: Evaluate) -> None:
    for settings in ((), ("seed=1",), ("epsilon=0.5",), ()):
        code, output, _ = evaluate(f"run={run}", "episodes=2", *settings)
        assert code == 0
        assert output.count("evaluations/env_steps-000000000600-seed-") == 1
    kept = {path.name: json.loads(path.read_text()) for path in (run / "evaluations").iterdir()}
    seen = sorted((one["settings"]["seed"], one["settings"]["epsilon"]) for one in kept.values())
    assert seen == [(0, 0.0), (0, 0.5), (1, 0.0)]
    assert (written(run)["settings"]["seed"], written(run)["settings"]["epsilon"]) == (0, 0.0)  # the newest


@pytest.fixture
def experiment(run: Path, tmp_path: Path) -> Path:
    """The directory of an experiment with three runs, of which one has other weights."""
    directory = tmp_path / "dqn-01234567"
    for seed in (3, 4, 12):
        own = Path(shutil.copytree(run, directory / f"seed-{seed}"))
        edit(own, "seed: 3", f"seed: {seed}")
    file = directory / "seed-4" / "checkpoints" / "final.ckpt"
    checkpoint, generator = torch.load(file), torch.Generator().manual_seed(0)
    for name, weights in checkpoint["state_dict"].items():
        checkpoint["state_dict"][name] = torch.randn(weights.shape, generator=generator)
    torch.save(checkpoint, file)
    return directory


@pytest.mark.parametrize("named", ["{0}", "{0}/seed-*", "[{0}/seed-3,{0}/seed-4,{0}/seed-12,{0}/seed-3]"])
def test_the_runs_of_an_experiment_are_evaluated_each_as_if_alone(
    named: str, experiment: Path, evaluate: Evaluate
) -> None:
    code, output, errors = evaluate(f"run={named.format(experiment)}", "episodes=5", "epsilon=0.1", "seed=7")
    assert (code, errors) == (0, "")
    means = [written(experiment / f"seed-{seed}")["mean"] for seed in (3, 4, 12)]
    assert means[0] == means[2] != means[1]
    rows = [line.split("│")[1].strip() for line in output.splitlines() if "│ seed" in line]
    assert rows == ["seed 3", "seed 4", "seed 12"]
    listed = ", ".join(f"{mean:.1f}" for mean in means)  # of fewer than five runs no interval is shown
    assert f"mean return of {experiment}: {listed}, mean {np.mean(means):.1f}, over 3 seeds\n" in output
    together = {seed: (experiment / f"seed-{seed}" / "evaluation.json").read_bytes() for seed in (3, 4)}
    for seed, content in together.items():
        evaluate(f"run={experiment}/seed-{seed}", "episodes=5", "epsilon=0.1", "seed=7")
        assert (experiment / f"seed-{seed}" / "evaluation.json").read_bytes() == content


@pytest.mark.slow
def test_a_grid_shows_all_runs_until_the_last_ends(experiment: Path, evaluate: Evaluate) -> None:
    code, output, errors = evaluate(f"run={experiment}", "episodes=1", "video=grid")
    assert (code, errors) == (0, "")
    (grid,) = (experiment / "videos").iterdir()
    assert f"video of episode 1 of each run: {grid}\n" in output
    frames = frames_of(grid)
    lengths = [written(experiment / f"seed-{seed}")["lengths"][0] for seed in (3, 4, 12)]
    assert len(frames) == max(lengths) + 1
    assert frames[0].shape == (800, 1200, 3)
    assert frames[0][:400, :600].mean() > 100  # CartPole is drawn on white
    assert frames[0][400:, 600:].mean() < 3  # there is no fourth run
    assert frames[-1][:400, 600:].mean() < 100 or lengths[1] == max(lengths)  # it has ended


def test_videos_are_tiled_row_by_row(tmp_path: Path) -> None:
    for number, (shade, length) in enumerate([(30, 1), (90, 3), (150, 2)]):
        pictures = [np.full((8, 12, 3), shade + 20 * frame, dtype=np.uint8) for frame in range(length)]
        imageio.mimsave(tmp_path / f"{number}.gif", pictures, duration=50, loop=0)
    tile_videos([tmp_path / f"{number}.gif" for number in range(3)], tmp_path / "grid.gif")
    frames = [frame[::8, ::12, 0].astype(int) for frame in frames_of(tmp_path / "grid.gif")]
    expected = [[[30, 90], [150, 0]], [[10, 110], [170, 0]], [[10, 130], [170 // 3, 0]]]
    np.testing.assert_allclose(frames, expected, atol=2)


def test_greedy_episodes_do_not_depend_on_how_many_are_played(run: Path, evaluate: Evaluate) -> None:
    evaluate(f"run={run}", "episodes=9")
    nine = written(run)["returns"]
    evaluate(f"run={run}", "episodes=4")
    assert written(run)["returns"] == nine[:4]


def test_epsilon_and_seed_and_the_cut_are_used(run: Path, evaluate: Evaluate) -> None:
    outcomes = {}
    for name, settings in {"": (), "epsilon": ("epsilon=1",), "seed": ("seed=1",)}.items():
        evaluate(f"run={run}", "episodes=8", *settings)
        outcomes[name] = written(run)["returns"]
    assert outcomes[""] != outcomes["epsilon"]
    assert outcomes[""] != outcomes["seed"]
    evaluate(f"run={run}", "episodes=3", "max_episode_steps=5")
    assert written(run)["lengths"] == [5, 5, 5]


def test_an_interrupted_run_is_evaluated_at_its_newest_whole_checkpoint(run: Path, evaluate: Evaluate) -> None:
    checkpoints = run / "checkpoints"
    (run / "result.json").unlink()
    (checkpoints / "final.ckpt").rename(checkpoints / "step-000000000600.ckpt")
    (checkpoints / "step-000000000900.ckpt").write_bytes((checkpoints / "step-000000000600.ckpt").read_bytes()[:999])
    (checkpoints / "step-000000000950.ckpt").write_bytes(b"")
    code, _, errors = evaluate(f"run={run}", "episodes=1")
    assert code == 0
    assert written(run)["checkpoint"] == "checkpoints/step-000000000600.ckpt"
    assert written(run)["interval"] is None
    assert "step-000000000950.ckpt cannot be read" in errors
    assert errors.count("\n") == 1


def test_without_ffmpeg_the_video_is_a_gif(run: Path, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/no/such/ffmpeg")
    code, _, _ = evaluate(f"run={run}", "episodes=1", "video=true")
    assert code == 0
    assert written(run)["video"].endswith(".gif")
    assert len(frames_of(run / written(run)["video"])) > 1
    assert [path.name for path in (run / "videos").iterdir()] == [Path(written(run)["video"]).name]


def test_an_environment_that_cannot_render_is_refused_before_any_work(
    run: Path, evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blind.py").write_text(BLIND)
    monkeypatch.syspath_prepend(tmp_path)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("id: CartPole-v1", "id: blind:Blind-v0"))
    shutil.rmtree(run / "checkpoints")  # nothing of it is read before the refusal
    code, _, errors = evaluate(f"run={run}", "video=true")
    assert code == 2
    assert errors.startswith("qohort: video=true: env.id=blind:Blind-v0 cannot render")
    assert errors.count("\n") == 1
    assert not (run / "videos").exists()


STREAM = "agent=stream_q seed=3 budget=300 network.hidden=[9,7] network.sparsity=0.5 compile=none logger=none"


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of an agent that normalises what it observes."""
    output = tmp_path_factory.mktemp("streamed")
    return train_here(output, f"{STREAM} evaluation.every=300 evaluation.episodes=3 trainer.progress_bar=false")


def by_hand(run: Path) -> tuple[CohortNetwork, torch.Tensor, torch.Tensor]:
    """The network of a run's final checkpoint, and the mean and variance of what it has observed."""
    checkpoint = load(run / "checkpoints/final.ckpt")
    box = spaces.Box(-np.inf, np.inf, (4,))
    network = CohortNetwork(lambda: SparseMLP(box, 2, 1, hidden=(9, 7)), [0])
    weights = {name: one for name, one in checkpoint["state_dict"].items() if name.startswith("online.")}
    network.load_state_dict({name.removeprefix("online."): one for name, one in weights.items()})
    moments = checkpoint["qohort"]["actor"]["preprocessing"]["observations"]
    assert moments["count"].item() > 301  # each of 300 steps, and the first of each episode
    return network, moments["mean"][0], moments["squares"][0] / (moments["count"][0] - 1)


@pytest.mark.slow
@pytest.mark.matrix
def test_a_member_that_normalises_is_evaluated_on_normalised_observations(streamed: Path) -> None:
    network, mean, variance = by_hand(streamed)
    member = load_member(RunDirectory(streamed), load_config(RunDirectory(streamed)), torch.device("cpu"))
    observation = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0))
    normalised = ((observation.double() - mean) / (variance + 1e-8).sqrt()).float()
    expected = network(normalised).squeeze(-1)
    torch.testing.assert_close(member.values(observation), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(member.values(observation), member.values(observation))
    assert not torch.allclose(expected, network(observation).squeeze(-1), atol=1e-2)


def test_a_run_that_normalises_plays_as_its_network_does_on_normalised_observations(
    streamed: Path, tmp_path: Path, evaluate: Evaluate
) -> None:
    run = Path(shutil.copytree(streamed, tmp_path / "seed-3"))
    code, _, errors = evaluate(f"run={run}", "episodes=5", "seed=2")
    assert (code, errors) == (0, "")
    network, mean, variance = by_hand(run)
    returns = []
    for episode in range(5):
        env = gym.make("CartPole-v1")
        observation, _ = env.reset(seed=member_seed(2, "evaluation", 0, episode) >> 31)
        total, over = 0.0, False
        while not over:
            raw = torch.from_numpy(observation).double()
            values = network(((raw - mean) / (variance + 1e-8).sqrt()).float().expand(1, 1, 4))
            observation, reward, terminated, truncated, _ = env.step(int(values.argmax()))
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    assert written(run)["returns"] == returns
    assert len(set(returns)) > 1


WRONG = {
    "no run": ((), "run has no value"),
    "no directory": (("run=/no/such/run",), "run=/no/such/run is not a directory"),
    "a file": (("run={run}/config.yaml",), "is not a directory"),
    "not a run": (("run={run}/checkpoints",), "is not a run directory, it has no config.yaml"),
    "a directory far above": (("run={run}/../..",), "did you mean run="),
    "no such pattern": (("run={run}/seed-*",), "run={run}/seed-* matches no directory"),
    "no runs": (("run=[]",), "run=[] names no run"),
    "one of two": (("run=[{run},/no/such/run]",), "run=/no/such/run is not a directory"),
    "episodes": (("run={run}", "episodes=0"), "episodes=0"),
    "epsilon": (("run={run}", "epsilon=1.5"), "epsilon=1.5"),
    "seed": (("run={run}", "seed=[1,2]"), "seed=[1,"),
    "max_episode_steps": (("run={run}", "max_episode_steps=0"), "max_episode_steps=0"),
    "video": (("run={run}", "video=mp4"), "video=mp4"),
    "accelerator": (("run={run}", "accelerator=tpu"), "accelerator=tpu"),
    "threads": (("run={run}", "threads=many"), "threads=many"),
    "unknown key": (("run={run}", "episode=3"), "did you mean episodes"),
    "added key": (("run={run}", "+episode=3"), "did you mean episodes"),
    "no setting": (("{run}",), "is not a setting: write key=value"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_line_and_writes_nothing(name: str, run: Path, evaluate: Evaluate) -> None:
    arguments, message = WRONG[name]
    before = sorted(run.rglob("*"))
    code, output, errors = evaluate(*(argument.format(run=run) for argument in arguments))
    assert code == 2
    assert errors.startswith("qohort: ")
    assert message.format(run=run) in errors
    assert (errors.count("\n"), output) == (1, "")
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda run: shutil.rmtree(run / "checkpoints"), "has no checkpoint yet"),
        (lambda run: (run / "checkpoints/final.ckpt").write_bytes(b"PK"), "has no whole checkpoint"),
        (lambda run: (run / "config.yaml").write_text("seed: 3"), "has a config.yaml that cannot be used"),
        (lambda run: (run / "config.yaml").write_text("a: [1"), "has a config.yaml that cannot be used"),
        (lambda run: (run / "config.yaml").write_text(""), "has a config.yaml that cannot be used"),
        (lambda run: edit(run, "- 84", "- 83"), "the network does not fit final.ckpt"),
        (lambda run: edit(run, "CartPole-v1", "CartPoll-v1"), "cannot be made"),
    ],
)
def test_a_broken_run_directory_is_told_in_one_line(break_it, message: str, run: Path, evaluate: Evaluate) -> None:
    break_it(run)
    code, _, errors = evaluate(f"run={run}", "episodes=1")
    assert code == 2
    assert errors.startswith("qohort: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert not (run / "evaluation.json").exists()


def edit(run: Path, old: str, new: str) -> None:
    text = (run / "config.yaml").read_text()
    assert old in text
    (run / "config.yaml").write_text(text.replace(old, new))


@pytest.mark.slow
@pytest.mark.matrix
def test_from_the_command_line_a_mistake_has_no_traceback(tmp_path: Path) -> None:
    done = python("evaluate.py", f"run={tmp_path}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("qohort: run=")
    assert done.stderr.count("\n") == 1


def test_summary_by_hand() -> None:
    outcome = summary(np.array([1.0, 2.0, 6.0]))
    assert (outcome["mean"], outcome["min"], outcome["max"]) == (3.0, 1.0, 6.0)
    assert outcome["interval"] is None  # of so few episodes none would hold what it says
    low, high = summary(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))["interval"]
    assert 1.0 <= low < 3.0 < high <= 5.0
    assert summary(np.full(5, 500.0))["interval"] == [500.0, 500.0]
    # For many episodes the bootstrap agrees with the normal interval.
    returns = np.random.default_rng(1).normal(size=400)
    low, high = summary(returns)["interval"]
    assert (high - low) / 2 == pytest.approx(1.96 * returns.std() / 20, rel=0.1)

"""Lightning's habits: callbacks from a yaml, `log` into every member's rows, arguments of the Trainer."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir

import wandb_file
from matrix import MARKS
from qohort.agent.callbacks import CohortCallback
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.config.errors import ConfigError, RunsFailed
from qohort.runs.training import train

ROOT = Path(__file__).parents[1]
SHORT = (
    *("budget=400", "learning_starts=60", "batch_size=16", "evaluation.every=200", "evaluation.episodes=2"),
    *("compile=none", "trainer.progress_bar=false", "network.hidden=[8]", "log_every=100", "seed=[3,5]"),
)


def run(directory, *overrides, callbacks=None):
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        config = compose("train", [*SHORT, *overrides, f"output_dir={directory}"])
    if callbacks is not None:
        config.callbacks = callbacks
    return train(config)


def rows(directory, seed):
    (file,) = Path(directory).glob(f"*/*/seed-{seed}/metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


class Everything(CohortCallback):
    """Logs from each kind of hook."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor, self.steps = factor, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        pl_module.log("mine/batch", batch_idx)

    def on_env_step(self, trainer, module) -> None:
        self.steps.append(module.progress.env_steps)

    def on_evaluation_end(self, trainer, module, scores) -> None:
        module.log("mine/best", self.factor * scores.returns.max(1))

    def on_train_end(self, trainer, pl_module) -> None:
        pl_module.log_dict({"mine/steps": len(self.steps), "mine/updates": torch.tensor([7.0, 9.0])})


def test_a_callback_from_a_yaml_logs_into_metrics_and_wandb(tmp_path):
    run(tmp_path, "callbacks=parameter_norm")
    for seed in (3, 5):
        logged = [row for row in rows(tmp_path, seed) if "train/parameter_norm" in row]
        assert [row["env_steps"] for row in logged] == [200, 400]
        (final,) = tmp_path.glob(f"*/*/seed-{seed}/checkpoints/final.ckpt")
        weights = torch.load(final, weights_only=True)["state_dict"]
        squares = [one.square().sum() for name, one in weights.items() if name.startswith("online.")]
        assert logged[-1]["train/parameter_norm"] == pytest.approx(float(sum(squares)) ** 0.5, rel=1e-5)
        (file,) = tmp_path.glob(f"*/*/seed-{seed}/wandb/**/*.wandb")
        sent = [row for row in wandb_file.history(file) if "train/parameter_norm" in row]
        assert [row["env_steps"] for row in sent] == [200, 400]
    assert rows(tmp_path, 3) != rows(tmp_path, 5)


def test_what_is_logged_at_each_update_is_written_with_the_rows_of_the_loss_and_the_rest_at_once(tmp_path):
    node = {"all": {"_target_": f"{__name__}.Everything", "factor": 2.0}}
    run(tmp_path, "logger=none", callbacks=node)
    for m, seed in enumerate((3, 5)):
        own = rows(tmp_path, seed)
        losses = [row for row in own if "train/loss" in row]
        assert [row["env_steps"] for row in losses] == [100, 200, 300, 400]
        # The hook runs after the update that logs, so a row has the value of the update before.
        assert [row["mine/batch"] for row in losses] == [row["gradient_steps"] - 2 for row in losses]
        best = [row for row in own if "mine/best" in row]
        assert [row["env_steps"] for row in best] == [200, 400]
        (last,) = [row for row in own if "mine/updates" in row]
        assert last["mine/updates"] == [7.0, 9.0][m]
        assert all({"env_steps", "gradient_steps", "episodes", "wall_s"} <= set(row) for row in own)
    steps = [row for row in rows(tmp_path, 3) if "mine/steps" in row]
    assert steps[-1]["mine/steps"] == 400  # callbacks end before the module, which looks once more at the end


@pytest.mark.slow
@pytest.mark.matrix
def test_a_callback_changes_no_bits_and_has_a_directory_of_its_own(tmp_path):
    plain = run(tmp_path, "logger=none")
    watched = run(tmp_path, "logger=none", callbacks={"all": {"_target_": f"{__name__}.Everything"}})
    assert len(list(tmp_path.glob("*/dqn-*"))) == 2
    finals = [[result["final_return"] for result in results] for results in (plain, watched)]
    assert finals[0] == finals[1]


@pytest.mark.parametrize("name", ["env_steps", "wall_s"])
def test_counters_cannot_be_logged_over(tmp_path, name):
    class Bad(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            pl_module.log(name, 1)

    globals()["Bad"] = Bad
    with pytest.raises(RunsFailed, match="every row has this already"):
        run(tmp_path, "logger=none", callbacks={"bad": {"_target_": f"{__name__}.Bad"}})


def test_an_argument_of_the_trainer_reaches_it(tmp_path, capsys):
    run(tmp_path, "logger=none", "trainer.enable_model_summary=true")
    assert "CohortNetwork" in capsys.readouterr().out


class Impatient(pl.Callback):
    """Stops training early."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        trainer.should_stop = batch_idx == 20


def test_a_callback_cannot_end_a_run_before_its_budget(tmp_path):
    with pytest.raises(ConfigError, match=r"callbacks: one of them stopped training after 21 of 86 updates"):
        run(tmp_path, "logger=none", callbacks={"early": {"_target_": f"{__name__}.Impatient"}})
    assert not list(tmp_path.rglob("result.json"))


@pytest.mark.slow
@pytest.mark.matrix
def test_a_profiler_prints_its_report(tmp_path):
    command = [sys.executable, "scripts/train.py", *SHORT, "logger=none", "trainer.profiler=simple"]
    done = subprocess.run([*command, f"output_dir={tmp_path}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "training_step" in done.stdout + done.stderr


class Follower:
    """A target network of a user's own: a plain class, which averages with a rate that a member may hold."""

    foldable = ("rate",)
    separate, every = True, None

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def follow(self, target, online):
        return target + self.rate * (online - target)


def test_a_custom_target_network_moves_and_members_may_differ_in_its_numbers(tmp_path):
    node = {"_target_": f"{__name__}.Follower", "rate": 0.5}
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        config = compose("train", [*SHORT, "logger=none", "seed=[3,3]", f"output_dir={tmp_path}"])
    config.target_network = node
    config.fold = [{"target_network.rate": 0.5}, {"target_network.rate": 0.01}]
    train(config)
    apart = []
    for file in sorted(tmp_path.glob("*/*/seed-3/checkpoints/final.ckpt")):
        weights = torch.load(file, weights_only=True)["state_dict"]
        online = {name: one for name, one in weights.items() if name.startswith("online.")}
        gaps = [(one - weights[name.replace("online.", "target.", 1)]).norm() for name, one in online.items()]
        apart.append(float(torch.stack(gaps).norm()))
    # It has moved with the online network, the faster one closer.
    assert len(apart) == 2
    assert 0 < min(apart) < max(apart)


class PlainConvolutions(torch.nn.Module):
    """A network as any user of PyTorch would write it, whose convolution is dilated."""

    def __init__(self, observation_space, actions, atoms):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(observation_space.shape[-1], 4, 3, dilation=2), torch.nn.ReLU(), torch.nn.Flatten()
        )
        self.output = torch.nn.Linear(4 * 6 * 6, actions * atoms)
        self.shape = (actions, atoms)

    def forward(self, observation):
        features = self.layers(observation.float().permute(0, 3, 1, 2))
        return self.output(features).unflatten(-1, self.shape)


@pytest.mark.parametrize("mode", [pytest.param("inductor", marks=MARKS), "fx"])
def test_what_cannot_be_compiled_trains_in_every_mode_and_the_manifest_records_how(tmp_path, mode, capsys):
    """A dilated Conv2d cannot be compiled for any number of members: the run goes on in another mode, and says so."""
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        overrides = ["env=minatar", "logger=none", f"compile={mode}", "budget=200", "evaluation.max_episode_steps=20"]
        config = compose("train", [*SHORT, *overrides, f"output_dir={tmp_path}"])
    config.network = {"_target_": f"{__name__}.PlainConvolutions"}
    results = train(config)
    assert [result["env_steps"] for result in results] == [200, 200]
    assert all(np.isfinite(result["final_return"]) for result in results)
    (file,) = tmp_path.glob("*/*/seed-3/manifest.json")
    manifest = json.loads(file.read_text())
    said = capsys.readouterr().err
    assert manifest["compile"] == mode
    for program, ran_as in manifest["compile_fallbacks"].items():
        assert ran_as in ("fx", "none")
        assert f"cannot do {program} (" in said
        assert f"it runs as {ran_as}" in said
    assert (mode == "inductor") <= bool(manifest["compile_fallbacks"])

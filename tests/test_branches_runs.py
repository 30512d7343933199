"""Whole runs with actions of several numbers: alone, in a cohort and resumed, their values, and what loads them."""

import json
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

import locks
import qohort
from matrix import matrix
from qohort.agent.learner import QLearning
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.config.errors import ConfigError, RunsFailed
from qohort.runs.evaluations import evaluate
from qohort.runs.training import train

ID = "locks:QohortLocks-v0"
QUIET = ("logger=none", "trainer.progress_bar=false")
SHORT = (
    *QUIET,
    f"env.id={ID}",
    "compile=none",
    "budget=160",
    "learning_starts=40",
    "batch_size=8",
    "network.hidden=[7]",
    "log_every=50",
    "evaluation.every=80",
    "evaluation.episodes=2",
    "evaluation.epsilon=0.2",
    "checkpoint.every=50",
)
NO_LEARNING_STARTS = tuple(one for one in SHORT if not one.startswith("learning_starts"))


def composed(*overrides):
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        return compose("train", list(overrides))


def run(directory, seeds, *overrides):
    """Train a cohort; each seed's fingerprint."""
    config = composed(*overrides, f"seed={seeds}".replace(" ", ""), f"output_dir={directory}")
    return {result["seed"]: result["fingerprint"] for result in train(config)}


class Interrupted(BaseException):
    """Stands for whatever ends a process."""


VARIANTS = {
    "dqn": SHORT,
    "c51": (*SHORT, "agent=c51", "head.atoms=11"),
    "iqn": (*SHORT, "agent=iqn", "head.online_samples=5", "head.target_samples=4", "head.policy_samples=3"),
    "rainbow": (*SHORT, "agent=rainbow", "head.atoms=11", "env.num_envs=3", "train_every=3"),
    "pqn": (*NO_LEARNING_STARTS, "agent=pqn", "train_every=24", "gradient_steps=6"),
    "munchausen": (*SHORT, "agent=munchausen", "exploration=boltzmann"),
    "dqn_lambda": (*SHORT, "agent=dqn_lambda", "replay.block=7", "replay.blocks=9", "replay.refresh_every=60"),
    "qr_dqn": (*SHORT, "agent=qr_dqn", "head.quantiles=5", "network.dueling=true"),
    "pictures": (*SHORT, "env.id=locks:QohortPictures-v0", "replay.n_step=2"),
    "switches": (*SHORT, "env.id=locks:QohortSwitches-v0", "env.workers=2", "env.num_envs=2"),
}


@pytest.mark.parametrize("name", matrix(VARIANTS, ["pqn"]))
def test_a_member_is_the_same_alone_in_a_cohort_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    three = run(tmp_path / "three", [7, 3, 0], *VARIANTS[name])
    collect = QLearning.collect

    def until_interrupted(module: QLearning) -> int:
        if module.progress.env_steps >= 130:
            raise Interrupted
        return collect(module)

    with monkeypatch.context() as patch:
        patch.setattr(QLearning, "collect", until_interrupted)
        with pytest.raises(Interrupted):
            run(tmp_path / "resumed", [3], *VARIANTS[name])
    assert run(tmp_path / "resumed", [3], *VARIANTS[name])[3] == three[3]
    assert len(set(three.values())) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dqn", "iqn", "rainbow", "munchausen"])
def test_compiled_members_are_the_same_alone_and_in_a_cohort(tmp_path: Path, name: str) -> None:
    overrides = (*VARIANTS[name], "compile=inductor")
    three = run(tmp_path / "three", [7, 3, 0], *overrides)
    assert run(tmp_path / "alone", [3], *overrides)[3] == three[3]


def test_a_run_can_be_loaded_evaluated_and_filmed(tmp_path: Path) -> None:
    run(tmp_path, [0], *SHORT)
    (path,) = tmp_path.glob("*/*/seed-0")
    policy = qohort.load(path)
    values = policy.values(np.arange(3))
    assert values.shape == (3, sum(locks.SIZES))
    actions = policy.act(np.arange(3))
    best = np.stack([values[:, :2].argmax(1), values[:, 2:].argmax(1)], 1)
    assert (actions == best + locks.START).all()
    assert (policy.act(1) == actions[1]).all()
    assert all(policy.action_space.contains(one) for one in (*actions, policy.act(1)))
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        config = compose("evaluate", [f"run={path}", "episodes=3", "epsilon=0.5", "video=true"])
    (outcome,) = evaluate(config)
    assert len(outcome["returns"]) == 3
    assert (path / outcome["video"]).is_file()


def test_a_failed_environment_keeps_the_actions_as_it_counts_them(tmp_path: Path) -> None:
    with pytest.raises(RunsFailed):
        run(tmp_path, [0], *SHORT, "env.id=locks:QohortSwitches-v0", "+env.kwargs.until=100")
    (file,) = tmp_path.rglob("failed.json")
    actions = json.loads(file.read_text())["episode"]["actions"]
    assert actions
    assert all(len(one) == 2 and set(one) <= {0, 1} for one in actions)


def test_stream_q_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^optimizer=.*ObGD follows the value of one action.*2 branches.*adam$"):
        train(composed(*QUIET, f"env.id={ID}", "agent=stream_q", "normalize_observations=false"))

"""The article's ladder: each rung's experiment does what it claims."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from omegaconf import DictConfig

from matrix import MARKS
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.runs.checkpoints import load
from qohort.runs.training import train


def settings(experiment: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        return compose("train", [f"experiment={experiment}", "logger=none", "trainer.progress_bar=false", *overrides])


def q_star(config: DictConfig) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Value iteration on the environment's own model, `[S, A]`, and which states an agent can act in."""
    model: Any = gym.make(config.env.id, **config.env.kwargs).unwrapped
    states, actions = range(model.observation_space.n), range(model.action_space.n)
    q = np.zeros((len(states), len(actions)))
    while True:
        better = np.array([[backup(model.P[s][a], q, config.gamma) for a in actions] for s in states])
        if np.abs(better - q).max() < 1e-12:
            break
        q = better
    ahead, reached = [s for s in states if model.initial_state_distrib[s] > 0], set()
    while ahead:
        state = ahead.pop()
        if state not in reached:
            reached.add(state)
            ahead += [s2 for a in actions for p, s2, _, done in model.P[state][a] if p > 0 and not done]
    return q, np.array([s in reached for s in states])


def backup(outcomes: list[tuple[float, int, float, bool]], q: NDArray[np.float64], gamma: float) -> float:
    return sum(p * (reward + (0.0 if done else gamma * q[s2].max())) for p, s2, reward, done in outcomes)


def learned_q(directory: Path, seed: int) -> NDArray[np.float64]:
    (run,) = directory.glob(f"*/*/seed-{seed}")
    weight: NDArray[np.float64] = load(run / "checkpoints" / "final.ckpt")["state_dict"][
        "online.network.output.advantage.weight"
    ]
    return np.asarray(weight)[0].T


EXACT, SLIPPERY = 1e-4, 0.1
"""How far a learned value may be from Q*: where moves are certain, and where they are not (values up to 0.72)."""

RUNGS = [
    pytest.param("q_learning_frozenlake", EXACT, (), marks=MARKS),
    pytest.param("linear_frozenlake", EXACT, (), marks=pytest.mark.slow),
    pytest.param("q_learning_frozenlake_slippery", SLIPPERY, (), marks=pytest.mark.slow),
    pytest.param("linear_frozenlake_slippery", SLIPPERY, (), marks=pytest.mark.slow),
    pytest.param("q_learning_cliffwalking", EXACT, (), marks=pytest.mark.slow),
    pytest.param("linear_cliffwalking", EXACT, (), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "tolerance", "overrides"), RUNGS)
def test_q_learning_reaches_q_star(tmp_path: Path, name: str, tolerance: float, overrides: tuple[str, ...]) -> None:
    config = settings(f"article/{name}", "seed=[0,1,2]", f"output_dir={tmp_path}", "evaluation.every=50000", *overrides)
    train(config)
    expected, reached = q_star(config)
    for seed in (0, 1, 2):
        error = np.abs(learned_q(tmp_path, seed) - expected)[reached]
        assert error.max() < tolerance


def test_the_articles_dqn_has_the_articles_settings() -> None:
    config = settings("article/dqn")
    assert list(config.network.hidden) == [24, 24]
    assert config.head.loss == "squared"
    assert config.gamma == 0.95
    assert config.batch_size == config.learning_starts == 20
    assert config.train_every == config.gradient_steps == 1
    assert config.replay.capacity == 1_000_000
    assert config.target_network._target_.endswith("NoTarget")
    assert config.max_grad_norm is None
    epsilon = config.exploration.epsilon
    assert (epsilon.start, epsilon.end, epsilon.decay, epsilon.per) == (1.0, 0.01, 0.995, "gradient_steps")
    assert config.optimizer._target_.endswith("MemberAdam")
    assert config.optimizer.lr == 0.001


@pytest.mark.slow
def test_a_memory_makes_the_articles_dqn_learn(tmp_path: Path) -> None:
    scores = {}
    for name in ("approximate_q_learning", "dqn"):
        overrides = ("seed=[0,1,2,3,4]", "budget=20000", "evaluation.every=2000", f"output_dir={tmp_path}")
        scores[name] = np.median([result["auc"] for result in train(settings(f"article/{name}", *overrides))])
    assert scores["dqn"] > 100
    assert scores["dqn"] > 2 * scores["approximate_q_learning"]


@pytest.mark.slow
def test_the_default_solves_cartpole(tmp_path: Path) -> None:
    """On each of its five seeds at some time, and at the end on all but one: which one, the type of machine decides."""
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        results = train(compose("train", [f"output_dir={tmp_path}", "logger=none"]))
    assert [result["seed"] for result in results] == [0, 1, 2, 3, 4]
    assert min(result["best_return"] for result in results) == 500
    finals = sorted(result["final_return"] for result in results)
    assert finals[0] >= 400
    assert finals[1] >= 475

"""Agents learn the known values of a small environment whose actions have several numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

import locks
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.runs.directory import RunDirectory
from qohort.runs.evaluating import load_config, load_member
from qohort.runs.training import train

pytestmark = pytest.mark.slow

LEARNING = (
    "env.id=locks:QohortLocks-v0",
    "logger=none",
    "trainer.progress_bar=false",
    "compile=none",
    f"gamma={locks.GAMMA}",
    "budget=6_000",
    "learning_starts=200",
    "train_every=1",
    "batch_size=32",
    "target_network.every=50",
    "optimizer.lr=0.01",
    "exploration.epsilon.start=0.5",
    "exploration.epsilon.end=0.02",
    "evaluation.every=6_000",
    "evaluation.episodes=2",
    "network.hidden=[16]",
    "network.layer_norm=false",
    "lr_schedule=linear",
)

RANDOM = (*LEARNING, "exploration.epsilon.start=1", "exploration.epsilon.end=1")
C51 = ("head.v_min=-3", "head.v_max=3")
IQN = ("head.kappa=0.0", "head.online_samples=16", "head.target_samples=16")
NO_TARGET = tuple(one for one in LEARNING if not one.startswith("target_network"))
PARTS = (slice(0, 2), slice(2, 5))


def learned(directory, agent, overrides):
    """The action values of a trained member, `[cells, Σ n_k]`, and its result."""
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        config = compose("train", [f"agent={agent}", *overrides, "seed=0", f"output_dir={directory}"])
    (result,) = train(config)
    (path,) = Path(directory).glob("*/*/seed-0")
    run = RunDirectory(path)
    member = load_member(run, load_config(run), torch.device("cpu"))
    return member.values(torch.arange(len(locks.RIGHT)).unsqueeze(0))[0].numpy(), result


BRANCHED = {
    "dqn": RANDOM,
    "double": RANDOM,
    "dueling": RANDOM,
    "c51": (*RANDOM, *C51),
    "iqn": (*RANDOM, *IQN),
}


@pytest.mark.parametrize("agent", BRANCHED)
def test_values_are_the_fixed_point_of_the_update_where_all_actions_are_random(agent, tmp_path):
    values, _ = learned(tmp_path, agent, BRANCHED[agent])
    np.testing.assert_allclose(values, locks.branched_values(), atol=0.15)


OPTIMAL = {
    "dqn": LEARNING,
    "c51": (*LEARNING, *C51),
    "iqn": (*LEARNING, *IQN),
    "munchausen": (*LEARNING, "bootstrap.temperature=0.003"),
    "rainbow": (*(one for one in LEARNING if not one.startswith("exploration")), *C51),
    "pqn": (
        *(one for one in NO_TARGET if not one.startswith(("train_every", "learning_starts"))),
        "train_every=64",
        "gradient_steps=8",
        "budget=30_000",
    ),
}


@pytest.mark.parametrize("agent", OPTIMAL)
def test_the_policy_is_optimal_and_has_its_values(agent, tmp_path):
    values, result = learned(tmp_path, agent, OPTIMAL[agent])
    known = locks.optimal_values()
    assert [tuple(int(row[part].argmax()) for part in PARTS) for row in values] == list(locks.RIGHT)
    for part in PARTS:
        np.testing.assert_allclose(values[:, part].max(1), known[:, part].max(1), atol=0.15)
    assert result["final_return"] == locks.GOAL

"""Every kind of agent learns the known values of a chain with action masks, and of observations of several parts."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import masked
from qohort.runs.loading import load
from qohort.runs.policy import Policy
from test_masks import run

pytestmark = pytest.mark.slow

GAMMA = 0.9
SETTINGS = (
    "compile=none",
    "logger=none",
    "trainer.progress_bar=false",
    f"gamma={GAMMA}",
    "budget=5_000",
    "learning_starts=200",
    "train_every=2",
    "batch_size=32",
    "target_network.every=50",
    "optimizer.lr=0.01",
    "lr_schedule=linear",
    "exploration.epsilon.start=0.5",
    "exploration.epsilon.end=0.5",
    "evaluation.every=5_000",
    "evaluation.episodes=2",
    "network.hidden=[16]",
    "network.layer_norm=false",
)
C51 = ("head.v_min=-1", "head.v_max=2", "head.atoms=31")
AGENTS = {
    "dqn": SETTINGS,
    "c51": (*SETTINGS, *C51),
    "iqn": (*SETTINGS, "head.kappa=0.0"),
    # Noise explores less and less; returns of three steps are those of the behaviour.
    "rainbow": (*(one for one in SETTINGS if not one.startswith("exploration")), *C51, "network.noisy_sigma=0.3"),
    "pqn": (
        *(one for one in SETTINGS if not one.startswith(("train_every", "learning_starts", "target_network"))),
        *("exploration.epsilon.end=0.02", "train_every=64", "gradient_steps=8", "budget=30_000"),
    ),
}


def learned(directory: Path, agent: str, *overrides: str) -> Policy:
    """The policy of a trained member."""
    run(directory, [0], f"agent={agent}", *AGENTS[agent], *overrides)
    return load(next(directory.glob("*/*/seed-0")))


@pytest.mark.parametrize("agent", AGENTS)
def test_values_under_masks_are_those_of_the_optimal_policy(agent: str, tmp_path: Path) -> None:
    """`FALL`, which is masked everywhere, would be worth 100: no target has seen it."""
    policy = learned(tmp_path, agent, "env.id=masked:MaskedChain-v0", "env.action_mask=true")
    masks = np.array([masked.allowed(state) for state in range(masked.LENGTH)])
    values, known = policy.values(np.arange(masked.LENGTH), action_mask=masks), masked.optimal(GAMMA)
    assert (values[~masks] == -np.inf).all()
    np.testing.assert_allclose(values.max(1), known.max(1), atol=0.12)
    if agent in ("dqn", "c51", "iqn"):  # which have explored enough, and whose targets are of one step
        assert values.argmax(1).tolist() == known.argmax(1).tolist()
        np.testing.assert_allclose(values[masks], known[masks], atol=0.12)


@pytest.mark.parametrize("agent", AGENTS)
def test_values_of_several_parts_are_those_of_the_optimal_policy(agent: str, tmp_path: Path) -> None:
    network = ("network=multi_input", "network.convolutions=[[3,3,2]]")
    policy = learned(tmp_path, agent, "env.id=masked:Rooms-v0", *network)
    env = masked.Rooms()
    right, other = masked.rooms_q(GAMMA)
    for room, lamp in ((0, 0), (0, 1), (1, 0), (1, 1)):
        env.reset(seed=0)
        env._room, env._lamp = room, lamp
        values, best = policy.values(env._seen()), room ^ lamp
        assert values.argmax() == best
        np.testing.assert_allclose(values[best], right, atol=0.12)
        if agent in ("dqn", "c51", "iqn"):
            np.testing.assert_allclose(values[1 - best], other, atol=0.12)

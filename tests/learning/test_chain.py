"""Every agent learns the known values, and distributional heads the known distributions, of a small chain."""

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hydra import compose, initialize_config_dir

from qohort.config.composition import CONFIG_DIRECTORY
from qohort.runs.directory import RunDirectory
from qohort.runs.evaluating import load_config, load_member
from qohort.runs.training import train

sys.path.insert(0, str(Path(__file__).parents[1]))
import reference as ref

pytestmark = pytest.mark.slow

LENGTH, GAMMA = 4, 0.9
GOAL = ((0.5, 1.0), (0.5, 3.0))


class Chain(gym.Env):
    """`ref.chain`: action 0 goes left, action 1 right, and right from the last state ends with a random reward."""

    def __init__(self, certain=False, render_mode=None):
        self.observation_space, self.action_space = spaces.Discrete(LENGTH), spaces.Discrete(2)
        self._mdp = ref.chain(LENGTH, GAMMA, ((1.0, 2.0),) if certain else GOAL)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._state = int(self.np_random.integers(LENGTH))
        return self._state, {}

    def step(self, action):
        outcomes = self._mdp.outcomes[self._state][action]
        outcome = outcomes[self.np_random.choice(len(outcomes), p=[one.probability for one in outcomes])]
        done = outcome.next_state is None
        self._state = 0 if done else outcome.next_state
        return self._state, outcome.reward, done, False, {}


@pytest.fixture(autouse=True)
def chain_ids():
    gym.register("QohortChain-v0", Chain, max_episode_steps=30)
    yield
    del gym.registry["QohortChain-v0"]


SETTINGS = (
    "env.id=QohortChain-v0",
    "compile=none",
    "logger=none",
    "trainer.progress_bar=false",
    f"gamma={GAMMA}",
    "budget=6_000",
    "learning_starts=200",
    "train_every=1",
    "batch_size=32",
    "target_network.every=50",
    "optimizer.lr=0.01",
    "exploration.epsilon.start=0.5",
    "exploration.epsilon.end=0.5",
    "evaluation.every=6_000",
    "evaluation.episodes=2",
    "network.hidden=[16]",
    "network.layer_norm=false",
)
"""An MLP on one-hot states."""
C51 = ("head.v_min=-1", "head.v_max=4", "head.atoms=51")
QUIET = tuple(one for one in SETTINGS if not one.startswith("exploration"))
NO_TARGET = tuple(one for one in SETTINGS if not one.startswith("target_network"))
TABLE = tuple(one for one in SETTINGS if not one.startswith("network"))

STREAM = ("batch_size", "learning_starts", "network", "optimizer", "target_network")

AGENTS = {
    "dqn": SETTINGS,
    "double": SETTINGS,
    "dueling": SETTINGS,
    "prioritized": SETTINGS,
    "c51": (*SETTINGS, *C51),
    "qr_dqn": (*SETTINGS, "head.kappa=0", "head.quantiles=10"),
    "iqn": (*SETTINGS, "head.kappa=0.0"),
    # Where all rewards seen so far are 0, the noise is unlearned before the goal is found: epsilon explores.
    "noisy": (*SETTINGS, "exploration=linear", "network.noisy_sigma=0.3"),
    "munchausen": (*SETTINGS, "bootstrap.temperature=0.003"),
    "m_iqn": (*SETTINGS, "bootstrap.temperature=0.003"),
    # What follows a return of several steps is the behaviour's: little exploration.
    "nstep": (*SETTINGS, "exploration.epsilon.end=0.02"),
    "rainbow": (*QUIET, *C51, "network.noisy_sigma=0.3"),
    "dqn_lambda": (*NO_TARGET, "replay.block=20", "replay.refresh_every=100", "replay.watkins=true"),
    "pqn": (
        *(one for one in NO_TARGET if not one.startswith(("train_every", "learning_starts"))),
        "exploration.epsilon.end=0.02",
        "train_every=64",
        "gradient_steps=8",
        "budget=40_000",
    ),
    # The goal's reward is noisy, and each step has one: small steps, that become smaller.
    "stream_q": (
        *(one for one in SETTINGS if not one.startswith(STREAM)),
        "normalize_observations=false",
        "normalize_rewards=false",
        "network.hidden=[16]",
        "network.sparsity=0.5",  # of four inputs the usual 0.9 leaves none
        "optimizer.lr=0.003",
        "lr_schedule=linear",
        "budget=12_000",
    ),
}


def learned(directory, agent, overrides):
    """The action values of a trained member, `[LENGTH, 2]`, and what its networks say of each state."""
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        config = compose("train", [f"agent={agent}", *overrides, "seed=0", f"output_dir={directory}"])
    train(config)
    (path,) = Path(directory).glob("*/*/seed-0")
    run = RunDirectory(path)
    member = load_member(run, load_config(run), torch.device("cpu"))
    states = torch.arange(LENGTH).unsqueeze(0)
    return member, states


@pytest.mark.parametrize("agent", AGENTS)
def test_values_are_those_of_the_optimal_policy(agent, tmp_path):
    member, states = learned(tmp_path, agent, AGENTS[agent])
    values, known = member.values(states)[0].numpy(), ref.chain_q(LENGTH, GAMMA, GOAL)
    assert (values.argmax(1) == 1).all()
    np.testing.assert_allclose(values[:, 1], known[:, 1], atol=0.12)
    if agent in ("dqn", "double", "dueling", "prioritized", "c51", "qr_dqn", "iqn", "dqn_lambda", "stream_q"):
        np.testing.assert_allclose(values[:, 0], known[:, 0], atol=0.12)


def distributions(member, states):
    """The head's distribution of going right, of each state: `[LENGTH, atoms]`."""
    network, head = member.values._network, member.values._head
    outputs = network.member_forward({n: p[0] for n, p in network.parameters_by_name().items()}, states[0])
    return head.distribution(outputs)[:, 1], head


def test_c51_learns_the_whole_distribution(tmp_path):
    table = (*TABLE, "network=table", *C51, "optimizer.lr=0.05", "optimizer.eps=1e-8", "lr_schedule=linear")
    member, states = learned(tmp_path, "c51", table)
    logits, head = distributions(member, states)
    support = np.linspace(head.v_min, head.v_max, head.atoms)
    known = ref.categorical_fixed_point(ref.chain(LENGTH, GAMMA, GOAL), support)
    for state in range(LENGTH):
        distance = np.abs(np.cumsum(logits.softmax(-1)[state].numpy() - known[state][1])).sum() * (
            support[1] - support[0]
        )
        assert distance < 0.12, state  # the 1-Wasserstein distance, in units of return


def test_qr_dqn_learns_the_quantiles(tmp_path):
    table = (*TABLE, "network=table", "head.kappa=0", "head.quantiles=10", "optimizer.lr=0.02", "lr_schedule=linear")
    member, states = learned(tmp_path, "qr_dqn", table)
    quantiles, _ = distributions(member, states)
    for state in range(LENGTH):
        atoms, probabilities = ref.return_distribution(ref.chain(LENGTH, GAMMA, GOAL), state, 1)
        known = ref.quantiles(atoms, probabilities, ref.quantile_midpoints(10))
        np.testing.assert_allclose(np.sort(quantiles[state].numpy()), known, atol=0.15)

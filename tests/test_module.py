"""What the learner does besides the update: what it is shown of its environments, resets, and noise."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

import reference as ref
from qohort.agent.evaluation import EpisodeScores
from qohort.agent.learner import QLearning
from qohort.agent.q_values import QValues
from qohort.agent.update_plan import UpdatePlan
from qohort.cohort.program import Compiler
from qohort.cohort.streams import member_seed
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.config.errors import ConfigError
from qohort.config.members import check_config
from qohort.runs.preparing import prepare
from qohort.runs.training import train


class Recorder:
    def __init__(self):
        self.rows = []

    def row(self, member, progress, metrics):
        self.rows.append((member, metrics))


def module(*overrides):
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        config = compose("train", ["seed=[0,1]", "compile=none", "logger=none", *overrides])
    return QLearning(check_config(config), Recorder(), print)


class Played:
    """A member's environments played again by hand, with the slow normalisers."""

    def __init__(self, seed, num_envs, gamma):
        self.envs, self.seed, self.gamma = (
            [gym.make("CartPole-v1", max_episode_steps=9) for _ in range(num_envs)],
            seed,
            gamma,
        )
        self.episodes, self.lengths = [-1] * num_envs, [0] * num_envs
        self.normalizer, self.moments = ref.ObservationNormalizer(4), ref.SampleMeanVariance(np.zeros(()))
        self.running = [0.0] * num_envs
        self.shown = [self.normalizer(self.begin(e)) for e in range(num_envs)]

    def begin(self, e):
        self.episodes[e], self.lengths[e] = self.episodes[e] + 1, 0
        seed = member_seed(self.seed, "environments", e, self.episodes[e]) >> 31
        return self.envs[e].reset(seed=seed)[0].astype(np.float64)

    def step(self, actions):
        """Rewards and next observations as they are learned from, terminated, and the lengths of ended episodes."""
        rewards, following, terminated, ended = [], [], [], []
        for e, action in enumerate(actions):
            observation, reward, dies, cut, _ = self.envs[e].step(int(action))
            self.lengths[e] += 1
            self.running[e] = self.gamma * (0.0 if dies or cut else self.running[e]) + reward
            self.moments.update(np.array(self.running[e]))
            rewards.append(reward / (self.moments.variance() + 1e-8) ** 0.5)
            following.append(self.normalizer(observation.astype(np.float64)))
            terminated.append(dies)
            ended.append(dies or cut)
        lengths = [self.lengths[e] for e, end in enumerate(ended) if end]
        self.shown = [self.normalizer(self.begin(e)) if end else following[e] for e, end in enumerate(ended)]
        return np.array(rewards), np.array(following), terminated, lengths


def test_a_learner_acts_on_and_stores_what_is_normalised_and_tells_returns_as_they_are():
    settings = ("env.backend=gymnasium", "env.num_envs=2", "+env.kwargs.max_episode_steps=9", "exploration=greedy")
    learner = module("normalize_observations=true", "normalize_rewards=true", *settings)
    slow = [Played(seed, 2, 0.99) for seed in (0, 1)]
    acted, added = [], []

    def values(observation, numbers):
        acted.append(observation.numpy().copy())
        return torch.stack([observation[..., 2], -observation[..., 2]], -1)

    learner.values, learner.noise = values, SimpleNamespace(for_acting=dict)
    learner.replay = SimpleNamespace(add=lambda row: added.append([np.array(one) for one in row]))
    learner.plan = UpdatePlan(train_every=1, gradient_steps=1, first=10**9)
    told, ends = [[], []], np.zeros(2)
    for _ in range(60):
        before = [np.array(one.shown) for one in slow]
        learner.collect()
        observation, action, reward, terminated, truncated, following, _ = added[-1]
        for m, one in enumerate(slow):
            np.testing.assert_allclose(acted[-1][m], before[m], rtol=1e-5, atol=1e-6)
            assert np.array_equal(observation[m], acted[-1][m])
            assert np.array_equal(action[m], np.where(observation[m, :, 2] >= 0, 0, 1))
            expected = one.step(action[m])
            np.testing.assert_allclose(reward[m], expected[0], rtol=1e-9)
            np.testing.assert_allclose(following[m], expected[1], rtol=1e-5, atol=1e-6)
            assert terminated[m].tolist() == expected[2]
            told[m] += [float(length) for length in expected[3]]  # CartPole pays 1 a step
        ends += terminated.sum(), truncated.sum()
    assert [[row["train/return"] for m, row in learner.recorder.rows if m == one] for one in range(2)] == told
    assert ends.min() > 2
    learner.close()


def test_evaluation_while_training_is_on_normalised_observations():
    learner = module("normalize_observations=true")
    raw, given = learner.actor.environments.observations.reshape(2, 1, 4).copy(), []
    learner.values = lambda observation: given.append(observation) or observation

    class Evaluator:
        def __call__(self, values, round, without, stop):
            values(torch.from_numpy(raw))
            return EpisodeScores(np.ones((2, 1)), np.ones((2, 1), dtype=np.int64))

        def beyond_bounds(self):
            return None

        def close(self):
            pass

    learner.evaluator = Evaluator()
    learner.actor.preprocessing._observations(10 * raw)
    learner.evaluate()
    mean = 11 * raw.astype(np.float64) / 2
    deviation = np.sqrt((raw - mean) ** 2 + (10 * raw - mean) ** 2 + 1e-8)
    np.testing.assert_allclose(given[0], (raw - mean) / deviation, rtol=1e-5)
    learner.actor.close()


def test_a_reset_starts_the_output_layers_anew_from_each_members_stream():
    learner = module("reset_every=100", "network.hidden=[5]")
    learner.optimizer = learner.configure_optimizers()
    for state in learner.optimizer.state.values():
        state["mean"].fill_(1.0)
    before = {name: one.clone() for name, one in learner.online.parameters_by_name().items()}
    learner.progress.env_steps = 300
    learner._reset_outputs()
    third = {name: one.clone() for name, one in learner.online.parameters_by_name().items()}
    learner.progress.env_steps = 400
    learner._reset_outputs()
    fourth = learner.online.parameters_by_name()
    for name, parameter in learner.online.network.named_parameters():
        is_output = name.startswith("output")
        assert torch.equal(before[name], fourth[name]) != is_output
        assert torch.equal(third[name], fourth[name]) != is_output
        assert torch.equal(learner.target.parameters_by_name()[name], fourth[name])
        assert bool(learner.optimizer.state[parameter]["mean"].any()) != is_output
        if is_output:
            assert not torch.equal(fourth[name][0], fourth[name][1])
    learner.close()


def test_what_is_evaluated_and_what_is_left_at_the_end_has_learned_since_the_last_reset(tmp_path, monkeypatch):
    events = []
    for name in ("evaluate", "_reset_outputs"):
        really = getattr(QLearning, name)

        def noted(learner, name=name, really=really):
            events.append((learner.progress.env_steps, name))
            really(learner)

        monkeypatch.setattr(QLearning, name, noted)
    settings = "compile=none logger=none seed=0 budget=400 learning_starts=20 batch_size=8 evaluation.every=100"
    settings += " reset_every=100 train_every=30 trainer.progress_bar=false evaluation.episodes=1"
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        train(compose("train", [*settings.split(), f"output_dir={tmp_path}"]))
    # The last update is at 390: a reset at 400 would leave nothing that has learned.
    assert events == [(at, name) for at in (100, 200, 300, 400) for name in ("evaluate", "_reset_outputs")][:-1]


def test_resets_need_output_layers(tmp_path):
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        config = compose("train", ["reset_every=100", "network._target_=test_module.WithoutOutput"])
    config.network = {"_target_": "test_module.WithoutOutput"}
    with pytest.raises(ConfigError, match="reset_every=100 resets a submodule `output`, which network=test_"):
        prepare(config)


class WithoutOutput(torch.nn.Linear):
    def __init__(self, observation_space, actions, atoms):
        super().__init__(observation_space.shape[0], actions)


class WithDropout(torch.nn.Sequential):
    def __init__(self, observation_space, actions, atoms):
        super().__init__(
            torch.nn.Dropout(), torch.nn.Linear(4, actions * atoms), torch.nn.Unflatten(-1, (actions, atoms))
        )


class OneHot(torch.nn.Linear):
    """What it needs of a tensor is a value: of its gradient only, if `num_classes` is given."""

    def __init__(self, observation_space, actions, atoms, classes=4):
        super().__init__(4, actions * atoms)
        self.classes, self.shape = classes, (actions, atoms)

    def forward(self, observation):
        hot = torch.nn.functional.one_hot(observation.long().clamp(0, 3), self.classes).sum(-2)
        return super().forward(hot.float()).unflatten(-1, self.shape)


class WithIf(torch.nn.Linear):
    def __init__(self, observation_space, actions, atoms):
        super().__init__(4, actions * atoms)
        self.shape = actions, atoms

    def forward(self, observation):
        return super().forward(observation if observation.sum() > 0 else -observation).unflatten(-1, self.shape)


class WrongShape(torch.nn.Sequential):
    def __init__(self, observation_space, actions, atoms):
        super().__init__(torch.nn.Linear(4, actions + 1), torch.nn.Unflatten(-1, (actions + 1, 1)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("WithDropout", r"^network=test_module.WithDropout cannot be lifted over members .*random"),
        (
            "OneHot",
            r"OneHot cannot be lifted over members .*its forward needs the value of a tensor, as F.one_hot",
        ),
        (
            "WithIf",
            r"WithIf cannot be lifted over members .*its forward needs the value of a tensor, as F.one_hot",
        ),
        ("WrongShape", r"^network=test_module.WrongShape must map .* but its values have shape \(2, 3\)$"),
    ],
)
def test_a_network_that_cannot_be_a_members_is_refused(name, message):
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        config = compose("train", ["seed=0", "logger=none"])
    config.network = {"_target_": f"test_module.{name}"}
    with pytest.raises(ConfigError, match=message):
        prepare(config)


def test_a_newest_transition_has_fractions_of_its_own(tmp_path):
    settings = "compile=none logger=none seed=0 budget=60 learning_starts=0 agent=iqn replay=none env.num_envs=2"
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        (result,) = train(compose("train", [*settings.split(), "evaluation.episodes=1", f"output_dir={tmp_path}"]))
    assert result["gradient_steps"] > 0


def test_noise_moves_the_values_that_are_acted_on_and_not_those_of_evaluation():
    learner = module("agent=noisy", "network.hidden=[5]")
    values = QValues(learner.online, learner.head, Compiler("none"))
    observation = torch.randn(2, 3, 4)
    normal = torch.randn(2, learner.online.normals)
    acted, again = values(observation, {"normal": normal}), values(observation, {"normal": -normal})
    quiet = values(observation)
    assert not torch.allclose(acted, again)
    assert torch.equal(quiet, values(observation, {"normal": torch.zeros_like(normal)}))
    assert not torch.allclose(acted, quiet)
    # A member's noise is its own.
    other = values(observation, {"normal": torch.stack([normal[0], -normal[1]])})
    assert torch.equal(other[0], acted[0])
    assert torch.equal(other[1], again[1])
    learner.close()

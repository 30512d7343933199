"""Environments with one thing wrong are told in one line, whenever it shows, and take no neighbour's result along."""

import itertools
import json
import random

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hydra import compose, initialize_config_dir

import faulty
from matrix import matrix
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.config.errors import ConfigError, RunsFailed
from qohort.config.schema import EnvironmentConfig
from qohort.environments.checked import CheckedEnv, EnvironmentFailure, ValueCheck
from qohort.environments.contract import check_contract
from qohort.environments.making import make_environment
from qohort.environments.vector import EpisodicVectorEnv, episode_seeds
from qohort.runs.evaluations import evaluate
from qohort.runs.training import train

SETTINGS = (
    *("env.id=faulty:Faulty-v0", "budget=400", "learning_starts=50", "batch_size=8", "log_every=100"),
    *("evaluation.every=200", "evaluation.episodes=2", "network.hidden=[8]", "compile=none", "logger=none"),
    "trainer.progress_bar=false",
)


def run(directory, *overrides):
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        return train(compose("train", [*SETTINGS, f"output_dir={directory}", *overrides]))


def outcome(directory):
    """Of each seed, its fingerprint or why it failed."""
    found = {}
    for path in sorted(directory.glob("*/*/seed-*")):
        result, failed = path / "result.json", path / "failed.json"
        found[path.name] = json.loads((result if result.exists() else failed).read_text())
    return found


@pytest.mark.parametrize("wrong", [*faulty.WRONGS, *faulty.MEMORY])
def test_what_is_wrong_at_once_is_told_before_anything_is_made(wrong, tmp_path):
    with pytest.raises(ConfigError, match=r"^env\.id=faulty:Faulty-v0: ") as told:
        run(tmp_path, f"+env.kwargs={{wrong:'{wrong}'}}", "seed=0")
    assert "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", ["old step", "step returns None"])
def test_a_wrapper_that_cannot_unpack_a_step_does_not_hide_the_reason(wrong, tmp_path):
    """Gymnasium's TimeLimit, which `max_episode_steps` adds, unpacks what the environment returns."""
    with pytest.raises(ConfigError, match=r"v0: step\(\) did not return a tuple .*Gymnasium's interface since 0\.26$"):
        run(tmp_path, f"+env.kwargs={{wrong:'{wrong}',max_episode_steps:9}}", "seed=0")


def cases():
    """60 of them, drawn: what is wrong, from which step on, and whether only in the instances of evaluation."""
    drawn = random.Random(1)
    every = [(wrong, 100, False) for wrong in faulty.WRONGS] + [(wrong, 0, True) for wrong in faulty.WRONGS]
    return drawn.sample(every, k=len(every))[:60]


CASES = cases()
FAST = [next(one for one in CASES if one[0] == wrong) for wrong in ("NaN", "step raises", "reward NaN", "one element")]


@pytest.mark.parametrize("case", matrix(CASES, FAST))
def test_what_goes_wrong_later_ends_that_member_alone(case, tmp_path, capfd, monkeypatch):
    """Two members; the first one's environment, or its evaluation's, goes wrong. The other ends as if it were alone."""
    wrong, when, later = case
    right = run(tmp_path / "right", "seed=1")[0]["fingerprint"]
    make = faulty.Chain.__init__
    made = itertools.count()

    def only_the_first_member(self, **kwargs):
        # Made in this order: two by the check at the start, one by that of the network, then one to train for each
        # member, and two to evaluate for each.
        number = next(made)
        make(self, **kwargs)
        mine = number in ((5, 6) if later else (3,))
        self.wrong = wrong if mine else ""

    monkeypatch.setattr(faulty.Chain, "__init__", only_the_first_member)
    both = "seed=[0,1]"
    if wrong == "beyond the bounds":  # which changes nothing that is computed from the bounds, so it is only told
        run(tmp_path / "both", both, f"+env.kwargs={{when:{when}}}")
        assert outcome(tmp_path / "both")["seed-1"]["fingerprint"] == right
        assert "observation with 7.0 at" in capfd.readouterr().err
        return
    with pytest.raises(RunsFailed, match="1 of 2 runs failed"):
        run(tmp_path / "both", both, f"+env.kwargs={{when:{when}}}")
    found = outcome(tmp_path / "both")
    assert found["seed-1"]["fingerprint"] == right
    failed = found["seed-0"]
    told = [line for line in capfd.readouterr().err.splitlines() if "failed at" in line]
    assert len(told) == 1
    assert told[0].startswith("seed 0 failed at ")
    assert "env.id=faulty:Faulty-v0: " in told[0]
    assert "failed.json" in told[0]
    assert ("traceback" in failed) == ("raise" in wrong or wrong == "exits")
    # The seed and the actions of the episode repeat it.
    monkeypatch.setattr(faulty.Chain, "__init__", make)
    with pytest.raises(EnvironmentFailure):
        repeat(CheckedEnv(faulty.Chain(wrong, when)), failed["episode"], when)


def repeat(env, episode, when):
    """Play an episode again, in an environment that goes wrong at its last step."""
    env.env.steps = when - len(episode["actions"])
    check = np.array(env.reset(episode["seed"]))
    values = ValueCheck(env.env.observation_space, check[None])
    for action in episode["actions"]:
        check[:] = env.step(np.int64(action))[0]
        for _, reason in values.wrong():
            raise env.failure(reason)


def test_a_failed_member_is_neither_resumed_nor_evaluated_again(tmp_path, capfd):
    overrides = ("+env.kwargs={wrong:step raises,when:100}", "seed=0")
    for _ in range(2):
        with pytest.raises(RunsFailed, match="ZeroDivisionError: speed is 0"):
            run(tmp_path, *overrides)
    assert "has failed" in capfd.readouterr().out


def test_training_all_the_same_without_determinism_is_marked_and_goes_on_with_new_episodes(tmp_path):
    overrides = ("+env.kwargs={wrong:harder with every game}", "env.deterministic=false", "seed=0")
    run(tmp_path, *overrides)
    (path,) = tmp_path.glob("*/*/seed-0")
    assert json.loads((path / "manifest.json").read_text())["deterministic"] is False


@pytest.mark.parametrize(
    ("wrappers", "named", "instead"),
    [
        ([{"_target_": "gymnasium.wrappers.NormalizeObservation"}], "NormalizeObservation", "normalize_observations"),
        ([{"_target_": "gymnasium.wrappers.NormalizeReward"}], "NormalizeReward", "normalize_rewards"),
        (
            [
                {"_target_": "gymnasium.wrappers.TimeLimit", "max_episode_steps": 9},
                {"_target_": "gymnasium.wrappers.NormalizeReward"},
                {"_target_": "gymnasium.wrappers.ClipReward", "max_reward": 5},
            ],
            r"gymnasium\.wrappers\.NormalizeReward around",
            "normalize_rewards=true",
        ),
    ],
)
def test_the_wrapper_that_remembers_is_named_with_what_to_use_instead(wrappers, named, instead):
    with pytest.raises(ConfigError, match=f"^env.wrappers: .*{named}.*remembers something across resets.*{instead}"):
        check_contract(EnvironmentConfig("CartPole-v1", 1, {}, wrappers))


def test_values_are_checked_for_all_environments_together():
    observations = np.zeros((3, 2), np.float32)
    check = ValueCheck(spaces.Box(-1, 1, (2,)), observations)
    assert check.wrong() == []
    observations[1, 0] = 1.5
    assert check.wrong() == []  # beyond the bounds is told, not an error
    observations[1, 0] = 0
    assert check.beyond() == "1.5 at [0]"
    assert check.beyond() is None
    observations[2, 1] = np.nan
    assert check.wrong() == [(2, "nan at [1]")]
    observations[2, 1] = 1e30  # its square is not finite in float32
    assert check.wrong() == []


@pytest.mark.parametrize(
    ("space", "right", "wrong"),
    [
        (spaces.Discrete(4, start=1), 4, 5),
        (spaces.MultiBinary(2), [0, 1], [0, 2]),
        (spaces.Box(0, 1, (2,), np.uint8), [1, 0], [2, 0]),
        (spaces.Box(-3, 3, (2,), np.int16), [-3, 3], [-4, 3]),
    ],
)
def test_integers_beyond_the_bounds_are_wrong(space, right, wrong):
    observations = np.array([right, right], dtype=space.dtype)
    check = ValueCheck(space, observations)
    assert check.wrong() == []
    observations[1] = wrong
    ((index, reason),) = check.wrong()
    assert index == 1
    assert str(np.ravel(wrong)[0] if np.ndim(wrong) and wrong[0] not in right else np.ravel(wrong)[-1]) in reason


def test_bytes_of_any_value_are_not_looked_at():
    observations = np.full((2, 3), 255, np.uint8)
    assert ValueCheck(spaces.Box(0, 255, (3,), np.uint8), observations).wrong() == []


class Returns:
    """An environment that returns what it is told."""

    action_space = spaces.Discrete(2)

    def __init__(self, space, observation, reward=1.0, terminated=False):
        self.observation_space, self.told = space, (observation, reward, terminated, False, {})

    def reset(self, seed):
        return self.told[0], {}

    def step(self, action):
        return self.told


@pytest.mark.parametrize(
    ("space", "observation", "expected"),
    [
        (spaces.Box(-1, 1, (2,)), np.array([0.5, 1.0]), [0.5, 1.0]),  # float64
        (spaces.Box(-1, 1, (2,)), [0.5, 1], [0.5, 1.0]),
        (spaces.Box(-1, 1, (2,)), np.array([0, 1]), [0.0, 1.0]),  # integers
        (spaces.Box(0, 255, (2,), np.uint8), np.array([0, 255]), [0, 255]),  # int64 that fits
        (spaces.Box(0, 1, (2,), np.uint8), np.array([True, False]), [1, 0]),
        (spaces.Discrete(3), np.int32(2), 2),
        (spaces.Discrete(3), 2, 2),
    ],
)
def test_observations_that_can_be_cast_are_welcome(space, observation, expected):
    env = CheckedEnv(Returns(space, observation))
    for returned in (env.reset(0), env.step(np.int64(0))[0]):
        assert np.asarray(returned, dtype=space.dtype).tolist() == expected


@pytest.mark.parametrize("reward", [1, True, np.float32(1), np.int64(1), np.array(1.0), np.array([1.0])])
def test_rewards_that_are_one_number_are_welcome(reward):
    _, found, terminated, _ = CheckedEnv(Returns(spaces.Discrete(2), 0, reward, np.bool_(True))).step(np.int64(0))
    assert (float(found), terminated) == (1.0, True)


def test_bytes_that_would_wrap_around_are_refused():
    env = CheckedEnv(Returns(spaces.Box(0, 255, (1,), np.uint8), np.array([300])))
    with pytest.raises(EnvironmentFailure, match=r"an observation with 300 at \[0\], but the space is Box\(0, 255"):
        env.reset(0)


class GlobalGenerator(gym.Env):
    """Seeds NumPy's global generator in `reset` and draws from it: right alone, wrong beside another one."""

    observation_space, action_space, render_mode = spaces.Box(0, 1, (1,)), spaces.Discrete(2), None

    def reset(self, *, seed=None, options=None):
        np.random.seed(seed % 2**32)
        return np.random.rand(1).astype(np.float32), {}

    def step(self, action):
        return np.random.rand(1).astype(np.float32), 0.0, False, False, {}


gym.register("GlobalGenerator-v0", GlobalGenerator)


def test_environments_that_share_a_generator_are_told():
    with pytest.raises(ConfigError, match="another one while another environment plays too, so they share something"):
        check_contract(EnvironmentConfig(f"{__name__}:GlobalGenerator-v0", 1, {}, []))


class Pops(gym.Env):
    """Takes an entry out of its nested argument."""

    observation_space, action_space, render_mode = spaces.Box(0, 1, (1,)), spaces.Discrete(2), None

    def __init__(self, options):
        self.reward = options.pop("reward", 1.0)


gym.register("Pops-v0", Pops)


def test_an_environment_cannot_change_the_configuration():
    config = EnvironmentConfig(f"{__name__}:Pops-v0", 1, {"options": {"reward": 7.0}}, [])
    assert [make_environment(config).unwrapped.reward for _ in range(2)] == [7.0, 7.0]
    assert config.kwargs == {"options": {"reward": 7.0}}


def test_evaluation_of_an_environment_that_fails_says_so(tmp_path, monkeypatch):
    run(tmp_path, "seed=0")
    (path,) = tmp_path.glob("*/*/seed-0")
    make = faulty.Chain.__init__
    monkeypatch.setattr(faulty.Chain, "__init__", lambda self, **kwargs: make(self, wrong="step raises", when=3))
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        config = compose("evaluate", [f"run={path}", "episodes=3"])
    with pytest.raises(RunsFailed, match=r"ZeroDivisionError: speed is 0, at step 3 of an episode.*evaluation_failed"):
        evaluate(config)
    assert len(json.loads((path / "evaluation_failed.json").read_text())["episode"]["actions"]) == 3
    assert not (path / "evaluation.json").exists()


class Ends(Returns, gym.Env):
    """Ends each episode at its first step; fails at the step with number `fails`."""

    render_mode = None

    def __init__(self, fails=None):
        super().__init__(spaces.Box(0, 1, (1,)), np.zeros(1, np.float32), 1.0, True)
        self.fails, self.steps, self.resets = fails, 0, 0

    def reset(self, seed):
        self.resets += 1
        return super().reset(seed)

    def step(self, action):
        self.steps += 1
        return (np.full(1, np.nan, np.float32), *self.told[1:]) if self.steps == self.fails else self.told


@pytest.mark.parametrize("fails", [0, 1])
def test_a_member_whose_environment_fails_is_stepped_no_more_and_the_others_are(fails):
    made = [Ends(3 if index == fails else None) for index in range(4)]
    env = EpisodicVectorEnv([lambda one=one: one for one in made], episode_seeds([0, 1], 2, "environments"), 2)
    env.reset()
    for _ in range(5):
        observation, reward, terminated, *_ = env.step(np.zeros(4, dtype=np.int64))
        assert np.isfinite(observation).all()
    assert [one.steps for one in made] == [3, 3, 5, 5]
    assert [one.resets for one in made] == [3, 3, 6, 6]
    assert reward.tolist() == [0, 0, 1, 1]
    assert terminated.tolist() == [False, False, True, True]
    ((member, failure),) = env.failures.items()
    assert (member, failure.environment, failure.episode) == (0, fails, 2)
    assert failure.failure.reason.startswith("step() returned an observation with nan at [0]")

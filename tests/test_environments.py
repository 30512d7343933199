import itertools
import re
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from qohort.cohort.state import merge_states, split_state
from qohort.cohort.streams import member_seed
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.config.errors import ConfigError
from qohort.config.members import check_config
from qohort.config.schema import EnvironmentConfig
from qohort.environments.making import check_spaces, make_environment
from qohort.environments.vector import EpisodicVectorEnv, episode_seeds


class Scripted(gym.Env):
    """Observes (episode seed % 1000, time); ends after `length` steps, terminated, truncated or both."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(3, start=-1)

    def __init__(self, length, ending="terminated"):
        self.length, self.ending = length, ending
        self.seeds, self.actions = [], []

    def observe(self):
        return np.array([self.seeds[-1] % 1000, self.time], dtype=np.float64)

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        self.time = 0
        return self.observe(), {}

    def step(self, action):
        self.actions.append(action)
        self.time += 1
        ends = self.time == self.length
        terminated = ends and self.ending in ("terminated", "both")
        truncated = ends and self.ending in ("truncated", "both")
        return self.observe(), 10.0 * self.time, terminated, truncated, {}


def scripted(*arguments, seeds=(0,)):
    makers = [lambda a=a: Scripted(*a) for a in arguments]
    seed = episode_seeds(seeds, len(arguments) // len(seeds), "environments")
    return EpisodicVectorEnv(makers, seed, len(seeds))


def config(id, **kwargs):
    return EnvironmentConfig(id, 1, kwargs, [])


def made(id, seeds, num_envs=1, **kwargs):
    makers = [lambda: make_environment(config(id, **kwargs))] * (len(seeds) * num_envs)
    return EpisodicVectorEnv(makers, episode_seeds(seeds, num_envs, "environments"), len(seeds))


def first_of(environment, episode, seed=0):
    return [(member_seed(seed, "environments", environment, episode) >> 31) % 1000, 0]


def test_autoreset_is_in_the_same_step_and_gives_the_true_final_observation():
    env = scripted((2, "terminated"), (3, "truncated"))
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    observation, info = env.reset()
    assert observation.tolist() == [first_of(0, 0), first_of(1, 0)]
    assert info == {}
    actions = np.zeros(2, dtype=np.int64)

    observation, reward, terminated, truncated, info = env.step(actions)
    assert observation[:, 1].tolist() == [1, 1]
    assert reward.tolist() == [10, 10]
    assert not terminated.any()
    assert not truncated.any()
    assert "final_obs" not in info

    observation, reward, terminated, truncated, info = env.step(actions)
    assert observation.tolist() == [first_of(0, 1), [first_of(1, 0)[0], 2]]
    assert info["final_obs"].tolist() == [[first_of(0, 0)[0], 2], [first_of(1, 0)[0], 2]]
    assert reward.tolist() == [20, 20]
    assert (terminated.tolist(), truncated.tolist()) == ([True, False], [False, False])

    observation, reward, terminated, truncated, info = env.step(actions)
    assert observation.tolist() == [[first_of(0, 1)[0], 1], first_of(1, 1)]
    assert info["final_obs"].tolist() == [[first_of(0, 1)[0], 1], [first_of(1, 0)[0], 3]]
    assert reward.tolist() == [10, 30]
    assert (terminated.tolist(), truncated.tolist()) == ([False, False], [False, True])

    *_, terminated, truncated, info = env.step(actions)
    assert (terminated.tolist(), truncated.tolist()) == ([True, False], [False, False])


def test_an_episode_may_be_terminated_and_truncated_at_once():
    env = scripted((1, "both"))
    env.reset()
    *_, terminated, truncated, info = env.step(np.array([0]))
    assert terminated.tolist() == truncated.tolist() == [True]
    assert info["final_obs"].tolist() == [[first_of(0, 0)[0], 1]]


def test_time_limit_truncates():
    env = made("CartPole-v1", [0], max_episode_steps=3)
    env.reset()
    for step in range(1, 7):
        *_, terminated, truncated, info = env.step(np.array([step % 2]))
        assert not terminated[0]
        assert truncated[0] == (step % 3 == 0) == ("final_obs" in info)


def test_actions_are_counted_from_the_first_of_the_space():
    env = scripted((9,), (9,))
    env.reset()
    for actions in ([0, 2], [1, 1], [2, 0]):
        env.step(np.array(actions))
    assert [one.actions for one in env.envs] == [[-1, 0, 1], [1, 0, -1]]


def episodes_of(seeds, num_envs, steps=12):
    """The seeds of the episodes of each (member's seed, environment)."""
    env = scripted(*[(2 + i % 3,) for i in range(num_envs)] * len(seeds), seeds=seeds)
    env.reset()
    for _ in range(steps):
        env.step(np.zeros(len(env.envs), dtype=np.int64))
    return {(seed, e): env.envs[m * num_envs + e].seeds for m, seed in enumerate(seeds) for e in range(num_envs)}


def test_an_episodes_seed_depends_on_member_environment_and_number_only():
    cohort = episodes_of([3, 5, 9], 3)
    for seed in (3, 5, 9):
        for num_envs in (1, 2, 3):
            for key, seeds in episodes_of([seed], num_envs).items():
                assert seeds == cohort[key]
    everything = [seed for seeds in cohort.values() for seed in seeds]
    assert len(set(everything)) == len(everything) > 30
    assert all(0 <= seed < 2**32 for seed in everything)
    assert cohort[3, 1] == [member_seed(3, "environments", 1, episode) >> 31 for episode in range(5)]


def test_evaluation_has_episodes_of_its_own():
    training, evaluation = (episode_seeds([4], 2, stream) for stream in ("environments", "evaluation"))
    cells = [(index, episode) for index in range(2) for episode in range(20)]
    assert not {training(*cell) for cell in cells} & {evaluation(*cell) for cell in cells}


def play(env, actions):
    """Copies of what each step returned."""
    return [[array.copy() for array in env.step(row)[:4]] for row in actions]


@pytest.mark.parametrize("id", ["CartPole-v1", "FrozenLake-v1"])
def test_a_member_sees_the_same_alone_and_among_others(id):
    seeds, num_envs = [8, 5, 2], 2
    cohort, alone = made(id, seeds, num_envs), made(id, seeds[1:2], num_envs)
    assert np.array_equal(cohort.reset()[0][2:4], alone.reset()[0])
    actions = np.random.default_rng(0).integers(2, size=(100, 6))
    for many, one in zip(play(cohort, actions), play(alone, actions[:, 2:4]), strict=True):
        for a, b in zip(many, one, strict=True):
            assert np.array_equal(a[2:4], b)


@pytest.mark.parametrize(
    ("id", "steps"),
    [("CartPole-v1", 107), ("Acrobot-v1", 60), ("MountainCar-v0", 230), ("FrozenLake-v1", 41), ("LunarLander-v3", 250)],
)
def test_restored_environments_go_on_exactly(id, steps):
    if id.startswith("LunarLander"):
        pytest.importorskip("Box2D")
    seeds, num_envs = [1, 6], 2
    env = made(id, seeds, num_envs)
    env.reset()
    actions = np.random.default_rng(1).integers(env.single_action_space.n, size=(steps + 60, 4))
    play(env, actions[:steps])
    state = env.state_dict()
    assert len(state["members"]) == 2

    restored = made(id, seeds, num_envs)
    restored.reset()
    observation = restored.load_state_dict(merge_states([split_state(state, m) for m in range(2)]))
    assert np.array_equal(observation, env.observations)
    assert observation.dtype == env.observations.dtype
    assert restored.state_dict() == state
    for a, b in zip(play(env, actions[steps:]), play(restored, actions[steps:]), strict=True):
        for one, other in zip(a, b, strict=True):
            assert np.array_equal(one, other)
    assert restored.state_dict() == env.state_dict() != state
    env.close()
    restored.close()


def test_a_member_is_restored_in_another_cohort():
    cohort, alone = made("CartPole-v1", [1, 6], 2), made("CartPole-v1", [6], 2)
    cohort.reset()
    actions = np.random.default_rng(2).integers(2, size=(90, 4))
    play(cohort, actions[:50])
    alone.load_state_dict(split_state(cohort.state_dict(), 1))
    for many, one in zip(play(cohort, actions[50:]), play(alone, actions[50:, 2:]), strict=True):
        for a, b in zip(many, one, strict=True):
            assert np.array_equal(a[2:], b)


def test_restoring_plays_the_actions_of_the_running_episode_again():
    env, restored = scripted((4,), (9,)), scripted((4,), (9,))
    env.reset()
    play(env, np.array([[0, 2], [1, 1], [2, 0], [0, 0], [2, 1]]))
    restored.load_state_dict(env.state_dict())
    assert [one.actions for one in restored.envs] == [[1], [1, 0, -1, -1, 0]]
    assert [one.seeds for one in restored.envs] == [[one.seeds[-1]] for one in env.envs]


def test_a_state_is_a_copy():
    env = made("CartPole-v1", [1])
    env.reset()
    play(env, np.array([[0], [1]]))
    state = env.state_dict()
    play(env, np.ones((40, 1), dtype=np.int64))
    assert state["members"][0]["actions"] == [[0, 1]]
    assert state["members"][0]["episodes"] == [0]


def test_an_environment_that_does_not_repeat_is_told_clearly():
    class Random(Scripted):
        noise = np.random.default_rng(0)

        def observe(self):
            return self.noise.normal(size=2)

    def make():
        return EpisodicVectorEnv([lambda: Scripted(9), lambda: Random(9)], episode_seeds([0], 2, "environments"))

    env = make()
    env.reset()
    env.step(np.array([0, 0]))
    with pytest.raises(ConfigError, match=r"environment 1 does not repeat episode 0 .* not deterministic"):
        make().load_state_dict(env.state_dict())


def test_a_seed_for_all_is_refused():
    with pytest.raises(ValueError, match="one by one"):
        scripted((3,)).reset(seed=1)


class Spaces(gym.Env):
    def __init__(self, observation_space=None, action_space=None):
        self.observation_space = observation_space or spaces.Box(0, 1, (2,))
        self.action_space = action_space or spaces.Discrete(2)


@pytest.mark.parametrize(
    "observation_space",
    [
        spaces.Box(0, 1, (3,)),
        spaces.Box(0, 255, (4, 4, 3), np.uint8),
        spaces.Discrete(5, start=2),
        spaces.MultiBinary((2, 3)),
    ],
)
def test_spaces_that_can_be_played(observation_space):
    check_spaces(config("X-v0"), Spaces(observation_space, spaces.Discrete(3, start=1)))


@pytest.mark.parametrize(
    "action_space",
    [spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([[2, 2]]), spaces.MultiBinary((3, 1)), spaces.Text(2)],
)
def test_actions_must_be_discrete(action_space):
    message = r"^env\.id=X-v0 has the action space .*: DQN needs a Discrete one, or a Multi.*DiscretizeAction.*"
    with pytest.raises(ConfigError, match=message):
        check_spaces(config("X-v0"), Spaces(action_space=action_space))


@pytest.mark.parametrize(
    "observation_space",
    [
        spaces.Dict({"a": spaces.Discrete(2)}),
        spaces.Tuple([spaces.Discrete(2)]),
        spaces.MultiDiscrete([2, 3]),
        spaces.Text(5),
    ],
)
def test_observations_must_be_arrays(observation_space):
    name = type(observation_space).__name__
    with pytest.raises(ConfigError, match=rf"^env\.id=X-v0 has the observation space {name}: it must be Box"):
        check_spaces(config("X-v0"), Spaces(observation_space))


def test_an_environment_has_gymnasiums_time_limit_and_not_its_order_enforcing():
    env = make_environment(config("CartPole-v1"))
    assert str(env) == "<TimeLimit<CartPoleEnv<CartPole-v1>>>"
    assert env.spec.id == "CartPole-v1"
    assert str(make_environment(config("CartPole-v1", max_episode_steps=-1))) == "<CartPoleEnv<CartPole-v1>>"


@pytest.mark.parametrize(
    ("id", "kwargs"),
    [("CartPol-v1", {}), ("CartPole-v99", {}), ("no_such_module:X-v0", {}), ("CartPole-v1", {"gravity_": 1})],
)
def test_an_environment_that_cannot_be_made_is_told_in_one_line(id, kwargs):
    with pytest.raises(ConfigError, match=rf"^env\.id={id}(?: with env\.kwargs=.*)? cannot be made: ") as raised:
        make_environment(config(id, **kwargs))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("package", "id", "wrapper", "extra"),
    [
        ("minatar", "qohort.environments.minatar:MinAtar/Breakout-v1", None, "minatar"),
        ("Box2D", "LunarLander-v3", None, "box2d"),
        ("ale_py", "ale_py:ALE/Pong-v5", None, "atari"),
        ("cv2", "CartPole-v1", "test_environments.NeedsOpenCV", "atari"),
    ],
)
def test_an_absent_package_is_told_with_the_extra_that_installs_it(package, id, wrapper, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    importers = (f"{package}.", "qohort.environments.minatar", "gymnasium.envs.box2d")
    for name in [name for name in sys.modules if name.startswith(importers)]:
        monkeypatch.delitem(sys.modules, name)
    wrappers = [{"_target_": wrapper}] if wrapper else []
    with pytest.raises(ConfigError, match=rf"is not installed: pip install 'qohort\[{extra}\]'$"):
        make_environment(EnvironmentConfig(id, 1, {}, wrappers))


class NeedsOpenCV(gym.Wrapper):
    """Tells as Gymnasium's AtariPreprocessing does, from which no ImportError is left."""

    def __init__(self, env):
        raise gym.error.DependencyNotInstalled(
            'opencv-python package not installed, run `pip install "gymnasium[other]"` to get dependencies for atari'
        )


@pytest.mark.parametrize(
    ("id", "remedy"),
    [
        ("Grid-v0", "; if your module registers it: env.id=MODULE:Grid-v0"),
        ("math:Grid-v0", "; math does not register Grid-v0"),
        ("no_such_module:Grid-v0", "there is no module no_such_module here"),
        ("CartPol-v1", "Did you mean: `CartPole`?"),
    ],
)
def test_an_id_that_is_not_registered_is_told_with_what_may_be_missing(id, remedy):
    with pytest.raises(ConfigError, match=re.escape(remedy)):
        make_environment(config(id))


def test_wrappers_are_applied_innermost_first():
    wrappers = [
        {"_target_": "gymnasium.wrappers.ClipReward", "max_reward": 0.5},
        {"_target_": "gymnasium.wrappers.TimeAwareObservation"},
    ]
    env = make_environment(EnvironmentConfig("CartPole-v1", 1, {}, wrappers))
    assert isinstance(env, gym.wrappers.TimeAwareObservation)
    assert isinstance(env.env, gym.wrappers.ClipReward)
    env.reset(seed=0)
    assert env.step(0)[1] == 0.5


def test_an_episode_of_minatar_depends_on_its_seed_and_actions_alone():
    config = EnvironmentConfig("qohort.environments.minatar:MinAtar/Breakout-v1", 1, {"sticky_action_prob": 0.5}, [])
    env, actions = make_environment(config), np.random.default_rng(0).integers(0, 3, (60, 8))

    def play(seed, actions):
        frames = [env.reset(seed=seed)[0]]
        return frames + [env.step(action)[0] for action in actions]

    for seed, (before, own) in enumerate(itertools.pairwise(actions)):
        first = play(seed, own)
        play(1000 + seed, before)  # which ends with another action
        assert all(np.array_equal(a, b) for a, b in zip(first, play(seed, own), strict=True))
    env.close()


def test_atari_shows_four_stacked_pictures():
    pytest.importorskip("ale_py", reason="needs pip install 'qohort[atari]'")
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        env = make_environment(check_config(compose("train", ["env=atari", "network=nature"]))[0].env)
    assert env.observation_space == spaces.Box(0, 255, (4, 84, 84), np.uint8)
    assert env.reset(seed=0)[0].shape == (4, 84, 84)
    env.close()


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        ({"_target_": f"{__name__}.returns_nothing"}, "returned a NoneType, not an environment"),
        ({"_target_": f"{__name__}.raises"}, r"cannot be applied: FileNotFoundError: \[Errno 2\] no such file: 'x'"),
    ],
)
def test_a_wrapper_that_is_none_is_told(wrapper, message):
    with pytest.raises(ConfigError, match=f"^env.wrappers: .*{message}$"):
        make_environment(EnvironmentConfig("CartPole-v1", 1, {}, OmegaConf.create([wrapper])))


def returns_nothing(env):
    return None


def raises(env):
    raise FileNotFoundError(2, "no such file", "x")


@pytest.mark.parametrize("kind", [list, tuple])
def test_wrappers_get_plain_lists_or_tuples(kind):
    """Gymnasium's `ResizeObservation` takes a tuple only, which YAML does not have; none takes OmegaConf's lists."""
    wrappers = OmegaConf.create([{"_target_": f"{__name__}.Takes", "shape": [8, 8], "kind": kind.__name__}])
    env = make_environment(EnvironmentConfig("CartPole-v1", 1, {}, wrappers))
    assert type(env.shape) is kind


class Takes(gym.Wrapper):
    def __init__(self, env, shape, kind):
        super().__init__(env)
        if type(shape).__name__ != kind:
            raise TypeError(f"shape must be a {kind}, got {type(shape)}")
        self.shape = shape


class LateClose(gym.Env):
    """A simulator whose `close()` fails once it has played."""

    observation_space, action_space, render_mode = spaces.Box(-1, 1, (2,)), spaces.Discrete(2), None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), 1.0, False, False, {}

    def close(self):
        raise BrokenPipeError("the simulator has gone")


def test_an_error_of_close_is_only_told(capsys):
    env = EpisodicVectorEnv([LateClose, LateClose], episode_seeds([0, 1], 1, "environments"), 2)
    env.reset()
    env.close()
    assert capsys.readouterr().err == (
        "qohort: close() of an environment raised BrokenPipeError: the simulator has gone: no result is affected\n"
    )

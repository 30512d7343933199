"""Atari's pipeline beside an independent, slow one, frame by frame; lost lives; games that wait for a button."""

import functools
import subprocess
import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hydra import compose, initialize_config_dir

from matrix import MARKS
from qohort.agent.evaluation import Evaluator
from qohort.cohort.program import Compiler
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.config.errors import ConfigError
from qohort.config.members import check_config, evaluation_environment
from qohort.config.schema import EvaluationConfig
from qohort.environments.atari import FireOnReset, LifeLoss
from qohort.environments.making import make_environment
from qohort.environments.vector import EpisodicVectorEnv
from qohort.replay.base import ReplaySpec
from qohort.replay.ring import UniformReplay
from qohort.replay.transition import Frames, Transition


def configured(*overrides):
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        return check_config(compose("train", list(overrides)))[0]


@functools.cache
def shrinking(length, to):
    """A matrix `[to, length]`, whose product with an axis has the means over the pixels of each cell."""
    edges = np.arange(to + 1) * length / to
    pixel = np.arange(length)
    covered = np.minimum(pixel + 1, edges[1:, None]) - np.maximum(pixel, edges[:-1, None])
    return covered.clip(0) / (length / to)


class SlowAtari:
    """The preprocessing of Mnih et al. (2015), written from the paper's methods, one frame after the other."""

    def __init__(self, id, noops, **kwargs):
        self.game = gym.make(id, frameskip=1, obs_type="grayscale", disable_env_checker=True, **kwargs)
        self.noops = noops

    def shown(self):
        """The newest four pictures, each the maximum of two frames, reduced to 84 x 84."""
        return np.stack(self.pictures[-4:])

    def reduced(self, frame):
        return shrinking(210, 84) @ frame.astype(float) @ shrinking(160, 84).T

    def reset(self, seed):
        frame, info = self.game.reset(seed=seed)
        for _ in range(int(self.game.unwrapped.np_random.integers(1, self.noops + 1)) if self.noops else 0):
            frame, _, _, _, info = self.game.step(0)
        self.pictures, self.lives = [self.reduced(frame)] * 4, info["lives"]
        return self.shown()

    def step(self, action):
        frames, total, lost = [], 0.0, False
        for _ in range(4):
            frame, reward, terminated, truncated, info = self.game.step(action)
            frames.append(frame)
            total += reward
            if terminated or truncated:
                break
        lost, self.lives = info["lives"] < self.lives, info["lives"]
        newest = frames[-1] if len(frames) < 4 else np.maximum(frames[-2], frames[-1])
        self.pictures.append(self.reduced(newest))
        return self.shown(), total, terminated, truncated, lost


def test_ale_prints_no_banner():
    command = "from qohort.config.schema import EnvironmentConfig as C; import qohort.environments.making as m; "
    command += "m.make_environment(C('ale_py:ALE/Pong-v5', 1, {}, []))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("env", "game", "noops", "seeds", "kwargs"),
    [
        pytest.param("atari_2015", "Breakout", 30, (3, 4), {"repeat_action_probability": 0.0}, marks=MARKS),
        ("atari", "Pong", 0, (3,), {"repeat_action_probability": 0.25, "full_action_space": True}),
    ],
)
def test_the_network_sees_what_the_paper_says(env, game, noops, seeds, kwargs):
    pytest.importorskip("ale_py", reason="needs pip install 'qohort[atari]'")
    config = configured(f"env={env}", f"env.id=ale_py:ALE/{game}-v5").env
    ours, slow = make_environment(config), SlowAtari(f"ale_py:ALE/{game}-v5", noops, **kwargs)
    assert ours.action_space == slow.game.action_space
    generator = np.random.default_rng(0)
    scored = lost_lives = ended = 0
    for seed in seeds:
        ours.reset(
            seed=seed
        )  # what is shown first after no-ops is only a single frame: compared from the first step on
        slow.reset(seed)
        for count in range(1, 400):
            action = int(generator.integers(ours.action_space.n))
            observation, reward, terminated, truncated, info = ours.step(action)
            shown, total, *ends, lost = slow.step(action)
            if not terminated:  # what is shown after the end of a game enters no target
                np.testing.assert_allclose(observation[-min(count, 4) :], shown[-min(count, 4) :], atol=1)
            assert (reward, terminated, truncated) == (total, *ends)
            assert info.get("life_lost", False) == (lost and env == "atari_2015")
            scored, lost_lives, ended = scored + (total != 0), lost_lives + lost, ended + terminated
            if terminated or truncated:
                break
    assert scored
    assert (lost_lives > 4) == (game == "Breakout")
    assert ended == (2 if game == "Breakout" else 0)


class Lives(gym.Env):
    """Loses a life at steps 3 and 5 and ends at step 7; the reward of step t is 10^t; FIRE is action 1."""

    observation_space = spaces.Box(0, 255, (4, 20, 20), np.uint8)
    action_space = spaces.Discrete(3)

    def get_action_meanings(self):
        return ["NOOP", "FIRE", "LEFT"]

    def shown(self):
        return np.full((4, 20, 20), self.time, np.uint8), {"lives": 3 - sum(self.time >= at for at in (3, 5, 7))}

    def reset(self, *, seed=None, options=None):
        self.time, self.taken = 0, []
        return self.shown()

    def step(self, action):
        self.time += 1
        self.taken.append(int(action))
        observation, info = self.shown()
        return observation, 10.0**self.time, self.time == 7, False, info


@pytest.mark.parametrize("once", [False, True], ids=["pairs", "frames"])
def test_a_lost_life_ends_the_return_and_not_the_episode(once):
    vector = EpisodicVectorEnv([lambda: LifeLoss(Lives())], lambda index, episode: episode)
    frames = Frames(1, "reset") if once else None
    space, compiler = vector.single_observation_space, Compiler("none")
    spec = ReplaySpec(space, 1, 4, 1, torch.tensor([0.5]), [0], 100, torch.device("cpu"), compiler, frames)
    rings = {n: UniformReplay(spec, 50, n) for n in (1, 3)}
    observation = vector.reset()[0].copy()
    for _ in range(14):
        new, reward, terminated, truncated, info = vector.step(np.array([0]))
        following = info.get("final_obs", new)
        arrays = (observation, np.array([0]), reward, terminated, truncated, following, info["life_lost"])
        transition = Transition(*(one.copy()[None] for one in arrays))
        for ring in rings.values():
            ring.add(transition)
        observation = new.copy()
    one, three = (ring.storage.batch(np.arange(11)[None]) for ring in rings.values())
    assert one["discount"][0].tolist() == [0.5, 0.5, 0, 0.5, 0, 0.5, 0, 0.5, 0.5, 0, 0.5]
    expected = [10 + 50 + 250, 100 + 500, 1000, 10_000 + 50_000, 1e5, 1e6 + 5e6, 1e7, 310, 600, 1000, 60_000]
    assert three["reward"][0].tolist() == expected
    assert three["discount"][0].tolist() == [0] * 11  # in three steps, a life is lost from anywhere
    assert one["next_observation"][0, 2].max() == 3  # the episode goes on


def test_fire_is_pressed_at_the_start_and_after_each_life():
    env = FireOnReset(Lives())
    assert env.reset(seed=0)[1]["lives"] == 3
    assert env.unwrapped.taken == [1]
    rewards = [env.step(2)[1] for _ in range(4)]
    assert env.unwrapped.taken == [1, 2, 2, 1, 2, 1, 2]  # the steps at which lives are lost are the third and the fifth
    assert rewards == [100.0, 1000.0 + 10_000, 1e5 + 1e6, 1e7]
    lives = Lives()
    lives.get_action_meanings = lambda: ["NOOP"]
    with pytest.raises(ValueError, match="this game has no button FIRE, only NOOP"):
        FireOnReset(lives)


class Waiting(gym.Env):
    """Nothing moves until the action is 1, which is never taken here; the reward of each step is given."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, reward=0.0, moves=None):
        self.reward, self.moves = reward, moves

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.time += 1
        moved = self.moves is not None and self.time >= self.moves
        return np.full(2, moved * (self.time % 2), np.float32), self.reward, False, False, {}


gym.register("QohortWaiting-v0", Waiting)


@pytest.mark.parametrize(
    ("kwargs", "still_steps", "length"),
    [({}, 7, 7), ({}, None, 40), ({"reward": -1.0}, 7, 40), ({"moves": 5}, 7, 40), ({"moves": 9}, 7, 7)],
)
def test_an_evaluation_in_which_nothing_moves_is_cut(kwargs, still_steps, length):
    env = replace(configured("env.backend=gymnasium").env, id="QohortWaiting-v0", kwargs=kwargs)
    settings = EvaluationConfig(every=1, episodes=2, epsilon=0.0, max_episode_steps=40, still_steps=still_steps)
    evaluator = Evaluator(env, settings, [3, 4], torch.device("cpu"))
    scores = evaluator(lambda observation: torch.tensor([1.0, 0.0]).expand(2, 2, 2), round=0)
    assert scores.lengths.tolist() == [[length] * 2] * 2
    assert scores.returns.tolist() == [[length * kwargs.get("reward", 0.0)] * 2] * 2


def test_evaluation_may_have_another_environment():
    config = configured(
        "+env.kwargs.max_episode_steps=7", "+evaluation.env={kwargs: {render_mode: rgb_array}, wrappers: []}"
    )
    evaluation = evaluation_environment(config)
    assert evaluation.kwargs == {"max_episode_steps": 7, "render_mode": "rgb_array"}
    assert replace(evaluation, kwargs=config.env.kwargs) == config.env
    with pytest.raises(ConfigError, match=r"^evaluation.env.id cannot be set, only kwargs and wrappers can differ$"):
        configured("+evaluation.env.id=Acrobot-v1")
    with pytest.raises(ConfigError, match=r"^evaluation.env: kwargs=7 "):
        configured("+evaluation.env.kwargs=7")

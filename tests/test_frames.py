"""Stacked frames: the wrapper beside Gymnasium's, and the storage of frames beside one of whole observations."""

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from qohort.cohort.program import Compiler
from qohort.cohort.schedules import ConstantSchedule, Progress
from qohort.cohort.state import merge_states, split_state
from qohort.config.errors import ConfigError
from qohort.config.schema import EnvironmentConfig
from qohort.environments.frames import FrameStack
from qohort.environments.making import make_environment
from qohort.replay.base import ReplaySpec
from qohort.replay.frames import FrameStorage
from qohort.replay.lambda_returns import LambdaReplay
from qohort.replay.prioritized import PrioritizedReplay
from qohort.replay.ring import Ring, UniformReplay
from qohort.replay.storage import Storage
from qohort.replay.transition import Frames, Transition

FRAME = spaces.Box(0, 255, (2, 3), np.uint8)
NOW = Progress(100, np.zeros(1, dtype=np.int64))


class Pictures(gym.Env[Any, Any]):
    """Shows random pictures, always in the same array."""

    observation_space, action_space = FRAME, spaces.Discrete(2)

    def __init__(self) -> None:
        self.picture = np.zeros(FRAME.shape, np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self._shown(), {}

    def step(self, action: Any) -> Any:
        return self._shown(), 0.0, False, False, {}

    def _shown(self) -> Any:
        self.picture[:] = self.np_random.integers(0, 256, FRAME.shape)
        return self.picture


@pytest.mark.parametrize("padding", ["reset", "zero"])
@pytest.mark.parametrize("stack", [1, 2, 4])
def test_frames_are_stacked_as_gymnasium_does(stack: int, padding: Any) -> None:
    ours = FrameStack(Pictures(), Frames(stack, padding))
    copies = gym.wrappers.TransformObservation(Pictures(), np.copy, None)
    theirs = gym.wrappers.FrameStackObservation(copies, stack, padding_type=padding)
    assert ours.observation_space == theirs.observation_space
    kept = []
    for episode in range(2):
        kept.append((ours.reset(seed=episode)[0], theirs.reset(seed=episode)[0]))
        kept += [(ours.step(0)[0], theirs.step(0)[0]) for _ in range(6)]
    for one, other in kept:
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_only_arrays_are_stacked() -> None:
    config = EnvironmentConfig("FrozenLake-v1", 1, {}, (), frame_stack=3)
    with pytest.raises(ConfigError, match=r"env.frame_stack=3 with env.id=FrozenLake-v1: frames are stacked of a Box"):
        make_environment(config)


class Steps:
    """Makes up the steps of a cohort's environments, with stacked observations."""

    def __init__(self, members: int, environments: int, frames: Frames, seed: int, end: float) -> None:
        self._shape, self._end, self._rng = (members, environments), end, np.random.default_rng(seed)
        count = members * environments
        self._envs = [FrameStack(Pictures(), frames) if frames.stack > 1 else Pictures() for _ in range(count)]
        self._observation = np.stack([env.reset(seed=i)[0].copy() for i, env in enumerate(self._envs)])

    def _by_member(self, rows: Sequence[Any]) -> Any:
        array = np.array(rows)
        return array.reshape(*self._shape, *array.shape[1:])

    def restart(self) -> None:
        """Start new episodes."""
        self._observation = np.stack([env.reset()[0].copy() for env in self._envs])

    def next(self) -> Transition:
        before = self._by_member(self._observation)
        following = [env.step(0)[0].copy() for env in self._envs]
        kinds = self._rng.choice(3, len(self._envs), p=[1 - self._end, self._end / 2, self._end / 2])
        self._observation = np.stack(
            [
                env.reset()[0].copy() if kind else row
                for env, kind, row in zip(self._envs, kinds, following, strict=True)
            ]
        )
        action, reward = self._rng.integers(9, size=self._shape), self._rng.random(self._shape)
        kind = self._by_member(kinds)
        return Transition(before, action, reward, kind == 1, kind == 2, self._by_member(following))


def spec(members: int, environments: int, frames: Frames | None, stack: int, budget: int = 10_000) -> ReplaySpec:
    space = spaces.Box(0, 255, (stack, *FRAME.shape) if stack > 1 else FRAME.shape, np.uint8)
    gamma, seeds = torch.linspace(0.5, 0.9, members), list(range(members))
    sizes = (environments, 5, 1)
    return ReplaySpec(space, *sizes, gamma, seeds, budget, torch.device("cpu"), Compiler("none"), frames)


def assert_equal(one: Any, other: Any) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert torch.equal(one[name], other[name]), name


def moved(replay: Ring, fresh: Ring, members: int) -> Ring:
    """Save a replay, one file a member, and load it into a fresh one."""
    fresh.load_state_dict(merge_states([split_state(replay.state_dict(), m) for m in range(members)]))
    return fresh


@settings(max_examples=60, deadline=None)
@given(
    members=st.integers(1, 3),
    environments=st.integers(1, 3),
    stack=st.integers(1, 4),
    padding=st.sampled_from(["reset", "zero"]),
    n_step=st.integers(1, 3),
    capacity=st.integers(9, 24),
    budget=st.sampled_from([30, 10_000]),
    end=st.sampled_from([0.0, 0.2, 0.9]),
    events=st.lists(st.sampled_from(["step"] * 6 + ["save", "truncate"]), min_size=20, max_size=60),
    seed=st.integers(0, 99),
)
def test_frames_stored_once_are_whole_observations(
    members: int,
    environments: int,
    stack: int,
    padding: Any,
    n_step: int,
    capacity: int,
    budget: int,
    end: float,
    events: list[str],
    seed: int,
) -> None:
    """The other replay stores every observation and next observation as it is."""
    frames = Frames(stack, padding)

    def make(frames: Frames | None) -> Ring:
        return UniformReplay(spec(members, environments, frames, stack, budget), capacity, n_step)

    steps, whole, once = Steps(members, environments, frames, seed, end), make(None), make(frames)
    once.storage = once.storage if stack > 1 else forced(once, frames, n_step, stack)
    assert isinstance(whole.storage, Storage)
    assert isinstance(once.storage, FrameStorage)
    added = 0
    for event in events[: budget // environments]:
        if event == "save":
            fresh = make(frames)
            fresh.storage = fresh.storage if stack > 1 else forced(fresh, frames, n_step, stack)
            once, whole = moved(once, fresh, members), moved(whole, make(None), members)
        elif event == "truncate":
            once.truncate()
            whole.truncate()
            steps.restart()
        else:
            transition = steps.next()
            once.add(transition)
            whole.add(transition)
            added += environments
        if whole.complete > 0:
            assert_equal(once.sample(NOW), whole.sample(NOW))
            slots = np.tile(np.arange(len(whole)), (members, 1))
            stored = once.storage.entries(slots)
            assert_equal({name: stored[name] for name in whole.storage.arrays}, whole.storage.entries(slots))


def forced(replay: Ring, frames: Frames, n_step: int, stack: int) -> FrameStorage:
    """Small observations without a stack, stored once all the same."""
    members, environments = len(replay.storage.arrays["action"]), replay._num_envs
    return FrameStorage(spec(members, environments, frames, stack), replay.storage.slots, n_step, replay.capacity)


@pytest.mark.parametrize("kind", ["prioritized", "lambda"])
def test_other_replays_take_stacks_from_frames(kind: str) -> None:
    frames = Frames(3, "reset")

    def make(frames: Frames | None) -> Ring:
        given_spec = spec(2, 2, frames, 3)
        if kind == "prioritized":
            return PrioritizedReplay(given_spec, ConstantSchedule(0.4), 30, n_step=2)
        return LambdaReplay(given_spec, 30, block=4, blocks=3, refresh_every=10)

    now = Progress(100, np.zeros(2, dtype=np.int64))
    steps, whole, once = Steps(2, 2, frames, 0, 0.2), make(None), make(frames)
    weights = torch.randn(18, 3)
    for number in range(50):
        transition = steps.next()
        for replay in (whole, once):
            replay.add(transition)
        if number >= 10:
            for replay in (whole, once):
                replay.refresh(lambda observation: observation.flatten(2).float() @ weights)
            batch = once.sample(now)
            assert_equal(batch, whole.sample(now))
            for replay in (whole, once):
                replay.update_priorities(batch["observation"].float().mean((2, 3, 4)))


def test_a_million_atari_transitions_take_seven_gigabytes() -> None:
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    sizes = (1, 32, 4)
    of_atari = ReplaySpec(
        space, *sizes, torch.ones(1), [0], 10**8, torch.device("meta"), Compiler("none"), Frames(4, "reset")
    )
    assert 7.0e9 < UniformReplay(of_atari, 1_000_000).nbytes < 7.2e9


def test_final_frames_take_no_more_room_than_there_are() -> None:
    steps = Steps(2, 1, Frames(2, "reset"), 0, 1.0)
    replay = UniformReplay(spec(2, 1, Frames(2, "reset"), 2), 10)
    assert isinstance(replay.storage, FrameStorage)
    for _ in range(200):
        replay.add(steps.next())
    assert replay.storage.finals.shape[1] == 16  # for 10, doubled


@pytest.mark.slow
@pytest.mark.matrix
def test_a_hundred_thousand_atari_transitions_are_in_memory_once() -> None:
    """A million take ten times as much: 7.1 GB."""
    program = """
import resource, numpy as np, torch
from gymnasium import spaces
from qohort.cohort.program import Compiler
from qohort.replay.base import ReplaySpec
from qohort.replay.transition import Frames, Transition
from qohort.replay.ring import UniformReplay
from qohort.cohort.schedules import Progress

space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
gamma, device = torch.full((1,), 0.99), torch.device("cpu")
spec = ReplaySpec(space, 1, 32, 4, gamma, [0], 100_000, device, Compiler("inductor"), Frames(4, "reset"))
observation, one, no = np.ones((1, 1, 4, 84, 84), np.uint8), np.ones((1, 1)), np.zeros((1, 1), dtype=bool)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
replay = UniformReplay(spec, 100_000)
for _ in range(100_000):
    replay.add(Transition(observation, one.astype(np.int64), one, no, no, observation))
replay.sample(Progress(100_000, np.zeros(1, dtype=np.int64), 100_000))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 0.75e9

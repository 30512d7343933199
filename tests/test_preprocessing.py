"""What learners are shown: against the slow twin and NumPy, environment by environment and episode by episode."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hydra import compose, initialize_config_dir

import reference as ref
from qohort.cohort.state import merge_states, split_state
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.config.members import check_config
from qohort.environments.preprocessing import ObservationNormalizer, Preprocessing, RewardNormalizer, RunningMoments

EVERYONE = np.ones(2, dtype=bool)


def preprocessing(*overrides, members=2, num_envs=1, gammas=None, shape=(3,)):
    """That of a cohort whose members may have discount factors of their own."""
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        seeds = f"seed=[{','.join(map(str, range(members)))}]"
        fold = [] if gammas is None else [f"fold=[{','.join(f'{{gamma:{one}}}' for one in gammas)}]"]
        config = compose("train", [seeds, *fold, f"env.num_envs={num_envs}", *overrides])
    return Preprocessing(check_config(config), spaces.Box(-np.inf, np.inf, shape, np.float32))


BOTH = ("normalize_observations=true", "normalize_rewards=true")


class Stream:
    """Steps of random environments `[M, E, ...]`, of very different sizes; a member's do not depend on the others."""

    def __init__(self, seeds, num_envs, shape=(3,)):
        self._generators = [np.random.default_rng(seed) for seed in seeds]
        self._size, self._num_envs, self._shape = np.array([1.0, 1e-3, 300.0]), num_envs, shape

    def observation(self):
        rows = [one.normal(2.0, self._size, size=(self._num_envs, *self._shape)) for one in self._generators]
        return np.stack(rows).astype(np.float32)

    def step(self):
        """Reward, ended, next observation, observation: as environments give them."""
        reward = np.stack([one.normal(1.0, 4.0, size=self._num_envs) for one in self._generators])
        ended = np.stack([one.random(self._num_envs) < 0.3 for one in self._generators])
        final, first = self.observation(), self.observation()
        return reward, ended, final, np.where(ended[..., None], first, final)


@pytest.mark.parametrize("shape", [(), (3,), (2, 4)])
def test_moments_are_those_of_the_reference_and_of_numpy(shape):
    samples = np.random.default_rng(0).normal(5.0, 3.0, size=(20, 2, *shape)) * np.array([1.0, 1e4]).reshape(
        2, *[1] * len(shape)
    )
    moments = RunningMoments(2, shape)
    slow = [ref.SampleMeanVariance(np.zeros(shape)) for _ in range(2)]
    assert moments.variance.tolist() == np.ones((2, *shape)).tolist()
    for count, sample in enumerate(samples, start=1):
        moments.add(sample, EVERYONE)
        for m, one in enumerate(slow):
            one.update(sample[m])
            np.testing.assert_allclose(moments.mean[m], one.mean, rtol=1e-12)
            np.testing.assert_allclose(moments.variance[m], one.variance(), rtol=1e-12)
        np.testing.assert_allclose(moments.mean, samples[:count].mean(0), rtol=1e-12)
        expected = samples[:count].var(0, ddof=1) if count > 1 else np.ones((2, *shape))
        np.testing.assert_allclose(moments.variance, expected, rtol=1e-9)


def test_moments_take_in_what_is_asked_for_and_nothing_of_the_other_members():
    generator = np.random.default_rng(1)
    moments, taken = RunningMoments(3, (2,)), [[], [], []]
    for _ in range(15):
        sample, where = generator.normal(size=(3, 2)), generator.random(3) < [0.5, 0.8, 0.0]
        before = moments.mean.copy(), moments.variance.copy()
        moments.add(sample, where)
        for m in range(3):
            if where[m]:
                taken[m].append(sample[m])
            else:
                assert np.array_equal(moments.mean[m], before[0][m])
                assert np.array_equal(moments.variance[m], before[1][m])
    assert 2 < len(taken[0]) < len(taken[1]) < 15
    for m in range(2):
        np.testing.assert_allclose(moments.mean[m], np.mean(taken[m], 0))
        np.testing.assert_allclose(moments.variance[m], np.var(taken[m], 0, ddof=1))
    assert (moments.mean[2].tolist(), moments.variance[2].tolist()) == ([0.0, 0.0], [1.0, 1.0])


def test_moments_by_hand():
    moments = RunningMoments(1)
    for sample, mean, variance in ((3.0, 3.0, 1.0), (5.0, 4.0, 2.0), (10.0, 6.0, 13.0)):
        moments.add(np.array([sample]), np.array([True]))
        assert (moments.mean.tolist(), moments.variance.tolist()) == ([mean], [variance])


def test_an_observation_is_normalised_by_moments_that_hold_it():
    normalizer = ObservationNormalizer(1, (1,))
    first, second = np.array([[[3.0]]], np.float32), np.array([[[5.0]]], np.float32)
    assert normalizer(first).tolist() == [[[0.0]]]
    assert normalizer(second)[0, 0, 0] == pytest.approx(1 / math.sqrt(2.0))  # mean 4, variance 2
    assert (first.tolist(), second.tolist()) == ([[[3.0]]], [[[5.0]]])
    # One that never changed stays 0, however often it is seen.
    constant = ObservationNormalizer(1, (1,))
    assert [constant(first).item() for _ in range(3)] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("num_envs", [1, 3])
def test_observations_equal_the_reference_in_their_order_across_environments_and_episodes(num_envs):
    """Each step's outcomes, final ones too, of the environments in turn; then the firsts of the episodes that begin."""
    ours = preprocessing("normalize_observations=true", num_envs=num_envs)
    stream = Stream([0, 1], num_envs)
    slow = [ref.ObservationNormalizer(3) for _ in range(2)]
    first = stream.observation()
    shown = ours.first(first)
    for m in range(2):
        for e in range(num_envs):
            np.testing.assert_allclose(shown[m, e], slow[m](first[m, e].astype(np.float64)), rtol=1e-5, atol=1e-6)
    seen = set()
    for _ in range(25):
        reward, ended, final, observation = stream.step()
        given = [one.copy() for one in (reward, ended, final, observation)]
        shown = ours.step(reward, ended, final, observation)
        assert shown.reward is reward
        assert shown.next_observation.dtype == shown.observation.dtype == np.float32
        for m in range(2):
            for e in range(num_envs):
                expected = slow[m](final[m, e].astype(np.float64))
                np.testing.assert_allclose(shown.next_observation[m, e], expected, rtol=1e-5, atol=1e-6)
                if not ended[m, e]:
                    assert np.array_equal(shown.observation[m, e], shown.next_observation[m, e])
            for e in range(num_envs):
                if ended[m, e]:
                    expected = slow[m](observation[m, e].astype(np.float64))
                    np.testing.assert_allclose(shown.observation[m, e], expected, rtol=1e-5, atol=1e-6)
        # The environments' own arrays are left as they were.
        assert all(np.array_equal(a, b) for a, b in zip((reward, ended, final, observation), given, strict=True))
        seen |= {tuple(row) for row in ended.tolist()}
    assert len(seen) == 2**num_envs  # episodes of every environment ended, alone and together


@pytest.mark.parametrize("num_envs", [1, 3])
def test_rewards_equal_the_reference_and_the_running_return_ends_with_its_episode(num_envs):
    gammas = (0.5, 0.99)
    ours = RewardNormalizer(np.array(gammas), num_envs)
    stream = Stream([0, 1], num_envs)
    returns = np.zeros((2, num_envs))
    seen = [[], []]
    for _ in range(25):
        reward, ended, _, _ = stream.step()
        given = reward.copy()
        scaled = ours(reward, ended)
        for m, gamma in enumerate(gammas):
            for e in range(num_envs):
                returns[m, e] = (0.0 if ended[m, e] else gamma * returns[m, e]) + reward[m, e]
                seen[m].append(returns[m, e])
                variance = np.var(seen[m], ddof=1) if len(seen[m]) > 1 else 1.0
                assert scaled[m, e] == pytest.approx(reward[m, e] / math.sqrt(variance + 1e-8), rel=1e-9)
        assert np.array_equal(reward, given)


def test_rewards_of_one_environment_equal_the_slow_scaler():
    ours, stream = preprocessing("normalize_rewards=true", gammas=(0.5, 0.99)), Stream([0, 1], 1)
    slow = [ref.RewardScaler(gamma, centred=True) for gamma in (0.5, 0.99)]
    ends = 0
    for _ in range(40):
        reward, ended, final, observation = stream.step()
        shown = ours.step(reward, ended, final, observation)
        expected = [one(float(reward[m, 0]), bool(ended[m, 0])) for m, one in enumerate(slow)]
        np.testing.assert_allclose(shown.reward[:, 0], expected, rtol=1e-12)
        assert shown.next_observation is final
        assert shown.observation is observation
        ends += ended.sum()
    assert 10 < ends < 70


def test_rewards_by_hand():
    """Rewards 1, 2, 4 with γ = ½, where the second ends its episode: the running return is 1, 2, ½ · 2 + 4 = 5."""
    ours = RewardNormalizer(np.array([0.5]), 1)
    scaled = [ours(np.array([[r]]), np.array([[end]])).item() for r, end in ((1.0, False), (2.0, True), (4.0, False))]
    assert scaled == pytest.approx([1.0, 2.0 / math.sqrt(0.5), 4.0 / math.sqrt(np.var([1.0, 2.0, 5.0], ddof=1))])


def learned_from(ours, reward):
    """A reward `[1, 3]` as it is learned from."""
    observation = np.zeros((1, 3, 3), np.float32)
    return ours.step(reward, np.zeros((1, 3), dtype=bool), observation, observation).reward


def test_rewards_are_scaled_then_clipped():
    reward = np.array([[-10.0, 0.5, 3.0]])
    one = {"members": 1, "num_envs": 3}
    assert learned_from(preprocessing(**one), reward) is reward
    scaled = learned_from(preprocessing("reward_scale=0.1", **one), reward)
    assert scaled.tolist() == [[-1.0, 0.05, 0.30000000000000004]]
    clipped = learned_from(preprocessing("reward_scale=0.1", "reward_clip=0.2", **one), reward)
    assert clipped.tolist() == [[-0.2, 0.05, 0.2]]
    assert learned_from(preprocessing("reward_clip=1", **one), reward).tolist() == [[-1.0, 0.5, 1.0]]
    assert reward.tolist() == [[-10.0, 0.5, 3.0]]


def test_rewards_are_normalised_before_they_are_scaled_and_clipped():
    reward = np.array([[-10.0, 0.5, 3.0]])
    one = {"members": 1, "num_envs": 3}
    normalised = learned_from(preprocessing("normalize_rewards=true", **one), reward)
    assert normalised[0].tolist() == pytest.approx(
        [-10.0, 0.5 / np.std([-10.0, 0.5], ddof=1), 3.0 / np.std([-10.0, 0.5, 3.0], ddof=1)]
    )
    ours = preprocessing("normalize_rewards=true", "reward_scale=2", "reward_clip=0.5", **one)
    assert learned_from(ours, reward).tolist() == (2 * normalised).clip(-0.5, 0.5).tolist()


def test_without_normalisation_everything_is_handed_on_as_it_is():
    ours, stream = preprocessing(num_envs=2), Stream([0, 1], 2)
    first = stream.observation()
    assert ours.first(first) is first
    given = stream.step()
    shown = ours.step(*given)
    assert shown.reward is given[0]
    assert shown.next_observation is given[2]
    assert shown.observation is given[3]
    assert ours.before(np.sum) is np.sum
    assert ours.state_dict() == {}
    ours.load_state_dict({})


WHERE = {BOTH: (0, 1, 2), BOTH[:1]: (1, 2), BOTH[1:]: (0,)}
"""What of a step each setting changes, by its place in `Shown`."""


def run(ours, stream, steps):
    return [ours.step(*stream.step()) for _ in range(steps)]


def assert_equal(a, b, of=slice(None)):
    for one, other in zip(a, b, strict=True):
        for x, y in zip(one, other, strict=True):
            assert np.array_equal(x[of], y)


@pytest.mark.parametrize("overrides", WHERE)
def test_what_was_saved_goes_on_exactly(overrides):
    whole, stream, again = preprocessing(*overrides, num_envs=2), Stream([0, 1], 2), Stream([0, 1], 2)
    whole.first(stream.observation()), again.observation()
    run(whole, stream, 7)
    for _ in range(7):
        again.step()
    state = whole.state_dict()
    expected = run(whole, stream, 9)  # which leaves what was saved as it is
    restored = preprocessing(*overrides, num_envs=2)
    restored.first(np.full((2, 2, 3), 1e3, np.float32))  # as a module does before it is restored
    restored.load_state_dict(state)
    assert_equal(expected, run(restored, again, 9))
    moved = preprocessing(*overrides, num_envs=2)
    moved.load_state_dict(whole.state_dict())
    assert moved.state_dict().keys() == state.keys() == {one.split("=")[0][10:] for one in overrides}
    last = [one.step(*Stream([2, 3], 2).step()) for one in (restored, moved, preprocessing(*overrides, num_envs=2))]
    assert_equal(last[:1], last[1:2])
    assert not any(np.array_equal(last[0][place], last[2][place]) for place in WHERE[overrides])


def test_a_member_is_shown_the_same_bits_alone_and_among_others_and_restored_in_another_cohort():
    together, stream = preprocessing(*BOTH, members=3, num_envs=2, gammas=(0.5, 0.9, 0.99)), Stream([5, 6, 7], 2)
    first = together.first(stream.observation())
    shown = run(together, stream, 20)
    for m, gamma in enumerate((0.5, 0.9, 0.99)):
        alone, own = preprocessing(*BOTH, members=1, num_envs=2, gammas=(gamma,)), Stream([5 + m], 2)
        assert np.array_equal(alone.first(own.observation()), first[m : m + 1])
        assert_equal(shown, run(alone, own, 20), slice(m, m + 1))
    states = [split_state(together.state_dict(), m) for m in (2, 0)]
    mixed = preprocessing(*BOTH, members=2, num_envs=2, gammas=(0.99, 0.5))
    mixed.load_state_dict(merge_states(states))
    steps = [stream.step() for _ in range(5)]
    later = [mixed.step(*(one[[2, 0]] for one in step)) for step in steps]
    assert_equal([together.step(*step) for step in steps], later, [2, 0])


def test_before_normalises_as_now_and_moves_no_moments():
    ours, stream = preprocessing("normalize_observations=true", num_envs=2), Stream([0, 1], 2)
    ours.first(stream.observation())
    seen = []

    def values(observation):
        seen.append(observation)
        return observation.sum(-1)

    before = ours.before(values)
    for _ in range(5):  # with moments that have moved since it was made
        reward, ended, final, observation = stream.step()
        shown = ours.step(reward, np.zeros_like(ended), final, final)
        state = ours.state_dict()
        result = before(torch.from_numpy(final))
        assert torch.equal(result, seen[-1].sum(-1))
        assert seen[-1].dtype == torch.float32
        # The last of the environments was normalised by what is known now, the others by what was known before.
        assert np.array_equal(seen[-1][:, -1], shown.next_observation[:, -1])
        assert not np.array_equal(seen[-1][:, 0], shown.next_observation[:, 0])
        moments = state["observations"]
        deviation = (moments["squares"] / (moments["count"] - 1)).add(1e-8).sqrt()
        other = before(torch.from_numpy(observation))
        expected = (torch.from_numpy(observation).double() - moments["mean"][:, None]) / deviation[:, None]
        assert torch.equal(seen[-1], expected.float())
        assert other.shape == (2, 2)
        for name, one in ours.state_dict()["observations"].items():
            assert torch.equal(one, moments[name])


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_observations_may_have_any_axes(shape):
    ours = preprocessing("normalize_observations=true", num_envs=2, shape=shape)
    generator = np.random.default_rng(0)
    flat = [ref.ObservationNormalizer(int(np.prod(shape))) for _ in range(2)]

    def slow(observation):
        pairs = zip(flat, observation, strict=True)
        return np.stack([[one(row.ravel()).reshape(shape) for row in own] for one, own in pairs])

    def draw():
        return generator.normal(size=(2, 2, *shape))

    first = draw()
    np.testing.assert_allclose(ours.first(first), slow(first))
    for _ in range(4):
        final, begun = draw(), draw()
        shown = ours.step(np.zeros((2, 2)), np.ones((2, 2), dtype=bool), final, begun)
        np.testing.assert_allclose(shown.next_observation, slow(final))
        np.testing.assert_allclose(shown.observation, slow(begun))
    before = ours.before(lambda observation: observation)
    np.testing.assert_array_equal(before(torch.from_numpy(begun))[:, -1], shown.observation[:, -1])

"""Random numbers, sine and cosine, and classic control: against Gymnasium, and with the same bits in any number."""

import math
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy import stats

from matrix import MARKS
from qohort.environments.tensor.base import hash_of, sin_cos, uniforms_of
from qohort.environments.tensor.classic_control import Acrobot, CartPole, MountainCar

ENVIRONMENTS = {"CartPole-v1": CartPole, "Acrobot-v1": Acrobot, "MountainCar-v0": MountainCar}
# The scale of random states, chosen so that they cover what the environment reaches, and both sides of its bounds.
SCALES = {
    "CartPole-v1": [2.5, 3.0, 0.22, 3.0],
    "Acrobot-v1": [math.pi, math.pi, 1.2 * math.pi, 2.7 * math.pi],
    "MountainCar-v0": [0.9, 0.07],
}
CENTRES = {"CartPole-v1": 0.0, "Acrobot-v1": 0.0, "MountainCar-v0": np.array([-0.3, 0.0])}
NO_DRAWS = torch.empty(0)


def random_states(id, count, seed=0, scale=1.0):
    """Return float32 states `[count, N]` and actions `[count]`."""
    generator = np.random.default_rng(seed)
    scales = scale * np.array(SCALES[id])
    states = CENTRES[id] + generator.uniform(-1, 1, (count, len(scales))) * scales
    actions = generator.integers(ENVIRONMENTS[id].action_space.n, size=count)
    return torch.from_numpy(states.astype(np.float32)), torch.from_numpy(actions)


def gymnasium_steps(env, states, actions):
    """Step Gymnasium's environment from each state: next states, observations, rewards, terminated."""
    env.reset(seed=0)
    rows = []
    for state, action in zip(states.double().numpy(), actions.tolist(), strict=True):
        env.state, env.steps_beyond_terminated = state, None
        observation, reward, terminated, _, _ = env.step(action)
        rows.append((np.array(env.state), observation, reward, terminated))
    return [np.array(column) for column in zip(*rows, strict=True)]


def near_the_bound(id, states):
    """Return whether rounding could change whether a state `[count, N]` is terminal."""
    x, angle = states[:, 0], states[:, min(2, states.shape[1] - 1)]
    if id == "CartPole-v1":
        distances = [np.abs(x) - 2.4, np.abs(angle) - 12 * math.pi / 180]
    elif id == "Acrobot-v1":
        distances = [-np.cos(x) - np.cos(x + states[:, 1]) - 1]
    else:
        distances = [x - 0.5, states[:, 1]]
    return np.min(np.abs(distances), axis=0) < 1e-5


def same(first, second):
    """Return whether two tensors have the same bits."""
    if first.dtype == torch.float32:
        first, second = first.contiguous().view(torch.int32), second.contiguous().view(torch.int32)
    return torch.equal(first, second)


@pytest.mark.parametrize("id", ENVIRONMENTS)
def test_a_step_is_gymnasiums(id):
    environment, env = ENVIRONMENTS[id](), gym.make(id).unwrapped
    states, actions = random_states(id, 4_000)
    next_states, observations, rewards, terminated = gymnasium_steps(env, states, actions)
    state, reward, terminal = environment.step({"physics": states}, actions, NO_DRAWS)
    np.testing.assert_allclose(environment.observe(state), observations, rtol=1e-6, atol=1e-6)
    clear = ~near_the_bound(id, next_states)
    assert clear.mean() > 0.9
    assert 0.02 < terminated.mean() < 0.98
    np.testing.assert_array_equal(terminal.numpy()[clear], terminated[clear])
    np.testing.assert_array_equal(reward.numpy()[clear], rewards[clear])
    assert [reward.dtype, terminal.dtype] == [torch.float32, torch.bool]
    assert all(map(env.observation_space.contains, environment.observe({"physics": states * 0.9}).numpy()))
    assert all(map(env.observation_space.contains, environment.observe(state).numpy()))


def test_acrobot_at_its_greatest_speeds():
    # There, one step multiplies the error of the state by up to 10⁴, so few of the errors exceed 10⁻⁵.
    environment, env = Acrobot(), gym.make("Acrobot-v1").unwrapped
    states, actions = random_states("Acrobot-v1", 4_000, scale=[1, 1, 10 / 3, 10 / 3])
    _, observations, _, _ = gymnasium_steps(env, states, actions)
    state, _, _ = environment.step({"physics": states}, actions, NO_DRAWS)
    error = np.abs(environment.observe(state).numpy() - observations).max(1)
    assert np.quantile(error, 0.5) < 2e-6
    assert np.quantile(error, 0.98) < 1e-4
    assert error.max() < 0.1
    assert (np.abs(observations[:, 4]) == np.float32(4 * math.pi)).any()  # the bounds of speeds are reached
    assert (np.abs(observations[:, 5]) == np.float32(9 * math.pi)).any()
    assert state["physics"][:, :2].abs().max() <= np.float32(np.pi)
    assert all(map(env.observation_space.contains, environment.observe(state).numpy()))


@pytest.mark.parametrize("id", ENVIRONMENTS)
def test_episodes_are_gymnasiums(id):
    # Acrobot is chaotic, so Gymnasium's environment continues from our state at each step.
    environment, env = ENVIRONMENTS[id](), gym.make(id).unwrapped
    actions = np.random.default_rng(1).integers(environment.action_space.n, size=300)
    state = environment.reset(uniforms_of(torch.tensor([3]), 0, environment.reset_draws))
    for action in actions.tolist():
        [observation], _, [terminated] = gymnasium_steps(env, state["physics"], torch.tensor([action]))[1:]
        state, _, terminal = environment.step(state, torch.tensor([action]), NO_DRAWS)
        np.testing.assert_allclose(environment.observe(state)[0], observation, rtol=2e-6, atol=2e-6)
        assert terminal.item() == terminated
        if terminated:
            state = environment.reset(uniforms_of(torch.tensor([4]), 0, environment.reset_draws))


@pytest.mark.parametrize("id", ["CartPole-v1", "MountainCar-v0"])
def test_episodes_without_resynchronisation_stay_with_gymnasiums(id):
    environment, env = ENVIRONMENTS[id](), gym.make(id).unwrapped
    # MountainCar is driven up the hill by pushing in the direction of motion.
    for seed in range(5):
        state = environment.reset(uniforms_of(torch.tensor([seed]), 0, environment.reset_draws))
        env.reset(seed=0)
        env.state = state["physics"][0].double().numpy()
        for time in range(200):
            speed = state["physics"][0, 1].item()
            action = (2 if speed >= 0 else 0) if id == "MountainCar-v0" else (seed + time) % 2
            observation, reward, terminated, _, _ = env.step(action)
            state, ours, terminal = environment.step(state, torch.tensor([action]), NO_DRAWS)
            np.testing.assert_allclose(environment.observe(state)[0], observation, rtol=1e-4, atol=1e-4)
            assert (ours.item(), terminal.item()) == (reward, terminated)
            if terminated:
                break
        assert terminated


def test_mountain_car_stops_at_the_wall_and_needs_the_velocity_of_the_goal():
    states = torch.tensor([[-1.19, -0.07], [0.49, 0.03], [0.49, 0.05]])
    actions = torch.tensor([0, 2, 2])
    environment, env = MountainCar(goal_velocity=0.04), gym.make("MountainCar-v0", goal_velocity=0.04).unwrapped
    state, _, terminated = environment.step({"physics": states}, actions, NO_DRAWS)
    np.testing.assert_array_equal(state["physics"][0], np.float32([-1.2, 0.0]))
    assert terminated.tolist() == [False, False, True]
    assert gymnasium_steps(env, states, actions)[3].tolist() == [False, False, True]


def test_cart_pole_has_the_reward_of_sutton_and_barto():
    states, actions = random_states("CartPole-v1", 500)
    env = gym.make("CartPole-v1", sutton_barto_reward=True).unwrapped
    next_states, _, rewards, _ = gymnasium_steps(env, states, actions)
    _, reward, _ = CartPole(sutton_barto_reward=True).step({"physics": states}, actions, NO_DRAWS)
    clear = ~near_the_bound("CartPole-v1", next_states)
    np.testing.assert_array_equal(reward.numpy()[clear], rewards[clear])
    assert set(rewards) == {-1.0, 0.0}


@pytest.mark.parametrize("id", ENVIRONMENTS)
def test_spaces_and_limits_are_gymnasiums(id):
    environment, env = ENVIRONMENTS[id](), gym.make(id)
    assert environment.observation_space == env.observation_space
    assert environment.action_space == env.action_space
    assert environment.max_episode_steps == env.spec.max_episode_steps
    assert ENVIRONMENTS[id](max_episode_steps=None).max_episode_steps is None


@pytest.mark.parametrize(
    ("id", "low", "high"),
    [
        ("CartPole-v1", [-0.05] * 4, [0.05] * 4),
        ("Acrobot-v1", [-0.1] * 4, [0.1] * 4),
        ("MountainCar-v0", [-0.6, 0.0], [-0.4, 0.0]),
    ],
)
def test_first_states_are_uniform(id, low, high):
    environment = ENVIRONMENTS[id]()
    states = environment.reset(uniforms_of(torch.arange(20_000), 0, environment.reset_draws))["physics"].double()
    low, high = torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)
    assert ((states >= low - 1e-7) & (states <= high + 1e-7)).all()
    width = high - low
    assert ((states.mean(0) - (low + high) / 2).abs() <= 4 * width / math.sqrt(12 * 20_000)).all()
    random = width > 0
    variance = states.var(0)[random] * 12 / width[random] ** 2
    assert ((variance - 1).abs() < 4 * math.sqrt(0.8 / 20_000)).all()
    correlations = torch.corrcoef(states.T[random]) - torch.eye(int(random.sum()))
    assert (correlations.abs() < 4 / math.sqrt(20_000)).all()
    zeros, ones = torch.zeros(environment.reset_draws), torch.full((environment.reset_draws,), 1 - 2.0**-24)
    assert all(environment.observe(environment.reset(edge)).isfinite().all() for edge in (zeros, ones))
    torch.testing.assert_close(environment.reset(zeros)["physics"].double(), low)
    torch.testing.assert_close(environment.reset(ones)["physics"].double(), high)


def lengths_and_extremes(environment, seeds):
    """Play an episode with random actions for each seed: its length, and the greatest number observed."""
    steps = environment.max_episode_steps
    state = environment.reset(uniforms_of(seeds, 0, environment.reset_draws))
    running = torch.ones_like(seeds, dtype=torch.bool)
    length, greatest = torch.zeros_like(seeds), torch.full(seeds.shape, -math.inf)
    for time in range(1, steps + 1):
        draws = uniforms_of(seeds, time, environment.step_draws + 1)
        action = (draws[..., -1] * int(environment.action_space.n)).long()
        state, _, terminated = environment.step(state, action, draws[..., :-1])
        length += running
        first = environment.observe(state)[..., 0]
        greatest = torch.where(running, torch.maximum(greatest, first), greatest)
        running &= ~terminated
    return length.double().numpy(), greatest.double().numpy()


def gymnasium_lengths_and_extremes(id, seeds):
    env, results = gym.make(id), []
    for seed in seeds:
        # Actions from the seed of the environment would be correlated with its first state.
        generator, ends, observations = np.random.default_rng([seed, 1]), False, []
        env.reset(seed=seed)
        while not ends:
            observation, _, terminated, truncated, _ = env.step(int(generator.integers(env.action_space.n)))
            observations.append(observation[0])
            ends = terminated or truncated
        results.append((len(observations), max(observations)))
    return np.array(results, dtype=np.float64).T


@pytest.mark.parametrize(("id", "episodes"), [("CartPole-v1", 1_000), ("Acrobot-v1", 12), ("MountainCar-v0", 100)])
def test_random_episodes_are_distributed_as_gymnasiums(id, episodes):
    ours = lengths_and_extremes(ENVIRONMENTS[id](), torch.arange(2_000))
    theirs = gymnasium_lengths_and_extremes(id, range(episodes))
    for a, b in zip(ours, theirs, strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-3


def every_step(environments, states, actions, uniforms):
    """Reset, step and observe environments, as one function for the compiler."""
    results = []
    for id, environment in environments.items():
        results.append(environment.reset(uniforms[..., : environment.reset_draws])["physics"])
        state, reward, terminated = environment.step({"physics": states[id]}, actions, NO_DRAWS)
        results += [state["physics"], environment.observe(state), reward, terminated]
    return results


def inputs(count, ids=tuple(ENVIRONMENTS)):
    """Return environments, and random states, actions and numbers."""
    environments = {id: ENVIRONMENTS[id]() for id in ids}
    states = {id: random_states(id, count, seed=2)[0] for id in ids}
    seeds = torch.randint(2**32, (count,), generator=torch.Generator().manual_seed(0))
    return environments, states, torch.arange(count) % 2, uniforms_of(seeds, 0, 4)


def at(index, states, actions, uniforms):
    return {id: state[index] for id, state in states.items()}, actions[index], uniforms[index]


# The compiler makes another program for one environment. Acrobot's takes longest, so there it is left out.
@pytest.mark.parametrize(
    ("ids", "compiled", "sizes"),
    [
        (tuple(ENVIRONMENTS), False, [1, 3]),
        pytest.param(["CartPole-v1"], True, [1, 3], marks=MARKS),
        pytest.param(["MountainCar-v0"], True, [1, 3], marks=pytest.mark.slow),
        pytest.param(["Acrobot-v1"], True, [2, 3], marks=pytest.mark.slow),
    ],
)
def test_many_environments_have_the_bits_of_each_alone(ids, compiled, sizes):
    environments, *arguments = inputs(37, ids)
    function = partial(every_step, environments)
    eager = function(*arguments)
    if compiled:  # the option has the results of fewer operations held in memory, which compiles several times faster
        options = {"realize_opcount_threshold": 5}
        function = torch.compile(function, fullgraph=True, dynamic=True, options=options)
    together = function(*arguments)
    assert all(map(same, together, eager))
    for size in sizes:
        for first in range(0, 37 - size, size):
            part = slice(first, first + size)
            alone = function(*at(part, *arguments))
            assert all(same(row[part], own) for row, own in zip(together, alone, strict=True))


def test_any_leading_axes():
    environments, *arguments = inputs(6)
    flat = every_step(environments, *arguments)
    grid = every_step(environments, *at(torch.arange(6).view(2, 3), *arguments))
    assert all(same(a, b.flatten(0, 1)) for a, b in zip(flat, grid, strict=True))
    for index in range(6):
        one = every_step(environments, *at(torch.tensor([[index]]), *arguments))
        none = every_step(environments, *at(index, *arguments))
        assert all(same(a[index], b[0, 0]) and same(a[index], c) for a, b, c in zip(flat, one, none, strict=True))


def test_inputs_are_not_changed():
    environments, states, actions, uniforms = inputs(6)
    every_step(environments, states, actions, uniforms)
    _, states_again, actions_again, uniforms_again = inputs(6)
    assert all(same(states[id], states_again[id]) for id in states)
    assert same(actions, actions_again)
    assert same(uniforms, uniforms_again)


def standard_errors_of_correlation(first, second):
    return ((first.double() - 0.5) * (second.double() - 0.5)).mean().item() * 12 * math.sqrt(first.numel())


GRID = {"seeds": (1_000_000, 1, 1), "times": (1, 1_000_000, 1), "all": (500, 250, 8)}


@pytest.mark.parametrize("grid", GRID)
def test_uniforms_are_uniform(grid):
    seeds, times, draws = GRID[grid]
    numbers = uniforms_of(torch.arange(seeds)[:, None] + 7, torch.arange(times)[None], draws).flatten().double()
    assert len(numbers) == 1_000_000
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.bincount((numbers * 256).long(), minlength=256)
    assert 1e-4 < stats.chisquare(counts.numpy()).pvalue < 1 - 1e-4
    assert abs(numbers.mean() - 0.5) < 4 / math.sqrt(12e6)
    assert abs(numbers.var() * 12 - 1) < 4 * math.sqrt(0.8e-6)
    words = (numbers * 2**24).long()
    assert torch.equal(words.double(), numbers * 2**24)  # 24 bits
    for bit in range(24):
        assert abs((words >> bit & 1).double().mean() - 0.5) < 2.2e-3  # 4.4 standard errors


def test_uniforms_of_neighbours_are_independent():
    numbers = uniforms_of(torch.arange(500)[:, None], torch.arange(250)[None], 8)
    shifted = {
        "seeds": (numbers[:-1], numbers[1:]),
        "times": (numbers[:, :-1], numbers[:, 1:]),
        "draws": (numbers[..., :-1], numbers[..., 1:]),
        "seed and time": (numbers[1:, :-1], numbers[:-1, 1:]),
        "time and draw": (numbers[:, 1:, :-1], numbers[:, :-1, 1:]),
    }
    for first, second in shifted.values():
        assert abs(standard_errors_of_correlation(first, second)) < 4
        cells = (first * 16).long() * 16 + (second * 16).long()
        assert stats.chisquare(torch.bincount(cells.flatten(), minlength=256).numpy()).pvalue > 1e-4


def test_uniforms_depend_on_seed_and_time_alone():
    seeds, times = torch.tensor([5, 2**32 - 1, 0]), torch.tensor([0, 3, 2**31])
    numbers = uniforms_of(seeds, times, 6)
    assert numbers.shape == (3, 6)
    assert numbers.dtype == torch.float32
    for index in range(3):
        assert same(uniforms_of(seeds[index], int(times[index]), 6), numbers[index])
    assert same(uniforms_of(seeds, times, 2), numbers[:, :2])  # more draws leave the first as they are
    assert uniforms_of(seeds, times, 0).shape == (3, 0)
    assert hash_of(torch.tensor(1), 2) != hash_of(torch.tensor(2), 1)


def test_sine_and_cosine():
    angle = torch.cat([torch.linspace(-1000, 1000, 1_000_001), torch.linspace(-8, 8, 1_000_001)])
    quarter_turns = torch.arange(-636, 637) * (math.pi / 2)
    angle = torch.cat([angle, quarter_turns, torch.tensor([0.0, 1e-30, -1e-8])])[:-1]
    angle = angle[angle.abs() < 1000]
    sine, cosine = sin_cos(angle)
    assert (sine - angle.double().sin()).abs().max() < 1e-7
    assert (cosine - angle.double().cos()).abs().max() < 1e-7
    assert max(sine.abs().max(), cosine.abs().max()) <= 1
    for index in range(0, len(angle), 50_021):
        alone = sin_cos(angle[index])
        assert same(alone[0], sine[index])
        assert same(alone[1], cosine[index])

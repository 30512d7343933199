"""FrozenLake and CliffWalking as tensors: against Gymnasium's environments, with the same random numbers."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy import stats
from torch.fx.experimental.proxy_tensor import make_fx

from qohort.environments.tensor.base import uniforms_of
from qohort.environments.tensor.toy_text import CliffWalking, FrozenLake

ENVIRONMENTS = {
    "4x4": ("FrozenLake-v1", FrozenLake, {}),
    "8x8": ("FrozenLake8x8-v1", FrozenLake, {"map_name": "8x8"}),
    "not slippery": ("FrozenLake-v1", FrozenLake, {"is_slippery": False}),
    "rates and rewards": (
        "FrozenLake-v1",
        FrozenLake,
        {"map_name": "8x8", "success_rate": 0.7, "reward_schedule": (2.5, -1, -0.01)},
    ),
    "three starts": ("FrozenLake-v1", FrozenLake, {"desc": ["SFFS", "FHFF", "SFHG"]}),
    "cliff": ("CliffWalking-v1", CliffWalking, {}),
    "slippery cliff": ("CliffWalking-v1", CliffWalking, {"is_slippery": True}),
}
SMALLEST = 2.0**-24


class Passed:
    """A generator of random numbers that are passed in."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def random(self):
        return self.numbers.pop(0)


def made(name):
    id, kind, arguments = ENVIRONMENTS[name]
    return kind(**arguments), gym.make(id, **arguments).unwrapped


def around(probability):
    """Return random numbers of 24 bits at and beside a cumulative probability."""
    word = round(probability / SMALLEST)
    return [w * SMALLEST for w in range(word - 2, word + 3) if 0 <= w < 2**24]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_transition_is_gymnasiums(name):
    environment, env = made(name)
    cells, actions = env.observation_space.n, env.action_space.n
    probabilities = sorted({number for row in env.P.values() for branches in row.values() for number, *_ in branches})
    numbers = [number for p in [0.0, 1.0, *probabilities, 1 - probabilities[0]] for number in around(p)]
    numbers += np.random.default_rng(0).integers(2**24, size=4).dot(SMALLEST).tolist()
    cases = [(cell, action, u) for cell in range(cells) for action in range(actions) for u in numbers]
    expected = []
    for cell, action, number in cases:
        env.s, env.np_random = cell, Passed(number)
        next_cell, reward, terminated, _, _ = env.step(action)
        expected.append((next_cell, np.float32(reward), terminated))
    cell, action, number = (torch.tensor(column) for column in zip(*cases, strict=True))
    state, reward, terminated = environment.step({"cell": cell}, action, number.float().unsqueeze(-1))
    assert list(zip(environment.observe(state).tolist(), reward.numpy(), terminated.tolist(), strict=True)) == expected
    assert [state["cell"].dtype, reward.dtype, terminated.dtype] == [torch.int64, torch.float32, torch.bool]
    assert all(map(env.observation_space.contains, environment.observe(state).numpy()))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_first_cells_are_gymnasiums(name):
    environment, env = made(name)
    cumulative = np.cumsum(env.initial_state_distrib)
    numbers = [number for p in {0.0, *cumulative} for number in around(p)]
    cells = environment.observe(environment.reset(torch.tensor(numbers).unsqueeze(-1)))
    assert cells.tolist() == [int(np.argmax(cumulative > number)) for number in numbers]
    assert cells.dtype == torch.int64
    seeds = torch.arange(9_000)
    found = environment.observe(environment.reset(uniforms_of(seeds, 0, environment.reset_draws)))
    counts = torch.bincount(found, minlength=env.observation_space.n).numpy()
    possible = env.initial_state_distrib > 0
    assert counts[~possible].sum() == 0
    assert stats.chisquare(counts[possible], 9_000 * env.initial_state_distrib[possible]).pvalue > 1e-3 or (
        possible.sum() == 1
    )


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_episodes_are_gymnasiums(name):
    environment, env = made(name)
    for seed in range(20):
        numbers = uniforms_of(torch.full((101,), seed), torch.arange(101), 2)
        actions = (numbers[:, 1] * env.action_space.n).long()
        env.np_random = Passed(numbers[0, 0].item())
        state = environment.reset(numbers[0, :1])
        assert environment.observe(state).item() == env.reset()[0]
        for number, action in zip(numbers[1:, :1], actions[1:], strict=True):
            env.np_random = Passed(number.item())
            expected, reward, terminated, _, _ = env.step(action.item())
            state, ours, terminal = environment.step(state, action, number)
            assert environment.observe(state).item() == expected
            assert (ours.item(), terminal.item()) == (np.float32(reward), terminated)
            if terminated:
                break


def test_spaces_and_limits_are_gymnasiums():
    for name, (id, kind, arguments) in ENVIRONMENTS.items():
        environment, env = kind(**arguments), gym.make(id, **arguments)
        assert environment.observation_space == env.observation_space
        assert environment.action_space == env.action_space
        if name != "8x8":
            assert environment.max_episode_steps == env.spec.max_episode_steps
    limit = gym.spec("FrozenLake8x8-v1").max_episode_steps
    assert FrozenLake(map_name="8x8", max_episode_steps=limit).max_episode_steps == 200
    assert (
        gym.make("FrozenLake-v1", map_name="8x8").spec.max_episode_steps == FrozenLake(map_name="8x8").max_episode_steps
    )


def test_a_map_from_no_seed_is_refused():
    with pytest.raises(ValueError, match="set map_name to 4x4 or 8x8, or desc"):
        FrozenLake(map_name=None)
    assert FrozenLake(map_name=None, desc=["SF", "HG"]).observation_space.n == 4


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_random_episodes_are_distributed_as_gymnasiums(name):
    environment, env = made(name)
    steps, seeds = 100, torch.arange(2_000)
    state = environment.reset(uniforms_of(seeds, 0, 1))
    running, length, total = torch.ones(2_000, dtype=torch.bool), torch.zeros(2_000), torch.zeros(2_000)
    for time in range(1, steps + 1):
        draws = uniforms_of(seeds, time, 2)
        state, reward, terminated = environment.step(state, (draws[:, 1] * 4).long(), draws[:, :1])
        length, total, running = length + running, total + reward * running, running & ~terminated
    theirs = []
    for seed in range(200):
        actions = np.random.default_rng([seed, 1]).integers(4, size=steps).tolist()
        env.reset(seed=seed)
        results = []
        for action in actions:
            results.append(env.step(action)[1:3])
            if results[-1][1]:
                break
        theirs.append((len(results), np.float32(sum(reward for reward, _ in results))))
    for a, b in zip((length.numpy(), total.numpy()), np.array(theirs).T, strict=True):
        # Sums of rewards in another order differ in their last bits, and would not be ties.
        assert stats.ks_2samp(a.round(3), b.round(3)).pvalue > 1e-3


def every_step(environments, cells, actions, uniforms):
    """Reset, step and observe environments, as one function for the compiler."""
    results = []
    for environment in environments:
        results.append(environment.reset(uniforms)["cell"])
        state, reward, terminated = environment.step({"cell": cells}, actions, uniforms)
        results += [environment.observe(state), reward, terminated]
    return results


def inputs(*size):
    """Return environments, and random cells, actions and numbers."""
    environments = [made(name)[0] for name in ("three starts", "cliff", "slippery cliff")]
    generator = torch.Generator().manual_seed(0)
    cells, actions, seeds = (torch.randint(high, size, generator=generator) for high in (12, 4, 2**32))
    return environments, cells, actions, uniforms_of(seeds, 1, 1)


@pytest.mark.parametrize("compiled", [False, True])
def test_many_environments_have_the_bits_of_each_alone(compiled):
    environments, *arguments = inputs(37)
    environments = environments[:1] if compiled else environments  # for a quick compilation
    function = partial(every_step, environments)
    eager = function(*arguments)
    if compiled:
        function = torch.compile(function, fullgraph=True, dynamic=True)
    together = function(*arguments)
    assert all(map(torch.equal, together, eager))
    for size in (1, 3):
        for first in range(0, 37 - size, size):
            part = slice(first, first + size)
            alone = function(*[argument[part] for argument in arguments])
            assert all(torch.equal(row[part], own) for row, own in zip(together, alone, strict=True))


@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
def test_traced_environments_have_the_same_bits(tracing_mode):
    environments, *arguments = inputs(5, 2)
    function = partial(every_step, environments)
    # Functions are traced with tensors, so the partial function takes them alone.
    traced = make_fx(lambda *tensors: function(*tensors), tracing_mode=tracing_mode)(*arguments)
    if tracing_mode == "symbolic":
        arguments = inputs(11, 2)[1:]
    assert all(map(torch.equal, traced(*arguments), function(*arguments)))


def test_any_leading_axes():
    environments, *arguments = inputs(2, 3)
    grid = every_step(environments, *arguments)
    for row, column in np.ndindex(2, 3):
        one = every_step(environments, *[argument[row, column][None, None] for argument in arguments])
        none = every_step(environments, *[argument[row, column] for argument in arguments])
        assert all(torch.equal(a[row, column], b[0, 0]) for a, b in zip(grid, one, strict=True))
        assert all(torch.equal(a[row, column], b) for a, b in zip(grid, none, strict=True))
    assert all(map(torch.equal, arguments, inputs(2, 3)[1:]))  # they are not changed

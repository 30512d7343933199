import numpy as np
import pytest

import reference as ref
from qohort.agent.exploration import Boltzmann, EpsilonGreedy
from qohort.cohort.held import across_members
from qohort.cohort.schedules import ConstantSchedule, LinearSchedule, MultiplicativeSchedule, Progress


def progress(env_steps=0, gradient_steps=0, episodes=(0, 0), budget=1000):
    return Progress(budget, np.array(episodes), env_steps, gradient_steps)


def test_constant():
    assert ConstantSchedule(0.25)(progress(env_steps=77)).tolist() == [0.25, 0.25]


@pytest.mark.parametrize(
    ("env_steps", "value"), [(0, 1.0), (1, 0.9955), (50, 0.775), (100, 0.55), (199, 0.1045), (200, 0.1), (1000, 0.1)]
)
def test_linear_by_fraction_of_the_budget(env_steps, value):
    schedule = across_members([LinearSchedule(1.0, 0.1, fraction=0.2)] * 2)
    np.testing.assert_allclose(schedule(progress(env_steps)), [value, value], rtol=1e-14)


@pytest.mark.parametrize(("env_steps", "value"), [(0, 2.0), (5, 1.75), (20, 1.0), (10_000, 1.0)])
def test_linear_by_duration_does_not_depend_on_the_budget(env_steps, value):
    schedule = across_members([LinearSchedule(2.0, 1.0, duration=20)] * 2)
    for budget in (10, 100_000):
        np.testing.assert_allclose(schedule(progress(env_steps, budget=budget)), [value, value])


def test_linear_per_episode_is_each_members_own():
    schedule = LinearSchedule(1.0, 0.0, duration=10, per="episodes")
    np.testing.assert_allclose(schedule(progress(999, 999, episodes=(0, 4))), [1.0, 0.6])
    np.testing.assert_allclose(schedule(progress(episodes=(10, 11))), [0.0, 0.0])


def test_linear_per_gradient_step():
    schedule = across_members([LinearSchedule(1.0, 0.0, duration=4, per="gradient_steps")] * 2)
    np.testing.assert_allclose(schedule(progress(999, gradient_steps=1)), [0.75, 0.75])


def test_linear_after_a_delay():
    schedule = across_members([LinearSchedule(1.0, 0.0, duration=4, delay=10)] * 2)
    values = [schedule(progress(env_steps)).item(1) for env_steps in (0, 10, 11, 14, 99)]
    assert values == [1.0, 1.0, 0.75, 0.0, 0.0]
    with pytest.raises(ValueError, match="delay counts env_steps: with per=episodes, set it to 0"):
        LinearSchedule(1.0, 0.0, duration=4, per="episodes", delay=1)


def test_linear_may_rise():
    np.testing.assert_allclose(across_members([LinearSchedule(0.0, 1.0, duration=4)] * 2)(progress(1)), [0.25, 0.25])


def test_multiplicative_per_gradient_step_is_the_default():
    schedule = across_members([MultiplicativeSchedule(1.0, 0.01, 0.5)] * 2)
    values = [schedule(progress(999, gradient_steps=n, episodes=(99, 99))).item(0) for n in (0, 1, 2, 6, 7, 10_000)]
    assert values == [1.0, 0.5, 0.25, 0.015625, 0.01, 0.01]


def test_multiplicative_per_episode_is_each_members_own():
    schedule = MultiplicativeSchedule(0.8, 0.0, 0.5, per="episodes")
    assert schedule(progress(999, 999, episodes=(1, 3))).tolist() == [0.4, 0.1]


def test_multiplicative_per_env_step():
    schedule = across_members([MultiplicativeSchedule(1.0, 0.2, 0.9, per="env_steps")] * 2)
    np.testing.assert_allclose(schedule(progress(2, gradient_steps=50)), [0.81, 0.81])
    np.testing.assert_allclose(schedule(progress(100)), [0.2, 0.2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either fraction"),
        ({"fraction": 0.5, "duration": 5}, "either fraction"),
        ({"fraction": 0.5, "per": "episodes"}, "per=episodes"),
        ({"fraction": 0.5, "per": "gradient_steps"}, "per=gradient_steps"),
    ],
)
def test_linear_takes_one_length(arguments, message):
    with pytest.raises(ValueError, match=message):
        LinearSchedule(1.0, 0.1, **arguments)


@pytest.mark.parametrize(
    "schedule",
    [
        ConstantSchedule(1.5),
        LinearSchedule(2.0, 0.1, fraction=0.5),
        LinearSchedule(1.0, 1.01, duration=5),
        MultiplicativeSchedule(1.1, 0.0, 0.9),
    ],
)
def test_epsilon_is_a_probability(schedule):
    with pytest.raises(ValueError, match=r"epsilon\.\w+=.* between 0 and 1"):
        EpsilonGreedy(schedule)


@pytest.mark.parametrize(
    "schedule", [ConstantSchedule(0.0), LinearSchedule(1.0, 0.0, fraction=0.5), MultiplicativeSchedule(1.0, 0.0, 0.9)]
)
def test_temperature_is_above_zero(schedule):
    with pytest.raises(ValueError, match=r"temperature\.\w+=0\.0 .* above 0"):
        Boltzmann(schedule)


def test_bounds_themselves_are_allowed():
    epsilon = across_members([EpsilonGreedy(LinearSchedule(1.0, 0.0, fraction=1.0))] * 2)
    assert epsilon.parameter(progress(0)).tolist() == [1.0, 1.0]
    assert epsilon.parameter(progress(1000)).tolist() == [0.0, 0.0]
    temperature = across_members([Boltzmann(LinearSchedule(5.0, 0.001, fraction=1.0))] * 2)
    assert temperature.parameter(progress(0)).tolist() == [5.0, 5.0]
    np.testing.assert_allclose(temperature.parameter(progress(1000)), [0.001, 0.001])


def test_epsilon_of_each_environment_is_as_in_ape_x():
    exploration = across_members([EpsilonGreedy(ConstantSchedule(0.4), spread=7.0)] * 2)
    wanted = np.array(ref.apex_epsilons(4, 0.4, 7.0))
    just_below = np.stack([np.tile(wanted - 1e-9, (2, 1)), np.full((2, 4), 0.99)], -1)
    just_above = np.stack([np.tile(wanted + 1e-9, (2, 1)), np.full((2, 4), 0.99)], -1)
    parameter = exploration.parameter(progress(0))
    for uniforms, chosen in ((just_below, 1), (just_above, 0)):
        assert (exploration.act(lambda: np.tile([1.0, 0.0], (2, 4, 1)), parameter, uniforms, 2) == chosen).all()


def test_epsilon_greedy_by_hand():
    exploration = EpsilonGreedy(ConstantSchedule(0.5))
    epsilon = np.array([0.5, 0.25])
    values = np.array([[[0.0, 2.0, 1.0], [3.0, 3.0, 0.0]], [[0.0, 0.0, 1.0], [0.0, 5.0, 1.0]]])
    uniforms = np.array([[[0.49, 0.99], [0.5, 0.99]], [[0.3, 0.0], [0.1, 0.34]]])
    #          random: floor(0.99 · 3), greedy: the first best; greedy, random: floor(0.34 · 3)
    assert exploration.act(lambda: values, epsilon, uniforms, 3).tolist() == [[2, 0], [2, 1]]


def unasked():
    raise AssertionError("no action depends on the values")


def test_values_are_asked_for_where_any_environment_acts_greedily():
    exploration = EpsilonGreedy(ConstantSchedule(0.5))
    uniforms = np.array([[[0.2, 0.1], [0.4, 0.1]], [[0.4, 0.6], [0.3, 0.9]]])
    values = np.array([[[0.0, 0.0, 1.0]] * 2] * 2)
    assert exploration.act(unasked, np.array([0.41, 0.41]), uniforms, 3).tolist() == [[0, 0], [1, 2]]
    assert exploration.act(lambda: values, np.array([0.41, 0.35]), uniforms, 3).tolist() == [[0, 0], [2, 2]]
    assert exploration.act(lambda: values, np.array([0.4, 0.41]), uniforms, 3).tolist() == [[0, 2], [1, 2]]
    exploration.act(unasked, np.ones(2), np.full((2, 2, 2), np.nextafter(1, 0)), 3)
    assert exploration.act(lambda: values, np.zeros(2), np.zeros((2, 2, 2)), 3).tolist() == [[2, 2], [2, 2]]


def test_across_members_each_keeps_its_own_numbers():
    ours = [LinearSchedule(1.0, 0.1, fraction=0.5), LinearSchedule(0.8, 0.2, fraction=0.25)]
    together = across_members([EpsilonGreedy(one) for one in ours])
    for steps in (0, 100, 250, 600):
        alone = [across_members([EpsilonGreedy(one)]).parameter(progress(steps, episodes=(0,)))[0] for one in ours]
        assert together.parameter(progress(steps)).tolist() == alone
    assert together.parameter(progress(250)).tolist() == pytest.approx([0.55, 0.2])
    decays = across_members([MultiplicativeSchedule(1.0, 0.0, 0.9), MultiplicativeSchedule(1.0, 0.5, 0.5)])
    assert decays(progress(gradient_steps=2)).tolist() == pytest.approx([0.81, 0.5])
    durations = across_members([LinearSchedule(1.0, 0.0, duration=4), LinearSchedule(1.0, 0.0, duration=8)])
    assert durations(progress(2)).tolist() == [0.5, 0.75]


def frequencies(exploration, values, parameter, draws=60_000):
    actions = len(values)
    uniforms = np.random.default_rng(7).random((1, draws, exploration.draws(actions)))
    taken = exploration.act(
        lambda: np.broadcast_to(values, (1, draws, actions)), np.array([parameter]), uniforms, actions
    )
    return np.bincount(taken.ravel(), minlength=actions) / draws


@pytest.mark.parametrize("epsilon", [0.0, 0.2, 1.0])
def test_epsilon_greedy_frequencies(epsilon):
    values = np.array([0.0, -1.0, 2.0, 1.0, 1.5])
    expected = np.full(5, epsilon / 5)
    expected[2] += 1 - epsilon
    exploration = EpsilonGreedy(ConstantSchedule(epsilon))
    np.testing.assert_allclose(frequencies(exploration, values, epsilon), expected, atol=0.01 if epsilon else 0)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_boltzmann_frequencies_are_the_softmax(temperature):
    values = np.array([0.0, -1.0, 2.0, 1.5])
    softmax = np.exp(values / temperature) / np.exp(values / temperature).sum()
    exploration = Boltzmann(ConstantSchedule(temperature))
    np.testing.assert_allclose(frequencies(exploration, values, temperature), softmax, atol=0.01)


def test_boltzmann_temperature_is_each_members_own():
    values = np.broadcast_to([0.0, 1.0], (2, 10_000, 2))
    uniforms = np.random.default_rng(0).random((2, 10_000, 2))
    taken = Boltzmann(ConstantSchedule(1.0)).act(lambda: values, np.array([0.01, 100.0]), uniforms, 2)
    assert taken[0].mean() == 1.0
    assert 0.45 < taken[1].mean() < 0.55


def test_boltzmann_bears_a_zero():
    exploration = Boltzmann(ConstantSchedule(1.0))
    with np.errstate(all="raise"):
        taken = exploration.act(lambda: np.array([[[9.0, 0.0]]]), np.array([1.0]), np.array([[[0.0, 0.5]]]), 2)
    assert taken.tolist() == [[1]]


def test_counts():
    now = progress(12, 3, (4, 5))
    assert now.count("env_steps") == 12
    assert now.count("gradient_steps") == 3
    assert now.count("episodes").tolist() == [4, 5]

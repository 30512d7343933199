"""The reference against numbers worked out by hand, and against second definitions of the same thing."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import reference as ref
from reference import Array, Step

HALF = math.log(0.5)
Q_OF_ONE_TO_THREE = np.array([[0.0, math.log(3.0)]])  # softmax ¼, ¾ at temperature 1


def array(*values: float) -> Array:
    return np.array(values, dtype=np.float64)


# --- bootstrap policies


def test_greedy_and_double_take_the_first_of_equal_actions():
    assert ref.greedy(np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 1.0]])).tolist() == [[0, 1, 0], [1, 0, 0]]
    q_online, q_target = np.array([[1.0, 1.0, 0.0]]), np.array([[0.0, 5.0, 9.0]])
    policy = ref.double(q_online, q_target)
    assert policy.tolist() == [[1, 0, 0]]
    assert ref.expected_target(array(1.0), array(0.5), q_target, policy).tolist() == [1.0]


def test_soft_is_the_softmax_at_a_temperature():
    assert_allclose(ref.soft(Q_OF_ONE_TO_THREE, 1.0), [[0.25, 0.75]])
    assert_allclose(ref.soft(Q_OF_ONE_TO_THREE * 2, 2.0), [[0.25, 0.75]])
    assert_allclose(ref.soft(np.array([[1e4, 0.0]]), 0.03), [[1.0, 0.0]])


def test_expected_sarsa_spreads_epsilon_over_all_actions():
    assert_allclose(ref.expected_sarsa(np.array([[1.0, 2.0, 2.0, 0.0]]), 0.2), [[0.05, 0.85, 0.05, 0.05]])


def test_munchausen_bonus_is_clipped_before_alpha():
    q, alpha = np.repeat(Q_OF_ONE_TO_THREE, 2, axis=0), 0.9
    bonus = ref.munchausen_bonus(q, np.array([0, 1]), alpha, tau=1.0, clip=-1.0)
    assert_allclose(bonus, [0.9 * -1.0, 0.9 * math.log(0.75)])
    assert_allclose(ref.munchausen_bonus(q, np.array([0, 1]), alpha, tau=1.0, clip=-9.0)[0], 0.9 * math.log(0.25))


def test_munchausen_target_by_hand():
    """Two equal next actions: each (2 + log 2) with probability ½, so the soft value is 2 + log 2 at τ = 1."""
    target = ref.munchausen_target(
        Q_OF_ONE_TO_THREE, np.array([1]), array(1.0), array(0.5), np.array([[2.0, 2.0]]), 0.9, 1.0, -1.0
    )
    assert_allclose(target, [1.0 + 0.9 * math.log(0.75) + 0.5 * (2.0 + math.log(2.0))])


def test_munchausens_soft_value_is_the_log_sum_exp():
    """Σ π (q - τ log π) = τ log Σ exp(q / τ)."""
    next_q, tau = np.array([[0.3, -1.2, 2.0]]), 0.7
    target = ref.munchausen_target(next_q, np.array([0]), array(0.0), array(1.0), next_q, 0.0, tau, -1.0)
    assert_allclose(target, tau * math.log(sum(math.exp(q / tau) for q in next_q[0])))
    shifted = next_q + ref.entropy_shift(next_q, tau)
    assert_allclose(target, ref.expected_target(array(0.0), array(1.0), shifted, ref.soft(next_q, tau)))


# --- expected head


def test_expected_target_and_huber_by_hand():
    policy = np.array([[0.25, 0.75], [1.0, 0.0]])
    target = ref.expected_target(array(1.0, 2.0), array(0.5, 0.0), np.array([[4.0, 8.0], [9.0, 9.0]]), policy)
    assert target.tolist() == [1 + 0.5 * 7, 2.0]
    assert [ref.huber(e, 1.0) for e in (0.5, -1.0, 3.0, -3.0)] == [0.125, 0.5, 2.5, 2.5]
    assert ref.huber(3.0, 2.0) == 4.0


# --- categorical head

SUPPORT = np.linspace(-1.0, 1.0, 5)


def test_projection_by_hand():
    """r = 0.25, γ = ½: atoms -1..1 by ½ go to -0.25, 0, 0.25, 0.5, 0.75."""
    uniform = np.full((1, 1, 5), 0.2)
    projected = ref.categorical_projection(SUPPORT, array(0.25), array(0.5), uniform, np.array([[1.0]]))
    assert_allclose(projected, [[0, 0.1, 0.1 + 0.2 + 0.1, 0.1 + 0.2 + 0.1, 0.1]])


@pytest.mark.parametrize(("reward", "expected"), [(5.0, 4), (-5.0, 0), (1.0, 4), (-1.0, 0), (0.5, 3)])
def test_projection_of_a_terminal_reward_is_one_atom(reward, expected):
    projected = ref.categorical_projection(
        SUPPORT, array(reward), array(0.0), np.full((1, 2, 5), 0.2), np.array([[0.5, 0.5]])
    )
    assert_allclose(projected[0], np.eye(5)[expected], atol=1e-15)


def test_projection_of_a_mixture_over_actions():
    probabilities = np.zeros((1, 2, 5))
    probabilities[0, 0, 1] = probabilities[0, 1, 4] = 1.0  # at -0.5 and at 1
    projected = ref.categorical_projection(SUPPORT, array(0.0), array(1.0), probabilities, np.array([[0.25, 0.75]]))
    assert projected.tolist() == [[0, 0.25, 0, 0, 0.75]]


def test_projections_shift_is_per_action_and_discounted():
    probabilities = np.zeros((1, 2, 5))
    probabilities[0, :, 2] = 1.0  # both at 0
    projected = ref.categorical_projection(
        SUPPORT, array(0.0), array(0.5), probabilities, np.array([[0.25, 0.75]]), shift=np.array([[-1.0, 0.5]])
    )
    assert projected.tolist() == [[0, 0.25, 0.375, 0.375, 0]]  # -0.5, and 0.25 halfway between 0 and 0.5


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    reward=st.floats(-3, 3),
    discount=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    atoms=st.integers(2, 9),
)
def test_projection_agrees_with_its_other_definitions(seed, reward, discount, atoms):
    """Bellemare et al. 2017: eq. 7, and algorithm 1's b, l and u; the mean is kept."""
    support = np.linspace(-2.0, 3.0, atoms)
    delta = support[1] - support[0]
    p = np.random.default_rng(seed).dirichlet(np.ones(atoms))
    projected = ref.categorical_projection(
        support, array(reward), array(discount), p.reshape(1, 1, -1), np.array([[1.0]])
    )[0]

    targets = np.clip(reward + discount * support, -2.0, 3.0)
    by_equation = [sum(p * np.clip(1 - np.abs(targets - z) / delta, 0, 1)) for z in support]
    assert_allclose(projected, by_equation, atol=1e-9)

    printed = np.zeros(atoms)
    for j in range(atoms):
        b = min((targets[j] + 2.0) / delta, atoms - 1.0)
        lower, upper = math.floor(b), math.ceil(b)
        printed[lower] += p[j] * (upper - b) if lower < upper else p[j]
        printed[upper] += p[j] * (b - lower)
    assert_allclose(projected, printed, atol=1e-9)

    assert projected.sum() == pytest.approx(1.0)
    assert projected @ support == pytest.approx(targets @ p)


def test_categorical_loss_by_hand():
    logits = np.array([[HALF, HALF + HALF, HALF + HALF]]) + 7.0  # ½, ¼, ¼
    assert_allclose(ref.categorical_loss(logits, np.array([[1.0, 0.0, 0.0]])), [math.log(2)])
    assert_allclose(ref.categorical_loss(logits, np.array([[0.5, 0.5, 0.0]])), [1.5 * math.log(2)])


# --- quantile heads


def test_quantile_targets_by_hand():
    next_quantiles = np.array([[[1.0, 2.0], [3.0, 5.0]]])
    policy, shift = np.array([[0.25, 0.75]]), np.array([[1.0, -1.0]])
    atoms, weights = ref.quantile_targets(array(1.0), array(0.5), next_quantiles, policy, shift)
    assert atoms.tolist() == [[2.0, 2.5, 2.0, 3.0]]
    assert weights.tolist() == [[0.125, 0.125, 0.375, 0.375]]
    averaged = ref.averaged_quantile_targets(array(1.0), array(0.5), next_quantiles, policy, shift)
    assert averaged.tolist() == [[2.0, 2.875]]
    assert np.mean(averaged) == np.sum(atoms * weights)


def test_quantile_huber_by_hand():
    assert ref.quantile_huber(0.5, tau=0.25, kappa=1.0) == 0.25 * 0.125
    assert ref.quantile_huber(-0.5, tau=0.25, kappa=1.0) == 0.75 * 0.125
    assert ref.quantile_huber(-3.0, tau=0.25, kappa=2.0) == 0.75 * 2.0
    assert ref.quantile_huber(-3.0, tau=0.25, kappa=0.0) == 0.75 * 3.0
    assert ref.quantile_huber(-3.0, tau=0.25, kappa=1e-9) == pytest.approx(0.75 * 3.0)


def test_quantile_loss_is_a_sum_over_quantiles_and_a_mean_over_targets():
    quantiles, taus = array(0.0, 2.0), array(0.25, 0.75)
    loss = ref.iqn_loss(quantiles, taus, array(1.0, 5.0), kappa=1.0)
    by_hand = 0.25 * (0.5 + 4.5) / 2 + (0.25 * 0.5 + 0.75 * 2.5) / 2
    assert loss == pytest.approx(by_hand)
    weighted = ref.quantile_huber_loss(quantiles, taus, array(1.0, 5.0), array(0.9, 0.1), 1.0)
    assert weighted == pytest.approx(0.25 * (0.9 * 0.5 + 0.1 * 4.5) + 0.9 * 0.25 * 0.5 + 0.1 * 0.75 * 2.5)


def test_minimiser_of_the_quantile_loss_is_the_quantile():
    atoms, weights = array(0.0, 1.0, 4.0), array(0.5, 0.3, 0.2)
    taus = array(0.1, 0.49, 0.6, 0.9)
    found = [ref.quantile_minimiser(atoms, weights, tau, kappa=0.0) for tau in taus]
    assert_allclose(found, ref.quantiles(atoms, weights, taus), atol=1e-9)
    assert ref.quantile_minimiser(atoms, weights, 0.5, kappa=0.0) == pytest.approx(0.5)  # all of 0..1 is as good


@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
def test_minimiser_of_the_quantile_huber_loss_is_the_best_of_a_grid(kappa):
    atoms, weights, tau = array(0.0, 1.0, 4.0), array(0.5, 0.3, 0.2), array(0.7)
    best = ref.quantile_minimiser(atoms, weights, 0.7, kappa)
    least = ref.quantile_huber_loss(array(best), tau, atoms, weights, kappa)
    for theta in np.linspace(-1.0, 5.0, 601):
        assert ref.quantile_huber_loss(array(theta), tau, atoms, weights, kappa) >= least - 1e-12


# --- λ-returns


def test_lambda_returns_by_hand():
    rewards, values = array(1.0, 2.0, 3.0), array(10.0, 20.0, 30.0)
    last = 3 + 0.5 * 30
    middle = 2 + 0.5 * (0.25 * 20 + 0.75 * last)
    first = 1 + 0.5 * (0.25 * 10 + 0.75 * middle)
    lambdas = ref.peng_lambdas(0.75, np.zeros(3, dtype=bool))
    assert ref.lambda_returns(rewards, np.full(3, 0.5), values, lambdas).tolist() == [first, middle, last]


def test_lambda_returns_at_truncation_and_termination():
    """Step 0 is truncated, step 1 terminates: neither sees the next step, and only the truncated one bootstraps."""
    ended = np.array([True, True, False])
    returns = ref.lambda_returns(
        array(1.0, 2.0, 3.0), array(0.5, 0.0, 0.5), array(10.0, 20.0, 30.0), ref.peng_lambdas(0.9, ended)
    )
    assert returns.tolist() == [6.0, 2.0, 18.0]


def test_watkins_cuts_where_the_next_action_is_not_greedy():
    q = np.array([[0.0, 1.0], [0.0, 1.0], [2.0, 2.0], [5.0, 0.0]])
    lambdas = ref.watkins_lambdas(0.9, np.array([False, False, False, True]), q, np.array([0, 0, 1, 0]))
    assert lambdas.tolist() == [0.0, 0.9, 0.9, 0.0]  # the first action matters to nothing before it; a tie is greedy


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 9), lambda_=st.sampled_from([0.0, 0.3, 0.95, 1.0]))
def test_the_recursion_is_the_mixture_of_n_step_returns(seed, steps, lambda_):
    generator = np.random.default_rng(seed)
    rewards, values = generator.normal(size=steps), generator.normal(size=steps)
    terminated, truncated = generator.random(steps) < 0.2, generator.random(steps) < 0.2
    discounts, ended = np.where(terminated, 0.0, 0.9), terminated | truncated
    q, actions = generator.integers(0, 3, size=(steps, 2)).astype(float), generator.integers(0, 2, size=steps)

    for lambdas in (ref.peng_lambdas(lambda_, ended), ref.watkins_lambdas(lambda_, ended, q, actions)):
        cut = ended | (lambdas != lambda_)
        assert_allclose(
            ref.lambda_returns(rewards, discounts, values, lambdas),
            ref.lambda_returns_by_mixture(rewards, discounts, values, lambda_, cut),
            atol=1e-12,
        )


def test_pqn_targets_are_pengs_where_nothing_is_truncated():
    generator = np.random.default_rng(3)
    rewards, next_q = generator.normal(size=(6, 2)), generator.normal(size=(6, 2, 3))
    done = generator.random((6, 2)) < 0.3
    targets = ref.pqn_targets(rewards, done, next_q, 0.9, 0.65)
    for e in range(2):
        discounts = np.where(done[:, e], 0.0, 0.9)
        lambdas = ref.peng_lambdas(0.65, done[:, e])
        assert_allclose(targets[:, e], ref.lambda_returns(rewards[:, e], discounts, next_q[:, e].max(1), lambdas))
    one = ref.pqn_targets(np.ones((2, 1)), np.zeros((2, 1), bool), np.array([[[4.0, 0.0]], [[0.0, 8.0]]]), 0.5, 0.25)
    assert one.tolist() == [[1 + 0.5 * (0.25 * 5 + 0.75 * 4)], [5.0]]


# --- n-step transitions


def steps_of(rewards: list[float], ends: dict[int, str]) -> list[Step]:
    """Steps t → t + 1 (an ended episode's last is named t + 0.5), action t."""
    return [
        Step(t, t, reward, ends.get(t) == "terminated", ends.get(t) == "truncated", t + 0.5 if t in ends else t + 1)
        for t, reward in enumerate(rewards)
    ]


def test_n_step_windows_by_hand():
    oracle = ref.NStepOracle(n=3, gamma=0.5)
    available = []
    for step in steps_of([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], {1: "terminated", 4: "truncated"}):
        oracle.add([step])
        available.append(len(oracle.transitions()))
    assert available == [0, 2, 2, 2, 5, 5]  # a window waits for its steps or its episode's end
    found = [(t.start, t.action, t.reward, t.discount, t.next_observation, t.steps) for t in oracle.transitions()]
    assert found == [
        (0, 0, 2.0, 0.0, 1.5, 2),
        (1, 1, 2.0, 0.0, 1.5, 1),
        (2, 2, 4.0 + 4.0 + 4.0, 0.125, 4.5, 3),
        (3, 3, 8.0 + 8.0, 0.25, 4.5, 2),
        (4, 4, 16.0, 0.5, 4.5, 1),
    ]


def test_n_step_where_termination_and_truncation_meet_is_termination():
    oracle = ref.NStepOracle(n=2, gamma=0.5)
    oracle.add([Step("s", 0, 1.0, True, True, "end")])
    assert [(t.discount, t.next_observation) for t in oracle.transitions()] == [(0.0, "end")]


def test_n_step_environments_do_not_mix_and_are_in_the_order_of_their_start():
    oracle = ref.NStepOracle(n=2, gamma=1.0, environments=2)
    for one, two in zip(steps_of([1, 1, 1], {}), steps_of([10, 10, 10], {1: "truncated"}), strict=True):
        oracle.add([one, two])
    found = [(t.start, t.environment, t.reward) for t in oracle.transitions()]
    assert found == [(0, 0, 2), (0, 1, 20), (1, 0, 2), (1, 1, 10)]


# --- prioritised replay


def test_priorities_by_hand():
    replay = ref.PriorityList(capacity=3, alpha=0.5, epsilon=0.0)
    assert [replay.add(), replay.add()] == [0, 1]
    assert replay.priorities == [1.0, 1.0]
    replay.update([0, 1], [-4.0, 0.25])
    assert replay.priorities == [2.0, 0.5]
    assert replay.add() == 2
    assert replay.priorities == [2.0, 0.5, 2.0]
    replay.update([2], [1.0])
    assert replay.add() == 0  # it replaces the greatest, and gets it
    assert replay.priorities == [2.0, 0.5, 1.0]
    replay.update([0, 1, 2], [0.25, 0.0625, 0.0625])
    assert replay.add() == 1
    assert replay.priorities == [0.5, 0.5, 0.25]  # the greatest of now, not of ever


def test_stratified_sampling_by_hand():
    """Priorities 1, 0, 3 own the masses [0, 1), none, [1, 4); four segments of mass 1."""
    replay = ref.PriorityList(3, 1.0, 0.0, priorities=[1.0, 0.0, 3.0])
    assert replay.sample([0.0, 0.0, 0.0, 0.999]) == [0, 2, 2, 2]
    assert replay.sample([0.999] * 4) == [0, 2, 2, 2]
    assert replay.sample([0.1]) == [0]
    assert replay.sample([0.25]) == [2]


def test_importance_weights_by_hand():
    """P = ¼, ¾, N = 2: (2 P)^-β is 2 and ⅔ for β = 1."""
    replay = ref.PriorityList(2, 1.0, 0.0, priorities=[1.0, 3.0])
    assert replay.probabilities() == [0.25, 0.75]
    assert_allclose(replay.weights([0, 1, 1], 1.0), [1.0, 1 / 3, 1 / 3])
    assert_allclose(replay.weights([1, 0], 0.5), [math.sqrt(1 / 3), 1.0])
    assert replay.weights([1, 1], 1.0) == [1.0, 1.0]  # over the batch's maximum
    assert replay.weights([0, 1], 0.0) == [1.0, 1.0]


# --- networks


def test_dueling_by_hand():
    assert ref.dueling(np.array([[10.0]]), np.array([[1.0, 3.0]])).tolist() == [[9.0, 11.0]]
    atoms = ref.dueling(np.array([[10.0, 20.0]]), np.array([[[1.0, 0.0], [3.0, 8.0]]]))
    assert atoms.tolist() == [[[9.0, 16.0], [11.0, 24.0]]]


def test_noisy_linear_by_hand():
    assert ref.noise_scale(array(4.0, -9.0, 0.0)).tolist() == [2.0, -3.0, 0.0]
    y = ref.noisy_linear(
        np.array([[1.0, 2.0]]),
        mu_w=np.array([[1.0, 1.0]]),
        sigma_w=np.array([[0.5, 0.25]]),
        mu_b=array(1.0),
        sigma_b=array(0.1),
        eps_in=array(1.0, -4.0),
        eps_out=array(9.0),
    )
    assert_allclose(y, [[(1 + 0.5 * 3 * 1) * 1 + (1 + 0.25 * 3 * -2) * 2 + 1 + 0.1 * 3]])
    assert ref.noisy_init(16, 0.5) == (0.25, 0.125)


def test_layer_norm_and_apex_epsilons_by_hand():
    assert_allclose(ref.layer_norm(np.array([[1.0, 3.0]]), 0.0), [[-1.0, 1.0]])
    assert_allclose(ref.layer_norm(array(1.0, 3.0), 3.0), [-0.5, 0.5])
    assert_allclose(ref.apex_epsilons(3, 0.4, 7.0), [0.4, 0.4**4.5, 0.4**8])
    assert ref.apex_epsilons(1, 0.4, 7.0) == [0.4]


# --- Stream Q(λ)


def test_sparse_init_leaves_a_tenth_of_each_row():
    weights = ref.sparse_init(7, 25, 0.9, np.random.default_rng(0))
    assert (weights != 0).sum(axis=1).tolist() == [2] * 7  # ⌈22.5⌉ of 25 are 0
    assert np.abs(weights).max() <= 0.2
    assert (weights != 0).any(axis=0).sum() > 2  # not the same places in each row


def test_obgd_by_hand():
    parameters = [array(1.0), array(0.0)]
    optimizer = ref.ObGD(parameters, lr=1.0, gamma=0.5, lambda_=0.5, kappa=2.0)
    assert optimizer.step(0.5, [array(2.0), array(-2.0)]) == 1 / 8  # bound 1 · 2 · max(0.5, 1) · 4
    assert [p.tolist() for p in parameters] == [[1.125], [-0.125]]
    assert optimizer.step(-4.0, [array(0.5), array(0.5)]) == 1 / 8  # traces 1 and 0: 2 · 4 · 1
    assert [p.tolist() for p in parameters] == [[0.625], [-0.125]]
    assert optimizer.step(1.0, [array(-0.25), array(0.25)], reset=True) == 1.0  # traces 0 and 0.25: bound ½, no limit
    assert [p.tolist() for p in parameters] == [[0.625], [0.125]]
    assert [trace.tolist() for trace in optimizer.traces] == [[0.0], [0.0]]


def test_obgd_does_not_overshoot_a_linear_function():
    """Q = w · x, x = ±1: the step size is 1 / (κ · δ · ‖x‖₁), so q moves by ‖x‖₂² / (κ ‖x‖₁) = ½."""
    w, x = np.zeros(3), array(1.0, -1.0, 1.0)
    optimizer = ref.ObGD([w], lr=1.0, gamma=0.9, lambda_=0.8, kappa=2.0)
    optimizer.step(5.0 - w @ x, [x])
    assert 5.0 - w @ x == pytest.approx(4.5)


def test_stream_q_error_bootstraps_unless_terminated():
    assert ref.stream_q_error(1.0, 0.5, False, array(2.0, 4.0), 0.5) == 2.5
    assert ref.stream_q_error(1.0, 0.5, True, array(2.0, 4.0), 0.5) == 0.5


def test_welford_gives_the_sample_mean_and_variance():
    samples = np.random.default_rng(1).normal(3.0, 2.0, size=(50, 2))
    statistics = ref.SampleMeanVariance(np.zeros(2))
    for count, sample in enumerate(samples, start=1):
        statistics.update(sample)
        assert_allclose(statistics.mean, samples[:count].mean(0))
        expected = samples[:count].var(0, ddof=1) if count > 1 else [1.0, 1.0]
        assert_allclose(statistics.variance(), expected)


def test_observations_are_normalised_by_statistics_that_hold_them():
    normalizer = ref.ObservationNormalizer(1, epsilon=0.0)
    assert normalizer(array(3.0)).tolist() == [0.0]
    assert_allclose(normalizer(array(5.0)), [1.0 / math.sqrt(2.0)])  # mean 4, variance 2


def test_rewards_are_scaled_by_the_running_return():
    """Rewards 1, 2, 4, the second ends its episode: u = 1, 2, ½ · 2 + 4 = 5."""
    centred = ref.RewardScaler(0.5, centred=True, epsilon=0.0)
    scaled = [centred(1.0, False), centred(2.0, True), centred(4.0, False)]
    assert_allclose(scaled, [1.0, 2.0 / math.sqrt(0.5), 4.0 / math.sqrt(np.var([1.0, 2.0, 5.0], ddof=1))])
    printed = ref.RewardScaler(0.5, centred=False, epsilon=0.0)
    scaled = [printed(1.0, False), printed(2.0, True), printed(4.0, False)]
    p_2 = 2.0**2 * (1 - 1 / 2)
    p_3 = p_2 + 5.0**2 * (1 - 1 / 3)
    assert_allclose(scaled, [1.0, 2.0 / math.sqrt(p_2), 4.0 / math.sqrt(p_3 / 2)])


# --- problems with known answers

COIN = ((0.5, 0.0), (0.5, 2.0))
NOISY_STEP = ((0.5, -0.125), (0.5, 0.125))


@pytest.mark.parametrize(("goal", "step"), [(((1.0, 1.0),), ((1.0, 0.0),)), (COIN, ((1.0, -0.1),)), (COIN, NOISY_STEP)])
def test_value_iteration_finds_the_closed_form(goal, step):
    q = ref.value_iteration(ref.chain(5, 0.9, goal, step))
    assert_allclose(q, ref.chain_q(5, 0.9, goal, step), atol=1e-12)
    assert q.argmax(1).tolist() == [1] * 5


def test_chain_by_hand():
    assert ref.chain_q(3, 0.5).tolist() == [[0.125, 0.25], [0.125, 0.5], [0.25, 1.0]]


def test_return_distribution_by_hand():
    mdp = ref.chain(2, 0.5, COIN, NOISY_STEP)
    atoms, probabilities = ref.return_distribution(mdp, state=0, action=1)  # ±0.125 + ½ · (0 or 2)
    assert atoms.tolist() == [-0.125, 0.125, 0.875, 1.125]
    assert probabilities.tolist() == [0.25] * 4
    atoms, probabilities = ref.return_distribution(ref.chain(2, 0.5, COIN), state=0, action=0)
    assert (atoms.tolist(), probabilities.tolist()) == ([0.0, 0.5], [0.5, 0.5])


def test_the_mean_of_the_return_distribution_is_the_value():
    mdp = ref.chain(4, 0.5, COIN, NOISY_STEP)
    q = ref.value_iteration(mdp)
    for state in range(4):
        for action in range(2):
            atoms, probabilities = ref.return_distribution(mdp, state, action)
            assert probabilities.sum() == pytest.approx(1.0)
            assert atoms @ probabilities == pytest.approx(q[state, action])


def test_quantiles_by_hand():
    atoms, probabilities = array(0.0, 1.0, 2.0), array(0.2, 0.3, 0.5)
    taus = array(0.1, 0.2, 0.21, 0.5, 0.51, 1.0)
    assert ref.quantiles(atoms, probabilities, taus).tolist() == [0, 0, 1, 1, 2, 2]
    assert ref.quantile_midpoints(4).tolist() == [0.125, 0.375, 0.625, 0.875]


def test_categorical_fixed_point_is_the_return_distribution_where_all_returns_are_on_the_support():
    mdp, support = ref.chain(3, 0.5, ((0.5, 0.0), (0.5, 4.0))), np.linspace(0.0, 4.0, 9)
    fixed_point = ref.categorical_fixed_point(mdp, support, sweeps=20)
    for state in range(3):
        for action in range(2):
            atoms, probabilities = ref.return_distribution(mdp, state, action)
            exact = ref.project(support, atoms.tolist(), probabilities.tolist())
            if set(atoms) <= set(support):
                assert_allclose(fixed_point[state, action], exact, atol=1e-12)
    assert_allclose(fixed_point @ support, ref.value_iteration(mdp), atol=1e-9)  # the projection keeps the mean


def test_quantile_fixed_point_is_the_return_distributions_quantiles_where_they_are_few():
    """An even number of quantiles halves the coin; with an odd one the middle quantile may be anything between."""
    mdp = ref.chain(3, 0.5, COIN)
    theta = ref.quantile_fixed_point(mdp, n=4, kappa=0.0, sweeps=8)
    taus = ref.quantile_midpoints(4)
    for state in range(3):
        for action in range(2):
            expected = ref.quantiles(*ref.return_distribution(mdp, state, action), taus)
            assert_allclose(theta[state, action], expected, atol=1e-9)
    huber = ref.quantile_fixed_point(mdp, n=4, kappa=1.0, sweeps=8)
    assert np.abs(huber[2, 1] - [0, 0, 2, 2]).max() > 0.1  # κ as wide as the returns: no quantiles

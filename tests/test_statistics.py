import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from matrix import MARKS
from qohort.runs.directory import area_under_curve
from qohort.runs.learning_curve import moving_average
from qohort.statistics import (
    MIN_RUNS,
    band,
    compare,
    draws,
    estimate,
    format_returns,
    interquartile_mean,
    iqm,
    mean,
    median,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    seeds_needed,
)


def test_iqm_is_the_mean_of_the_middle_half():
    assert iqm([1000.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, -1000.0]) == 4.5
    assert iqm([1.0, 2.0, 6.0, 100.0]) == 4.0


def test_iqm_of_few_scores_leaves_out_whole_scores_only():
    assert iqm([7.0]) == 7.0
    assert iqm([1.0, 2.0, 6.0]) == 3.0
    assert iqm([0.0, 1.0, 2.0, 6.0, 100.0]) == 3.0


def interval(scores, resamples=2000):
    """The interval of the IQM that tables, tuning, curves and reports give."""
    _, low, high = estimate(interquartile_mean, [np.asarray(scores, dtype=np.float64)], resamples)
    return low, high


def plain_interval(scores, resamples=2000):
    """A plain percentile interval, which is too narrow for few runs."""
    drawn = draws(interquartile_mean, [np.asarray(scores, dtype=np.float64)], resamples)
    return tuple(np.quantile(drawn, (0.025, 0.975)))


def test_interval_holds_the_iqm_and_is_the_same_each_time():
    scores = np.random.default_rng(1).normal(100, 10, size=30).tolist()
    low, high = interval(scores)
    assert min(scores) < low < iqm(scores) < high < max(scores)
    assert interval(scores) == (low, high)


def test_interval_of_equal_scores_is_a_point():
    assert interval([5.0] * 10) == (5.0, 5.0)


def test_interval_narrows_with_runs():
    generator = np.random.default_rng(2)
    few, many = interval(generator.normal(size=10)), interval(generator.normal(size=200))
    assert many[1] - many[0] < few[1] - few[0]


def test_interval_covers_the_true_iqm_about_as_often_as_it_says():
    generator = np.random.default_rng(3)
    intervals = [interval(generator.normal(size=40), resamples=300) for _ in range(100)]
    covered = sum(low <= 0 <= high for low, high in intervals)
    assert 85 <= covered <= 99


def test_from_fewer_than_five_runs_the_runs_are_given_and_no_interval():
    assert format_returns([7.0]) == "7.0"
    assert format_returns([1.0, 2.5, 4.0, 8.5]) == "1.0, 2.5, 4.0, 8.5, mean 4.0, over 4 seeds"
    scores = [1.0, 2.0, 3.0, 4.0, 10.0]
    low, high = interval(scores)
    assert len(scores) == MIN_RUNS
    assert format_returns(scores) == f"IQM 3.0, 95% interval [{low:.1f}, {high:.1f}], mean 4.0 ± 3.5, over 5 seeds"


def test_area_under_curve_by_hand():
    assert area_under_curve([(0, 0.0), (10, 10.0)]) == 5.0
    # Unequal steps: (10 · 5 + 30 · 15) / 40
    assert area_under_curve([(10, 0.0), (20, 10.0), (50, 20.0)]) == 12.5
    assert area_under_curve([(500, -3.0)]) == -3.0


@pytest.mark.parametrize("steps", [(1, 2, 3), (100, 250, 1000)])
def test_area_under_a_constant_is_its_height(steps):
    assert area_under_curve([(step, 7.0) for step in steps]) == 7.0


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-1e3, 1e3), max_size=30), st.integers(1, 35))
def test_moving_average_equals_a_naive_one(scores, window):
    naive = [np.mean(scores[max(0, end - window) : end]) for end in range(1, len(scores) + 1)]
    np.testing.assert_allclose(moving_average(scores, window), naive, atol=1e-8)


SCORES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30).map(np.array)


@given(SCORES)
def test_iqm_equals_scipys_trimmed_mean(scores):
    assert interquartile_mean([scores]) == pytest.approx(stats.trim_mean(scores, 0.25), abs=1e-9)


def test_aggregates_by_hand():
    one, other = np.array([0.0, 0.2, 0.4, 1.4]), np.array([1.0, 1.0, 0.5, 0.5])
    assert median([one]) == pytest.approx(0.3)
    assert mean([one]) == pytest.approx(0.5)
    assert optimality_gap([one]) == pytest.approx((1.0 + 0.8 + 0.6 + 0.0) / 4)
    # Over both: 0, .2, [.4, .5, .5, 1.], 1., 1.4
    assert interquartile_mean([one, other]) == pytest.approx(0.6)
    assert mean([one, other]) == pytest.approx((0.5 + 0.75) / 2)
    assert median([one, other, other]) == pytest.approx(0.75)
    assert optimality_gap([one, other]) == pytest.approx((0.6 + 0.25) / 2)


def naively(statistic, sample):
    if statistic is interquartile_mean:
        return stats.trim_mean(np.concatenate(sample), 0.25)
    if statistic is optimality_gap:
        return np.mean([np.clip(1 - one, 0, None).mean() for one in sample])
    return (np.mean if statistic is mean else np.median)([one.mean() for one in sample])


@pytest.mark.parametrize("statistic", [interquartile_mean, mean, median, optimality_gap])
def test_bootstrap_draws_equal_a_naive_loop(statistic):
    generator = np.random.default_rng(5)
    strata = [generator.normal(size=7), generator.normal(1, 2, size=9)]
    drawn = draws(statistic, strata, resamples=400)
    again, naive = np.random.default_rng(0), []
    picks = [again.integers(len(scores), size=(400, len(scores))) for scores in strata]
    for number in range(400):
        sample = [np.sort(scores)[pick[number]] for scores, pick in zip(strata, picks, strict=True)]
        naive.append(naively(statistic, sample))
    np.testing.assert_allclose(drawn, naive)


def test_an_interval_is_scipys_at_the_level_of_students_t():
    scores = np.random.default_rng(6).normal(size=25)
    level = 1 - 2 * stats.norm.cdf(-stats.t.ppf(0.975, 24))
    arguments = {"confidence_level": level, "method": "percentile", "n_resamples": 20_000, "rng": 1}
    scipys = stats.bootstrap((scores,), lambda x, axis: stats.trim_mean(x, 0.25, axis=axis), **arguments)
    ours = estimate(interquartile_mean, [scores], resamples=20_000)
    width = ours.high - ours.low
    assert ours.low == pytest.approx(scipys.confidence_interval.low, abs=0.03 * width)
    assert ours.high == pytest.approx(scipys.confidence_interval.high, abs=0.03 * width)
    plain = plain_interval(scores)
    assert width > plain[1] - plain[0]


def test_no_order_of_runs_changes_anything():
    generator = np.random.default_rng(7)
    strata, other = (
        [generator.normal(size=8), generator.normal(size=5)],
        [generator.normal(size=8), generator.normal(size=5)],
    )
    mixed = [generator.permutation(len(scores)) for scores in strata]
    ours = [scores[order] for scores, order in zip(strata, mixed, strict=True)]
    theirs = [scores[order] for scores, order in zip(other, mixed, strict=True)]
    assert estimate(mean, strata) == pytest.approx(estimate(mean, ours), rel=1e-12)
    for paired in ([True, True], [False, False]):
        before, after = compare(mean, strata, other, paired), compare(mean, ours, theirs, paired)
        np.testing.assert_allclose([*before.difference, *before.improvement], [*after.difference, *after.improvement])
    curves = generator.normal(size=(4, 8))
    np.testing.assert_allclose(band(mean, [curves]), band(mean, [curves[:, mixed[0]]]))


def test_one_run_has_no_interval():
    assert math.isnan(estimate(mean, [np.array([3.0])]).low)
    comparison = compare(mean, [np.array([3.0])], [np.array([1.0])], [True])
    assert comparison.difference.value == 2.0
    assert math.isnan(comparison.difference.high)
    assert math.isnan(comparison.improvement.low)
    assert all(map(math.isnan, comparison.seeds_needed))


def test_pairing_narrows_what_seeds_share():
    generator = np.random.default_rng(8)
    shared = generator.normal(0, 10, size=20)
    arm, other = shared + 1 + generator.normal(size=20), shared + generator.normal(size=20)
    paired = compare(mean, [arm], [other], [True]).difference
    apart = compare(mean, [arm], [other], [False]).difference
    assert paired.value == apart.value
    assert paired.high - paired.low < (apart.high - apart.low) / 4


@given(SCORES, SCORES)
@settings(deadline=None)
def test_probability_of_improvement_is_mann_whitneys(arm, other):
    found = probability_of_improvement([arm], [other])
    statistic = stats.mannwhitneyu(arm, other).statistic
    assert found.value == pytest.approx(statistic / (len(arm) * len(other)))
    if min(len(arm), len(other)) < MIN_RUNS:
        assert math.isnan(found.low)
        assert math.isnan(found.high)
    else:
        assert -1e-9 <= found.low <= found.value <= found.high <= 1 + 1e-9


def test_probability_of_improvement_by_hand():
    assert probability_of_improvement([np.array([1.0, 3.0])], [np.array([0.0, 3.0])]).value == (1 + 0.5 + 0 + 1) / 4
    found = probability_of_improvement([np.array([1.0, 3, 2, 5, 4])], [np.array([0.0, 3, 1, 2, 6])])
    assert found.value == (1.5 + 3.5 + 2.5 + 4 + 4) / 25
    # The bounds p solve (θ - p)² = 1.96² p (1 - p) (1 + (n* - 1) ((1 - p)/(2 - p) + p/(1 + p))) / mn, with n* = 5.
    for bound in (found.low, found.high):
        spread = 1 + 4 * ((1 - bound) / (2 - bound) + bound / (1 + bound))
        assert (0.62 - bound) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) * spread / 25, rel=1e-4)
    certain = probability_of_improvement([np.arange(5.0) + 9], [np.arange(5.0)])
    assert certain.value == certain.high == 1
    assert 0.5 < certain.low < 0.9  # five runs that are all better prove less than certainty
    both = probability_of_improvement([np.arange(5.0) + 9, np.zeros(5)], [np.arange(5.0), np.zeros(5)])
    assert both.value == 0.75


def test_performance_profile_by_hand():
    profile = performance_profile(
        [np.array([0.0, 0.25, 0.5, 1.0, 1.0]), np.full(5, 0.5)], np.array([-1.0, 0.0, 0.7, 1.0])
    )
    np.testing.assert_allclose(profile.value, [1.0, (0.8 + 1) / 2, (0.4 + 0) / 2, 0.0])
    assert (profile.low <= profile.value).all()
    assert (profile.value <= profile.high).all()


def test_a_band_is_the_interval_of_each_point():
    curves = np.random.default_rng(9).normal(size=(3, 12))
    found = band(interquartile_mean, [curves])
    for point in range(3):
        alone = estimate(interquartile_mean, [curves[point]])
        assert found.value[point] == pytest.approx(alone.value)
        assert (found.low[point], found.high[point]) == pytest.approx((alone.low, alone.high), abs=0.1)


def test_seeds_needed_are_those_of_the_textbook_and_give_the_power():
    # Two arms of spread 1 that differ by 0.5: 2 (1.96 + 0.84)² / 0.5² = 62.8
    assert seeds_needed(0.5, math.sqrt(2 / 20), 20) == 63
    assert seeds_needed(-0.5, math.sqrt(2 / 20), 20) == 63
    assert seeds_needed(5.0, math.sqrt(2 / 20), 20) == MIN_RUNS
    assert seeds_needed(0.0, 1.0, 20) == math.inf
    generator = np.random.default_rng(10)
    arm, other = generator.normal(0.5, size=(2000, 63)), generator.normal(size=(2000, 63))
    seen = stats.ttest_ind(arm, other, axis=1).pvalue < 0.05
    assert seen.mean() == pytest.approx(0.8, abs=0.03)


def test_the_seeds_needed_have_the_range_of_the_interval():
    generator = np.random.default_rng(11)
    arm, other = generator.normal(1.2, size=30), generator.normal(size=30)
    apart = compare(mean, [arm], [other], [True])
    low, high = apart.difference.low, apart.difference.high
    assert 0 < low < high
    needed = apart.seeds_needed
    # The number is inversely proportional to the square of the difference.
    assert needed.low == pytest.approx(max(MIN_RUNS, needed.value * (apart.difference.value / high) ** 2), abs=1)
    assert needed.high == pytest.approx(needed.value * (apart.difference.value / low) ** 2, rel=0.1)
    assert compare(mean, [arm], [arm + generator.normal(size=30)], [True]).seeds_needed.high == math.inf


DISTRIBUTIONS = {
    "normal": lambda generator, size: generator.normal(size=size),
    "skewed": lambda generator, size: generator.beta(4, 1.5, size=size),
    "ceiling": lambda generator, size: np.minimum(1.0, generator.normal(0.9, 0.25, size=size)),
    "two humps": lambda generator, size: np.where(
        generator.random(size) < 0.35, generator.normal(0.3, 0.1, size), generator.normal(0.9, 0.08, size)
    ),
}


def coverage(interval, truth, experiments):
    hits = 0
    for number in range(experiments):
        found = interval(np.random.default_rng((11, number)))
        hits += found.low <= truth <= found.high
    return hits / experiments


@pytest.mark.parametrize("shape", DISTRIBUTIONS)
@pytest.mark.parametrize("runs", [10, pytest.param(30, marks=MARKS)])
def test_the_intervals_of_the_iqm_and_of_a_difference_hold_the_truth_95_times_in_100(shape, runs):
    draw = DISTRIBUTIONS[shape]
    everything = draw(np.random.default_rng(12), 400_000)
    truth = float(interquartile_mean([everything]))
    found = coverage(lambda generator: estimate(interquartile_mean, [draw(generator, runs)], 500), truth, 1500)
    assert found == pytest.approx(0.95, abs=0.02)

    def difference(generator):
        return compare(
            interquartile_mean, [draw(generator, runs) + 0.3], [draw(generator, runs)], [True], 500
        ).difference

    assert coverage(difference, 0.3, 1000) == pytest.approx(0.95, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("shape", DISTRIBUTIONS)
@pytest.mark.parametrize("runs", [10, 30])
@pytest.mark.parametrize("statistic", [interquartile_mean, mean, optimality_gap])
def test_intervals_over_environments_hold_the_truth_95_times_in_100(shape, runs, statistic):
    draw = DISTRIBUTIONS[shape]

    def strata(generator, size):
        return [draw(generator, size), 0.5 * draw(generator, size), 0.8 * draw(generator, size) + 0.2]

    truth = float(statistic(strata(np.random.default_rng(13), 400_000)))
    found = coverage(lambda generator: estimate(statistic, strata(generator, runs), 1000), truth, 3000)
    assert found == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    ("shift", "runs"), [(1.0, 10), *(pytest.param(*one, marks=MARKS) for one in [(0.0, 10), (1.0, 30), (2.0, 10)])]
)
def test_the_interval_of_improvement_holds_the_truth_95_times_in_100(shift, runs):
    truth = float(stats.norm.cdf(shift / math.sqrt(2)))

    def improvement(generator):
        return probability_of_improvement([generator.normal(shift, size=runs)], [generator.normal(size=runs)])

    assert coverage(improvement, truth, 3000) == pytest.approx(0.95, abs=0.02)


def test_with_few_runs_the_interval_is_too_narrow_but_less_so_than_the_plain_one():
    """With 5 runs no bootstrap interval, which ends within the scores seen, can do as it says: the report tells."""

    def plain(generator):
        low, high = plain_interval(generator.normal(size=5), resamples=500)
        return type("Interval", (), {"low": low, "high": high})

    ours = coverage(lambda generator: estimate(interquartile_mean, [generator.normal(size=5)], 500), 0.0, 2000)
    assert coverage(plain, 0.0, 2000) < 0.92 < ours < 0.97

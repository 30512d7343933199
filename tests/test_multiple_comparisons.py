"""P-values and Holm's correction: by hand, and how often they err, by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from qohort.multiple_comparisons import CONFIRMED_LEVEL, LEVEL, decide, holm
from qohort.statistics import compare, interquartile_mean, mean, p_value

SEED = 17
ARMS = 10
"""Arms of a simulated report; the first one is the baseline."""
DISTRIBUTIONS = {
    "normal": lambda generator, size: generator.normal(size=size),
    "skewed": lambda generator, size: generator.lognormal(size=size),
    "bounded": lambda generator, size: np.minimum(1.0, generator.normal(0.9, 0.25, size=size)),
    "bimodal": lambda generator, size: np.where(
        generator.random(size) < 0.35, generator.normal(0.3, 0.1, size), generator.normal(0.9, 0.08, size)
    ),
    "two values": lambda generator, size: np.where(generator.random(size) < 0.5, 9.0, 500.0),
}


def test_holm_by_hand():
    # Of four: 4 · .01, 3 · .02, then no less than that: 2 · .02 is raised to .06; last 1 · .5.
    assert holm([0.02, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_comparison_without_p_value_does_not_count():
    corrected = holm([0.02, math.nan, 0.03])
    assert corrected[0] == pytest.approx(0.04)
    assert math.isnan(corrected[1])
    assert corrected[2] == pytest.approx(0.04)


def test_verdicts_by_hand():
    p_values = [0.001, 0.001, 0.004, 0.004, 0.06, math.nan]  # corrected: .005, .005, .012, .012, .06
    verdicts = decide([1.0, -1.0, 2.0, -2.0, 3.0, 4.0], p_values)
    words = ["probably higher", "probably lower", "probably higher", "probably lower", "not told apart", "too few runs"]
    assert [verdict.word for verdict in verdicts] == words
    assert {verdict.family for verdict in verdicts} == {5}
    assert [verdict.strength for verdict in verdicts] == [1, 1, 1, 1, 0, 0]
    sure = decide([1.0, -1.0], [0.002, 0.002])
    assert [(verdict.word, verdict.strength) for verdict in sure] == [("higher", 2), ("lower", 2)]


def test_p_value_of_normal_draws_is_students():
    drawn = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000, loc=2.5)
    assert p_value(2.5, drawn, [20], interquartile_mean) == pytest.approx(2 * stats.t.sf(2.5, 19), rel=0.02)
    # Of means, draws are narrower by √(n - 1)/n.
    wider = math.sqrt(20 / 19)
    assert p_value(2.5, drawn, [20], mean) == pytest.approx(2 * stats.t.sf(2.5 / wider, 19), rel=0.02)


def test_p_value_at_the_ends():
    assert p_value(0.0, np.zeros(100), [6], interquartile_mean) == 1.0
    assert p_value(2.0, np.full(100, 2.0), [6], interquartile_mean) == 2 / 2**6  # six equal signs by chance
    assert math.isnan(p_value(2.0, np.full(100, 2.0), [6, 4], interquartile_mean))
    # Five runs that agree are not proof, though no draw is below 0.
    drawn = np.random.default_rng(0).normal(2.0, 0.6, size=1000).clip(0.1)
    assert p_value(2.0, drawn, [5], interquartile_mean) > 0.02


def test_a_p_value_below_5_percent_implies_that_the_interval_excludes_0():
    excluded = 0
    for number in range(300):
        generator = np.random.default_rng((SEED, number))
        arm, other = generator.lognormal(0.6, size=8), generator.lognormal(size=8)
        found = compare(interquartile_mean, [arm], [other], [True], 500)
        outside = not found.difference.low <= 0 <= found.difference.high
        excluded += outside
        assert outside or found.p >= 0.049  # quantiles are interpolated between two draws
    assert 20 < excluded < 280


def simulated(draw, runs, number, resamples=1000):
    """The p-values of nine arms against a baseline, all of one distribution."""
    generator = np.random.default_rng((SEED, runs, number))
    baseline, *arms = draw(generator, (ARMS, runs))
    return [compare(interquartile_mean, [arm], [baseline], [True], resamples).p for arm in arms]


def family_wise_error(shape, runs, reports):
    """The share of reports with a false verdict: corrected, and if each p-value had been taken by itself."""
    p_values = [simulated(DISTRIBUTIONS[shape], runs, number) for number in range(reports)]
    corrected = np.mean([min(holm(own)) < LEVEL for own in p_values])
    return float(corrected), float(np.mean([min(own) < LEVEL for own in p_values]))


@pytest.mark.slow
@pytest.mark.parametrize("shape", DISTRIBUTIONS)
@pytest.mark.parametrize("runs", [5, 10, 30])
def test_ten_equal_arms_have_a_false_verdict_in_at_most_5_percent_of_reports(shape, runs):
    reports = 1000
    corrected, uncorrected = family_wise_error(shape, runs, reports)
    print(f"\nfamily-wise error | {shape} | {runs} | {100 * corrected:.1f}% | {100 * uncorrected:.1f}%")
    assert corrected <= LEVEL + 2 * math.sqrt(LEVEL * (1 - LEVEL) / reports)


def confirmed_verdicts(shape, runs, largest, reports=100):
    """The share of verdicts that a second sample of runs confirms, and the number of verdicts.

    Nine arms are higher than the baseline by up to `largest` standard deviations. A verdict is confirmed if the second
    sample tells the arms apart too, with one word or the other. The first of three shares is of uncorrected p-values
    below 5%, the others of verdicts of strength 1 and 2.
    """
    draw = DISTRIBUTIONS[shape]
    scale = float(draw(np.random.default_rng(SEED), 100_000).std())
    shifts = scale * np.linspace(0, largest, ARMS)[:, None]
    said, confirmed = np.zeros(3, int), np.zeros(3, int)
    for number in range(reports):
        generator = np.random.default_rng((SEED, runs, number))
        both = []
        for _ in range(2):
            baseline, *arms = draw(generator, (ARMS, runs)) + shifts
            found = [compare(interquartile_mean, [arm], [baseline], [True], 1000) for arm in arms]
            both.append(decide([one.difference.value for one in found], [one.p for one in found]))
        for first, second in zip(*both, strict=True):
            if first.strength:
                said[first.strength] += 1
                confirmed[first.strength] += second.strength > 0
            if first.p < LEVEL:
                said[0] += 1
                confirmed[0] += second.p < LEVEL
    return confirmed / said, said


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["normal", "bimodal"])
@pytest.mark.parametrize(("runs", "largest", "least"), [(10, 2, 0.3), (10, 4, 0.8), (30, 2, 0.8)])
def test_a_second_sample_confirms_a_plain_verdict_more_often_than_a_probable_one(shape, runs, largest, least):
    """With ten runs, and differences of up to two standard deviations, no verdict is safe: the manual says so."""
    (uncorrected, probable, sure), said = confirmed_verdicts(shape, runs, largest)
    shares = f"{100 * sure:.0f}% | {100 * probable:.0f}% | {100 * uncorrected:.0f}%"
    print(f"\nconfirmed | {shape} | {runs} | {largest} | {shares} | of {said}")
    assert sure > least
    assert sure > probable


def test_levels_are_in_order():
    assert 0 < CONFIRMED_LEVEL < LEVEL

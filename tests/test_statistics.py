import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qohort.learning_curve import moving_average
from qohort.run_directory import area_under_curve
from qohort.statistics import iqm, iqm_interval


def test_iqm_is_the_mean_of_the_middle_half():
    assert iqm([1000.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, -1000.0]) == 4.5
    assert iqm([1.0, 2.0, 6.0, 100.0]) == 4.0


def test_iqm_of_few_scores_leaves_out_whole_scores_only():
    assert iqm([7.0]) == 7.0
    assert iqm([1.0, 2.0, 6.0]) == 3.0
    assert iqm([0.0, 1.0, 2.0, 6.0, 100.0]) == 3.0


def test_interval_holds_the_iqm_and_is_the_same_each_time():
    scores = np.random.default_rng(1).normal(100, 10, size=30).tolist()
    low, high = iqm_interval(scores)
    assert min(scores) < low < iqm(scores) < high < max(scores)
    assert iqm_interval(scores) == (low, high)


def test_interval_by_hand():
    """Resamples of two scores have the IQM 0, ½ or 1, with probability ¼, ½ and ¼."""
    assert iqm_interval([0.0, 1.0], confidence=0.6) == (0.0, 1.0)
    assert iqm_interval([0.0, 1.0], confidence=0.4) == (0.5, 0.5)


def test_interval_of_equal_scores_is_a_point():
    assert iqm_interval([5.0] * 10) == (5.0, 5.0)


def test_interval_widens_with_confidence_and_narrows_with_runs():
    generator = np.random.default_rng(2)
    few, many = generator.normal(size=10).tolist(), generator.normal(size=200).tolist()

    def width(scores, confidence=0.95):
        low, high = iqm_interval(scores, confidence)
        return high - low

    assert width(few, 0.5) < width(few, 0.95) < width(few, 0.99)
    assert width(many) < width(few)


def test_interval_covers_the_true_iqm_about_as_often_as_it_says():
    generator = np.random.default_rng(3)
    intervals = [iqm_interval(generator.normal(size=40).tolist(), resamples=300) for _ in range(100)]
    covered = sum(low <= 0 <= high for low, high in intervals)
    assert 85 <= covered <= 99


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

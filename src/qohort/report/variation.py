"""How the runs of an arm vary: bands of curves that are of runs, not intervals of a statistic."""

from __future__ import annotations

import math

import numpy as np

from qohort.statistics import Array, Band, interquartile_mean

PERCENTILES = (5, 50, 95)
"""The percentiles of `run_percentiles`."""


def run_percentiles(returns: Array) -> Band:
    """Return the curves of three runs: those at the 50th, 5th and 95th percentile of the mean over the curve.

    These are curves of real runs, which percentiles at each point are not: the run-wise percentiles of Tanaka and
    Mahmood (2026), "Performance variation in deep reinforcement learning". A percentile is the run nearest to it, the
    lower one of two.

    Args:
        returns: Curves, `[points, n]`.
    """
    means = returns.mean(axis=0)
    ranked = returns[:, np.lexsort((*returns[::-1], means))]  # runs of equal mean in an order that is their own
    low, middle, high = (ranked[:, math.ceil(percent / 100 * (len(means) - 1) - 0.5)] for percent in PERCENTILES)
    return Band(middle, low, high)


def run_range(returns: Array) -> Band:
    """Return the IQM of curves with the lowest and the highest run at each point.

    Args:
        returns: Curves, `[points, n]`.
    """
    return Band(interquartile_mean([returns]), returns.min(axis=-1), returns.max(axis=-1))

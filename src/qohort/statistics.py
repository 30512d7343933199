"""Statistics over runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np


def iqm(scores: Sequence[float]) -> float:
    """The interquartile mean: the mean of the middle half (Agarwal et al., 2021)."""
    from scipy.stats import trim_mean

    return float(trim_mean(scores, 0.25))


def iqm_interval(scores: Sequence[float], confidence: float = 0.95, resamples: int = 2000) -> tuple[float, float]:
    """The percentile-bootstrap interval of the IQM over runs, from a fixed seed.

    Args:
        scores: One score a run.
        confidence: The interval's nominal coverage.
        resamples: Bootstrap resamples.
    """
    from scipy.stats import trim_mean

    generator = np.random.default_rng(0)
    drawn = generator.choice(np.asarray(scores, dtype=np.float64), size=(resamples, len(scores)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(trim_mean(drawn, 0.25, axis=1), (tail, 1 - tail))
    return float(low), float(high)


def in_words(scores: Sequence[float]) -> str:
    """The IQM with its interval, mean and standard deviation over runs, as they are reported."""
    if len(scores) == 1:
        return f"{scores[0]:.1f}"
    low, high = iqm_interval(scores)
    spread = f"mean {statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}"
    return f"IQM {iqm(scores):.1f}, 95% interval [{low:.1f}, {high:.1f}], {spread}"

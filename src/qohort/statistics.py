"""Statistics over runs."""

from __future__ import annotations

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

"""How much performance depends on hyperparameters.

Performances are arrays `[A, E, *grid]`: of each arm, in each environment, at each setting of a grid of hyperparameters,
one axis per hyperparameter. Further leading axes, such as bootstrap draws, are allowed.

Sources: Adkins, Bowling & White (2024), "A Method for Evaluating Hyperparameter Sensitivity in Reinforcement Learning"
(normalised scores, sensitivity, effective dimensionality); Patterson et al. (2024), "The Cross-environment
Hyperparameter Setting Benchmark for Reinforcement Learning" (one setting for all environments, chosen by ranks).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qohort.statistics import Array

NEAR_PEAK = 0.95
"""The part of the tuned score at which tuning further hyperparameters is not counted (Adkins et al., 2024)."""


class Sensitivity(NamedTuple):
    """The scores of each arm, `[..., A]` each."""

    tuned: Array
    """The mean over environments of the score at the best setting of each environment."""
    shared: Array
    """The mean over environments of the score at the one setting that is best on average."""

    @property
    def lost(self) -> Array:
        """The sensitivity: what is lost if one setting must serve all environments."""
        return np.asarray(self.tuned - self.shared)


def normalised(performance: Array, axes: int) -> Array:
    """Return performances as scores: 0 is the 5th and 1 the 95th percentile of all arms and settings of an environment.

    Args:
        performance: `[..., A, E, *grid]`.
        axes: The number of hyperparameters, the length of `grid`.
    """
    arms = performance.ndim - axes - 2
    over = (arms, *range(arms + 2, performance.ndim))
    low, high = np.percentile(performance, (5, 95), axis=over, keepdims=True)
    spread = np.where(high > low, high - low, 1.0)  # where all settings are equal, all scores are 0
    return np.asarray((performance - low) / spread)


def sensitivity(scores: Array, axes: int) -> Sensitivity:
    """Return how far scores depend on tuning for each environment (Adkins et al., 2024, equation of Φ).

    Args:
        scores: Normalised scores, `[..., A, E, *grid]`.
        axes: The number of hyperparameters.
    """
    flat = scores.reshape(*scores.shape[: scores.ndim - axes], -1)
    return Sensitivity(flat.max(-1).mean(-1), flat.mean(-2).max(-1))


class Tuned(NamedTuple):
    """The best that tuning some of the hyperparameters gives."""

    score: float
    """The mean score over environments, each with its own best values of these hyperparameters."""
    keys: tuple[int, ...]
    """The hyperparameters, by axis."""


def by_number_tuned(scores: Array, default: Sequence[int]) -> list[Tuned]:
    """Return the best score of an arm for each number of tuned hyperparameters, none to all.

    Args:
        scores: Normalised scores of the arm, `[E, *grid]`.
        default: The index of the default value of each hyperparameter, which those that are not tuned have.
    """
    count = len(default)
    best = []
    for size in range(count + 1):
        options = []
        for keys in itertools.combinations(range(count), size):
            where = tuple(slice(None) if axis in keys else default[axis] for axis in range(count))
            own = scores[(slice(None), *where)].reshape(len(scores), -1)
            options.append(Tuned(float(own.max(-1).mean()), keys))
        best.append(max(options, key=lambda one: one.score))
    return best


def effective_dimensionality(tuned: Sequence[Tuned], near: float = NEAR_PEAK) -> int:
    """Return how many hyperparameters have to be tuned to come near the score of tuning all (Adkins et al., 2024).

    Args:
        tuned: From `by_number_tuned`.
        near: The part of the score of tuning all that is near enough.
    """
    enough = near * tuned[-1].score if tuned[-1].score > 0 else tuned[-1].score
    return next(number for number, one in enumerate(tuned) if one.score >= enough)


def ranks(performance: Array, axes: int) -> Array:
    """Return performances as the fraction of all arms and settings of an environment that are not better.

    It is the empirical distribution function by which Patterson et al. (2024) put environments on one scale.

    Args:
        performance: `[A, E, *grid]`.
        axes: The number of hyperparameters.
    """
    arms, environments = performance.shape[:2]
    flat = performance.reshape(arms, environments, -1)
    result = np.empty_like(flat)
    for e in range(environments):
        pool = np.sort(flat[:, e].ravel())
        result[:, e] = np.searchsorted(pool, flat[:, e], side="right") / pool.size
    return result.reshape(performance.shape)


def best_shared(ranked: Array) -> NDArray[np.int64]:
    """Return the setting of each arm with the highest mean rank over environments, `[A]`, counted along the grid.

    The first one of equals is taken.

    Args:
        ranked: From `ranks`, `[A, E, *grid]`.
    """
    flat = ranked.reshape(*ranked.shape[:2], -1)
    return np.asarray(flat.mean(1).round(12).argmax(-1))  # equal sums may differ in the last bits


def best_of_each(performance: Array) -> NDArray[np.int64]:
    """Return the best setting of each arm in each environment, `[A, E]`, counted along the grid.

    Args:
        performance: `[A, E, *grid]`.
    """
    return np.asarray(performance.reshape(*performance.shape[:2], -1).argmax(-1))

"""Group-sequential comparisons of paired scores: when to stop, with stated probabilities of error.

Seeds come in groups. After group k there are n_k pairs of runs of an arm and of the arm it is compared with, each pair
with one seed, and their differences d_1, ..., d_n (n = n_k), in the order in which the seeds are trained. The procedure
follows AdaStop (Mathieu et al., 2024, "AdaStop: adaptive statistical testing for sound comparisons of Deep RL agents",
TMLR, algorithm 1). For one comparison at level a:

    T_k(s) = |s_1 d_1 + ... + s_n d_n|  for signs s in {-1, 1}^n                                                    (1)
    a_k    = a log(1 + (e - 1) n_k / n_K)                                                                           (2)
    b_k    = the smallest b with  P(s crosses before k) + P(T_k(s) > b and s has not crossed before k) <= a_k       (3)

where s crosses at k if T_k(s) > b_k, and P is over signs drawn uniformly. The arms are told apart at the first k at
which the observed differences, s = (1, ..., 1), cross. If a pair's two scores have the same distribution and may be
swapped, the signs of the differences are uniform whatever their sizes, and the boundaries depend on the sizes only. So
the probability of telling apart two arms that are the same is at most a, exactly, for every distribution of scores.

With several comparisons, comparison j is tested at level alpha / r, where r is the number of comparisons that are not
told apart (Holm, 1979; for group-sequential tests Maurer and Bretz, 2013, Statistics in Biopharmaceutical Research 5).
The probability that any two equal arms are told apart is then at most alpha, whatever the dependence between arms.

Arms are *equivalent* if the mean difference is within a margin. This is shown by two one-sided tests (Schuirmann, 1987)
with the same boundaries: of d + margin without the absolute value in (1), against a mean difference of -margin or
less, and of margin - d. The probability of calling any arms equivalent that differ by the margin is at most alpha. This
is exact if differences are symmetric around their mean. It does not hold for failures that are rare: pairs that are all
equal show nothing of an arm that fails once in ten runs.

Deviations from AdaStop:
    1. Signs of paired differences are flipped; AdaStop permutes two independent samples. Runs with the same seed share
       random numbers, so they are not independent.
    2. Holm's correction replaces the maximum of T_k over comparisons, whose family-wise error holds for many seeds
       only, and in which an arm with large differences hides the others.
    3. Each arm is compared with one other arm, not with all.
    4. Equivalence within a stated margin replaces the early acceptance of AdaStop's beta, which shows nothing.
    5. The level is spent by (2), after Lan and DeMets (1983, Biometrika 70, the function of Pocock's type); AdaStop
       spends a n_k / n_K. More of the level is spent in the first groups, where few signs leave little to spend.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from qohort.statistics import Array

Key = TypeVar("Key", bound=Hashable)


Verdict = Literal["higher", "lower", "equivalent", "not told apart", "open"]


SIGNS = 2**15
"""Number of sign vectors. Up to 15 pairs these are all of them."""


@dataclass(frozen=True)
class Design:
    """How many seeds are trained before each test, and at what level. It is fixed before the first run.

    Attributes:
        max_seeds: Number of seeds at which every arm stops.
        seeds_per_group: Number of seeds between tests.
        alpha: Family-wise error: the probability of telling apart any arms that are equal.
        comparisons: Number of comparisons.
    """

    max_seeds: int
    seeds_per_group: int
    alpha: float
    comparisons: int

    @property
    def stages(self) -> tuple[int, ...]:
        """The number of seeds at each test, n_1, ..., n_K. The last group may be smaller."""
        return (*range(self.seeds_per_group, self.max_seeds, self.seeds_per_group), self.max_seeds)

    def reached(self, pairs: int) -> int:
        """Return the number of stages for which there are enough pairs."""
        return sum(pairs >= seeds for seeds in self.stages)

    def spending(self, level: float) -> tuple[float, ...]:
        """Return how much of a level may be spent up to each stage, a_1, ..., a_K of (2)."""
        return tuple(level * math.log1p((math.e - 1) * seeds / self.max_seeds) for seeds in self.stages)


@dataclass(frozen=True)
class Decision:
    """The decision of a comparison.

    Attributes:
        verdict: `higher` or `lower` if the arms are told apart, `equivalent` if the difference is within the margin,
            `not told apart` at the last stage, `open` before it.
        seeds: Number of pairs that it is based on.
        difference: The mean difference of these pairs; NaN without pairs.
    """

    verdict: Verdict
    seeds: int
    difference: float


def fewest_seeds(alpha: float, comparisons: int) -> int:
    """Return the smallest number of seeds with which all of several comparisons can be decided.

    The largest sum (1) of n differences is reached by 2 of 2^n sign vectors, so 2 / 2^n must not be above the level.

    Args:
        alpha: Family-wise error.
        comparisons: Number of comparisons.
    """
    return math.ceil(1 + math.log2(comparisons / alpha) - 1e-9)


@functools.lru_cache(maxsize=2)
def sign_vectors(pairs: int, rows: int = SIGNS) -> Array:
    """Return sign vectors; the first one is the observed one, all 1.

    Every combination of the first columns occurs equally often, and further columns are drawn at random, always the
    same. The error stays exact: relative to signs that are themselves uniform, each row is as likely as any other
    to be the observed one (Hemerik and Goeman, 2018, "Exact testing with random permutations", TEST 27).

    Args:
        pairs: Number of pairs.
        rows: Number of sign vectors, a power of 2; fewer if there are not so many.

    Returns:
        `[rows, pairs]`.
    """
    all_of = min(pairs, rows.bit_length() - 1)
    signs = np.ones((2**all_of, pairs))
    signs[:, :all_of] -= 2 * (np.arange(2**all_of)[:, None] >> np.arange(all_of) & 1)
    signs[1:, all_of:] -= 2 * np.random.default_rng(0).integers(2, size=(2**all_of - 1, pairs - all_of))
    return signs


def signed_sums(differences: Array, design: Design, rows: int = SIGNS) -> Array:
    """Return the sums of signed differences at each stage for every sign vector, without the absolute value of (1).

    Args:
        differences: Paired differences, `[n]`.
        design: The design.
        rows: Number of sign vectors.

    Returns:
        `[rows, k]` for the k stages that have enough pairs, in units of 2^-40 of the largest difference, of which the
        differences are rounded to multiples. So equal sums are equal.
    """
    signs = sign_vectors(design.max_seeds, rows)
    stages = design.stages[: design.reached(len(differences))]
    used = differences[: stages[-1]]
    whole = np.round(used * (2.0**40 / (np.abs(used).max() or 1.0)))
    groups = [signs[:, first:last] @ whole[first:last] for first, last in itertools.pairwise((0, *stages))]
    return np.cumsum(groups, axis=0).T


def first_crossing(sums: Array, spending: Sequence[float]) -> int | None:
    """Return the first stage at which the observed sums, those of row 0, cross the boundary (3); None for none.

    Args:
        sums: T_k(s) of every sign vector, `[rows, K]`.
        spending: The level a_k that may be spent up to each stage, `[K]`.
    """
    inside = np.ones(len(sums), dtype=bool)
    for stage, level in enumerate(spending):
        room = math.floor(len(sums) * level + 1e-9) - int((~inside).sum())
        at = sums[:, stage][inside]
        boundary = np.partition(at, len(at) - 1 - room)[len(at) - 1 - room]
        crosses = inside & (sums[:, stage] > boundary)
        if crosses[0]:
            return stage
        inside &= ~crosses
    return None


class _Test:
    """One test of one comparison, at any level.

    Args:
        sums: T_k(s) of every sign vector, `[rows, k]`, for the stages that have enough pairs.
        design: The design.
    """

    def __init__(self, sums: Array, design: Design) -> None:
        self._sums, self._design = sums, design
        self._known: dict[float, int | None] = {}  # the stage of the first crossing, by level

    def crossed(self, level: float, stage: int) -> bool:
        """Return whether the observed sums cross at a stage or before it."""
        found = self.first(level)
        return found is not None and found <= stage

    def first(self, level: float) -> int | None:
        """Return the stage at which the observed sums first cross; None if they do not."""
        if level not in self._known:
            self._known[level] = first_crossing(self._sums, self._design.spending(level)[: self._sums.shape[-1]])
        return self._known[level]


class _Comparison:
    """The tests of one comparison.

    Args:
        differences: Its paired differences, `[n]`, at least one group.
        design: The design.
        margin: Its margin; None to not test equivalence.
        rows: Number of sign vectors.
    """

    def __init__(self, differences: Array, design: Design, margin: float | None, rows: int) -> None:
        signed = signed_sums(differences, design, rows)
        self._observed, self._apart = signed[0], _Test(np.abs(signed), design)
        shifted = () if margin is None else (differences + margin, margin - differences)
        self._within = [_Test(signed_sums(own, design, rows), design) for own in shifted]

    def is_apart(self, level: float, stage: int) -> bool:
        """Return whether the arms are told apart at a level, at a stage or before it, in the direction seen by then.

        Holm's method may count a crossing of an earlier group once another arm is told apart.
        """
        first = self._apart.first(level)
        return first is not None and first <= stage and bool(self._observed[first] * self._observed[stage] > 0)

    def is_within(self, level: float, stage: int) -> bool:
        """Return whether the difference is within the margin at a level, at a stage or before it."""
        return bool(self._within) and all(test.crossed(level, stage) for test in self._within)


def _holm(
    tests: Mapping[Key, Callable[[float, int], bool]], design: Design, rejected_before: int, stage: int
) -> list[Key]:
    """Return the comparisons whose hypotheses Holm's procedure rejects at a stage.

    A hypothesis that is rejected at alpha / r must also be at every higher level, alpha / 1, ..., alpha / (r - 1). Ties
    could break this rule, on which the proof rests (Goeman and Solari, 2010, "The sequential rejection principle of
    familywise error control", Annals of Statistics 38).

    Args:
        tests: Whether the hypothesis of a comparison is rejected at a level, at a stage or before it.
        design: The design.
        rejected_before: Number of hypotheses that were rejected at earlier stages.
        stage: The stage, counted from 0.
    """
    rejected: list[Key] = []
    while True:
        left = design.comparisons - rejected_before - len(rejected)
        levels = [design.alpha / count for count in range(left, 0, -1)]
        found = [
            key
            for key, is_rejected in tests.items()
            if key not in rejected and all(is_rejected(level, stage) for level in levels)
        ]
        if not found:
            return rejected
        rejected += found


def decide(
    differences: Mapping[Key, Array], design: Design, margins: Mapping[Key, float | None], rows: int = SIGNS
) -> dict[Key, Decision]:
    """Decide comparisons stage by stage.

    A decision depends on the pairs up to its own stage only, so that the same pairs give the same decision again when
    more seeds are added.

    Args:
        differences: Paired differences of each comparison, `[n]`, in the order in which the seeds are trained. Those
            after its last whole stage are not used.
        design: The design.
        margins: The margin of each comparison, in the unit of the scores; None to not test equivalence.
        rows: Number of sign vectors.

    Returns:
        The decision of each comparison. It is `open` if the comparison needs more pairs.
    """
    reached = {key: design.reached(len(own)) for key, own in differences.items()}
    tests = {key: _Comparison(own, design, margins[key], rows) for key, own in differences.items() if reached[key]}
    apart: dict[Key, int] = {}
    within: dict[Key, int] = {}
    for stage in range(len(design.stages)):
        left = [key for key in tests if reached[key] > stage and key not in apart and key not in within]
        apart |= dict.fromkeys(_holm({key: tests[key].is_apart for key in left}, design, len(apart), stage), stage)
        left = [key for key in left if key not in apart]
        within |= dict.fromkeys(_holm({key: tests[key].is_within for key in left}, design, len(within), stage), stage)
    decided = {**apart, **within}
    seeds = {key: (0, *design.stages)[decided[key] + 1 if key in decided else reached[key]] for key in differences}
    means = {key: float(own[: seeds[key]].mean()) if seeds[key] else math.nan for key, own in differences.items()}

    def verdict(key: Key) -> Verdict:
        if key in apart:
            return "higher" if means[key] > 0 else "lower"
        if key in within:
            return "equivalent"
        return "not told apart" if reached[key] == len(design.stages) else "open"

    return {key: Decision(verdict(key), seeds[key], means[key]) for key in differences}

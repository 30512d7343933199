"""Decisions on several comparisons at once.

Each p-value alone errs at its own rate: of nine comparisons of equal arms, one in three reports would call some arm
better. Holm's step-down correction (1979, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian
Journal of Statistics 6) keeps the probability of any false verdict of a family below `LEVEL` if each p-value does,
whatever the comparisons have in common, such as the baseline. The p-values of few runs do so approximately: the manual
says for which returns this was measured.

A verdict at p = 0.04 is often not confirmed by a second sample of runs, for example the same seeds on another type of
CPU. It has a weaker word than one below `CONFIRMED_LEVEL`, the threshold that Benjamin et al. (2018, "Redefine
statistical significance", Nature Human Behaviour 2) propose. `tests/test_multiple_comparisons.py` measures both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

LEVEL = 0.05
"""Corrected p-value below which two arms are told apart: the family-wise error rate."""
CONFIRMED_LEVEL = 0.005
"""Corrected p-value below which a verdict is stated without reservation."""

Word = Literal[
    "higher", "lower", "probably higher", "probably lower", "not told apart", "too few runs", "see decisions", "none"
]


class Verdict(NamedTuple):
    """What is decided on the comparison of two arms, given all comparisons of its family."""

    p: float
    """The p-value of the comparison by itself; NaN for too few runs."""
    corrected: float
    """The p-value after Holm's correction; NaN for too few runs."""
    family: int
    """Number of comparisons that the correction counts."""
    word: Word
    """The verdict in words."""

    @property
    def strength(self) -> Literal[0, 1, 2]:
        """0: the arms are not told apart; 1: probably they differ; 2: they differ."""
        if self.word in ("higher", "lower"):
            return 2
        return 1 if self.word.startswith("probably") else 0


DECIDED_BEFORE = Verdict(math.nan, math.nan, 0, "see decisions")
"""Instead of a verdict, if runs were trained until arms were told apart: p-values are of a fixed number of runs."""
NOT_DECIDED = Verdict(math.nan, math.nan, 0, "none")
"""The same for all environments together, over which nothing is decided."""


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected by Holm's method, in the order given.

    Args:
        p_values: The p-values of a family. NaN is kept, and does not count in the family.
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    corrected = [math.nan] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[index] = largest
    return corrected


def decide(differences: Sequence[float], p_values: Sequence[float]) -> list[Verdict]:
    """Decide on all comparisons of a family.

    Args:
        differences: The difference of each comparison, whose sign gives the direction.
        p_values: The p-value of each; NaN where there are too few runs to test.
    """
    corrected = holm(p_values)
    family = sum(not math.isnan(p) for p in p_values)
    return [
        Verdict(p, own, family, _word(difference, own))
        for difference, p, own in zip(differences, p_values, corrected, strict=True)
    ]


def _word(difference: float, corrected: float) -> Word:
    if math.isnan(corrected):
        return "too few runs"
    if corrected >= LEVEL or difference == 0:
        return "not told apart"
    if corrected >= CONFIRMED_LEVEL:
        return "probably higher" if difference > 0 else "probably lower"
    return "higher" if difference > 0 else "lower"

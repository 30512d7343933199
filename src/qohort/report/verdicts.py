"""Verdicts on runs that were trained again: equal to the bit, statistically compatible, or neither."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qohort.config.errors import RunsFailed
from qohort.multiple_comparisons import holm
from qohort.report.cells import number
from qohort.statistics import MIN_RUNS, compare, interquartile_mean


@dataclass(frozen=True)
class Again:
    """A run and what it ended with when it was trained again.

    Attributes:
        row: Its arm and environment, in words.
        seed: The seed.
        fingerprint: The recorded fingerprint.
        score: The recorded final return.
        new_fingerprint: The new fingerprint.
        new_score: The new final return.
        changes: What has changed since: machine, versions, code.
    """

    row: str
    seed: int
    fingerprint: str
    score: float
    new_fingerprint: str
    new_score: float
    changes: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether it is equal to the bit."""
        return self.fingerprint == self.new_fingerprint

    def __str__(self) -> str:
        """Return the verdict on this run in one line."""
        name = f"{self.row}, seed {self.seed}"
        if self.equal:
            return f"{name}: equal to the bit, fingerprint {self.fingerprint[:8]}"
        scores = f"final return {self.new_score:g}, recorded {self.score:g}"
        why = f"what changed: {'; '.join(self.changes)}" if self.changes else "nothing else changed"
        return f"{name}: DIFFERENT FINGERPRINT ({scores}); {why}"


@dataclass(frozen=True)
class Compatibility:
    """A test of whether new runs and recorded ones have the same distribution of final returns.

    Attributes:
        words: What was compared, and how it came out.
        p: The p-value.
    """

    words: str
    p: float


def judge(runs: Sequence[Again], recorded: dict[str, dict[int, float]], level: float, what: str) -> None:
    """Print whether runs confirm what was recorded.

    Where fingerprints differ, and machine, versions or code do so too, the final returns are tested. Five or more new
    runs of a row are compared with all recorded ones by the difference of IQMs, as arms of a report are. Fewer are
    tested together by their ranks among the recorded runs. The p-values are corrected by Holm's method.

    Args:
        runs: The runs.
        recorded: The recorded final return of each seed, by row.
        level: Level of the tests: the probability of calling a row not compatible if only chance differs.
        what: What is confirmed or not, in words.

    Raises:
        RunsFailed: If a fingerprint differs although nothing has changed, or the final returns are not compatible.
    """
    count = f"{sum(run.equal for run in runs)} of {len(runs)} runs are equal to the bit"
    others = [run for run in runs if not run.equal]
    if not others:
        print(f"equal to the bit: {len(runs)} of {len(runs)} runs ended with their fingerprints")
        return
    if unexplained := [run for run in others if not run.changes]:
        raise RunsFailed(
            f"not compatible: {len(unexplained)} of {len(runs)} runs have another fingerprint on the same machine type "
            f"with the same versions and code: {what} does not hold"
        )
    tests = _tests(others, recorded)
    corrected = holm([test.p for test in tests])
    for test, p in zip(tests, corrected, strict=True):
        print(f"  {test.words}; p = {test.p:.3f}, after Holm's correction {p:.3f}")
    if min(corrected) < level:
        raise RunsFailed(
            f"not compatible: {count}, and the final returns of the others differ from those of {what} "
            f"(p = {min(corrected):.4f}, less than level={level:g})"
        )
    print(
        f"statistically compatible, which is weaker than equal to the bit: {count}, and the final returns of the "
        f"others do not contradict {what} at level={level:g}"
    )


def _tests(runs: Sequence[Again], recorded: dict[str, dict[int, float]]) -> list[Compatibility]:
    groups: dict[str, list[Again]] = defaultdict(list)
    for run in runs:
        groups[run.row].append(run)
    large = {row: own for row, own in groups.items() if min(len(own), len(recorded[row])) >= MIN_RUNS}
    few = {row: own for row, own in groups.items() if row not in large}
    made = [_difference(row, own, recorded[row]) for row, own in large.items()]
    return [*made, _ranks(few, recorded)] if few else made


def _difference(row: str, runs: Sequence[Again], recorded: dict[int, float]) -> Compatibility:
    """Compare new runs of a row with all recorded ones, in pairs if the seeds are the same."""
    new = {run.seed: run.new_score for run in runs}
    paired = sorted(new) == sorted(recorded)
    ours, theirs = (np.array([one[seed] for seed in sorted(one)]) for one in (new, recorded))
    found = compare(interquartile_mean, [ours], [theirs], [paired])
    value, low, high = (number(one, 1, sign=True) for one in found.difference)
    how = f"{len(new)} pairs of runs" if paired else f"{len(new)} new and {len(recorded)} recorded runs"
    return Compatibility(f"{row}: difference of IQM {value} [{low}, {high}], {how}", found.p)


def _ranks(groups: dict[str, list[Again]], recorded: dict[str, dict[int, float]]) -> Compatibility:
    """Test few runs of each row by their ranks among the recorded ones, combined by Stouffer's method.

    If only chance differs, the rank of a run is uniform. The ranks of two new runs among the same n recorded ones have
    the correlation 1 / (n + 2), which the variance of the sum includes.
    """
    from scipy.stats import norm

    ranks = [rank(run.new_score, [*recorded[row].values()]) for row, own in groups.items() for run in own]
    variance = sum(len(own) + len(own) * (len(own) - 1) / (len(recorded[row]) + 2) for row, own in groups.items())
    total = float(np.sum(norm.ppf(ranks)) / np.sqrt(variance))
    words = f"ranks of {len(ranks)} runs among the recorded ones of their rows, combined by Stouffer's method"
    return Compatibility(f"{words}: z = {total:.2f}", 2 * float(norm.sf(abs(total))))


def rank(score: float, recorded: Sequence[float]) -> float:
    """Return the rank of a score among recorded scores, from near 0 below all to near 1 above all. Ties count half."""
    scores = np.asarray(recorded)
    below, ties = int((scores < score).sum()), int((scores == score).sum())
    return (below + ties / 2 + 0.5) / (len(scores) + 1)

"""When a comparison of arms is decided: boundaries by hand and against twins, Holm's steps, errors by simulation."""

import itertools
import math

import numpy as np
import pytest
from adastop import MultipleAgentsComparator
from hypothesis import given, settings
from hypothesis import strategies as st

from qohort.sequential import (
    SIGNS,
    Design,
    _Comparison,
    decide,
    fewest_seeds,
    first_crossing,
    sign_vectors,
    signed_sums,
)
from sequential_simulation import ALPHA, ARMS, EFFECTS, SCORES, SEEDS, simulate


def crossing(differences, design, level):
    """The first stage at which a comparison at a level crosses, from all sign vectors."""
    differences = np.array(differences, dtype=float)
    return first_crossing(np.abs(signed_sums(differences, design)), design.spending(level))


def test_stages_and_spending():
    design = Design(12, 5, 0.05, 1)
    assert design.stages == (5, 10, 12)
    assert [design.reached(pairs) for pairs in (0, 4, 5, 11, 12)] == [0, 0, 1, 2, 3]
    assert Design(5, 10, 0.05, 1).stages == (5,)
    spent = Design(30, 15, 0.05, 1).spending(0.02)
    assert spent == pytest.approx((0.02 * math.log(1 + (math.e - 1) / 2), 0.02))


# Two groups of three pairs, level 0.5. Of the 64 sign vectors 0.31 · 64 = 19 may cross in the first group. There the
# sums |±1 ± 2 ± 4| are 7, 5, 3 and 1, each for 16 vectors, so only 7 crosses. In the second group 16 more may cross:
# two vectors each with 61, 59, 57, 55, 53, 51 (1, 3 and 5 on both sides of 56) and with 45, 43, where it ends at 41.
@pytest.mark.parametrize(
    ("differences", "stage"),
    [
        ([1, 2, 4, 8, 16, 32], 0),
        ([-1, -2, -4, 8, 16, 32], 0),
        ([-1, 2, 4, 8, 16, 32], 1),
        ([-1, 2, 4, -8, -16, -32], 1),  # |5 - 56| = 51
        ([1, -2, 4, -8, 16, 32], 1),  # 43
        ([-1, -2, 4, -8, 16, 32], None),  # 41
        ([0, 0, 0, 0, 0, 0], None),
    ],
)
def test_boundaries_by_hand(differences, stage):
    assert crossing(differences, Design(6, 3, 0.05, 1), 0.5) == stage


def slow_crossing(differences, stages, spending):
    """The same, as the definition says it, with integers."""
    vectors = list(itertools.product((1, -1), repeat=len(differences)))
    before = set()
    for stage, (pairs, level) in enumerate(zip(stages, spending, strict=True)):
        sums = {
            signs: abs(sum(sign * one for sign, one in zip(signs[:pairs], differences[:pairs], strict=True)))
            for signs in vectors
        }

        def crossing(bound, sums=sums, before=before):
            return {signs for signs in vectors if signs not in before and sums[signs] > bound}

        bound = min(
            bound for bound in {*sums.values()} if len(before) + len(crossing(bound)) <= level * len(vectors) + 1e-9
        )
        before = before | crossing(bound)
        if vectors[0] in before:
            return stage
    return None


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(-6, 6), min_size=3, max_size=9),
    st.integers(1, 4),
    st.sampled_from([0.02, 0.05, 0.2, 0.5]),
)
def test_boundaries_are_those_of_the_definition_also_with_ties(differences, per_group, level):
    design = Design(len(differences), per_group, 0.05, 1)
    slow = slow_crossing(differences, design.stages, design.spending(level))
    assert crossing(differences, design, level) == slow


class OnSigns(MultipleAgentsComparator):
    """The package adastop with signed sums in place of its permutations: a second computation of the boundaries."""

    def __init__(self, differences, per_group, level):
        groups = len(differences) // per_group
        super().__init__(n=per_group, K=groups, alpha=level, comparisons=np.array([(0, 1)]))
        self.differences = differences

    def compute_mean_diffs(self, k, Z):
        """The sums of the sign vectors that crossed no earlier boundary; of s and -s, which have the same, only one."""
        signs = sign_vectors(self.n[0] * (k + 1))
        signs = signs[signs[:, 0] == 1]
        self.normalization = len(signs)
        groups = np.split(signs * self.differences[: signs.shape[-1]], k + 1, axis=-1)
        sums = np.abs(np.cumsum([group.sum(axis=-1) / self.n[0] for group in groups], axis=0))
        inside = np.all([own <= upper for own, (_, upper) in zip(sums, self.boundary, strict=False)], axis=0)
        return {"[0 1]": list(sums[-1][inside] if k else sums[-1])}


def test_boundaries_are_those_of_the_package_adastop():
    generator = np.random.default_rng(0)
    design, crossed = Design(8, 4, 0.05, 1), []
    for _ in range(40):
        differences = generator.integers(-(2**20), 2**20, size=8) + 2.0**18  # sums are exact and have no ties
        theirs = OnSigns(differences, 4, 0.3)
        for pairs in design.stages:
            theirs.partial_compare({"arm": differences[:pairs], "baseline": np.zeros(pairs)}, verbose=False)
            if theirs.is_finished:
                break
        linear = [0.3 * pairs / 8 for pairs in design.stages]  # as AdaStop spends it
        ours = first_crossing(np.abs(signed_sums(differences, design)), linear)
        assert (ours is None) == (theirs.decisions["[0 1]"] == "equal")
        assert ours is None or ours == theirs.k - 1
        crossed.append(ours)
    assert {*crossed} == {None, 0, 1}


def test_sign_vectors_have_every_combination_of_the_first_columns_once():
    signs = sign_vectors(4)
    assert signs.shape == (16, 4)
    assert len({tuple(row) for row in signs}) == 16
    signs = sign_vectors(10, 2**6)
    assert signs.shape == (64, 10)
    assert len({tuple(row[:6]) for row in signs}) == 64
    assert (signs[0] == 1).all()
    assert abs(signs[:, 6:].mean()) < 0.2
    assert {*signs.ravel()} == {-1.0, 1.0}


def test_the_error_of_one_comparison_is_exact():
    """Of all signs that equally large differences can have, at most the level crosses, and not much less."""
    sizes = np.random.default_rng(3).lognormal(sigma=1.5, size=10)
    design = Design(10, 4, 0.05, 1)
    signs = sign_vectors(10)
    for level in (0.01, 0.05, 0.2):
        error = np.mean([crossing(row * sizes, design, level) is not None for row in signs])
        assert level - 3 / 1024 <= error <= level


def test_fewest_seeds():
    assert [fewest_seeds(0.05, 1), fewest_seeds(0.05, 9), fewest_seeds(0.5, 1), fewest_seeds(0.25, 1)] == [6, 9, 2, 3]
    for seeds, verdict in ((8, "not told apart"), (9, "higher")):
        differences = {arm: np.arange(1.0, seeds + 1) for arm in range(9)}
        decisions = decide(differences, Design(seeds, 5, 0.05, 9), dict.fromkeys(range(9)))
        assert {one.verdict for one in decisions.values()} == {verdict}


def test_holms_steps():
    """b is told apart only because a is: 10 of 256 sums reach its 30, which is less than 0.05 but not than 0.05 / 2."""
    design = Design(8, 8, 0.05, 2)
    sure, near = np.arange(1.0, 9.0), np.array([1.0, 2, -3, 4, 5, 6, 7, 8])
    assert crossing(near, design, 0.05) == 0
    assert crossing(near, design, 0.025) is None
    none = {"a": None, "b": None}
    both = decide({"a": -sure, "b": near}, design, none)
    assert {name: one.verdict for name, one in both.items()} == {"a": "lower", "b": "higher"}
    alone = decide({"a": 0 * sure, "b": near}, design, none)
    assert {name: one.verdict for name, one in alone.items()} == {"a": "not told apart", "b": "not told apart"}
    # An arm that is equivalent still counts.
    within = decide({"a": 0 * sure, "b": near}, design, {"a": 1.0, "b": None})
    assert {name: one.verdict for name, one in within.items()} == {"a": "equivalent", "b": "not told apart"}


def test_equivalence_by_hand():
    """With n differences of 0 each one-sided test rejects 1 of 2^n sign vectors, and 1/64 is less than a_1 = 0.031."""
    design = Design(12, 6, 0.05, 1)
    zero = np.zeros(12)
    assert decide({"a": zero}, design, {"a": 0.1})["a"] == decide({"a": zero[:6]}, design, {"a": 0.1})["a"]
    assert decide({"a": zero}, design, {"a": 0.1})["a"].verdict == "equivalent"
    assert decide({"a": zero}, design, {"a": 0.1})["a"].seeds == 6
    assert decide({"a": zero}, design, {"a": None})["a"].verdict == "not told apart"
    # Differences beyond the margin on one side are not equivalent, whatever the other side says.
    assert decide({"a": zero + 0.2}, design, {"a": 0.1})["a"].verdict == "higher"
    wide = np.array([9.0, -9, 8, -8, 7, -7, 6, -6, 5, -5, 4, -4])
    assert decide({"a": wide}, design, {"a": 1.0})["a"].verdict == "not told apart"
    assert decide({"a": wide}, design, {"a": 9.0})["a"].verdict == "equivalent"


def test_told_apart_comes_before_equivalent():
    tiny = np.linspace(0.01, 0.02, 12)
    assert decide({"a": tiny}, Design(12, 12, 0.05, 1), {"a": 1.0})["a"].verdict == "higher"


def test_decisions_stand_when_seeds_are_added():
    generator = np.random.default_rng(5)
    design = Design(20, 5, 0.05, 3)
    full = {arm: generator.normal(arm / 2, 1, size=20) for arm in range(3)}
    margins = dict.fromkeys(full, 0.8)
    final = decide(full, design, margins)
    for pairs in range(0, 21, 5):
        part = decide({arm: own[:pairs] for arm, own in full.items()}, design, margins)
        for arm, decision in part.items():
            assert decision == final[arm] or (decision.verdict, decision.seeds) == ("open", pairs)
    assert {one.verdict for one in final.values()} >= {"higher"}


def test_open_until_the_next_group_is_complete():
    design = Design(10, 5, 0.05, 1)
    nothing, few = (decide({"a": np.ones(pairs)}, design, {"a": None})["a"] for pairs in (0, 7))
    assert (nothing.verdict, nothing.seeds) == ("open", 0)
    assert math.isnan(nothing.difference)
    assert (few.verdict, few.seeds, few.difference) == ("open", 5, 1.0)


# The tables in docs/ablations.md are of `python tests/sequential_simulation.py`.


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("per_group", [5, 10])
@pytest.mark.slow
def test_the_family_wise_error_is_as_stated(scores, per_group):
    repeats = 1000
    outcome = simulate(SCORES[scores], [0.0] * ARMS, per_group, repeats, seed=7, rows=2**11)
    assert outcome.error <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / repeats)
    assert outcome.error > 0.01


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.slow
def test_the_error_is_as_stated_when_other_arms_differ(scores):
    repeats = 500
    outcome = simulate(SCORES[scores], EFFECTS, 5, repeats, seed=8, rows=2**11)
    assert outcome.error <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / repeats)
    assert outcome.runs < 0.9 * SEEDS * (ARMS + 1)


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.slow
def test_arms_that_differ_by_the_margin_are_rarely_equivalent(scores):
    repeats = 300
    outcome = simulate(SCORES[scores], [1.0] * ARMS, 5, repeats, seed=9, margin=1.0, rows=2**11)
    assert outcome.within_error <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / repeats)


def test_a_crossing_in_one_direction_is_no_verdict_in_the_other():
    """Ten pairs say higher, the next ten say lower. Holm's method may come back to the first ten later."""
    differences = np.array([1.0] * 10 + [-3.0] * 10)
    comparison = _Comparison(differences, Design(20, 10, 0.05, 1), None, SIGNS)
    assert comparison.is_apart(0.05, 0)
    assert not comparison.is_apart(0.05, 1)

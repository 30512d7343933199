"""Simulates group-sequential ablations: errors, and seeds used against a fixed number. Prints the tables of the manual.

python tests/sequential_simulation.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from qohort.sequential import Design, decide
from qohort.statistics import Array

Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]
ALPHA, ARMS, SEEDS = 0.05, 9, 30
"""Family-wise error, arms besides the baseline, and maximum number of seeds, as in `ablation=cartpole_components`."""


def _bimodal(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Most runs near 500, three of ten failed near 100."""
    failed = generator.random(shape) < 0.3
    return np.where(failed, generator.normal(100, 30, shape), generator.normal(490, 10, shape))


SCORES: dict[str, Draw] = {
    "normal": lambda generator, shape: generator.normal(size=shape),
    "skewed (exponential)": lambda generator, shape: generator.exponential(size=shape),
    "bounded (many at 500)": lambda generator, shape: np.minimum(500, generator.normal(480, 80, size=shape)),
    "bimodal (30% fail)": _bimodal,
}
"""Distributions of the scores of one arm."""


class Outcome(NamedTuple):
    """What simulated ablations ended with.

    Attributes:
        error: Fraction of ablations in which an arm that equals the baseline is told apart.
        within_error: Fraction of ablations in which an arm that differs by the margin or more is equivalent.
        apart: Fraction of ablations in which each arm is told apart, `[arms]`.
        within: Fraction of ablations in which each arm is equivalent, `[arms]`.
        seeds: Mean number of seeds of each arm, `[arms]`.
        runs: Mean number of runs, those of the baseline too.
    """

    error: float
    within_error: float
    apart: Array
    within: Array
    seeds: Array
    runs: float


def simulate(
    draw: Draw,
    effects: Sequence[float],
    per_group: int,
    repeats: int,
    seed: int,
    margin: float | None = None,
    rows: int = 2**12,
) -> Outcome:
    """Simulate ablations.

    Args:
        draw: Draws scores.
        effects: What is added to the scores of each arm, in standard deviations of one arm's scores.
        per_group: Seeds in a group; `SEEDS` for a fixed number of seeds with Holm's correction.
        repeats: Number of ablations.
        seed: Seed of the random numbers.
        margin: Margin of equivalence in standard deviations; None for none.
        rows: Number of sign vectors.
    """
    generator = np.random.default_rng(seed)
    unit = float(draw(np.random.default_rng(0), (100_000,)).std())
    design = Design(SEEDS, per_group, ALPHA, len(effects))
    apart, within, seeds = (np.zeros((repeats, len(effects))) for _ in range(3))
    for repeat in range(repeats):
        scores = draw(generator, (len(effects) + 1, SEEDS))
        differences = {arm: scores[arm + 1] + effect * unit - scores[0] for arm, effect in enumerate(effects)}
        margins = dict.fromkeys(differences, None if margin is None else margin * unit)
        decisions = decide(differences, design, margins, rows).values()
        apart[repeat] = [one.verdict in ("higher", "lower") for one in decisions]
        within[repeat] = [one.verdict == "equivalent" for one in decisions]
        seeds[repeat] = [one.seeds for one in decisions]
    sizes = np.abs(effects)
    error = apart[:, sizes == 0].any(axis=1).mean()
    within_error = within[:, sizes >= (margin or 0.0)].any(axis=1).mean()
    runs = (seeds.sum(axis=1) + seeds.max(axis=1)).mean()
    return Outcome(error, within_error, apart.mean(0), within.mean(0), seeds.mean(0), runs)


EFFECTS = (0.0, 0.0, 0.0, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""Effects of the arms of a typical ablation, in standard deviations."""


def errors(repeats: int) -> str:
    """Return the table of family-wise errors, in Markdown."""
    lines = ["| scores | groups of 5 | groups of 10 |", "|---|---|---|"]
    for number, (name, draw) in enumerate(SCORES.items()):
        found = [simulate(draw, [0.0] * ARMS, per_group, repeats, number).error for per_group in (5, 10)]
        lines.append(f"| {name} | {' | '.join(f'{100 * error:.1f}%' for error in found)} |")
    return "\n".join(lines)


def savings(repeats: int) -> str:
    """Return the tables of seeds and of the arms told apart, in Markdown."""
    head = "| scores | | " + " | ".join(f"{effect:g} sd" for effect in sorted({*EFFECTS})) + " | runs saved |"
    lines = [head, "|---|---|" + "---|" * (len({*EFFECTS}) + 1)]
    first = [EFFECTS.index(effect) for effect in sorted({*EFFECTS})]
    for number, (name, draw) in enumerate(SCORES.items()):
        groups, fixed = (simulate(draw, EFFECTS, per_group, repeats, 100 + number) for per_group in (5, SEEDS))
        saved = 1 - groups.runs / (SEEDS * (ARMS + 1))
        lines += [
            f"| {name} | seeds | {' | '.join(f'{groups.seeds[arm]:.0f}' for arm in first)} | {100 * saved:.0f}% |",
            f"| | told apart | {' | '.join(f'{100 * groups.apart[arm]:.0f}%' for arm in first)} | |",
            f"| | with 30 at once | {' | '.join(f'{100 * fixed.apart[arm]:.0f}%' for arm in first)} | |",
        ]
    return "\n".join(lines)


def equivalences(repeats: int) -> str:
    """Return the table of equivalence: nine arms with the same effect, a margin of 1 standard deviation."""
    lines = ["| scores | equal arms that are equivalent | seeds | wrongly any that differ by the margin |"]
    lines.append("|---|---|---|---|")
    for number, (name, draw) in enumerate(SCORES.items()):
        equal, differ = (simulate(draw, [effect] * ARMS, 5, repeats, 200 + number, 1.0) for effect in (0.0, 1.0))
        numbers = f"{100 * equal.within.mean():.0f}% | {equal.seeds.mean():.0f} | {100 * differ.within_error:.1f}%"
        lines.append(f"| {name} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    for made in (errors(500), savings(300), equivalences(300)):
        print(made, flush=True, end="\n\n")

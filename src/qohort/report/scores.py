"""The scores of an ablation's runs, and what is wrong with those that have none."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qohort.config.errors import ConfigError
from qohort.config.identity import config_hash, config_tree
from qohort.config.schema import TrainConfig
from qohort.experiments.ablation import Ablation, Arm
from qohort.experiments.presentation import Show
from qohort.runs.code import code_hash, component_packages
from qohort.runs.directory import RunDirectory, evaluation_scores
from qohort.runs.metrics import RETURN, evaluation_metrics, read_evaluations
from qohort.statistics import Array

SCORES = ("final", "last", "auc", "best")
"""The columns of scores: the last evaluation, the mean of the last few, the mean height of the curve of evaluations,
and the best evaluation, which is chosen with hindsight and stands in no other column."""


@dataclass(frozen=True)
class PlannedRun:
    """A run that an ablation asks for."""

    arm: Arm
    environment: str
    config: TrainConfig
    directory: Path


@dataclass(frozen=True)
class FinishedRun:
    """A run that can be counted.

    Attributes:
        plan: What was asked for.
        scores: By column of `SCORES`.
        env_steps: Where its evaluations are, `[evaluations]`.
        values: The metric of its evaluations that is reported, `[evaluations]`.
        result: `result.json`.
        manifest: `manifest.json`.
    """

    plan: PlannedRun
    scores: Mapping[str, float]
    env_steps: NDArray[np.int64]
    values: Array
    result: Mapping[str, Any]
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    """A run that cannot be counted, and why.

    `kind` is `missing`, `unfinished`, `failed`, `unequal budget`, `no score` or `damaged`.
    """

    plan: PlannedRun
    kind: str
    reason: str


@dataclass
class Scores:
    """All runs of an ablation.

    Attributes:
        planned: Every run that was asked for, in the manifest's order, then by seed.
        finished: By arm's label and environment, by seed.
        problems: What cannot be counted.
        sequential: Whether arms stopped when they were decided, so that they may have different seeds.
    """

    planned: Sequence[PlannedRun]
    finished: Mapping[tuple[str, str], Sequence[FinishedRun]]
    problems: Sequence[Problem] = field(default_factory=list)
    sequential: bool = False

    def column(self, arm: str, environment: str, name: str) -> Array:
        """One score of an arm's runs in an environment, by seed: `[n]`."""
        return np.array([run.scores[name] for run in self.finished[arm, environment]], dtype=np.float64)

    def seeds(self, arm: str, environment: str) -> list[int]:
        """The seeds of an arm's runs in an environment."""
        return [run.plan.config.seed for run in self.finished[arm, environment]]

    def count(self, arm: str, environments: Sequence[str]) -> tuple[int, int]:
        """How many runs of an arm are counted, and how many were asked for."""
        counted = sum(len(self.finished[arm, environment]) for environment in environments)
        planned = sum(plan.arm.label == arm and plan.environment in environments for plan in self.planned)
        return counted, planned


def read_scores(planned: Sequence[PlannedRun], show: Show) -> Scores:
    """Read what the runs of an ablation ended with.

    Args:
        planned: Which runs.
        show: The metric of evaluations, and the number of evaluations in the mean of the last ones.
    """
    finished: dict[tuple[str, str], list[FinishedRun]] = defaultdict(list)
    problems: list[Problem] = []
    read = [read_run(plan, show) for plan in sorted(planned, key=lambda plan: plan.config.seed)]
    grids: dict[str, Counter[tuple[int, ...]]] = defaultdict(Counter)
    for run in read:
        if isinstance(run, FinishedRun):
            grids[run.plan.environment][tuple(run.env_steps.tolist())] += 1
    for run in read:
        if isinstance(run, FinishedRun):
            plan, own = run.plan, tuple(run.env_steps.tolist())
            usual = grids[plan.environment].most_common(1)[0][0]
            if own == usual:
                finished[plan.arm.label, plan.environment].append(run)
                continue
            reason = f"evaluated {len(own)} times up to {own[-1]:,} env_steps, others {len(usual)} to {usual[-1]:,}"
            run = Problem(plan, "unequal budget", reason)
        problems.append(run)
    return Scores(planned, finished, problems)


def read_run(plan: PlannedRun, show: Show) -> FinishedRun | Problem:
    """Read one run.

    Args:
        plan: Which run.
        show: The metric of evaluations, and the number of evaluations in the mean of the last ones.
    """
    directory = RunDirectory(plan.directory)
    try:
        result, failure = directory.result(), directory.failure()
        if result is None and failure is not None:
            return Problem(plan, "failed", f"at {failure['env_steps']:,} env_steps: {failure['reason']}")
        if result is None:
            there = directory.metrics.is_file()
            return Problem(plan, "unfinished", "interrupted") if there else Problem(plan, "missing", "not run")
        config = plan.config
        expected = config.budget // config.env.num_envs * config.env.num_envs
        if (result["budget"], result["env_steps"], result["seed"]) != (config.budget, expected, config.seed):
            reason = (
                f"budget {result['budget']:,}, {result['env_steps']:,} env_steps, where {expected:,} were asked for"
            )
            return Problem(plan, "unequal budget", reason)
        env_steps, returns = read_evaluations(directory.metrics)
        manifest: dict[str, Any] = json.loads((plan.directory / "manifest.json").read_text())
        if len(returns) == 0 or returns[-1] != result["final_return"] or returns.max() != result["best_return"]:
            return Problem(plan, "damaged", "result.json and metrics.jsonl do not agree")
        values = returns if show.metric == RETURN else read_evaluations(directory.metrics, show.metric)[1]
        if lacking := int(np.isnan(values).sum()):
            some = f"{lacking} of {len(values)} evaluations have"
            named = ", ".join(evaluation_metrics(directory.metrics))
            return Problem(plan, "no score", f"{some} no {show.metric}; their metrics are {named}")
    except ConfigError as error:
        return Problem(plan, "damaged", str(error))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Problem(plan, "damaged", f"{type(error).__name__}: {error}")
    scores = evaluation_scores(env_steps.tolist(), values.tolist(), show.last)
    return FinishedRun(plan, scores, env_steps, values, result, manifest)


def format_problems(problems: Sequence[Problem]) -> list[str]:
    """A line for each arm, environment and kind of problem, with the seeds."""
    alike: dict[tuple[str, str, str, str], list[int]] = defaultdict(list)
    for problem in problems:
        plan = problem.plan
        # Of runs that were found, the directory is what one looks for.
        where = plan.directory.parent.name
        name = f"{plan.arm.label} ({where})" if ", " in plan.arm.label else plan.arm.label
        alike[name, plan.environment, problem.kind, problem.reason].append(plan.config.seed)
    return [
        f"{label} on {environment}, {'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, sorted(seeds)))}: "
        f"{kind}, {reason}"
        for (label, environment, kind, reason), seeds in alike.items()
    ]


def mixed_code(scores: Scores) -> list[str]:
    """One line per arm, with the code of its runs, where not all runs were made with the same code.

    Runs whose components come from the same packages are compared with each other: those of a user's own package have
    another hash than those without it.
    """
    groups: dict[tuple[str, ...], dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for runs in scores.finished.values():
        for run in runs:
            packages = component_packages(config_tree(run.plan.config))
            groups[packages][run.plan.arm.label][run.manifest.get("code") or "unknown"] += 1
    return [
        f"{label}: "
        + ", ".join(f"{count} {'run' if count == 1 else 'runs'} of code {code}" for code, count in own.items())
        for arms in groups.values()
        if len({code for own in arms.values() for code in own}) > 1
        for label, own in arms.items()
    ]


def not_deterministic(scores: Scores) -> list[str]:
    """One line per environment with runs that cannot be repeated, because `env.deterministic=false`."""
    runs = [run for some in scores.finished.values() for run in some]
    marked = {run.plan.environment for run in runs if run.manifest.get("deterministic") is False}
    return [
        f"not deterministic: runs of {name} cannot be repeated (env.deterministic=false)" for name in sorted(marked)
    ]


def made_with_other_code(scores: Scores) -> str:
    """A line that says how the code of the runs differs from the code that reports them; empty if it does not."""
    runs = [run for some in scores.finished.values() for run in some]
    others = {
        f"{run.manifest.get('code') or 'unknown'} then, {now} now"
        for run in runs
        if run.manifest.get("code") != (now := code_hash(config_tree(run.plan.config)))
    }
    words = "the runs were made with other code than this, so the commands below may end with other numbers"
    return f"{words} ({'; '.join(sorted(others))})" if others else ""


def scores_csv(ablation: Ablation, scores: Scores) -> str:
    """A row a run that was asked for, those without a score too.

    If the scores are of another metric than the return, the final return has a column of its own, the last one.
    """
    finished = {run.plan.directory: run for runs in scores.finished.values() for run in runs}
    problems = {problem.plan.directory: problem for problem in scores.problems}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    named = [f"last_{ablation.manifest.show.last}" if name == "last" else name for name in SCORES]
    columns = ("arm", "environment", "seed", "status", *named, "budget", "env_steps", "wall_s")
    other = ablation.manifest.show.metric != RETURN  # then the final return is not among the scores
    writer.writerow((*columns, "config_hash", "fingerprint", "directory", *(["final_return"] if other else [])))
    for plan in scores.planned:
        place = (config_hash(plan.config), plan.directory.as_posix())
        first = (plan.arm.label, plan.environment, plan.config.seed)
        run = finished.get(plan.directory)
        if run is None:
            problem = problems[plan.directory]
            empty = [""] * len(SCORES)
            without = (*first, problem.kind, *empty, plan.config.budget, "", "", place[0], "", place[1])
            writer.writerow((*without, *([""] if other else [])))
            continue
        ends = (run.result["budget"], run.result["env_steps"], run.result["wall_s"])
        values = [repr(run.scores[name]) for name in SCORES]
        row = (*first, "finished", *values, *ends, place[0], run.result["fingerprint"], place[1])
        writer.writerow((*row, *([repr(float(run.result["final_return"]))] if other else [])))
    return text.getvalue()

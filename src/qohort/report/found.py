"""Finds run directories by pattern, and makes arms of what is there, for a report without a manifest."""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qohort.config.composition import override
from qohort.config.errors import ConfigError
from qohort.config.identity import experiment_tree, flat, named_keys
from qohort.config.messages import format_value, nearest
from qohort.config.schema import TrainConfig
from qohort.experiments.ablation import Ablation, Arm, EnvironmentChoice, ManifestConfig
from qohort.experiments.presentation import Show
from qohort.experiments.stopping import GROUP, SequentialConfig
from qohort.report.scores import PlannedRun
from qohort.runs.listing import Run, groups, in_table, in_words, runs_in
from qohort.runs.metrics import RETURN

LONGEST = 60
"""Keys that are left out of an arm's title when it would be longer, in characters."""
SAME_TASK = ("env.", "evaluation.")
SAME_SCORES = ("env.backend", "env.num_envs", "evaluation.every")
"""Keys below `SAME_TASK` in which arms may differ. Unequal grids of evaluations are found when scores are read."""


@dataclass(frozen=True)
class FoundRuns(Ablation):
    """An ablation made of the runs that were found, without a manifest of its own.

    Attributes:
        patterns: The patterns, as they were given.
    """

    patterns: tuple[str, ...]

    @property
    def selector(self) -> str:
        """The override that selects it."""
        return setting("runs", self.patterns if len(self.patterns) > 1 else self.patterns[0])


def setting(key: str, value: str | Sequence[str]) -> str:
    """Return an override as it is typed, with quotes only where Hydra needs them.

    Args:
        key: The key.
        value: Its value.
    """
    texts = [value] if isinstance(value, str) else list(value)
    if not all(re.fullmatch(r"[\w./*?+@-]+", text) for text in texts):
        return override(key, value)
    return f"{key}={value}" if isinstance(value, str) else f"{key}=[{','.join(texts)}]"


@dataclass(frozen=True)
class Experiment:
    """The runs of one experiment directory.

    Attributes:
        directory: The directory, `<output_dir>/<env>/<agent>-<hash8>`.
        configs: The configuration of each seed.
        finished: Whether a run of it is finished, so that it can be counted.
    """

    directory: Path
    configs: dict[int, TrainConfig]
    finished: bool

    @property
    def first(self) -> TrainConfig:
        """The configuration of the first seed."""
        return next(iter(self.configs.values()))

    @property
    def environment(self) -> str:
        """The environment's part of the path."""
        return self.directory.absolute().parent.name


def find_runs(
    patterns: Sequence[str], baseline: str | None, name: str | None, metric: str = RETURN
) -> tuple[FoundRuns, list[PlannedRun]]:
    """Return the runs that patterns match, as an ablation and its planned runs.

    Runs of one experiment directory are an arm in an environment. The seeds of an environment are those of any arm.

    Args:
        patterns: Paths of directories with runs, which may have `*`, `?` and `**`.
        baseline: Title or experiment directory of the arm that the others are compared with; None for no comparisons.
        name: Name of the report; None to derive it from the patterns.
        metric: The metric of evaluations that is reported.

    Raises:
        ConfigError: If a pattern matches no run, a run cannot be read, or there is no such baseline.
    """
    experiments = [_experiment(some) for some in groups(_runs(patterns))]
    # Experiments that cannot be counted are only in lists of problems, and lengthen no other one's label.
    counted = [one for one in experiments if one.finished] or experiments
    labelled = dict(zip((one.directory for one in counted), _labels(counted), strict=True))
    keys = [labelled.get(one.directory, (one.directory.name, ())) for one in experiments]
    ordered = sorted(zip(keys, experiments, strict=True), key=lambda pair: (pair[1].environment, _order(pair[0])))
    labels = sorted(set(keys), key=_order)
    titles = dict(zip(labels, _titles(labels), strict=True))
    chosen = None if baseline is None else titles[_baseline(baseline, ordered, titles)]
    names = [titles[label] for label in labels]
    if chosen is not None:
        names = [chosen, *(one for one in names if one != chosen)]
    arms = {one: Arm(one, one, (), chosen or one, ()) for one in names}
    planned = []
    for environment in dict.fromkeys(experiment.environment for _, experiment in ordered):
        there = [(arms[titles[label]], one) for label, one in ordered if one.environment == environment]
        seeds = sorted({seed for _, one in there for seed in one.configs})
        planned += [_plan(arm, one, seed) for arm, one in there for seed in seeds]
    manifest = _manifest(patterns, chosen, metric, planned)
    return FoundRuns(name or _name(patterns), manifest, tuple(arms.values()), (), tuple(patterns)), planned


def _runs(patterns: Sequence[str]) -> list[Run]:
    """Return the runs that patterns match, each one once."""
    found: dict[Path, Run] = {}
    for pattern in patterns:
        paths = (Path(one) for one in sorted(glob.glob(pattern, recursive=True)))
        runs = [run for path in paths if path.is_dir() for run in runs_in(path)]
        if not runs:
            raise ConfigError(
                f"runs={pattern} has no runs: give run, experiment or output directories, as 'outputs/*/dqn-*'"
            )
        found |= {run.directory.resolve(): run for run in runs}
    for run in found.values():
        if run.config is None:
            raise ConfigError(f"{run.directory / 'config.yaml'} cannot be read: {run.problem}")
    return list(found.values())


def _experiment(runs: Sequence[Run]) -> Experiment:
    configs = {run.config.seed: run.config for run in runs if run.config is not None}
    finished = any(run.state == "finished" for run in runs)
    return Experiment(runs[0].directory.parent, dict(sorted(configs.items())), finished)


Label = tuple[str, tuple[tuple[str, Any], ...]]
"""An agent, and the keys and values that distinguish an arm from others of this agent."""


def _labels(experiments: Sequence[Experiment]) -> list[Label]:
    """Return the label of each experiment. Arms of the same label are one arm in several environments.

    The keys are those in which experiments of an agent differ in any environment. Keys in which only environments
    differ, as their budgets, do not count. Nor do keys in which only components of other classes differ: the class says
    more.
    """
    trees = named_keys([replace(one.first, agent="-") for one in experiments])
    places = [(one.first.agent, one.environment) for one in experiments]
    whole = [(place, repr(sorted(tree.items()))) for place, tree in zip(places, trees, strict=True)]
    if len(set(whole)) < len(whole):  # the same experiment in several output directories
        for one, tree in zip(experiments, trees, strict=True):
            tree["output_dir"] = one.directory.parent.parent.as_posix()
    differing: dict[str, dict[str, None]] = {}
    for place in dict.fromkeys(places):
        here = [tree for own, tree in zip(places, trees, strict=True) if own == place]
        keys = dict.fromkeys(key for tree in here for key in tree)
        differs = {key: None for key in keys if _differs(key, here)}
        differing.setdefault(place[0], {}).update(differs)
    return [
        (agent, tuple((key, _hashable(tree.get(key))) for key in differing[agent]))
        for (agent, _), tree in zip(places, trees, strict=True)
    ]


def _differs(key: str, trees: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a key has several values in experiments whose component with this key is of one class."""
    parts = key.split(".")
    classes = [".".join((*parts[:depth], "_target_")) for depth in range(1, len(parts))]
    values = {(*(repr(tree.get(one)) for one in classes if one != key), repr(tree.get(key))) for tree in trees}
    return len(values) > len({one[:-1] for one in values})


def _hashable(value: Any) -> Any:
    return format_value(value) if isinstance(value, dict | list | tuple) else value


def _order(label: Label) -> tuple[Any, ...]:
    """Return a sort key: by agent, then by value, numbers by size."""
    values = (value for _, value in label[1])
    return label[0], *((0, one, "") if isinstance(one, int | float) else (1, 0, str(one)) for one in values)


def _titles(labels: Sequence[Label]) -> list[str]:
    """Return the title of each arm: the agent, and its keys as far as they fit."""
    full = [", ".join((agent, *("=".join(in_table(*pair)) for pair in keys))) for agent, keys in labels]
    short = [_shortened(agent, text) for (agent, _), text in zip(labels, full, strict=True)]
    return [brief if short.count(brief) == 1 else text for brief, text in zip(short, full, strict=True)]


def _shortened(agent: str, text: str) -> str:
    parts = text.split(", ")
    count = next((n for n in range(len(parts), 0, -1) if len(", ".join(parts[:n])) <= LONGEST), 1)
    left = len(parts) - max(count, 2)
    return ", ".join(parts[: max(count, 2)]) + (f" and {left} more" if left > 0 else "")


def _baseline(given: str, pairs: Sequence[tuple[Label, Experiment]], titles: dict[Label, str]) -> Label:
    """Return the label that a title or a directory names."""
    for label, experiment in pairs:
        directory = experiment.directory
        if given in (titles[label], directory.name) or Path(given).resolve() == directory.resolve():
            return label
    arms = {label: experiment.directory.name for label, experiment in reversed(pairs)}
    alike = sorted((label for label in arms if label[0] == given), key=_order)
    if alike:
        words = (f"{arms[label]} ({', '.join(titles[label].split(', ')[1:])})" for label in alike)
        raise ConfigError(f"{len(alike)} arms are {given}: write baseline={' or '.join(words)}")
    names = {arms[label] if label[1] else titles[label] for label in arms}  # titles of several keys have commas
    raise ConfigError(f"baseline={given} is not an arm or its directory: {nearest(given, names)}")


def _plan(arm: Arm, experiment: Experiment, seed: int) -> PlannedRun:
    config = experiment.configs.get(seed) or replace(experiment.first, seed=seed)
    return PlannedRun(arm, experiment.environment, config, experiment.directory / f"seed-{seed}")


def _manifest(
    patterns: Sequence[str], baseline: str | None, metric: str, planned: Sequence[PlannedRun]
) -> ManifestConfig:
    """Return the manifest of found runs. It has no returns for normalised scores, so nothing is over environments."""
    environments = dict.fromkeys(run.environment for run in planned)
    return ManifestConfig(
        title=f"Runs in {', '.join(patterns)}",
        baseline=baseline or "",
        seeds=in_words(list({run.config.seed for run in planned})),
        budget=max(run.config.budget for run in planned),
        settings=(),
        environments={one: EnvironmentChoice(math.nan, math.nan, ()) for one in environments},
        arms={},
        add_one={},
        leave_one_out={},
        show=Show("final", metric, 5, ("scores", "differences", "improvement", "curves", "together", "runs")),
        until="seeds",
        sequential=SequentialConfig(None, 5, None, 0.05),
    )


def _name(patterns: Sequence[str]) -> str:
    """Return a name of a report: the patterns without what does not go into a file name."""
    words = re.findall(r"[\w.+=]+(?:-[\w.+=]+)*", " ".join(patterns))
    return "-".join(word for word in words if word.strip(".")) or "runs"


def records(planned: Sequence[PlannedRun]) -> Iterator[str]:
    """Yield a line for each record of an ablation whose arms stopped when they were decided.

    Args:
        planned: The runs.
    """
    for directory in dict.fromkeys(run.directory.parents[2] for run in planned):
        for file in sorted((directory / GROUP).glob("*.json")):
            yield (
                f"p-values may not hold: {file} says that arms of an ablation stopped when they were decided "
                "(until=decided): report these with ablation=NAME"
            )


def other_task(ablation: Ablation, planned: Sequence[PlannedRun]) -> Iterator[str]:
    """Yield a line for each arm that has another environment or evaluation than the arm it is shown beside.

    Args:
        ablation: The found runs.
        planned: The runs.
    """
    for environment in ablation.manifest.environments:
        firsts: dict[str, TrainConfig] = {}
        for run in planned:
            if run.environment == environment:
                firsts.setdefault(run.arm.label, run.config)
        origin = ablation.manifest.baseline if ablation.manifest.baseline in firsts else next(iter(firsts))
        theirs = flat(experiment_tree(firsts[origin]))
        for label, config in firsts.items():
            ours = flat(experiment_tree(config))
            keys = [key for key in dict.fromkeys((*theirs, *ours)) if _is_of_task(key)]
            words = [
                f"{key}={format_value(ours.get(key))} (there {format_value(theirs.get(key))})"
                for key in keys
                if ours.get(key) != theirs.get(key)
            ]
            if words:
                yield f"not the same task: {label} on {environment} differs from {origin} in {', '.join(words)}"


def _is_of_task(key: str) -> bool:
    return key.startswith(SAME_TASK) and key not in SAME_SCORES

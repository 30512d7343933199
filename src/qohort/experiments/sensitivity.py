"""A study of sensitivity: arms × environments × a grid of hyperparameters × seeds, and what it has found.

`qohort.experiments.sensitivity_runs` trains it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from qohort.config.annotations import PositiveInt, Range, Sized
from qohort.config.checks import build_config, check
from qohort.config.composition import override
from qohort.config.errors import ConfigError, RunsFailed
from qohort.config.identity import NOT_HASHED
from qohort.config.messages import format_value, nearest
from qohort.config.paths import check_directory, check_output
from qohort.experiments.trials import Seeds, Trial, check_name, check_seeds, trial_configs
from qohort.runs.checking import check_jobs
from qohort.runs.directory import RunDirectory
from qohort.sensitivity import best_of_each, best_shared, ranks
from qohort.statistics import Array

TAKEN = {
    "seed": "the seeds are seeds and new_seeds",
    "fold": "trials are folded automatically",
    "arm": "the arms are arms",
    "output_dir": "set the study's own output_dir",
    "overwrite": "finished runs are reused",
    "retry_failed": "a failed run counts as the lowest score of its environment",
}
"""Keys of `conf/train.yaml` that a study sets itself, with the reason or what to set instead."""
Named = Annotated[Mapping[str, Mapping[str, Any]], Sized(1)]


@dataclass(frozen=True)
class SensitivityConfig:
    """The configuration of a study of sensitivity. `conf/sensitivity.yaml` says what each key is."""

    name: str
    train: Mapping[str, Any] | None
    arms: Named
    environments: Named
    grid: Annotated[Mapping[str, Any], Sized(1)]
    without: Mapping[str, Sequence[str]] | None
    seeds: Seeds
    new_seeds: Seeds
    score: Literal["final", "auc"]
    max_members: PositiveInt
    resamples: Annotated[int, Range(100)]
    output_dir: str
    reports_dir: str


@dataclass(frozen=True)
class Axis:
    """A hyperparameter of the grid.

    Attributes:
        values: The values to try, in the order of the figures.
        default: The value that it has while others are tuned; one of `values`.
    """

    values: Annotated[Sequence[Any], Sized(2)]
    default: Any


class Place(NamedTuple):
    """An arm in an environment, by their positions."""

    arm: int
    environment: int


@dataclass(frozen=True)
class Results:
    """What a study has found.

    Attributes:
        scores: The score of each run of the grid, `[A, E, *grid, seeds]`. A run that failed has the lowest score of its
            environment.
        failed: How many runs of the grid have failed, `[A, E]`, each counted once.
        shared: The setting of each arm that serves all environments best, `[A]`, counted along the grid.
        tuned: The best setting of each arm in each environment, `[A, E]`.
        confirmed: The final returns on new seeds, by place and setting.
    """

    scores: Array
    failed: NDArray[np.int64]
    shared: NDArray[np.int64]
    tuned: NDArray[np.int64]
    confirmed: Mapping[tuple[Place, int], Sequence[float]] = field(default_factory=dict)

    @property
    def performance(self) -> Array:
        """The mean score over seeds, `[A, E, *grid]`."""
        return np.asarray(self.scores.mean(-1))


class SensitivityStudy:
    """A study of sensitivity: its runs, by arm, environment and setting. `read_study` makes one from a configuration.

    Args:
        settings: What is studied.

    Raises:
        ConfigError: If an entry of the grid is not values with a default among them.
    """

    def __init__(self, settings: SensitivityConfig) -> None:
        self.settings = settings
        self.grid = {key: _axis(key, entry) for key, entry in settings.grid.items()}
        self.arms, self.environments = list(settings.arms), list(settings.environments)
        self.places = [Place(*both) for both in itertools.product(range(len(self.arms)), range(len(self.environments)))]
        self.shape = tuple(len(axis.values) for axis in self.grid.values())
        self.number_of_settings = prod(self.shape)
        self.default = tuple(list(axis.values).index(axis.default) for axis in self.grid.values())
        """The position of the default of each hyperparameter."""

    def chosen(self, found: Results) -> list[tuple[Place, int]]:
        """Return the chosen settings of each arm in each environment, without repetitions."""
        both = ((place, int(of)) for place in self.places for of in (found.shared[place.arm], found.tuned[place]))
        return list(dict.fromkeys(both))

    def label(self, arm: int, setting: int) -> str:
        """Return the name of an arm at a setting, without hyperparameters that it lacks: `dqn, gamma=0.9`."""
        values = (override(key, value) for key, value in self.values(setting).items() if key not in self.without(arm))
        return ", ".join((self.arms[arm], *values))

    def values(self, setting: int) -> dict[str, Any]:
        """Return the value of each hyperparameter at a setting, counted along the grid."""
        where = np.unravel_index(setting, self.shape)
        return {key: axis.values[int(index)] for (key, axis), index in zip(self.grid.items(), where, strict=True)}

    def trial(self, place: Place, setting: int, seeds: Sequence[int]) -> Trial:
        """Return the runs of an arm at a setting in an environment, without hyperparameters that the arm lacks."""
        without = self.without(place.arm)
        parts = (
            self.settings.train or {},
            self.settings.environments[self.environments[place.environment]],
            self.settings.arms[self.arms[place.arm]],
            {key: value for key, value in self.values(setting).items() if key not in without},
            {"output_dir": self.settings.output_dir},
        )
        return Trial({key: value for part in parts for key, value in part.items()}, tuple(seeds))

    def without(self, arm: int) -> Sequence[str]:
        """Return the hyperparameters of the grid that an arm does not have."""
        return (self.settings.without or {}).get(self.arms[arm], ())

    def check_runs(self) -> None:
        """Check each arm in each environment, and each value of the grid, before anything is trained.

        Raises:
            ConfigError: On the first mistake.
        """
        start = int(np.ravel_multi_index(self.default, self.shape))
        seen: set[str] = set()
        firsts = []
        for place in self.places:
            names = f"arms.{self.arms[place.arm]} in environments.{self.environments[place.environment]}"
            try:
                config = trial_configs(self.trial(place, start, self.settings.seeds))[0]
            except ConfigError as error:
                raise ConfigError(f"{names}: {error}") from error
            firsts.append(config)
            for axis, (key, entry) in enumerate(self.grid.items()):
                if key in self.without(place.arm):
                    continue
                for index, value in enumerate(entry.values):
                    where = (*self.default[:axis], index, *self.default[axis + 1 :])
                    setting = int(np.ravel_multi_index(where, self.shape))
                    try:
                        trial_configs(self.trial(place, setting, self.settings.seeds))
                    except ConfigError as error:
                        raise ConfigError(f"grid: {key}={format_value(value)} for {names}: {error}") from error
            if (identity := repr(self.trial(place, start, ()))) in seen:
                raise ConfigError(f"{names} is the same as another arm: change or remove one")
            seen.add(identity)
        check_output(firsts[0])
        check_jobs(firsts)


def read_study(config: DictConfig) -> SensitivityStudy:
    """Return the study of a configuration, all of whose runs have been checked.

    Args:
        config: The composed configuration, `conf/sensitivity.yaml`.

    Raises:
        ConfigError: If the configuration or one of its runs is invalid; nothing was written.
    """
    study = SensitivityStudy(_checked(config))
    study.check_runs()
    return study


def score_of(directory: RunDirectory, name: Literal["final", "auc"]) -> float:
    """Return the score of a run; NaN if it has failed, or is not finished."""
    result = directory.result()
    return float("nan") if result is None else float(result["final_return" if name == "final" else "auc"])


def results_of(study: SensitivityStudy, scores: Array) -> Results:
    """Choose settings by the runs of the grid, and return what was found so far.

    Args:
        study: The study.
        scores: The score of each run, `[A, E, settings, seeds]`; NaN where it has failed.

    Raises:
        RunsFailed: If every run in an environment has failed.
    """
    scores = scores.reshape(len(study.arms), len(study.environments), *study.shape, -1)
    missing = np.isnan(scores)
    axes = tuple(range(2, scores.ndim))
    for name, nothing in zip(study.environments, np.asarray(missing.all((0, *axes))), strict=True):
        if nothing:
            raise RunsFailed(f"every run in environments.{name} has failed: see failed.json in their directories")
    scores = np.where(missing, np.nanmin(scores, axis=(0, *axes), keepdims=True), scores)
    performance = scores.mean(-1)
    shared = best_shared(ranks(performance, len(study.shape)))
    # An arm that lacks a hyperparameter has the same runs at all of its values.
    copies = [prod(len(study.grid[key].values) for key in study.without(arm)) for arm in range(len(study.arms))]
    failed = missing.sum(axes) // np.array(copies)[:, None]
    return Results(scores, failed, shared, best_of_each(performance))


def _checked(config: DictConfig) -> SensitivityConfig:
    """Build the configuration of a study and check what concerns no run.

    Raises:
        ConfigError: On the first mistake.
    """
    if "space" in config:
        raise ConfigError("space is a key of tuning, not of sensitivity: this study is for qohort tune study=NAME")
    settings: SensitivityConfig = build_config(SensitivityConfig, config)
    check_name(settings.name)
    check_seeds({"seeds": settings.seeds, "new_seeds": settings.new_seeds})
    if both := sorted(set(settings.seeds) & set(settings.new_seeds)):
        raise ConfigError(f"seeds and new_seeds share {', '.join(map(str, both))}: settings are judged on new seeds")
    parts = {
        "train": settings.train or {},
        **{f"arms.{name}": arm for name, arm in settings.arms.items()},
        **{f"environments.{name}": environment for name, environment in settings.environments.items()},
    }
    for place, keys in (*parts.items(), ("grid", settings.grid)):
        for key in keys:
            if key in TAKEN:
                raise ConfigError(f"{place}: {key} cannot be set here: {TAKEN[key]}")
            if place != "grid" and key in settings.grid:
                raise ConfigError(f"{place}: {key} is in grid too: set it in one of them")
    for key in settings.grid:
        if key.split(".")[0] in (*NOT_HASHED, "budget", "env", "evaluation"):
            raise ConfigError(f"grid: {key} is not a hyperparameter of an agent: set it in train or environments")
    for arm, lacking in (settings.without or {}).items():
        if arm not in settings.arms:
            raise ConfigError(f"without.{arm}: there is no such arm: {nearest(arm, settings.arms)}")
        for key in lacking:
            if key not in settings.grid:
                raise ConfigError(f"without.{arm}: {key} is not in grid: {nearest(key, settings.grid)}")
    check_directory("reports_dir", settings.reports_dir)
    return settings


def _axis(key: str, entry: Any) -> Axis:
    """Return a hyperparameter of the grid.

    Raises:
        ConfigError: If an entry is not values with a default among them.
    """
    if not isinstance(entry, Mapping) or "values" not in entry or "default" not in entry:
        raise ConfigError(f"grid.{key}={format_value(entry)} must be {{values: [A, B], default: A}}")
    axis: Axis = check(Axis, entry, f"grid.{key}")
    if len({repr(value) for value in axis.values}) < len(axis.values):
        raise ConfigError(f"grid.{key}.values={format_value(axis.values)} has a value twice")
    if axis.default not in axis.values:
        raise ConfigError(
            f"grid.{key}.default={format_value(axis.default)} is not one of its values {format_value(axis.values)}"
        )
    return axis

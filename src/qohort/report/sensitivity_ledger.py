"""A study of sensitivity in the ledger: which runs it has, and what it has found, read from the ledger alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from qohort.config.checks import build_config
from qohort.config.composition import override
from qohort.config.errors import ConfigError
from qohort.experiments.ablation import Arm
from qohort.experiments.sensitivity import (
    Place,
    Results,
    SensitivityConfig,
    SensitivityStudy,
    results_of,
    score_of,
)
from qohort.experiments.trials import Seeds, trial_configs
from qohort.report.ledger import Ledger, LedgerRun
from qohort.report.scores import PlannedRun
from qohort.runs.directory import RunDirectory


def recorded(study: SensitivityStudy) -> dict[str, Any]:
    """Return what the ledger keeps of a study: its keys, without the directories of one machine."""
    return asdict(replace(study.settings, output_dir="outputs", reports_dir="reports"))


def study_runs(study: SensitivityStudy) -> list[PlannedRun]:
    """Return the runs of a study: those of the grid and, if these have ended, those of the chosen settings.

    The overrides of a run's arm are all that `qohort train` needs besides its seed.
    """
    settings = range(study.number_of_settings)
    runs = {
        (place, setting): list(_planned(study, place, setting, study.settings.seeds))
        for place in study.places
        for setting in settings
    }
    planned = [run for some in runs.values() for run in some]
    directories = [[RunDirectory(run.directory) for run in some] for some in runs.values()]
    if all(one.result() is not None or one.failure() is not None for some in directories for one in some):
        scores = [[score_of(one, study.settings.score) for one in some] for some in directories]
        chosen = study.chosen(results_of(study, np.array(scores)))
        planned += [run for one in chosen for run in _planned(study, *one, study.settings.new_seeds)]
    return list({run.directory: run for run in planned}.values())  # settings of a hyperparameter that an arm lacks


def _planned(study: SensitivityStudy, place: Place, setting: int, seeds: Seeds) -> Iterator[PlannedRun]:
    trial, label = study.trial(place, setting, seeds), study.label(place.arm, setting)
    given = [override(key, value) for key, value in trial.settings.items() if key != "output_dir"]
    arm = Arm(label, label, tuple(given), label, ())
    for config in trial_configs(trial):
        yield PlannedRun(arm, study.environments[place.environment], config, RunDirectory.of(config).path)


def read_found(ledger: Ledger) -> tuple[SensitivityStudy, Results]:
    """Return the study that a ledger is of, and what it has found.

    Raises:
        ConfigError: If it is of no study of sensitivity, or lacks a run.
    """
    if ledger.study is None:
        raise ConfigError("the ledger is not of a study of sensitivity: write it with qohort ledger study=NAME")
    study = SensitivityStudy(build_config(SensitivityConfig, ledger.study))
    runs: dict[tuple[str, str, int], LedgerRun | None] = {
        (row.arm, row.environment, run.seed): run for row in ledger.rows for run in row.runs
    }
    for failures in ledger.failed or ():
        runs |= {(failures.arm, failures.environment, seed): None for seed in failures.seeds}
    name, seeds, new = study.settings.score, study.settings.seeds, study.settings.new_seeds
    settings = range(study.number_of_settings)
    grid = [_scores_of(study, runs, place, setting, seeds, name) for place in study.places for setting in settings]
    found = results_of(study, np.array(grid))
    confirmed = {one: _scores_of(study, runs, *one, new, "final") for one in study.chosen(found)}
    return study, replace(found, confirmed=confirmed)


def _scores_of(
    study: SensitivityStudy,
    runs: Mapping[tuple[str, str, int], LedgerRun | None],
    place: Place,
    setting: int,
    seeds: Seeds,
    name: str,
) -> list[float]:
    """Return the scores of an arm's runs at a setting in an environment; NaN for those that failed.

    Raises:
        ConfigError: If the ledger lacks one.
    """
    arm, environment = study.label(place.arm, setting), study.environments[place.environment]
    try:
        some = [runs[arm, environment, seed] for seed in seeds]
        return [float("nan") if run is None else float(getattr(run, name)) for run in some]
    except KeyError as error:
        raise ConfigError(f"the ledger lacks seed {error.args[0][2]} of {arm} on {environment}") from error

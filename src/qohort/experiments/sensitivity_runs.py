"""Trains a study of sensitivity: the grid first, then the chosen settings on new seeds.

Trials that differ only in foldable numbers train as one cohort. Every run is an ordinary run in its own directory, so
finished runs are reused, and a study that was killed goes on where it was.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Literal

import numpy as np

from qohort.config.errors import RunsFailed
from qohort.experiments.sensitivity import Results, SensitivityStudy
from qohort.experiments.trial_runs import train_trials
from qohort.runs.interruption import STOP
from qohort.runs.members import Member
from qohort.sensitivity import best_of_each, best_shared, ranks


def train_study(study: SensitivityStudy) -> Results:
    """Train what is not finished of a study, and return what was found.

    Raises:
        Interrupted: If a signal asked to stop, or another process trains one of the runs; the same command goes on.
        RunsFailed: If every run in an environment has failed.
    """
    with STOP:
        return _confirm(study, _train_grid(study))


def _train_grid(study: SensitivityStudy) -> Results:
    """Train every arm at every setting in every environment, and choose settings."""
    settings = range(int(np.prod(study.shape)))
    trials = [study.trial(place, setting, study.settings.seeds) for place in study.places for setting in settings]
    trained = train_trials(trials, study.settings.max_members, "the grid")
    scores = np.array([[_score(member, study.settings.score) for member in some] for some in trained])
    scores = scores.reshape(len(study.arms), len(study.environments), *study.shape, -1)
    missing = np.isnan(scores)
    axes = tuple(range(2, scores.ndim))
    for name, without in zip(study.environments, missing.all((0, *axes)), strict=True):
        if without:
            raise RunsFailed(f"every run in environments.{name} has failed: see failed.json in their directories")
    scores = np.where(missing, np.nanmin(scores, axis=(0, *axes), keepdims=True), scores)
    performance = scores.mean(-1)
    shared = best_shared(ranks(performance, len(study.shape)))
    # An arm that lacks a hyperparameter has the same runs at all of its values.
    copies = [prod(len(study.grid[key].values) for key in study.without(arm)) for arm in range(len(study.arms))]
    failed = missing.sum(axes) // np.array(copies)[:, None]
    return Results(scores, failed, shared, best_of_each(performance))


def _confirm(study: SensitivityStudy, found: Results) -> Results:
    """Train the chosen settings on new seeds, which took no part in the choice."""
    chosen = {
        (place, int(setting)): None
        for place in study.places
        for setting in (found.shared[place.arm], found.tuned[place])
    }
    trials = [study.trial(place, setting, study.settings.new_seeds) for place, setting in chosen]
    trained = train_trials(trials, study.settings.max_members, "the chosen settings on new seeds")
    returns = [[_score(member, "final") for member in some] for some in trained]
    return replace(found, confirmed=dict(zip(chosen, returns, strict=True)))


def _score(member: Member, name: Literal["final", "auc"]) -> float:
    """Return the score of a run; NaN if it has failed."""
    result = member.directory.result()
    return float("nan") if result is None else float(result["final_return" if name == "final" else "auc"])

"""Trains a study of sensitivity: the grid first, then the chosen settings on new seeds.

Trials that differ only in foldable numbers train as one cohort. Every run is an ordinary run in its own directory, so
finished runs are reused, and a study that was killed goes on where it was.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qohort.experiments.sensitivity import Results, SensitivityStudy, results_of, score_of
from qohort.experiments.trial_runs import train_trials
from qohort.runs.interruption import STOP


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
    settings = range(study.number_of_settings)
    trials = [study.trial(place, setting, study.settings.seeds) for place in study.places for setting in settings]
    trained = train_trials(trials, study.settings.max_members, "the grid")
    scores = [[score_of(member.directory, study.settings.score) for member in some] for some in trained]
    return results_of(study, np.array(scores))


def _confirm(study: SensitivityStudy, found: Results) -> Results:
    """Train the chosen settings on new seeds, which took no part in the choice."""
    chosen = study.chosen(found)
    trials = [study.trial(place, setting, study.settings.new_seeds) for place, setting in chosen]
    trained = train_trials(trials, study.settings.max_members, "the chosen settings on new seeds")
    returns = [[score_of(member.directory, "final") for member in some] for some in trained]
    return replace(found, confirmed=dict(zip(chosen, returns, strict=True)))

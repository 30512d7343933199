"""Trains trials in as few cohorts as possible."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from qohort.config.composition import override
from qohort.config.errors import Interrupted
from qohort.config.folding import foldable_keys
from qohort.config.identity import config_tree
from qohort.config.mistakes import compose
from qohort.experiments.sweep import FoldableRun, is_number, pack
from qohort.experiments.trials import Trial, counted, is_done, trial_configs
from qohort.runs.members import Member, members_of
from qohort.runs.preparing import prepare
from qohort.runs.training import finish


def train_trials(trials: Sequence[Trial], max_members: int, where: str) -> list[list[Member]]:
    """Train the unfinished runs of trials. Trials that differ only in foldable numbers train as one cohort.

    Runs that another process is training are left to it. So the same command may be started several times, and each
    process takes the cohorts that no other is training.

    Args:
        trials: The trials.
        max_members: Maximum number of members per cohort.
        where: A description of these trials for the printed line.

    Returns:
        The members of each trial, finished or failed.

    Raises:
        Interrupted: If a signal asked to stop, or another process trains one of the runs.
    """
    members = [members_of(trial_configs(trial)) for trial in trials]
    groups: dict[tuple[str, ...], list[FoldableRun]] = defaultdict(list)
    for trial, some in zip(trials, members, strict=True):
        if not all(map(is_done, some)):
            foldable = foldable_keys(config_tree(some[0].config))
            numbers = {key: value for key, value in trial.settings.items() if key in foldable and is_number(value)}
            shared = tuple(override(key, value) for key, value in trial.settings.items() if key not in numbers)
            groups[shared].append(FoldableRun(trial.seeds, numbers))
    cohorts = pack(groups, lambda job: compose("train", job), max_members)
    if cohorts:
        count = sum(len(cohort.seeds) for cohort in cohorts)
        print(f"{where}: {counted(count, 'member')} in {counted(len(cohorts), 'cohort')}", flush=True)
    for cohort in cohorts:
        finish([member for member in prepare(cohort.config) if not is_done(member)])
    for member in (one for some in members for one in some):
        if not is_done(member):
            raise Interrupted(
                f"{member.directory.path} is being trained elsewhere: run the same command when it is finished"
            )
    return members

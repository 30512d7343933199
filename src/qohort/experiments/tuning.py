"""Tuning: Optuna proposes trials, trials are trained on several seeds, and successive halving over budgets prunes them.

Trials that differ only in foldable numbers train as one cohort. Every run is an ordinary run in its own directory, so
finished runs are reused. All decisions depend only on the settings and on the results of the runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

from qohort.config.composition import own_directory
from qohort.config.errors import ConfigError, Interrupted, RunsFailed
from qohort.config.messages import format_value
from qohort.experiments.search_space import Space, read_space
from qohort.experiments.trial_runs import train_trials
from qohort.experiments.trials import Settings, Trial, counted
from qohort.experiments.tuning_config import (
    MUTABLE_KEYS,
    TuneConfig,
    check_experiment,
    check_settings,
    check_space,
    configs_of,
    experiment_of,
    overrides_of,
)
from qohort.runs.directory import RunDirectory
from qohort.runs.files import write_atomically
from qohort.runs.interruption import STOP
from qohort.runs.manifest import as_typed, command_line
from qohort.runs.members import Member
from qohort.statistics import format_returns, iqm

STUDY = "study.db"
SQLITE = b"SQLite format 3\0"
"""How every database of SQLite begins."""


class Winner(NamedTuple):
    """The best trial of a study.

    Attributes:
        trial: Its number.
        settings: Its values of the searched keys.
        returns: The final return on each reporting seed.
    """

    trial: int
    settings: Settings
    returns: list[float]


def tune(config: DictConfig) -> Winner:
    """Run or continue a study, evaluate its best trial on the reporting seeds and write it as an experiment file.

    Args:
        config: The composed configuration, `conf/tune.yaml`.

    Raises:
        ConfigError: If the configuration is invalid; nothing was written.
        Interrupted: If a signal asked to stop, or another process is working on the study; the same command continues.
        RunsFailed: If all trials failed, or a run of the best trial on the reporting seeds failed.
    """
    settings, space = check_study(config)
    directory = RunDirectory(Path(settings.output_dir) / "tuning" / settings.name)
    if not directory.lock():
        raise Interrupted(f"{directory.path} is being tuned by {directory.holder()}: wait for it")
    try:
        with STOP:
            return Tuning(settings, space, open_study(settings, directory.path)).finish()
    finally:
        directory.unlock()


def check_study(config: DictConfig) -> tuple[TuneConfig, Space]:
    """Check the configuration of a study, and return it and its search space.

    Raises:
        ConfigError: If it is wrong.
    """
    settings = check_settings(config)
    space = read_space(settings.space)
    database = Path(settings.output_dir) / "tuning" / settings.name / STUDY
    check_database(database)
    if not database.exists():
        check_target(settings, [])
    check_space(settings, space)
    return settings, space


def check_database(file: Path) -> None:
    """Check that the file of a study is a database, if there is one.

    Raises:
        ConfigError: If it is not.
    """
    try:
        with file.open("rb") as stream:
            head = stream.read(len(SQLITE))
    except (FileNotFoundError, NotADirectoryError):  # the latter is told of output_dir
        return
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}): delete it to begin the study anew") from error
    if head and head != SQLITE:
        raise ConfigError(f"{file} is not a database of a study: delete it to begin the study anew")


def open_study(settings: TuneConfig, directory: Path) -> optuna.Study:
    """Create the study of these settings, or load it if it exists.

    Args:
        settings: The study's configuration.
        directory: The directory of the study's database.

    Raises:
        ConfigError: If a study of this name has other settings, or the experiment file was not written by this study.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    begun = json.loads(json.dumps({k: v for k, v in asdict(settings).items() if k not in MUTABLE_KEYS}))
    directory.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{directory / STUDY}")
    study = optuna.create_study(storage=storage, study_name=settings.name, direction="maximize", load_if_exists=True)
    before = study.user_attrs.get("settings")
    if before is None:
        study.set_user_attr("settings", begun)
    elif before != begun or list(before["space"]) != list(begun["space"]):
        other = ", ".join(key for key in begun if before.get(key) != begun[key]) or "space"
        raise ConfigError(
            f"name={settings.name} is a study with another {other}: choose another name or delete {directory}"
        )
    check_target(settings, study.user_attrs.get("written", []))
    return study


def check_target(settings: TuneConfig, written: Sequence[str]) -> None:
    """Check that the experiment file can be written.

    Args:
        settings: The study's configuration.
        written: Digests of the files that the study has written there before.

    Raises:
        ConfigError: If it cannot be written, or exists and was not written by this study.
    """
    target = own_directory() / "experiment" / f"{settings.name}.yaml"
    existing = next(one for one in (target.parent, *target.parent.parents) if one.exists())
    if not os.access(existing, os.W_OK):
        raise ConfigError(f"name={settings.name}: {target} cannot be written")
    if target.exists() and not target.is_file():
        raise ConfigError(f"name={settings.name}: {target} is not a file: choose another name")
    if target.exists() and not settings.overwrite and digest(target.read_text()) not in written:
        raise ConfigError(
            f"{target} exists and was not written by this study: choose another name, or replace it with overwrite=true"
        )


def digest(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


class Tuning:
    """Runs a study.

    Args:
        settings: The study's configuration, checked.
        space: Its search space.
        study: Optuna's study.
    """

    def __init__(self, settings: TuneConfig, space: Space, study: optuna.Study) -> None:
        self.settings, self.space, self.study = settings, space, study

    def finish(self) -> Winner:
        """Run the remaining trials and report the best one; see `tune`."""
        while batch := self.next_batch():
            self.finish_batch(batch)
        best = self.best()
        if best is None:
            self.print_trials()
            raise RunsFailed(f"all {len(self.study.trials)} trials failed: there is no winner")
        winner = self.report(best)
        self.print_trials()
        words = ", ".join(f"{key}={format_value(value)}" for key, value in winner.settings.items())
        print(f"best: trial {best.number}, {words}")
        print(f"on {self.measured(winner.returns)}")
        self.write_experiment(winner)
        return winner

    # --- ask ---

    def next_batch(self) -> list[FrozenTrial]:
        """Return the trials of the unfinished batch, or propose a new batch; empty if the study is finished."""
        trials: list[FrozenTrial] = self.study.get_trials()
        first, end = trials[-1].user_attrs["batch"] if trials else (0, 0)
        if len(trials) == end and all(trial.state.is_finished() for trial in trials):
            first, end = end, max(end, min(end + self.settings.parallel, self.settings.trials))
        for number in range(len(trials), end):
            self.propose(number, (first, end))
        trials = self.study.get_trials()
        return trials[first:end]

    def propose(self, number: int, batch: tuple[int, int]) -> None:
        """Let the sampler propose a trial, and store it.

        The sampler works on a copy of the study in memory and the trial is stored at once, so that a killed process
        leaves no partial proposal. It is seeded for each trial, so that a proposal depends only on the trials before.

        Args:
            number: The trial's number.
            batch: The numbers of the first trial of its batch and of the first one after it.
        """
        import optuna

        seed = int(np.random.SeedSequence([self.settings.sampler_seed, number]).generate_state(1)[0])
        sampler: optuna.samplers.BaseSampler
        if self.settings.sampler == "tpe":
            # constant_liar counts trials without a score as bad, so that the trials of a batch differ.
            sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        else:
            sampler = optuna.samplers.RandomSampler(seed=seed)
        asked = optuna.create_study(direction="maximize", sampler=sampler)
        asked.add_trials(self.study.get_trials())
        distributions = {key: dimension.distribution() for key, dimension in self.space.items()}
        params = asked.ask(distributions).params
        trial = {key: dimension.value(params[key]) for key, dimension in self.space.items()}
        self.study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.RUNNING,
                params=params,
                distributions=distributions,
                user_attrs={"settings": trial, "batch": batch},
            )
        )

    # --- train and score ---

    def finish_batch(self, batch: Sequence[FrozenTrial]) -> None:
        """Train a batch of trials from rung to rung, and store the scores in the study.

        After an interruption the whole batch is processed again: finished runs are read from their directories, and
        scores that are stored already are not stored twice.
        """
        from optuna.trial import TrialState

        alive = [trial for trial in batch if not self.refuse(trial)]
        for rung, budget in enumerate(self.settings.rungs):
            where = f"trials {batch[0].number} to {batch[-1].number}, rung of {budget:,} env_steps"
            runs = self.train([trial.user_attrs["settings"] for trial in alive], budget, where)
            scores: dict[int, float] = {}
            for trial, members in zip(alive, runs, strict=True):
                failures = reasons(members)
                if failures:
                    self.tell(trial, TrialState.PRUNED, failed=f"at {budget:,}, {failures[0]}")
                else:
                    scores[trial.number] = iqm(final_returns(members))
                    self.note(trial, budget, scores[trial.number])
            ranked = sorted(
                (trial for trial in alive if trial.number in scores), key=lambda one: (-scores[one.number], one.number)
            )
            if rung == len(self.settings.rungs) - 1:
                for trial in ranked:
                    self.tell(trial, TrialState.COMPLETE, scores[trial.number])
                return
            kept = -(-len(ranked) // self.settings.reduction)
            for trial in ranked[kept:]:
                self.tell(trial, TrialState.PRUNED)
            alive = sorted(ranked[:kept], key=lambda one: one.number)
            if not alive:
                return

    def refuse(self, trial: FrozenTrial) -> bool:
        """Mark a trial as failed if its values, each valid by itself, are invalid together; return whether they are."""
        from optuna.trial import TrialState

        try:  # the smallest budget is the most restrictive
            configs_of(self.settings, trial.user_attrs["settings"], self.settings.rungs[0], [0])
        except ConfigError as error:
            self.tell(trial, TrialState.PRUNED, failed=str(error))
            return True
        return False

    def train(
        self, trials: Sequence[Settings], budget: int, where: str, seeds: Sequence[int] = ()
    ) -> list[list[Member]]:
        """Train the unfinished runs of trials, in as few cohorts as possible.

        Args:
            trials: The settings of each trial.
            budget: env_steps of each run.
            where: A description of these trials for the printed line.
            seeds: The seeds; `tuning_seeds` by default.

        Returns:
            The members of each trial, finished or failed.

        Raises:
            Interrupted: If a signal asked to stop, or another process trains one of the runs.
        """
        seeds = seeds or self.settings.tuning_seeds
        wanted = [Trial(overrides_of(self.settings, trial, budget), tuple(seeds)) for trial in trials]
        return train_trials(wanted, self.settings.max_members, where)

    def note(self, trial: FrozenTrial, budget: int, score: float) -> None:
        """Store a trial's score at a rung, unless it is stored already."""
        import optuna

        if not trial.state.is_finished() and budget not in trial.intermediate_values:
            optuna.Trial(self.study, trial._trial_id).report(score, budget)

    def tell(
        self, trial: FrozenTrial, state: optuna.trial.TrialState, score: float | None = None, failed: str = ""
    ) -> None:
        """Store the final state of a trial, unless it is stored already.

        A failed trial is stored as pruned without a score, which the sampler counts as the worst. It would ignore a
        trial with Optuna's state FAIL.

        Args:
            trial: The trial.
            state: Its final state.
            score: Its score, if it is complete.
            failed: The reason, if it failed.
        """
        import optuna

        if trial.state.is_finished():
            return
        if failed:
            optuna.Trial(self.study, trial._trial_id).set_user_attr("failed", failed)
        self.study.tell(trial.number, score, state=state)

    # --- report ---

    def best(self) -> FrozenTrial | None:
        """Return the trial with the best score at the last rung, the first one of equals; None if none got there."""
        complete = [trial for trial in self.study.get_trials() if trial.state.name == "COMPLETE"]
        return max(complete, key=lambda one: (one.value, -one.number), default=None)

    def print_trials(self) -> None:
        """Print a table with one row per trial."""
        best = self.best()
        table = Table(title=self.settings.name, title_justify="left")
        for heading in ("trial", *self.space, *(f"{budget:,}" for budget in self.settings.rungs), ""):
            table.add_column(heading, justify="right" if heading else "left")
        for trial in self.study.get_trials():
            values = (format_value(value) for value in trial.user_attrs["settings"].values())
            scores = (trial.intermediate_values.get(budget) for budget in self.settings.rungs)
            shown = ("" if score is None else f"{score:.1f}" for score in scores)
            failed = trial.user_attrs.get("failed")
            remark = f"failed {failed}" if failed else "best" if best and trial.number == best.number else ""
            table.add_row(str(trial.number), *values, *shown, remark)
        Console(file=sys.stdout, width=None if sys.stdout.isatty() else 100).print(table)
        print("scores: IQM of final returns on the tuning seeds, by env_steps; biased upwards, do not report them")

    def report(self, best: FrozenTrial) -> Winner:
        """Train the best trial on the reporting seeds and return its results.

        Raises:
            RunsFailed: If one of the runs failed.
        """
        budget, seeds, trial = self.settings.rungs[-1], self.settings.reporting_seeds, best.user_attrs["settings"]
        (members,) = self.train([trial], budget, f"trial {best.number} on the reporting seeds", seeds)
        if failures := reasons(members):
            raise RunsFailed(f"{len(failures)} of {len(seeds)} runs of the winner failed: {'; '.join(failures)}")
        return Winner(best.number, trial, final_returns(members))

    def measured(self, returns: Sequence[float]) -> str:
        """Return the results on the reporting seeds in words."""
        where = f"{counted(len(returns), 'other seed')}, at {self.settings.rungs[-1]:,} env_steps"
        return f"{where}: final return {format_returns(returns)}"

    def write_experiment(self, winner: Winner) -> None:
        """Write the best trial as an experiment file."""
        name, count = self.settings.name, len(self.study.get_trials())
        header = [
            f"The best of {counted(count, 'trial')}; on {self.measured(winner.returns)}",
            f"Found by: {as_typed(command_line())}",
            f"qohort train experiment={name}",
        ]
        text = experiment_of(self.settings, winner.settings, header)
        check_experiment(self.settings, text, winner.settings)
        target = own_directory() / "experiment" / f"{name}.yaml"
        written = self.study.user_attrs.get("written", [])
        if digest(text) not in written:
            self.study.set_user_attr("written", [*written, digest(text)])
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, text.encode())
        print(f"written: {os.path.relpath(target)} (qohort train experiment={name})")


def reasons(members: Sequence[Member]) -> list[str]:
    """Return the reasons of the members that failed."""
    failures = [(member.config.seed, member.directory.failure()) for member in members]
    return [f"seed {seed}: {failure['reason']}" for seed, failure in failures if failure is not None]


def final_returns(members: Sequence[Member]) -> list[float]:
    """Return the final return of each finished member."""
    return [float(result["final_return"]) for member in members if (result := member.directory.result()) is not None]

"""Sweeps: folds runs into cohorts, launches those that are not finished and reports failures."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import re
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qohort.config.composition import Composer, Sources, project_directory, without_hydra
from qohort.config.errors import ConfigError, Interrupted, RunsFailed, SweepFailed
from qohort.config.folding import foldable_keys
from qohort.config.identity import NOT_HASHED
from qohort.config.members import check_config
from qohort.config.messages import format_value, nearest
from qohort.config.mistakes import explain
from qohort.config.schema import TrainConfig
from qohort.experiments.ablation import Ablation, ArmInEnvironment, cells, check_arms
from qohort.runs.checking import check_jobs
from qohort.runs.interruption import STOP
from qohort.runs.members import Member, check_code, check_places, members_of, other_code
from qohort.runs.summary import summarise_sweep
from qohort.runs.sweep_display import SweepDisplay

Fold = Mapping[str, float]


Compose = Callable[[Sequence[str]], DictConfig]


class FoldableRun(NamedTuple):
    """The part of a sweep's run that can be folded: its seeds and numbers.

    Attributes:
        seeds: The run's seeds, since a run may itself be a cohort; None for those of the configuration.
        numbers: Its values of foldable keys.
    """

    seeds: tuple[int, ...] | None
    numbers: dict[str, float]


@dataclass(frozen=True)
class Cohort:
    """One job of a sweep.

    Attributes:
        overrides: The overrides that all members share.
        seeds: The seed of each member.
        folds: The numbers of each member, by key.
        config: The composed configuration, Hydra's node included.
    """

    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    folds: tuple[Fold, ...]
    config: DictConfig

    @property
    def job(self) -> list[str]:
        """The overrides of the job, for the launcher."""
        return job_overrides(self.overrides, self.seeds, self.folds)


def job_overrides(shared: Sequence[str], seeds: Sequence[int], folds: Sequence[Fold]) -> list[str]:
    """Return the overrides of a job.

    Args:
        shared: The overrides that all members share.
        seeds: The seed of each member.
        folds: The numbers of each member, by key.
    """
    job = [*shared, f"seed=[{','.join(map(str, seeds))}]"]
    if any(folds):
        entries = ["{" + ",".join(f"{key}:{value!r}" for key, value in own.items()) + "}" for own in folds]
        job.append(f"fold=[{','.join(entries)}]")
    return job


def fold(
    texts: Sequence[str], loader: ConfigLoader, master: DictConfig, only: Sequence[str] | None, max_members: int
) -> list[Cohort]:
    """Fold the runs of a sweep into cohorts.

    Every combination of values is a run, as with Hydra's own sweeper. Runs that differ only in their seed and in
    foldable numbers (`qohort.config.folding`) become members of one cohort, in the order of the sweep.

    Args:
        texts: The overrides of the sweep.
        loader: Hydra's configuration loader.
        master: The configuration of the sweep itself.
        only: The keys in which members may differ; None for all that their components declare.
        max_members: Maximum number of members per cohort.

    Raises:
        ConfigError: If a setting of the sweeper or an override is invalid.
    """
    if max_members < 1:
        raise ConfigError(f"hydra.sweeper.max_members={max_members} must be at least 1")
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(texts))
    compose = Composer(loader, master.hydra.job.config_name, master)
    groups: dict[tuple[str, ...], list[FoldableRun]] = defaultdict(list)
    known: dict[tuple[str, ...], list[str]] = {}
    for settings in _expand(overrides):
        alike = tuple(text for key, text, value in settings if key != "seed" and not is_number(value))
        if alike not in known:
            tree: Any = OmegaConf.to_container(compose([text for key, text, _ in settings if key != "seed"]))
            known[alike] = foldable_keys(tree)
        foldable = [key for key in known[alike] if only is None or key in only]
        numbers = {key: value for key, _, value in settings if key in foldable and is_number(value)}
        shared = tuple(text for key, text, _ in settings if key != "seed" and key not in numbers)
        seeds = next((_seeds(value) for key, _, value in settings if key == "seed"), None)
        groups[shared].append(FoldableRun(seeds, numbers))
    for key in only or ():
        if all(key not in keys for keys in known.values()):
            names = nearest(str(key), {one for keys in known.values() for one in keys})
            raise ConfigError(f"hydra.sweeper.foldable: {key} cannot be held by a member here: {names}")
    return pack(groups, compose, max_members)


def pack(groups: Mapping[tuple[str, ...], Sequence[FoldableRun]], compose: Compose, max_members: int) -> list[Cohort]:
    """Pack runs into cohorts. A member that several runs contain is trained once.

    Args:
        groups: The runs, by the overrides that they share.
        compose: Composes a configuration from overrides.
        max_members: Maximum number of members per cohort; more are split evenly over several cohorts.
    """
    cohorts: list[Cohort] = []
    for shared, runs in groups.items():
        members = _members(runs, compose(shared))
        count = -(-len(members) // max_members)
        cuts = [len(members) * part // count for part in range(count + 1)]
        for first, last in itertools.pairwise(cuts):
            cohorts.append(_cohort(shared, members[first:last], compose))
    return cohorts


def fold_ablation(
    ablation: Ablation, loader: ConfigLoader, master: DictConfig, only: Sequence[str] | None, max_members: int
) -> list[tuple[ArmInEnvironment, list[Cohort]]]:
    """Fold the runs of an ablation into cohorts, for each arm in each environment, and check the arms.

    Args:
        ablation: The ablation.
        loader: Hydra's configuration loader.
        master: The configuration of the sweep itself.
        only: The keys in which members may differ; None for all that their components declare.
        max_members: Maximum number of members per cohort.

    Raises:
        ConfigError: If a run is invalid, or an arm differs in undeclared keys from the arm it is compared with.
    """
    planned = []
    for cell in cells(ablation):
        try:
            cohorts = fold(cell.overrides, loader, master, only, max_members)
        except (HydraException, OmegaConfBaseException) as error:
            mistake = explain(error, cell.overrides, Sources("train", project=project_directory()), sweeping=True)
            raise ConfigError(f"{ablation.selector}: {mistake}") from error
        if not cohorts:
            raise ConfigError(f"{ablation.selector}: seeds={ablation.manifest.seeds} has no seeds, as range(0,30) has")
        planned.append((cell, cohorts))
    check_arms(ablation, {(cell.arm.label, cell.environment): _first(cohorts[0]) for cell, cohorts in planned})
    return planned


def _first(cohort: Cohort) -> TrainConfig:
    return check_config(without_hydra(cohort.config))[0]


def sweep_name(texts: Sequence[str]) -> str | None:
    """Return the name of a sweep, made from the overrides that define its experiments; None if there are none.

    The name contains no seed, time or count, so the same command has the same name when resumed or with more seeds.

    Args:
        texts: The overrides of the sweep.
    """
    overrides = OverridesParser.create().parse_overrides(list(texts))
    kept = [one for one in overrides if re.split("[./]", one.key_or_group)[0] not in ("hydra", *NOT_HASHED)]
    lines = sorted(str(one.input_line) for one in kept if one.key_or_group != "trainer.progress_bar")
    if not lines:
        return None
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]
    return f"{re.sub('[^a-zA-Z0-9_.,=/+-]+', '_', ' '.join(lines))[:100]}-{digest}"  # W&B allows 128 characters


Numbers = tuple[tuple[str, float], ...]


def _members(runs: Sequence[FoldableRun], config: DictConfig) -> list[tuple[int, Numbers]]:
    """Return the distinct members of runs."""
    own_seeds = [config.seed] if isinstance(config.seed, int) else list(config.seed)
    members = {
        (seed, tuple(numbers.items())): None
        for seeds, numbers in runs
        for seed in (own_seeds if seeds is None else seeds)
    }
    return list(members)


def _cohort(shared: tuple[str, ...], members: Sequence[tuple[int, Numbers]], compose: Compose) -> Cohort:
    """Make a cohort of members. A number that all of them share becomes an ordinary override."""
    common = set(members[0][1]).intersection(*(numbers for _, numbers in members))
    texts = shared + tuple(f"{key}={value!r}" for key, value in members[0][1] if (key, value) in common)
    seeds = tuple(seed for seed, _ in members)
    folds = tuple({key: value for key, value in numbers if (key, value) not in common} for _, numbers in members)
    return Cohort(texts, seeds, folds, compose(job_overrides(texts, seeds, folds)))


def _expand(overrides: Sequence[Override]) -> list[list[tuple[str, str, Any]]]:
    """Return every run of a sweep as key, text and value of each override.

    If a key is overridden twice, the later override counts.
    """
    values: dict[str, list[tuple[str, str, Any]]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            text = f"{key}={override.get_value_element_as_str()}" if not override.is_delete() else str(key)
            values[key] = [(key, text, override.value())]
            continue
        if not override.is_discrete_sweep():
            raise ConfigError(f"{override.input_line} is an interval: give the values, as {key}=1,2,3")
        texts = [f"{key}={text}" for text in override.sweep_string_iterator()]
        values[key] = [(key, text, _parsed(text)) for text in texts]
    return [list(run) for run in itertools.product(*values.values())]


def _parsed(text: str) -> Any:
    return OverridesParser.create().parse_overrides([text])[0].value()


def is_number(value: Any) -> bool:
    """Return whether a value is a number, which can be folded if its key is foldable."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _seeds(value: Any) -> tuple[int, ...]:
    """Return the seeds of a run, which may itself be a cohort."""
    seeds = value if isinstance(value, list) else [value]
    if not seeds or not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
        raise ConfigError(f"seed={format_value(value)} is not an integer of at least 0 or a list of such integers")
    return tuple(seeds)


def launch(
    cohorts: Sequence[Cohort], launcher: Launcher, name: str | None, title: str = "the whole sweep"
) -> list[Sequence[JobReturn]]:
    """Print the plan, launch the jobs that are not finished, and report failures.

    Args:
        cohorts: The jobs.
        launcher: Hydra's launcher.
        name: The sweep's name. It is the W&B group of the runs unless `logger.wandb.group` is set.
        title: Title of the table at the end.

    Returns:
        A list with one element, the launcher's results, as Hydra's sweepers return it.

    Raises:
        ConfigError: If a cohort's configuration is invalid; no job was started.
        Interrupted: If a signal asked to stop; the same command continues.
        SweepFailed: If a job or a member failed; the others are finished.
    """
    planned = [members_of(check_config(without_hydra(cohort.config))) for cohort in cohorts]
    members = [member for some in planned for member in some]
    check_places(members)
    check_code(members)
    check_jobs([some[0].config for some in planned])  # those of `hydra.sweeper.params` were not checked before
    finished = sum(member.directory.result() is not None for member in members)
    steps = sum(member.config.budget for member in members)
    print(
        f"sweep: {len(cohorts)} {'cohort' if len(cohorts) == 1 else 'cohorts'}, {len(members)} members, "
        f"{steps:,} env_steps in all; {finished} of {len(members)} finished already"
    )
    for number, (cohort, some) in enumerate(zip(cohorts, planned, strict=True)):
        done = sum(member.directory.result() is not None for member in some)
        where = some[0].directory.path.parent
        folded = sorted({key for own in cohort.folds for key in own})
        words = f", differing in seed{''.join(', ' + key for key in folded)}" if len(some) > 1 else ""
        print(f"  {number}: {len(some)} × {where}{words}" + (f" ({done} finished)" if done else ""), flush=True)
    others = sum(member.directory.result() is not None and other_code(member) is not None for member in members)
    if others:
        print(f"{others} of them {'was' if others == 1 else 'were'} made with other code: overwrite=true trains again")
    # Starting a job takes seconds, so finished ones are not started.
    left = [cohort for cohort, some in zip(cohorts, planned, strict=True) if any(map(_is_unfinished, some))]
    # Hydra's line for each job says what the plan has said.
    logging.getLogger("hydra._internal.core_plugins.basic_launcher").setLevel(logging.WARNING)
    with STOP.waiting():
        try:
            jobs = [_with_wandb_group(cohort, name) for cohort in left]
            if left:
                with _display(launcher, [some for some in planned if any(map(_is_unfinished, some))]):
                    returns = launcher.launch(jobs, initial_job_idx=0)
            else:
                returns = []
        except (ConfigError, HydraException, Interrupted):
            raise
        except Exception as error:  # a worker was killed, or could not be started
            if STOP.signal is not None:
                raise Interrupted(f"interrupted by {STOP.signal}: run the same command to continue") from error
            raise SweepFailed(f"the launcher failed: {_reason(error)}") from error
    summarise_sweep([(member.config, member.directory) for member in members], title)
    _report_failures(left, returns)
    return [returns]


def _display(launcher: Launcher, cohorts: Sequence[Sequence[Member]]) -> contextlib.AbstractContextManager[Any]:
    """Return the display of a sweep that joblib's processes train; nothing for other launchers, or if it is off."""
    quiet = not all(cohort[0].config.trainer.progress_bar for cohort in cohorts)
    if quiet or type(launcher).__name__ != "JoblibLauncher":
        return contextlib.nullcontext()
    return SweepDisplay(cohorts, live=sys.stderr.isatty())


def _is_unfinished(member: Member) -> bool:
    return member.config.overwrite or member.directory.result() is None


def _with_wandb_group(cohort: Cohort, name: str | None) -> list[str]:
    """Return the overrides of a job, with the sweep's name as W&B group if W&B is used and no group is set."""
    wandb = OmegaConf.select(cohort.config, "logger.wandb")
    free = name is not None and wandb is not None and "group" in wandb and wandb.group is None
    return [*cohort.job, f"logger.wandb.group='{name}'"] if free else cohort.job


def _report_failures(cohorts: Sequence[Cohort], returns: Sequence[JobReturn]) -> None:
    """Raise an error that lists the jobs that did not finish, if any."""
    failures, interrupted = [], False
    for cohort, job in zip(cohorts, returns, strict=True):
        if job.status == JobStatus.COMPLETED:
            continue
        error = job._return_value
        name = " ".join(cohort.overrides) or "the only job"
        interrupted = interrupted or isinstance(error, Interrupted)
        failures.append(f"  {name}: {_reason(error)}")
        if not isinstance(error, ConfigError | HydraException | Interrupted | RunsFailed):
            traceback.print_exception(error, file=sys.stderr)
    if failures:
        listed = "\n".join(failures)
        message = f"{len(failures)} of {len(cohorts)} jobs did not finish:\n{listed}"
        raise Interrupted(message) if interrupted else SweepFailed(message)


def _reason(error: BaseException) -> str:
    expected = isinstance(error, ConfigError | Interrupted | RunsFailed)
    return str(error) if expected else f"{type(error).__name__}: {error}"

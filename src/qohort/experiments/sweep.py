"""Sweeps: what is folded into which cohort, what there is still to do, and what became of it."""

from __future__ import annotations

import hashlib
import itertools
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

from qohort.config.composition import Composer, without_hydra
from qohort.config.errors import ConfigError, Interrupted, RunsFailed, SweepFailed
from qohort.config.folding import foldable_keys
from qohort.config.identity import NOT_HASHED
from qohort.config.members import check_config
from qohort.config.messages import as_typed, nearest
from qohort.config.schema import TrainConfig
from qohort.experiments.ablation import Ablation, ArmInEnvironment, cells, check_arms
from qohort.runs.interruption import STOP
from qohort.runs.members import Member, check_code, members_of, other_code

Fold = Mapping[str, float]


Compose = Callable[[Sequence[str]], DictConfig]


class SweepRun(NamedTuple):
    """What may be folded of a run of a sweep.

    Attributes:
        seeds: Its seeds, since a run may itself be a cohort; None for the configuration's own.
        numbers: Its values of foldable keys.
    """

    seeds: tuple[int, ...] | None
    numbers: dict[str, float]


@dataclass(frozen=True)
class Cohort:
    """One job of a sweep.

    Attributes:
        overrides: The overrides that its members share.
        seeds: Each member's seed.
        folds: Each member's own numbers, by key.
        config: The composed configuration.
    """

    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    folds: tuple[Fold, ...]
    config: DictConfig

    @property
    def job(self) -> list[str]:
        """The overrides for the launcher."""
        return job_overrides(self.overrides, self.seeds, self.folds)


def job_overrides(shared: Sequence[str], seeds: Sequence[int], folds: Sequence[Fold]) -> list[str]:
    """The overrides of a job with these members."""
    job = [*shared, f"seed=[{','.join(map(str, seeds))}]"]
    if any(folds):
        entries = ["{" + ",".join(f"{key}:{value!r}" for key, value in own.items()) + "}" for own in folds]
        job.append(f"fold=[{','.join(entries)}]")
    return job


def fold(
    texts: Sequence[str], loader: ConfigLoader, master: DictConfig, only: Sequence[str] | None, max_members: int
) -> list[Cohort]:
    """The cohorts of a sweep.

    Every combination of values is a run, as under Hydra's own sweeper. Runs that are equal but for their seed and
    for numbers that a member can hold (`qohort.config.folding`) go together, in the order in which they stand.

    Args:
        texts: Overrides, sweeps among them.
        loader: Composes configurations.
        master: The configuration of the sweep itself.
        only: The keys in which members may differ; None for all that their components declare.
        max_members: Members a cohort may have.

    Raises:
        ConfigError: If a setting of the sweeper, or a run, is wrong.
    """
    if max_members < 1:
        raise ConfigError(f"hydra.sweeper.max_members={max_members} must be at least 1")
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(texts))
    compose = Composer(loader, master.hydra.job.config_name, master)
    groups: dict[tuple[str, ...], list[SweepRun]] = defaultdict(list)
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
        groups[shared].append(SweepRun(seeds, numbers))
    for key in only or ():
        if all(key not in keys for keys in known.values()):
            names = nearest(str(key), {one for keys in known.values() for one in keys})
            raise ConfigError(f"hydra.sweeper.foldable: {key} cannot be held by a member here: {names}")
    return pack(groups, compose, max_members)


def pack(groups: Mapping[tuple[str, ...], Sequence[SweepRun]], compose: Compose, max_members: int) -> list[Cohort]:
    """The cohorts of runs, each member once, however many runs have it.

    Args:
        groups: The runs, by the overrides that they share.
        compose: Makes a configuration of overrides.
        max_members: Members a cohort may have; more are split evenly.
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
    """The cohorts of an ablation's sweep.

    Args:
        ablation: The ablation.
        loader: Composes configurations.
        master: The configuration of the sweep itself.
        only: The keys in which members may differ; None for all that their components declare.
        max_members: Members a cohort may have.

    Raises:
        ConfigError: If a run is wrong, or an arm differs from the one it is compared with in what it does not declare.
    """
    planned = [(cell, fold(cell.overrides, loader, master, only, max_members)) for cell in cells(ablation)]
    check_arms(ablation, {(cell.arm.label, cell.environment): _first(cohorts[0]) for cell, cohorts in planned})
    return planned


def _first(cohort: Cohort) -> TrainConfig:
    return check_config(without_hydra(cohort.config))[0]


def sweep_name(texts: Sequence[str]) -> str | None:
    """What a sweep is called: its overrides, less the seed and what makes no other experiment; None if none is left.

    No clock and no count is in it: the same command, resumed or with more seeds, has the same name.

    Args:
        texts: Overrides, sweeps among them.
    """
    overrides = OverridesParser.create().parse_overrides(list(texts))
    told = [one for one in overrides if re.split("[./]", one.key_or_group)[0] not in ("hydra", *NOT_HASHED)]
    lines = sorted(str(one.input_line) for one in told if one.key_or_group != "trainer.progress_bar")
    if not lines:
        return None
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]
    return f"{re.sub('[^a-zA-Z0-9_.,=/+-]+', '_', ' '.join(lines))[:100]}-{digest}"  # W&B takes 128 characters


Numbers = tuple[tuple[str, float], ...]


def _members(runs: Sequence[SweepRun], config: DictConfig) -> list[tuple[int, Numbers]]:
    """The members of runs, each once."""
    own_seeds = [config.seed] if isinstance(config.seed, int) else list(config.seed)
    members = {
        (seed, tuple(numbers.items())): None
        for seeds, numbers in runs
        for seed in (own_seeds if seeds is None else seeds)
    }
    return list(members)


def _cohort(shared: tuple[str, ...], members: Sequence[tuple[int, Numbers]], compose: Compose) -> Cohort:
    """The cohort of some members; a number that all of them have is an override as any other."""
    common = set(members[0][1]).intersection(*(numbers for _, numbers in members))
    texts = shared + tuple(f"{key}={value!r}" for key, value in members[0][1] if (key, value) in common)
    seeds = tuple(seed for seed, _ in members)
    folds = tuple({key: value for key, value in numbers if (key, value) not in common} for _, numbers in members)
    return Cohort(texts, seeds, folds, compose(job_overrides(texts, seeds, folds)))


def _expand(overrides: Sequence[Override]) -> list[list[tuple[str, str, Any]]]:
    """Every run of a sweep: key, text and value of each override. Of two overrides of a key the later one counts."""
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
    """Whether a value can be folded, if its key can."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _seeds(value: Any) -> tuple[int, ...]:
    """The seeds of a run, which may itself be a cohort."""
    seeds = value if isinstance(value, list) else [value]
    if not seeds or not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
        raise ConfigError(f"seed={as_typed(value)} is not an integer of at least 0 or a list of such integers")
    return tuple(seeds)


def launch(cohorts: Sequence[Cohort], launcher: Launcher, name: str | None) -> list[Sequence[JobReturn]]:
    """Print the plan, run what is not finished, and tell what failed.

    Args:
        cohorts: The jobs.
        launcher: Runs them.
        name: The sweep's name, W&B's group of its runs where no other is given.

    Raises:
        ConfigError: If a cohort's configuration is wrong; nothing was started then.
        SweepFailed: If a job or a member failed; the others are finished.
    """
    planned = [members_of(check_config(without_hydra(cohort.config))) for cohort in cohorts]
    members = [member for some in planned for member in some]
    check_code(members)
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
        words = f", which differ in seed{''.join(', ' + key for key in folded)}" if len(some) > 1 else ""
        print(f"  {number}: {len(some)} × {where}{words}" + (f" ({done} finished)" if done else ""), flush=True)
    others = sum(member.directory.result() is not None and other_code(member) is not None for member in members)
    if others:
        print(f"{others} of them {'was' if others == 1 else 'were'} made with other code: overwrite=true trains again")
    # Starting a job takes seconds: one that is finished is not started.
    left = [cohort for cohort, some in zip(cohorts, planned, strict=True) if any(map(_is_left, some))]
    with STOP.waiting():
        try:
            returns = launcher.launch([_grouped(cohort, name) for cohort in left], initial_job_idx=0) if left else []
        except (ConfigError, HydraException, Interrupted):
            raise
        except Exception as error:  # a worker was killed, or could not be started
            if STOP.signal is not None:
                raise Interrupted(f"interrupted by {STOP.signal}: the same command does what is left") from error
            raise SweepFailed(f"the launcher failed: {_reason(error)}") from error
    _tell_failures(left, returns)
    return [returns]


def _is_left(member: Member) -> bool:
    return member.config.overwrite or member.directory.result() is None


def _grouped(cohort: Cohort, name: str | None) -> list[str]:
    """The overrides of a job, with the sweep's name as W&B's group where W&B is on and has none."""
    wandb = OmegaConf.select(cohort.config, "logger.wandb")
    free = name is not None and wandb is not None and "group" in wandb and wandb.group is None
    return [*cohort.job, f"logger.wandb.group='{name}'"] if free else cohort.job


def _tell_failures(cohorts: Sequence[Cohort], returns: Sequence[JobReturn]) -> None:
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
    told = isinstance(error, ConfigError | Interrupted | RunsFailed)
    return str(error) if told else f"{type(error).__name__}: {error}"

"""Sweeps: what is folded into which cohort, what there is still to do, and what became of it."""

from __future__ import annotations

import itertools
import sys
import traceback
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from qohort.config import FOLDABLE, check_config, foldable_here, nearest, show
from qohort.errors import ConfigError, Interrupted, RunsFailed, SweepFailed
from qohort.interruption import STOP

Fold = Mapping[str, float]


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
    texts: Sequence[str], loader: ConfigLoader, master: DictConfig, foldable: Sequence[str], max_members: int
) -> list[Cohort]:
    """The cohorts of a sweep.

    Every combination of values is a run, as under Hydra's own sweeper. Runs that are equal but for their seed and
    for the numbers under `foldable` keys go together, in the order in which they stand.

    Args:
        texts: Overrides, sweeps among them.
        loader: Composes configurations.
        master: The configuration of the sweep itself.
        foldable: Keys in which members may differ.
        max_members: Members a cohort may have.

    Raises:
        ConfigError: If a setting of the sweeper, or a run, is wrong.
    """
    if max_members < 1:
        raise ConfigError(f"hydra.sweeper.max_members={max_members} must be at least 1")
    for key in foldable:
        if key not in FOLDABLE:
            raise ConfigError(f"hydra.sweeper.foldable: {key} cannot be held by a member: {nearest(key, FOLDABLE)}")
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(texts))
    groups: dict[tuple[str, ...], list[tuple[tuple[int, ...] | None, dict[str, float]]]] = defaultdict(list)
    for run in _expand(overrides):
        shared = [text for key, text, value in run if key != "seed" and not (key in foldable and _number(value))]
        own = {key: value for key, _, value in run if key in foldable and _number(value)}
        seeds = next((value for key, _, value in run if key == "seed"), None)
        groups[tuple(shared)].append((None if seeds is None else _seeds(seeds), own))
    cohorts: list[Cohort] = []
    for shared_texts, runs in groups.items():
        cohorts += _cohorts(shared_texts, runs, loader, master, max_members)
    return cohorts


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


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _seeds(value: Any) -> tuple[int, ...]:
    """The seeds of a run, which may itself be a cohort."""
    seeds = value if isinstance(value, list) else [value]
    if not seeds or not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
        raise ConfigError(f"seed={show(value)} is not an integer of at least 0 or a list of such integers")
    return tuple(seeds)


def _cohorts(
    shared: tuple[str, ...],
    runs: Sequence[tuple[tuple[int, ...] | None, dict[str, float]]],
    loader: ConfigLoader,
    master: DictConfig,
    max_members: int,
) -> list[Cohort]:
    """The cohorts of runs that share all but what can be folded."""
    plain = loader.load_sweep_config(master, list(shared))
    fixed = {key for _, own in runs for key in own if not foldable_here(key, plain)}
    if fixed:  # numbers, but not such as a member can hold under these settings: jobs of their own
        apart: dict[tuple[str, ...], list[tuple[tuple[int, ...] | None, dict[str, float]]]] = defaultdict(list)
        for seeds, own in runs:
            texts = tuple(f"{key}={value!r}" for key, value in own.items() if key in fixed)
            apart[shared + texts].append((seeds, {key: value for key, value in own.items() if key not in fixed}))
        parts = [_cohorts(texts, some, loader, master, max_members) for texts, some in apart.items()]
        return [cohort for part in parts for cohort in part]
    members: dict[tuple[int, tuple[tuple[str, float], ...]], None] = {}
    for seeds, own in runs:
        for seed in _seeds_of(plain) if seeds is None else seeds:
            members[seed, tuple(own.items())] = None  # a run that stands twice is one run
    listed = list(members)
    count = -(-len(listed) // max_members)
    cuts = [len(listed) * part // count for part in range(count + 1)]
    cohorts = []
    for first, last in itertools.pairwise(cuts):
        chosen = listed[first:last]
        common = set(chosen[0][1]).intersection(*(own for _, own in chosen)) if chosen else set()
        texts = shared + tuple(f"{key}={value!r}" for key, value in chosen[0][1] if (key, value) in common)
        seeds = tuple(seed for seed, _ in chosen)
        folds = tuple({key: value for key, value in own if (key, value) not in common} for _, own in chosen)
        config = loader.load_sweep_config(master, job_overrides(texts, seeds, folds))
        cohorts.append(Cohort(texts, seeds, folds, config))
    return cohorts


def _seeds_of(config: DictConfig) -> list[int]:
    seeds = config.seed
    return [seeds] if isinstance(seeds, int) else list(seeds)


def launch(cohorts: Sequence[Cohort], launcher: Launcher) -> list[Sequence[JobReturn]]:
    """Print the plan, run what is not finished, and tell what failed.

    Raises:
        ConfigError: If a cohort's configuration is wrong; nothing was started then.
        SweepFailed: If a job or a member failed; the others are finished.
    """
    from qohort.training import members_of

    planned = [members_of(check_config(_without_hydra(cohort.config))) for cohort in cohorts]
    members = [member for some in planned for member in some]
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
    with STOP:
        returns = launcher.launch([cohort.job for cohort in cohorts], initial_job_idx=0)
    _tell_failures(cohorts, returns)
    return [returns]


def _without_hydra(config: DictConfig) -> DictConfig:
    from omegaconf import OmegaConf

    plain = config.copy()
    OmegaConf.set_struct(plain, False)
    plain.pop("hydra", None)
    return plain


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

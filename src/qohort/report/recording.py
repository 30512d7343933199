"""Writes a ledger from finished runs, and refuses those that could not be trained again."""

from __future__ import annotations

import fnmatch
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from qohort.config.checks import build_config, resolve
from qohort.config.composition import Sources, options_of, override, project_directory
from qohort.config.errors import ConfigError
from qohort.config.identity import config_hash
from qohort.config.messages import format_value, nearest
from qohort.config.paths import check_directory
from qohort.config.schema import TrainConfig
from qohort.experiments.ablation import GROUP, Arm, read_ablation
from qohort.experiments.presentation import Show
from qohort.experiments.sensitivity import SensitivityStudy, read_study
from qohort.report.commands import compose, load, overrides_of
from qohort.report.found import find_runs
from qohort.report.ledger import Ledger, LedgerFailures, LedgerRow, LedgerRun, ledger_text, made_differences, made_of
from qohort.report.planning import plan_runs
from qohort.report.scores import (
    FinishedRun,
    PlannedRun,
    Problem,
    Scores,
    format_problems,
    mixed_code,
    not_deterministic,
    read_run,
)
from qohort.report.sensitivity_ledger import recorded, study_runs
from qohort.runs.directory import RunDirectory
from qohort.runs.files import write_atomically
from qohort.runs.metrics import RETURN

STUDY = "study"
"""The group of studies in `conf/`. Those of sensitivity can be recorded."""
TOLD = 5
"""The reasons that a refusal lists."""


@dataclass(frozen=True)
class LedgerConfig:
    """The configuration of `qohort ledger`. `conf/ledger.yaml` documents each key."""

    name: str
    title: str | None
    ablation: str | None
    study: str | None
    experiments: str | Sequence[str] | None
    runs: str | Sequence[str] | None
    baseline: str | None
    seeds: Sequence[int] | None
    overrides: Sequence[str]
    output_dir: str
    ledger_dir: str
    other_code: Literal["refuse", "allow"]


@dataclass(frozen=True)
class Study:
    """What a ledger is made from.

    Attributes:
        title: What it is about.
        command: The command that trains all of it.
        planned: The runs that it asks for.
        sensitivity: The study of sensitivity that it is; None for none.
    """

    title: str
    command: str
    planned: Sequence[PlannedRun]
    sensitivity: SensitivityStudy | None = None


def record(config: DictConfig) -> Path:
    """Write the ledger of finished runs; its file.

    Raises:
        ConfigError: If the configuration is wrong, or a run is missing or could not be trained again; nothing was
            written then.
    """
    names = {group: HydraConfig.get().runtime.choices[group] for group in (GROUP, STUDY)}
    for text in HydraConfig.get().overrides.task:
        if text.lstrip("+~").startswith(f"{STUDY}."):
            key = text.lstrip("+~").removeprefix(f"{STUDY}.")
            raise ConfigError(f'{text} cannot be set here: what the study was trained with is overrides=["{key}"]')
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != STUDY])  # its keys are of another command
    settings: LedgerConfig = build_config(LedgerConfig, {**resolve(own), **names})
    file = _file(settings)
    loader = GlobalHydra.instance().config_loader()
    study = _study(settings, loader)
    finished, failed = _finished(study, settings)
    made: dict[str, Mapping[str, Any]] = {}
    rows = [_row(own, loader, made, study.sensitivity is not None) for own in finished.values()]
    keys = None if study.sensitivity is None else recorded(study.sensitivity)
    ledger = Ledger(settings.title or study.title, study.command, made, rows, keys, _failures(failed, loader) or None)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, ledger_text(settings.name, ledger).encode())
    and_failed = f" and {len(failed)} that failed" if failed else ""
    print(f"ledger of {len(rows)} rows, {sum(len(row.runs) for row in rows)} runs{and_failed}: {file}")
    return file


def _file(settings: LedgerConfig) -> Path:
    path = Path(settings.name)
    if path.is_absolute() or ".." in path.parts or path.suffix:
        raise ConfigError(f"name={settings.name} is not a name of a ledger: give one without .yaml and ..")
    check_directory("ledger_dir", settings.ledger_dir)
    return Path(settings.ledger_dir) / f"{settings.name}.yaml"


def _study(settings: LedgerConfig, loader: ConfigLoader) -> Study:
    """Return what is asked for.

    Raises:
        ConfigError: If it is not exactly one of an ablation, a study, experiments and runs, or they do not exist.
    """
    given = {
        key: value for key in (GROUP, STUDY, "experiments", "runs") if (value := getattr(settings, key)) is not None
    }
    if len(given) != 1:
        words = " and ".join(f"{key}={format_value(value)}" for key, value in given.items()) or "nothing"
        raise ConfigError(f"{words} is given: give one of ablation=NAME, study=NAME, experiments=NAME and runs=PATTERN")
    if settings.baseline is not None and settings.runs is None:
        raise ConfigError(f"baseline={settings.baseline} goes with runs=... only")
    if settings.seeds is not None and settings.experiments is None:
        raise ConfigError(f"seeds={format_value(settings.seeds)} goes with experiments=... only")
    if settings.runs is not None:
        return _found(settings)
    if settings.ablation is not None:
        ablation = read_ablation(settings.ablation, settings.overrides, loader)
        command = " ".join(("qohort train -m", ablation.selector, *ablation.extra))
        return Study(ablation.manifest.title, command, plan_runs(ablation, loader, settings.output_dir))
    if settings.study is not None:
        return _sensitivity(settings.study, settings, loader)
    return _experiments(settings, loader)


def _sensitivity(name: str, settings: LedgerConfig, loader: ConfigLoader) -> Study:
    given = [f"study={name}", *settings.overrides]
    config = load(loader, "sensitivity", [*given, override("output_dir", settings.output_dir)])
    study = read_study(config)
    title = f"Sensitivity to hyperparameters: {study.settings.name}"
    return Study(title, " ".join(("qohort sensitivity", *given)), study_runs(study), study)


def _found(settings: LedgerConfig) -> Study:
    if settings.overrides:
        raise ConfigError(
            f"overrides={format_value(settings.overrides)} does not go with runs=...: the runs are what they are"
        )
    patterns = [settings.runs] if isinstance(settings.runs, str) else list(settings.runs or ())
    ablation, planned = find_runs(patterns, settings.baseline, settings.name)
    there = [plan for plan in planned if plan.directory.is_dir()]  # arms need not have the same seeds
    return Study(ablation.manifest.title, "qohort train, with the overrides of each row", there)


def _experiments(settings: LedgerConfig, loader: ConfigLoader) -> Study:
    patterns = [settings.experiments] if isinstance(settings.experiments, str) else list(settings.experiments or ())
    known = options_of("experiment", Sources("train", project=project_directory()))
    names: dict[str, None] = {}
    for pattern in patterns:
        matching = fnmatch.filter(known, pattern)
        if not matching:
            raise ConfigError(f"experiments={pattern} is not an experiment: {nearest(pattern, known)}")
        names |= dict.fromkeys(matching)
    seeds = [] if settings.seeds is None else [f"seed={format_seeds(settings.seeds)}"]
    last = {name.rpartition("/")[2] for name in names}
    planned = []
    for name in names:
        title = name.rpartition("/")[2] if len(last) == len(names) else name
        arm = Arm(name, title, (), name, ())
        members = compose(loader, [f"experiment={name}", *settings.overrides, *seeds])
        configs = [replace(one, output_dir=settings.output_dir) for one in members]
        planned += [PlannedRun(arm, one.env.name, one, RunDirectory.of(one).path) for one in configs]
    words = ("qohort train", *(["-m"] if len(names) > 1 else []), f"experiment={','.join(names)}", *settings.overrides)
    return Study(f"Experiments {', '.join(patterns)}", " ".join((*words, *seeds)), planned)


def format_seeds(seeds: Sequence[int]) -> str:
    """Return seeds as they are typed."""
    return f"[{','.join(map(str, seeds))}]"


def _finished(
    study: Study, settings: LedgerConfig
) -> tuple[dict[tuple[str, str], list[FinishedRun]], list[PlannedRun]]:
    """Read the runs.

    Returns:
        Those that are finished, by arm and environment, and those that failed, which only a study of sensitivity may
        have: there they have a score.

    Raises:
        ConfigError: If a run is not finished or could not be trained again.
    """
    planned = study.planned
    show = Show(score="final", metric=RETURN, last=1, figures=())
    read = [read_run(plan, show) for plan in planned]
    problems = [one for one in read if isinstance(one, Problem)]
    counted = [one.plan for one in problems if one.kind == "failed" and study.sensitivity is not None]
    problems = [one for one in problems if one.plan not in counted]
    finished: dict[tuple[str, str], list[FinishedRun]] = defaultdict(list)
    for one in read:
        if isinstance(one, FinishedRun):
            finished[one.plan.arm.label, one.plan.environment].append(one)
    scores = Scores(planned, finished, problems)
    failed = any(one.kind == "failed" for one in problems)
    fix = "a run that failed has no receipt" if failed else "train what is left"
    _refuse(format_problems(problems), f"{len(problems)} of {len(read)} runs cannot be counted", fix)
    again = "a run that cannot be repeated has no receipt"
    _refuse(not_deterministic(scores), "some runs are not deterministic", again)
    _refuse([*_moved(scores)], "some runs were resumed where their bits could change", "train them again in one place")
    if settings.other_code == "refuse":
        words = "train them again with overwrite=true, or record them all the same with other_code=allow"
        _refuse(mixed_code(scores), "the runs were made with different code", words)
    return finished, counted


def _failures(failed: Sequence[PlannedRun], loader: ConfigLoader) -> list[LedgerFailures]:
    """Return runs that failed, by arm and environment."""
    alike: dict[tuple[str, str], list[PlannedRun]] = defaultdict(list)
    for plan in failed:
        alike[plan.arm.label, plan.environment].append(plan)
    return [
        LedgerFailures(
            *place,
            overrides_of(some[0].config, ("train", *some[0].arm.overrides), loader),
            sorted(plan.config.seed for plan in some),
        )
        for place, some in alike.items()
    ]


def _refuse(lines: Sequence[str], reason: str, fix: str) -> None:
    """Refuse to write a ledger if there are lines that say why.

    Raises:
        ConfigError: If there are.
    """
    if lines:
        more = [f"and {len(lines) - TOLD} more like these"] if len(lines) > TOLD else []
        raise ConfigError(f"{reason} ({'; '.join([*lines[:TOLD], *more])}): {fix}")


def _moved(scores: Scores) -> Iterator[str]:
    """Yield a line for each run that was resumed with other code, versions or on another machine than it began with."""
    for run in (one for some in scores.finished.values() for one in some):
        now = made_of(run.manifest, False)
        for earlier in run.manifest.get("resumed", ()):
            if changed := made_differences(made_of(earlier["before"], False), now):
                yield f"{run.plan.directory} at {earlier['env_steps']:,} env_steps: {', '.join(changed)}"
                break


def _row(
    runs: Sequence[FinishedRun], loader: ConfigLoader, made: dict[str, Mapping[str, Any]], by_arm: bool
) -> LedgerRow:
    """Return a row.

    Args:
        runs: The runs of an arm in an environment.
        loader: Composes configurations.
        made: How runs were made, by letter; what is new is added.
        by_arm: Whether the overrides of their arm are the command, and not those that trained them.

    Raises:
        ConfigError: If the runs' command does not give their configuration.
    """
    ordered = sorted(runs, key=lambda run: run.plan.config.seed)
    plan, config = ordered[0].plan, _config_of(ordered[0])
    letters = [_letter(made_of(run.manifest, (run.plan.directory / "code.patch").is_file()), made) for run in ordered]
    usual = max(letters, key=letters.count)
    command = ("train", *plan.arm.overrides) if by_arm else ordered[0].manifest.get("command", ())
    ended = max((run.plan.directory / "result.json").stat().st_mtime for run in ordered)
    return LedgerRow(
        arm=plan.arm.label,
        title=plan.arm.title,
        environment=plan.environment,
        env=config.env.name,
        against=plan.arm.against,
        hash8=config_hash(config),
        budget=config.budget,
        date=time.strftime("%Y-%m-%d", time.gmtime(ended)),
        made=usual,
        overrides=overrides_of(config, command, loader),
        runs=[_run(run, None if letter == usual else letter) for run, letter in zip(ordered, letters, strict=True)],
    )


def _config_of(run: FinishedRun) -> TrainConfig:
    """Return the configuration that a run was made with, also what does not identify an experiment."""
    config: TrainConfig = build_config(TrainConfig, RunDirectory(run.plan.directory).config())
    return config


def _letter(one: Mapping[str, Any], made: dict[str, Mapping[str, Any]]) -> str:
    """Return the letter of how a run was made."""
    for letter, known in made.items():
        if known == one:
            return letter
    letter = chr(ord("a") + len(made)) if len(made) < 26 else f"z{len(made)}"
    made[letter] = one
    return letter


def _run(run: FinishedRun, made: str | None) -> LedgerRun:
    score = run.scores
    seed, fingerprint = run.plan.config.seed, str(run.result["fingerprint"])
    return LedgerRun(seed, score["final"], score["best"], score["auc"], fingerprint, made)

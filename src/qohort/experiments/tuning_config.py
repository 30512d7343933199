"""The configuration of a study, of its trials' runs, and of the experiment file that keeps a trial."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import util
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig

from qohort.config.annotations import PositiveInt, Range, Sized
from qohort.config.checks import build_config
from qohort.config.composition import Sources, groups_of
from qohort.config.errors import ConfigError
from qohort.config.identity import NOT_HASHED
from qohort.config.members import check_config
from qohort.config.messages import as_typed
from qohort.config.mistakes import compose
from qohort.config.paths import check_output
from qohort.config.schema import TrainConfig
from qohort.experiments.experiment_file import experiment_text, override
from qohort.experiments.search_space import Space
from qohort.runs.checking import check_accelerator, check_environment

Settings = Mapping[str, Any]
"""Values by key of `conf/train.yaml`, as on its command line."""


Seeds = Annotated[Sequence[Annotated[int, Range(0, 2**63 - 1)]], Sized(1)]


@dataclass(frozen=True)
class TuneConfig:
    """The configuration of a study. `conf/tune.yaml` says what each key is."""

    name: str
    train: Mapping[str, Any] | None
    space: Mapping[str, Any]
    trials: PositiveInt
    parallel: PositiveInt
    rungs: Annotated[Sequence[PositiveInt], Sized(1)]
    reduction: Annotated[int, Range(2)]
    tuning_seeds: Seeds
    reporting_seeds: Seeds
    sampler: Literal["tpe", "random"]
    sampler_seed: Annotated[int, Range(0)]
    max_members: PositiveInt
    output_dir: str
    overwrite: bool


BELONGS_TO_THE_STUDY = ("trials", "reporting_seeds", "max_members", "output_dir", "overwrite", "name")
"""What may be another one when a study goes on."""


ELSEWHERE = {
    "budget": "it is set by rungs",
    "seed": "the seeds are tuning_seeds and reporting_seeds",
    "fold": "what folds is found by itself",
    "output_dir": "it is a key of the study's own",
    "overwrite": "finished runs are taken as they are",
    "retry_failed": "a run that failed is its trial's result",
}
"""Keys of `conf/train.yaml` that a study sets by itself."""


def check_settings(config: DictConfig) -> TuneConfig:
    """The configuration of a study, checked by itself.

    Raises:
        ConfigError: At the first mistake.
    """
    if util.find_spec("optuna") is None:
        raise ConfigError("optuna is not installed: pip install 'qohort[tune]'")
    settings: TuneConfig = build_config(TuneConfig, config)
    if not re.fullmatch(r"\w[\w-]*(/\w[\w-]*)*", settings.name):
        raise ConfigError(f"name={settings.name} names no file: use letters, digits, _ and -, with / for a folder")
    for key, seeds in (("tuning_seeds", settings.tuning_seeds), ("reporting_seeds", settings.reporting_seeds)):
        if len(set(seeds)) < len(seeds):
            raise ConfigError(f"{key}={as_typed(seeds)} has a seed twice: each must be another run")
    if both := sorted(set(settings.tuning_seeds) & set(settings.reporting_seeds)):
        raise ConfigError(
            f"tuning_seeds and reporting_seeds share {', '.join(map(str, both))}: what was chosen on a seed cannot be "
            "reported on it, give other seeds"
        )
    if list(settings.rungs) != sorted(set(settings.rungs)):
        raise ConfigError(f"rungs={as_typed(settings.rungs)} must rise: each is a budget above the one before")
    return settings


def check_space(settings: TuneConfig, space: Space) -> None:
    """Check all that trials can be made of, and that a winner can be kept, before anything is trained.

    Raises:
        ConfigError: At the first mistake.
    """
    for place, keys in (("train", settings.train or {}), ("space", space)):
        for key in keys:
            if key in ELSEWHERE:
                raise ConfigError(f"{place}: {key} is not set here: {ELSEWHERE[key]}")
    for key in space:
        if key.split(".")[0] in NOT_HASHED:
            raise ConfigError(f"space: {key} changes no result: set it in train")
    first = {key: dimension.samples[0] for key, dimension in space.items()}
    configs = _configs_or_blame(settings, first)
    check_output(configs[0])
    check_environment(configs[0])
    check_accelerator(configs[0])
    for key, dimension in space.items():
        for sample in dimension.samples[1:]:
            try:
                configs_of(settings, {**first, key: sample}, settings.rungs[0], settings.tuning_seeds)
            except ConfigError as error:
                raise ConfigError(f"space: {error}") from error
    check_experiment(settings, experiment_of(settings, first, []), first)


def _configs_or_blame(settings: TuneConfig, first: Settings) -> list[TrainConfig]:
    """The configurations of some trial at the last rung; what is wrong with them, or with those of another rung."""
    try:
        configs = configs_of(settings, first, settings.rungs[-1], settings.tuning_seeds)
    except ConfigError as error:
        try:
            configs_of(settings, {}, settings.rungs[-1], settings.tuning_seeds)
        except ConfigError as without:
            raise ConfigError(f"train: {without}") from without
        raise ConfigError(f"space: {error}") from error
    for budget in settings.rungs[:-1]:
        try:
            configs_of(settings, first, budget, settings.tuning_seeds)
        except ConfigError as error:
            raise ConfigError(f"rungs: {error}") from error
    return configs


def overrides_of(settings: TuneConfig, trial: Settings, budget: int) -> dict[str, Any]:
    """All that a trial's runs set but their seed."""
    return {**(settings.train or {}), **trial, "budget": budget, "output_dir": settings.output_dir}


def configs_of(settings: TuneConfig, trial: Settings, budget: int, seeds: Sequence[int]) -> list[TrainConfig]:
    """The configuration of each of a trial's runs.

    Raises:
        ConfigError: If there is a mistake in it.
    """
    tree = overrides_of(settings, trial, budget)
    output_dir = tree.pop("output_dir")
    config = _config_of(tuple(override(key, value) for key, value in tree.items()))
    return [replace(config, seed=seed, output_dir=output_dir) for seed in seeds]


@functools.cache  # composing takes a tenth of a second, and a trial is looked at several times
def _config_of(texts: tuple[str, ...]) -> TrainConfig:
    return check_config(compose("train", [*texts, "seed=0"]))[0]


def experiment_of(settings: TuneConfig, trial: Settings, header: Sequence[str]) -> str:
    """The experiment file of a trial on the reporting seeds, at the last rung."""
    tree = overrides_of(settings, trial, settings.rungs[-1])
    del tree["output_dir"]
    return experiment_text({**tree, "seed": list(settings.reporting_seeds)}, groups_of(Sources("train")), header)


def check_experiment(settings: TuneConfig, text: str, trial: Settings) -> None:
    """Check that an experiment file means the same as the overrides that it is made of.

    Raises:
        ConfigError: If it does not.
    """
    with tempfile.TemporaryDirectory() as directory:
        name = "tuning-candidate"
        file = Path(directory) / "experiment" / f"{name}.yaml"
        file.parent.mkdir()
        file.write_text(text)
        place = override("hydra.searchpath", [f"file://{directory}"])
        found = check_config(
            compose("train", [f"experiment={name}", override("output_dir", settings.output_dir), place])
        )
    if found != configs_of(settings, trial, settings.rungs[-1], settings.reporting_seeds):
        raise ConfigError("train and space hold settings that cannot be kept as an experiment file: name whole keys")

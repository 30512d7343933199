"""The configuration of a study, of the runs of its trials, and of the experiment file that keeps the best one."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf

from qohort.config.annotations import PositiveInt, Range, Sized
from qohort.config.checks import build_config
from qohort.config.composition import Sources, groups_of, override
from qohort.config.errors import ConfigError
from qohort.config.identity import NOT_HASHED
from qohort.config.members import check_config
from qohort.config.messages import NEEDS_GLOBAL, format_value
from qohort.config.mistakes import compose
from qohort.config.paths import check_output
from qohort.config.schema import TrainConfig
from qohort.experiments.experiment_file import experiment_text
from qohort.experiments.search_space import Space
from qohort.experiments.trials import Seeds, Settings, Trial, check_name, check_seeds, trial_configs
from qohort.runs.checking import check_accelerator, check_environment


@dataclass(frozen=True)
class TuneConfig:
    """The configuration of a study. `conf/tune.yaml` documents each key."""

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


MUTABLE_KEYS = ("trials", "reporting_seeds", "max_members", "output_dir", "overwrite", "name")
"""Keys that may change when a study is continued."""


SET_BY_STUDY = {
    "budget": "it is set by rungs",
    "seed": "the seeds are tuning_seeds and reporting_seeds",
    "fold": "trials are folded automatically",
    "output_dir": "set the study's own output_dir",
    "overwrite": "finished runs are reused",
    "retry_failed": "a failed run counts as the result of its trial",
}
"""Keys of `conf/train.yaml` that a study sets itself, with the reason or what to set instead."""


def check_settings(config: DictConfig) -> TuneConfig:
    """Build and check the configuration of a study, except for its search space.

    Raises:
        ConfigError: On the first mistake.
    """
    if util.find_spec("optuna") is None:
        raise ConfigError("optuna is not installed: pip install 'qohort[tune]'")
    if OmegaConf.is_config(config.get("study")):
        raise ConfigError(f"study: the keys of its file are not those of a study: {NEEDS_GLOBAL}")
    if "grid" in config:
        raise ConfigError(
            "grid is a key of sensitivity, not of tuning: this study is for qohort sensitivity study=NAME"
        )
    settings: TuneConfig = build_config(TuneConfig, config)
    check_name(settings.name)
    check_seeds({"tuning_seeds": settings.tuning_seeds, "reporting_seeds": settings.reporting_seeds})
    if both := sorted(set(settings.tuning_seeds) & set(settings.reporting_seeds)):
        raise ConfigError(
            f"tuning_seeds and reporting_seeds share {', '.join(map(str, both))}: report on seeds that were not used "
            "for tuning"
        )
    if list(settings.rungs) != sorted(set(settings.rungs)):
        raise ConfigError(f"rungs={format_value(settings.rungs)} must increase: each budget must exceed the one before")
    return settings


def check_space(settings: TuneConfig, space: Space) -> None:
    """Check the values of the search space, and that the best trial can be written as an experiment file.

    Args:
        settings: The study's configuration.
        space: Its search space.

    Raises:
        ConfigError: On the first mistake; nothing was trained.
    """
    for place, keys in (("train", settings.train or {}), ("space", space)):
        for key in keys:
            if key in SET_BY_STUDY:
                raise ConfigError(f"{place}: {key} cannot be set here: {SET_BY_STUDY[key]}")
    for key in space:
        if key.split(".")[0] in NOT_HASHED:
            raise ConfigError(f"space: {key} does not affect results: set it in train")
    first = {key: dimension.samples[0] for key, dimension in space.items()}
    configs = _checked_configs(settings, first)
    check_output(configs[0])
    for key, dimension in space.items():
        for sample in dimension.samples[1:]:
            try:
                configs_of(settings, {**first, key: sample}, settings.rungs[0], settings.tuning_seeds)
            except ConfigError as error:
                raise ConfigError(f"space: {error}") from error
    check_environment(configs[0])
    check_accelerator(configs[0])
    check_experiment(settings, experiment_of(settings, first, []), first)


def _checked_configs(settings: TuneConfig, first: Settings) -> list[TrainConfig]:
    """Return the configurations of one trial at the last rung.

    Raises:
        ConfigError: If a configuration at any rung is invalid; the message names `train`, `space` or `rungs`.
    """
    try:
        configs = configs_of(settings, first, settings.rungs[-1], settings.tuning_seeds)
    except ConfigError as error:
        try:
            configs_of(settings, {}, settings.rungs[-1], settings.tuning_seeds)
        except ConfigError as without:
            place = "rungs" if _is_of_budget(settings) else "train"
            raise ConfigError(f"{place}: {without}") from without
        raise ConfigError(f"space: {error}") from error
    for budget in settings.rungs[:-1]:
        try:
            configs_of(settings, first, budget, settings.tuning_seeds)
        except ConfigError as error:
            raise ConfigError(f"rungs: {error}") from error
    return configs


def _is_of_budget(settings: TuneConfig) -> bool:
    """Return whether the settings of all trials are valid with a budget that is large enough."""
    try:
        configs_of(settings, {}, 2**62, settings.tuning_seeds)
    except ConfigError:
        return False
    return True


def overrides_of(settings: TuneConfig, trial: Settings, budget: int) -> dict[str, Any]:
    """Return the values, by key, that the runs of a trial set, except the seed."""
    return {**(settings.train or {}), **trial, "budget": budget, "output_dir": settings.output_dir}


def configs_of(settings: TuneConfig, trial: Settings, budget: int, seeds: Sequence[int]) -> list[TrainConfig]:
    """Return the configuration of each run of a trial.

    Args:
        settings: The study's configuration.
        trial: The trial's settings.
        budget: env_steps of each run.
        seeds: The seed of each run.

    Raises:
        ConfigError: If the configuration is invalid.
    """
    return trial_configs(Trial(overrides_of(settings, trial, budget), tuple(seeds)))


def experiment_of(settings: TuneConfig, trial: Settings, header: Sequence[str]) -> str:
    """Return the text of an experiment file: a trial's settings with the reporting seeds and the last rung's budget."""
    tree = overrides_of(settings, trial, settings.rungs[-1])
    del tree["output_dir"]
    return experiment_text({**tree, "seed": list(settings.reporting_seeds)}, groups_of(Sources("train")), header)


def check_experiment(settings: TuneConfig, text: str, trial: Settings) -> None:
    """Check that an experiment file gives the same configuration as the overrides it was made from.

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
        raise ConfigError("train and space have settings that cannot be written to an experiment file: name whole keys")

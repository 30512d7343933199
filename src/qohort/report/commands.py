"""The command that trains a run again: a few overrides which give its configuration, checked by composing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from qohort.config.composition import override, without_hydra
from qohort.config.errors import ConfigError
from qohort.config.identity import experiment_tree, flat
from qohort.config.members import check_config
from qohort.config.messages import format_value
from qohort.config.mistakes import plain
from qohort.config.schema import TrainConfig

LEFT_OUT = ("seed", "fold", "output_dir", "overwrite", "retry_failed", "other_code", "logger", "checkpoint", "hydra")
"""Keys and groups of a command that change no bit of a run, and the seeds."""
WITHOUT_EFFECT = ("progress_bar", "profiler", "enable_model_summary")
"""Keys of `trainer` that change no bit."""


def compose(loader: ConfigLoader, overrides: Sequence[str]) -> list[TrainConfig]:
    """Return the configuration of each member that `qohort train` trains with these overrides.

    Args:
        loader: Hydra's configuration loader.
        overrides: The overrides.

    Raises:
        ConfigError: If they do not fit.
    """
    return check_config(load(loader, "train", overrides))


def load(loader: ConfigLoader, name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose a configuration.

    Args:
        loader: Hydra's configuration loader.
        name: The primary configuration, a file in `conf/`.
        overrides: The overrides.

    Raises:
        ConfigError: If they do not fit.
    """
    try:
        config = loader.load_configuration(name, list(overrides), run_mode=RunMode.RUN, from_shell=False)
    except HydraException as error:
        raise ConfigError(f"{format_value(list(overrides))} cannot be composed: {plain(str(error))}") from error
    return without_hydra(config)


def overrides_of(config: TrainConfig, command: Sequence[str], loader: ConfigLoader) -> list[str]:
    """Return overrides that give the configuration of a run, but for its seed.

    They are those of the command that trained it, and those of single keys where that does not suffice.

    Args:
        config: The run's configuration.
        command: The command line, as `manifest.json` has it.
        loader: Composes configurations.

    Raises:
        ConfigError: If the command does not give the configuration today, as after a change of `conf/`.
    """
    kept = [word for word in command[1:] if "=" in word or word.startswith("~")]
    texts = [word for word in kept if not word.startswith("-") and not _is_left_out(word)]
    composed = _first(loader, texts)
    given = relevant(composed)
    missing = {key: value for key, value in relevant(config).items() if given.get(key) != value}
    if missing:
        for key, value in missing.items():
            texts.append(("" if key in given else "++") + override("arm" if key == "agent" else key, value))
        composed = _first(loader, texts)
    if left := differing(config, composed):
        raise ConfigError(f"the command of {config.agent} on {config.env.name} does not give its configuration: {left}")
    return texts


def _first(loader: ConfigLoader, overrides: Sequence[str]) -> TrainConfig:
    return compose(loader, [*overrides, "seed=0"])[0]


def _is_left_out(text: str) -> bool:
    try:
        key = OverridesParser.create().parse_override(text).key_or_group
    except HydraException:
        return True  # an argument of a script, not an override
    return key.partition(".")[0].partition("/")[0] in LEFT_OUT or key in [f"trainer.{one}" for one in WITHOUT_EFFECT]


def relevant(config: TrainConfig) -> dict[str, Any]:
    """Return all keys that can change the bits of a run, but for its seed."""
    trainer = {key: value for key, value in asdict(config)["trainer"].items() if key not in WITHOUT_EFFECT}
    more: Mapping[str, Any] = {"log_every": config.log_every, "bits": config.bits, "trainer": trainer}
    return flat({**experiment_tree(replace(config, seed=0)), **more})


def differing(recorded: TrainConfig, composed: TrainConfig) -> str:
    """Return in words which keys have other values, among those that can change the bits; empty for none."""
    one, other = relevant(recorded), relevant(composed)
    return ", ".join(
        f"{key}={format_value(other.get(key))}, recorded {format_value(one.get(key))}"
        for key in dict.fromkeys((*one, *other))
        if one.get(key) != other.get(key)
    )

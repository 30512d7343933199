"""Composing the many jobs of a sweep: those that choose the same files are composed once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf


class Composer:
    """Composes configurations of one primary configuration, as `hydra.compose` does, but hundreds of them quickly.

    Hydra reads every file again for each configuration. It then sets the keys that overrides name; so for jobs
    that choose alike of the groups, the keys alone need to be set again.

    Args:
        loader: Hydra's.
        config_name: The primary configuration.
        master: The configuration of the sweep: its own overrides come first, and what it has resolved stays so.
    """

    def __init__(self, loader: ConfigLoader, config_name: str, master: DictConfig | None = None) -> None:
        self._loader, self._config_name, self._master = loader, config_name, master
        self._always: list[str] = [] if master is None else list(master.hydra.overrides.hydra)
        parser = OverridesParser.create(config_loader=loader)
        self._parse = cache(lambda text: parser.parse_overrides([text])[0])
        self._is_group = cache(lambda key: bool(loader.get_group_options(key)))
        self._load = cache(self._loaded)

    def __call__(self, texts: Sequence[str]) -> DictConfig:
        """The configuration with these overrides, with Hydra's own node."""
        overrides: list[Override] = [self._parse(text) for text in (*self._always, *texts)]
        chosen = tuple(str(one.input_line) for one in overrides if self._chooses(one))
        config = self._load(chosen).copy()
        ConfigLoaderImpl._apply_overrides_to_config([one for one in overrides if not self._chooses(one)], config)
        if self._master is not None:
            OmegaConf.copy_cache(from_config=self._master, to_config=config)
        return config

    def _chooses(self, override: Override) -> bool:
        """Whether an override chooses among files, for Hydra; `hydra.searchpath` says where they are."""
        key = override.key_or_group
        return key == "hydra.searchpath" or (self._is_group(key) and not isinstance(override.value(), dict))

    def _loaded(self, chosen: tuple[str, ...]) -> DictConfig:
        config: DictConfig = self._loader.load_configuration(
            self._config_name, list(chosen), run_mode=RunMode.RUN, from_shell=False
        )
        return config


def without_hydra(config: DictConfig) -> DictConfig:
    """A job's own configuration, in which references to Hydra's node (`${hydra:...}`) work as in the job."""
    HydraConfig.instance().set_config(config)
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])

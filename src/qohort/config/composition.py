"""Finds and composes configuration files. Jobs of a sweep that choose the same files read them once."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

REPOSITORY = Path(__file__).resolve().parents[3]
"""The clone, if the package is one's."""
_in_clone = (REPOSITORY / "conf" / "train.yaml").is_file()  # not in a wheel, whose package has the files
CONFIG_DIRECTORY = REPOSITORY / "conf" if _in_clone else Path(__file__).resolve().parents[1] / "conf"
"""The configuration that comes with Qohort."""
PROJECT = "conf"
"""The name of a project's own configuration directory."""


def project_directory() -> Path | None:
    """Return `./conf` if it is a configuration of Qohort's, with a group or a file that Qohort's own has, too.

    It is searched first, so that a project adds its own files and replaces Qohort's.
    """
    directory = Path.cwd() / PROJECT
    if not directory.is_dir() or directory.resolve() == CONFIG_DIRECTORY:
        return None
    known = {one.name for one in CONFIG_DIRECTORY.iterdir()}
    return directory if any(one.name in known for one in directory.iterdir()) else None


@dataclass(frozen=True)
class Sources:
    """The files that a command line's configuration is composed from.

    Attributes:
        name: Name of the primary configuration.
        directory: The directory that holds it.
        added: The directories of `--config-dir` and `hydra.searchpath`, searched after `directory`.
        project: The project's own directory, searched first; None for none.
    """

    name: str
    directory: Path = CONFIG_DIRECTORY
    added: tuple[Path, ...] = ()
    project: Path | None = None

    @classmethod
    def of(cls, arguments: Namespace, config_name: str) -> Sources | None:
        """Return the sources that the command line's options name; None if the primary configuration is not there."""
        own = arguments.config_path
        directory = Path.cwd() / own if own else CONFIG_DIRECTORY
        added = [Path(arguments.config_dir).absolute()] if arguments.config_dir else []
        added += [directory for text in arguments.overrides for directory in _searched(text)]
        name = (arguments.config_name or config_name).removesuffix(".yaml")
        sources = cls(name, directory, tuple(added), project_directory())
        return sources if any((one / f"{name}.yaml").is_file() for one in sources.directories) else None

    @property
    def directories(self) -> list[Path]:
        """The configuration directories, in search order."""
        return [*([self.project] if self.project else []), self.directory, *self.added]

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Compose the configuration with these overrides, Hydra's node included. Call it within `parser_of`."""
        return hydra.compose(self.name, [*overrides, *self.searchpath], return_hydra_config=True)

    def composer(self) -> Callable[[Sequence[str]], DictConfig]:
        """Return a function that does the same as `compose`, fast for many configurations. Use it in `parser_of`."""
        composer = Composer(GlobalHydra.instance().config_loader(), self.name)
        return lambda overrides: composer([*overrides, *self.searchpath])

    @property
    def searchpath(self) -> list[str]:
        """The override that adds `added` to Hydra's search path; empty without it."""
        return [override("hydra.searchpath", [f"file://{one}" for one in self.added])] if self.added else []


def _searched(text: str) -> list[Path]:
    """Return the directories that an override of `hydra.searchpath` names."""
    if not text.startswith("hydra.searchpath="):
        return []
    try:
        value = OverridesParser.create().parse_override(text).value()
    except HydraException:  # it is reported when the overrides are checked
        return []
    named = [str(getattr(one, "text", one)) for one in (value if isinstance(value, list) else [value])]
    return [Path(one.removeprefix("file://")).absolute() for one in named if "://" not in one or "file://" in one]


def own_directory() -> Path:
    """Return the configuration directory that new files belong to: that of the project, or of the clone."""
    project = project_directory()
    if project is not None:
        return project
    return CONFIG_DIRECTORY if _in_clone and Path.cwd().is_relative_to(REPOSITORY) else Path.cwd() / PROJECT


def override(key: str, value: Any) -> str:
    """Return a setting as an override in Hydra's grammar."""
    return f"{key}={_text(value)}"


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return QuotedString(value, Quote.single).with_quotes()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_text(one)}" for key, one in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(_text, value)) + "]"
    return repr(value)


def groups_of(sources: Sources) -> dict[str, Any]:
    """Return the groups of a primary configuration and the default option of each; empty if it cannot be read."""
    try:
        files = (one / f"{sources.name}.yaml" for one in sources.directories)
        primary: Any = OmegaConf.load(next(file for file in files if file.is_file()))
        listed = [entry for entry in primary.get("defaults") or [] if isinstance(entry, DictConfig)]
        # An option may be put elsewhere in the configuration: `group@key`.
        return {str(group).partition("@")[0]: choice for entry in listed for group, choice in entry.items()}
    except Exception:  # Hydra reports what is wrong with the file
        return {}


def options_of(group: str, sources: Sources) -> list[str]:
    """Return the options of a group, sorted by name."""
    found = {path.relative_to(one / group) for one in sources.directories for path in (one / group).rglob("*.yaml")}
    return sorted(path.with_suffix("").as_posix() for path in found)


@contextmanager
def parser_of(sources: Sources) -> Iterator[OverridesParser]:
    """Yield Hydra's parser of overrides. `hydra.compose` works inside this context, also within a running task."""
    running = get_gh_backup()
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(sources.directory), version_base="1.3"):
            yield OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    finally:
        restore_gh_from_backup(running)


class Composer:
    """Composes many configurations of one primary configuration, equal to those of `hydra.compose` but faster.

    Hydra reads every file again for each configuration and then applies the overrides of single keys. For jobs that
    choose the same options of all groups, only these keys change, so the files are read once.

    Args:
        loader: Hydra's configuration loader.
        config_name: The primary configuration.
        master: The configuration of the sweep, if there is one. Its overrides are applied first, and values that its
            resolvers have cached are kept.
    """

    def __init__(self, loader: ConfigLoader, config_name: str, master: DictConfig | None = None) -> None:
        self._loader, self._config_name, self._master = loader, config_name, master
        self._always: list[str] = [] if master is None else list(master.hydra.overrides.hydra)
        parser = OverridesParser.create(config_loader=loader)
        self._parse = cache(lambda text: parser.parse_overrides([text])[0])
        self._is_group = cache(lambda key: bool(loader.get_group_options(key)))
        self._load = cache(self._loaded)

    def __call__(self, texts: Sequence[str]) -> DictConfig:
        """Compose the configuration with these overrides, Hydra's node included."""
        overrides: list[Override] = [self._parse(text) for text in (*self._always, *texts)]
        chosen = tuple(str(one.input_line) for one in overrides if self._chooses(one))
        config = self._load(chosen).copy()
        ConfigLoaderImpl._apply_overrides_to_config([one for one in overrides if not self._chooses(one)], config)
        if self._master is not None:
            OmegaConf.copy_cache(from_config=self._master, to_config=config)
        return config

    def _chooses(self, override: Override) -> bool:
        """Return whether an override affects which files are read."""
        key = override.key_or_group
        return key == "hydra.searchpath" or (self._is_group(key) and not isinstance(override.value(), dict))

    def _loaded(self, chosen: tuple[str, ...]) -> DictConfig:
        config: DictConfig = self._loader.load_configuration(
            self._config_name, list(chosen), run_mode=RunMode.RUN, from_shell=False
        )
        return config


def without_hydra(config: DictConfig) -> DictConfig:
    """Return a job's configuration without Hydra's node; references to it (`${hydra:...}`) resolve as in the job."""
    HydraConfig.instance().set_config(config)
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])

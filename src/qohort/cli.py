"""Hydra entry points that tell a mistake in one line on stderr, with exit code 2 and no traceback.

What Hydra would say in its own words, or after it has written something, is looked for before it runs: choices of
groups, and every job of a sweep. What it refuses nevertheless is explained afterwards.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import re
import subprocess
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from omegaconf import DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qohort.checking import HYDRA_KEYS, locate, nearest, show
from qohort.composition import Composer, without_hydra
from qohort.config import TrainConfig, check_config, check_output
from qohort.errors import ConfigError, Interrupted, RunsFailed, SweepFailed
from qohort.interruption import STOP

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 75  # 75: EX_TEMPFAIL, "try again", of sysexits.h
CONFIG_DIRECTORY = Path(__file__).parents[2] / "conf"


def _check_run(config: DictConfig) -> TrainConfig:
    """Check a training run without a look at its environment."""
    first = check_config(config)[0]
    check_output(first)
    return first


def _check_jobs(firsts: Sequence[TrainConfig]) -> None:
    """Check the training jobs of a sweep before the first one starts, their environments included."""
    from qohort.training import check_accelerator, check_environment

    # Jobs that differ in other things only are checked once.
    alike = {repr((one.env, one.network, one.head, one.optimizer, one.trainer)): one for one in firsts}
    for first in alike.values():
        check_accelerator(first)
        check_environment(first)


# The files in conf/hydra/launcher have the names of the plugins' own settings, on purpose.
warnings.filterwarnings("ignore", message="(?s).*is validated against ConfigStore schema.*")

LAUNCHERS = {
    "joblib": ("joblib", "joblib"),
    "ray": ("ray", "ray"),
    "submitit_local": ("submitit", "slurm"),
    "submitit_slurm": ("submitit", "slurm"),
}
"""Of each launcher that is not Hydra's own: its plugin, and our extra that brings it."""

CHECKS: Mapping[str, Callable[[Any], Any]] = {"train": _check_run}
"""What a primary configuration is checked by before its task imports anything slow."""

JOB_CHECKS: Mapping[str, Callable[[Any], Any]] = {"train": _check_jobs}
"""What the jobs of a sweep are checked by before the first one starts, given what `CHECKS` made of each."""


def entry_point(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a script's main function from a task that takes the composed configuration.

    Args:
        config_name: The primary configuration, a file in `conf/`.
    """

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(task)
        def main() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, and what it raises is told here
            warnings.filterwarnings("error", r"provider=[\s\S]* is not available")  # a search path that is not there
            ended: list[Exception] = []
            process, started, sweeping = os.getpid(), False, False

            @functools.wraps(task)
            def run(config: DictConfig) -> Any:
                # Hydra would announce an error of its job in a line of its own: take it past Hydra.
                nonlocal started
                try:
                    started = True
                    if os.getpid() != process:  # a launcher's worker, which may have been started elsewhere
                        os.chdir(HydraConfig.get().runtime.cwd)
                    CHECKS.get(config_name, _nothing)(config)
                    return task(config)
                except (ConfigError, Interrupted, RunsFailed, HydraException, OmegaConfBaseException) as error:
                    if isinstance(error, Interrupted):
                        _leave_to_slurm()
                    if os.getpid() != process or sweeping:  # the sweep tells what became of its jobs
                        raise
                    ended.append(error)
                    return None

            try:
                arguments = _read_options()
                sweeping = bool(arguments.multirun)
                sources = Sources.of(arguments, config_name)
                if sources and not arguments.shell_completion:
                    _check_overrides(arguments, sources, config_name)
                try:
                    hydra.main(version_base="1.3", config_path=str(CONFIG_DIRECTORY), config_name=config_name)(run)()
                except (Interrupted, SweepFailed) as error:
                    _end(error)
                except Exception as error:
                    if started:
                        raise
                    raise _explain(error, arguments.overrides, sources, sweeping) from error
            except ConfigError as error:
                fail(str(error))
            if ended:
                _end(ended[0])

        return main

    return decorate


def _nothing(_: Any, /) -> Any:
    """No check."""


def _leave_to_slurm() -> None:
    """End an interrupted job of submitit's on SLURM without a result, which the sweep would take for its end.

    Submitit's own handler queues the job again where its time was up; where SLURM wants the node back, it does.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        try:
            STOP.hand_on()
        except subprocess.CalledProcessError as error:
            if error.returncode > 0:
                raise
            # `scontrol requeue` was itself ended by the requeueing, as a process of this job
        sys.exit(INTERRUPTED)


def fail(message: str) -> NoReturn:
    """End the program with one line."""
    print(f"qohort: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(BAD_INPUT)


def _end(error: Exception) -> NoReturn:
    """End the program with what a task, or a sweep, ended with."""
    if isinstance(error, SweepFailed | Interrupted | RunsFailed):
        print(f"qohort: {error}", file=sys.stderr)
        sys.exit(INTERRUPTED if isinstance(error, Interrupted) else FAILED)
    fail(str(error) if isinstance(error, ConfigError) else _plain(str(error)))


def _read_options() -> Namespace:
    """Let Hydra's own parser look at the command line first, and tell what it refuses in one line."""
    parser = get_args_parser()

    def error(message: str) -> NoReturn:
        if re.fullmatch(r"unrecognized arguments:( [^-]\S*=.*)+", message):
            raise ConfigError(f"{message}; write options such as -m before all settings, not between them")
        raise ConfigError(f"{message}; settings are given as key=value, and --help lists the options")

    parser.error = error  # type: ignore[method-assign]
    arguments = parser.parse_args()
    modes = [name for name in ("run", "multirun", "cfg", "info", "shell_completion") if getattr(arguments, name)]
    if len(modes) > 1:
        error(f"--{modes[0]} and --{modes[1]} exclude each other")
    if arguments.resolve and not (arguments.cfg or arguments.help):
        error("--resolve needs --cfg or --help")
    if arguments.experimental_rerun and not Path(arguments.experimental_rerun).exists():
        error(f"--experimental-rerun {arguments.experimental_rerun}: there is no such file")
    if arguments.config_dir and not Path(arguments.config_dir).is_dir():
        error(f"--config-dir {arguments.config_dir}: there is no such directory")
    return arguments


@dataclass(frozen=True)
class Sources:
    """Where a command line's configuration comes from.

    Attributes:
        name: The primary configuration.
        directory: Where it lies.
        added: The directory of `--config-dir`, which comes after it.
    """

    name: str
    directory: Path = CONFIG_DIRECTORY
    added: Path | None = None

    @classmethod
    def of(cls, arguments: Namespace, config_name: str) -> Sources | None:
        """The sources that the options name; None for what only Hydra can find, or miss."""
        own = arguments.config_path
        directory = Path(sys.argv[0]).parent.absolute() / own if own else CONFIG_DIRECTORY
        added = Path(arguments.config_dir).absolute() if arguments.config_dir else None
        sources = cls((arguments.config_name or config_name).removesuffix(".yaml"), directory, added)
        return sources if (directory / f"{sources.name}.yaml").is_file() else None

    @property
    def directories(self) -> list[Path]:
        """The directories, the first one first."""
        return [self.directory, *([self.added] if self.added else [])]

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration with these overrides and Hydra's node, within `_parser`."""
        return hydra.compose(self.name, [*overrides, *self.searchpath], return_hydra_config=True)

    def composer(self) -> Callable[[Sequence[str]], DictConfig]:
        """The same for many, within `_parser`."""
        composer = Composer(GlobalHydra.instance().config_loader(), self.name)
        return lambda overrides: composer([*overrides, *self.searchpath])

    @property
    def searchpath(self) -> list[str]:
        """The override that tells Hydra of the added directory; none where there is none."""
        return [f"hydra.searchpath=[file://{self.added}]"] if self.added else []


def _check_overrides(arguments: Namespace, sources: Sources, config_name: str) -> None:
    """Check the command line's overrides before Hydra runs: their choices, and all jobs of a sweep.

    Raises:
        ConfigError: At the first mistake.
    """
    with _parser(sources) as parser:
        parse = functools.cache(functools.partial(_parse, parser))
        overrides = [parse(text) for text in arguments.overrides]
        if arguments.multirun:
            jobs = list(_jobs(arguments.overrides, parse, sources.searchpath))
            compose: Callable[[Sequence[str]], DictConfig] = sources.composer()
        else:
            _check_choices(overrides, sources)
            # With these Hydra writes before the task starts and could check.
            writes = any(one.key_or_group in ("hydra.output_subdir", "hydra.run.dir") for one in overrides)
            jobs = [arguments.overrides] if writes and not (arguments.cfg or arguments.info) else []
            compose = sources.compose
        configs = []
        for job in jobs:
            _check_choices([parse(text) for text in job], sources)
            try:
                configs.append(compose(job))
            except Exception as error:
                raise _explain(error, job, sources, arguments.multirun) from error
    checked = [CHECKS.get(config_name, _nothing)(without_hydra(config)) for config in configs]
    if checked:  # the check of jobs imports torch
        JOB_CHECKS.get(config_name, _nothing)(checked)


def compose(config_name: str, texts: Sequence[str]) -> DictConfig:
    """A configuration within a running task, as its own script would have it.

    Args:
        config_name: The primary configuration, a file in `conf/`.
        texts: Overrides.

    Raises:
        ConfigError: If Hydra refuses them.
    """
    try:
        return hydra.compose(config_name, list(texts))
    except Exception as error:
        raise _explain(error, texts, Sources(config_name)) from error


@contextmanager
def _parser(sources: Sources) -> Iterator[OverridesParser]:
    """Hydra's parser of overrides, in a context in which `hydra.compose` can be called, also from within a task."""
    running = get_gh_backup()
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(sources.directory), version_base="1.3"):
            yield OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    finally:
        restore_gh_from_backup(running)


def _parse(parser: OverridesParser, text: str) -> Override:
    """One override.

    Raises:
        ConfigError: If it is none.
    """
    if not re.match(r"~.|[+]{0,2}[^=+~]+=", text):
        raise ConfigError(f"{text!r} is not a setting: write key=value")
    try:
        override = parser.parse_overrides([text])[0]
    except HydraException as error:
        raise ConfigError(
            f"{text!r} cannot be read: write key=value with no space around =, close every bracket and quote, "
            "and quote special characters"
        ) from error
    if override.package is not None:
        raise ConfigError(f"{text!r} names a package with @, which is not supported: write {override.key_or_group}=...")
    return override


def _jobs(texts: Sequence[str], parse: Callable[[str], Override], search: Sequence[str]) -> Iterator[list[str]]:
    """The overrides of each job of a sweep, but those that differ only in their seed as one.

    Args:
        texts: The overrides of the command line.
        parse: Reads one.
        search: An override that tells where else configurations are.
    """
    from qohort.ablation import asked, cells

    ablations = asked(texts, GlobalHydra.instance().config_loader(), search)
    for some in [cell.overrides for ablation in ablations for cell in cells(ablation)] if ablations else [texts]:
        for job in itertools.product(*(_values(parse(text)) for text in some)):
            yield list(job)


def _values(override: Override) -> list[str]:
    """An override with each value that it sweeps over."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():  # an interval, for a sweeper that can draw from it: its ends
        interval: Any = override.value()
        return [f"{key}={interval.start}", f"{key}={interval.end}"]
    try:
        values = list(override.sweep_string_iterator())
    except (HydraException, ValueError, TypeError) as error:
        raise ConfigError(
            f"{override.input_line} is no sweep: give plain values, as {key}=A,B, or one range, choice or glob"
        ) from error
    if not values:
        raise ConfigError(f"{override.input_line} has no values to sweep over")
    if key == "seed" and not any(value.startswith("[") for value in values):
        return [f"seed=[{','.join(values)}]"]
    return [f"{key}={value}" for value in values]


def _check_choices(overrides: Sequence[Override], sources: Sources) -> None:
    """Check that what is chosen of a group is there.

    Raises:
        ConfigError: If it is not.
    """
    defaults = groups_of(sources)
    for override in overrides:
        group = override.key_or_group
        if group == "hydra/launcher":
            _check_launcher(str(override.value()))
        options = _options(group, sources) if group in defaults else []
        if not options or override.is_sweep_override():
            continue
        if override.is_delete():
            raise ConfigError(
                f"{override.input_line} takes away what is needed: choose with {group}=NAME among {', '.join(options)}"
            )
        if override.is_add():
            raise ConfigError(f"{override.input_line} adds what is there already: write {group}=NAME without the +")
        value: Any = override.value()
        if isinstance(value, list) and len(value) > 1 and not isinstance(defaults[group], ListConfig):
            names = ",".join(map(str, value))
            raise ConfigError(f"{group}={show(value)} is a list: choose one, or run each with -m {group}={names}")
        for choice in value if isinstance(value, list) else [value]:
            if choice not in options and "${" not in str(choice):
                raise ConfigError(f"{group}={show(choice)} is not one of the choices: {nearest(str(choice), options)}")


def _check_launcher(name: str) -> None:
    """Check that the plugin of a launcher is installed.

    Raises:
        ConfigError: If it is not.
    """
    plugin, extra = LAUNCHERS.get(name, ("", ""))
    if extra and find_spec(f"hydra_plugins.hydra_{plugin}_launcher") is None:
        raise ConfigError(f"hydra/launcher={name} needs a plugin that is not installed: pip install 'qohort[{extra}]'")


def groups_of(sources: Sources) -> dict[str, Any]:
    """The groups of a primary configuration, and what is chosen of each; none of one that cannot be read."""
    try:
        primary: Any = OmegaConf.load(sources.directory / f"{sources.name}.yaml")
        listed = [entry for entry in primary.get("defaults") or [] if isinstance(entry, DictConfig)]
        return {str(group): choice for entry in listed for group, choice in entry.items()}
    except Exception:  # Hydra tells what is wrong with the file
        return {}


def _options(group: str, sources: Sources) -> list[str]:
    """What can be chosen of a group."""
    found = {path.relative_to(one / group) for one in sources.directories for path in (one / group).rglob("*.yaml")}
    return sorted(path.with_suffix("").as_posix() for path in found)


def _explain(
    error: BaseException, texts: Sequence[str], sources: Sources | None, sweeping: bool = False
) -> ConfigError:
    """What was wrong where Hydra refused overrides.

    Args:
        error: What it raised.
        texts: The overrides.
        sources: Where the configuration comes from.
        sweeping: Whether several values are meant as a sweep.
    """
    cause = _cause(error)
    if isinstance(cause, ConfigError):
        return cause
    if isinstance(cause, MissingConfigException) and cause.options:
        group, _, choice = str(cause.missing_cfg_file).rpartition("/")
        return ConfigError(f"{group}={choice} is not one of the choices: {nearest(choice, cause.options)}")
    if isinstance(cause, OSError) and cause.errno is not None:  # OmegaConf raises some without, for files
        return ConfigError(f"hydra.run.dir or hydra.sweep.dir cannot be made: {cause}")
    return ConfigError((sources and _first_mistake(texts, sources, sweeping)) or _told_by_hydra(error, cause, sources))


def _first_mistake(texts: Sequence[str], sources: Sources, sweeping: bool) -> str:
    """The first mistake that can be seen in overrides beside the configuration without them; empty for none."""
    try:
        with _parser(sources) as parser:
            overrides = [_parse(parser, text) for text in texts]
            groups = groups_of(sources)
            chosen = [one for one in overrides if _is_choice(one, groups) and not one.is_sweep_override()]
            config = sources.compose([str(one.input_line) for one in chosen])
    except Exception:  # composing was what went wrong
        return ""
    others = [one for one in overrides if one not in chosen and not (sweeping and one.is_sweep_override())]
    return next(filter(None, (_mistake(one, config, groups, sources) for one in others)), "")


def _is_choice(override: Override, groups: Mapping[str, Any]) -> bool:
    """Whether an override chooses of a group."""
    return override.key_or_group in groups or "/" in override.key_or_group


def _told_by_hydra(error: BaseException, cause: BaseException, sources: Sources | None) -> str:
    """The message of Hydra, with the override or the file that it is about, where it does not say."""
    text = _plain(str(cause))
    about = re.match("Error merging override (.+)", str(error))
    if about and about[1].partition("=")[0] not in text:
        return f"{about[1]} does not fit: {text}"
    if ".yaml" in text:
        return text
    for path in (path for one in (sources.directories if sources else ()) for path in sorted(one.rglob("*.yaml"))):
        try:
            OmegaConf.load(path)
        except Exception as damage:
            if _plain(str(damage)) == text:
                return f"{path} cannot be read: {text}"
    return text


def _cause(error: BaseException) -> BaseException:
    """The first error of a chain that says what was wrong."""
    seen = error
    while isinstance(seen.__cause__, HydraException | OmegaConfBaseException | ConfigError):
        seen = seen.__cause__
    return seen


def _plain(text: str) -> str:
    """Hydra's message without its words for Hydra's users."""
    text = re.split(r"Config search path|full_key|To append|Set the env|See https|object_type|set env var", text)[0]
    return " ".join(re.sub(r"^In '[^']*': ", "", text).split()).rstrip(",")


def _mistake(override: Override, config: DictConfig, groups: Mapping[str, Any], sources: Sources) -> str:
    """What is wrong with an override of a configuration; empty for nothing that can be seen."""
    line, key = str(override.input_line), override.key_or_group
    node, known = _walk(config, key)
    adds = override.is_add() or override.is_force_add()
    if override.is_sweep_override():
        several = isinstance(node, ListConfig) or isinstance(groups.get(key), ListConfig)
        return f"{line} is a sweep: add -m to run each" + (f", or write {key}=[...] for a list" if several else "")
    if known != key:
        return "" if adds else _unknown_key(override, known, node, config, sources)
    value: Any = override.value()
    if override.is_delete():
        if _content(node) is None and value is None:
            return f"{line} takes away what is null already: leave it out"
        return "" if value is None else f"{line} does not fit: {key} is {show(_content(node))}"
    if override.is_add() and not isinstance(value, dict | list):
        return f"{line} adds what is there already: write {key}=VALUE without the +"
    if isinstance(node, DictConfig) and not isinstance(value, dict):
        return f"{line} does not fit: {key} must be a group of keys: {', '.join(map(str, node))}"
    if isinstance(node, ListConfig) and isinstance(value, dict):
        return f"{line} does not fit: {key} must be as {show(_content(node))}"
    if isinstance(node, DictConfig) and not adds and (new := [name for name in value if name not in set(node)]):
        return f"{line} does not fit: {key} has no {new[0]}; write +{key}={{{new[0]}:VALUE}} to add it"
    return ""


def _content(node: Any) -> Any:
    """A node's value, in plain containers."""
    if OmegaConf.is_config(node):
        return OmegaConf.to_container(node)
    return node._value() if isinstance(node, Node) else node


def _walk(config: DictConfig, key: str) -> tuple[Any, str]:
    """The node that a key leads to, and the part of the key that exists."""
    node: Any = config
    parts = key.replace("[", ".").replace("]", "").split(".")
    for depth, part in enumerate(parts):
        if isinstance(node, ListConfig) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, DictConfig) and part in set(node):  # `in` the node alone overlooks what has no value yet
            node = node._get_node(part)
        else:
            return node, ".".join(parts[:depth])
    return node, key


def _unknown_key(override: Override, known: str, node: Any, config: DictConfig, sources: Sources) -> str:
    """An unknown key, with the nearest right ones.

    Args:
        override: The override.
        known: The part of its key that exists.
        node: The node there.
        config: The whole configuration.
        sources: Where it comes from.
    """
    line, key = str(override.input_line).lstrip("+~"), override.key_or_group
    prefix = f"{known}." if known else ""
    word = key[len(prefix) :].split(".")[0]
    if not isinstance(node, DictConfig):
        return f"unknown key {line}: {known} is {show(_content(node))}, in which there is no {word}"
    if elsewhere := [path for path in _paths(config) if path.endswith(f".{key}")]:
        return f"unknown key {line}: did you mean {' or '.join(elsewhere[:3])}?"
    if known and "." not in known and word in _options(known, sources):
        return f"unknown key {line}: {known}={word} is not chosen here"
    names = {str(name) for name in node if name not in HYDRA_KEYS and name != "hydra"}
    if override.is_delete() and known and not names:
        return f"unknown key {line}: there is no {word} in {known} to take away"
    if "_target_" in node and not known.startswith("hydra."):
        parameters = inspect.signature(locate(node["_target_"], known)).parameters
        if word in parameters:
            return f"{line} is left out by default" + ("" if override.is_delete() else f": write +{line} to give it")
    elif known and not names:
        return f"{line} is not there by default: write +{line} to add it"
    return (
        f"unknown key {line}: {nearest(word, names, prefix)}"
        if names
        else f"unknown key {line}: {known} has no keys, as it is chosen"
    )


def _paths(node: Any, prefix: str = "") -> Iterator[str]:
    """Every key of a configuration, but Hydra's own."""
    for name in node:
        if name != "hydra":
            yield f"{prefix}{name}"
            if isinstance(node._get_node(name), DictConfig):
                yield from _paths(node._get_node(name), f"{prefix}{name}.")

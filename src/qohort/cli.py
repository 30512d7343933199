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
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qohort.checking import HYDRA_KEYS, locate, nearest, show
from qohort.config import TrainConfig, check_config, check_output
from qohort.errors import ConfigError, Interrupted, RunsFailed, SweepFailed

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 75  # 75: EX_TEMPFAIL, "try again", of sysexits.h
CONFIG_DIRECTORY = Path(__file__).parents[2] / "conf"


def _check_run(config: DictConfig) -> TrainConfig:
    """Check a training run without a look at its environment."""
    first = check_config(config)[0]
    check_output(first)
    return first


def _check_job(config: DictConfig) -> None:
    """Check a training job of a sweep before the first one starts, its environment included."""
    first = _check_run(config)
    from qohort.training import check_accelerator, check_environment

    check_accelerator(first)
    check_environment(first)


CHECKS: Mapping[str, Callable[[DictConfig], Any]] = {"train": _check_run}
"""What a primary configuration is checked by before its task imports anything slow."""

JOB_CHECKS: Mapping[str, Callable[[DictConfig], Any]] = {"train": _check_job}
"""What every job of a sweep is checked by before the first one starts."""


def entry_point(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a script's main function from a task that takes the composed configuration.

    Args:
        config_name: The primary configuration, a file in `conf/`.
    """

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(task)
        def main() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, and what it raises is told here
            ended: list[Exception] = []
            process, started, sweeping = os.getpid(), False, False

            @functools.wraps(task)
            def run(config: DictConfig) -> Any:
                # Hydra would announce an error of its job in a line of its own: take it past Hydra.
                nonlocal started
                try:
                    started = True
                    CHECKS.get(config_name, _nothing)(config)
                    return task(config)
                except (ConfigError, Interrupted, RunsFailed, HydraException, OmegaConfBaseException) as error:
                    if os.getpid() != process or sweeping:  # the sweep tells what became of its jobs
                        raise
                    ended.append(error)
                    return None

            try:
                arguments = _read_options()
                sweeping = bool(arguments.multirun)
                _check_overrides(arguments, config_name)
                try:
                    hydra.main(version_base="1.3", config_path=str(CONFIG_DIRECTORY), config_name=config_name)(run)()
                except (Interrupted, SweepFailed) as error:
                    _end(error)
                except Exception as error:
                    if started:
                        raise
                    raise _explain(error, arguments.overrides, config_name) from error
            except ConfigError as error:
                fail(str(error))
            if ended:
                _end(ended[0])

        return main

    return decorate


def _nothing(config: DictConfig) -> None:
    """No check."""


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
    return arguments


def _check_overrides(arguments: Namespace, config_name: str) -> None:
    """Check the command line's overrides before Hydra runs: their choices, and all jobs of a sweep.

    Raises:
        ConfigError: At the first mistake.
    """
    if arguments.shell_completion or arguments.config_path or arguments.config_name:
        return
    directories = [CONFIG_DIRECTORY, *([Path(arguments.config_dir)] if arguments.config_dir else [])]
    with _parser() as parser:
        overrides = [_parse(parser, text) for text in arguments.overrides]
        if not arguments.multirun:
            _check_choices(overrides, config_name, directories)
            return
        added = [f"hydra.searchpath=[file://{Path(arguments.config_dir).absolute()}]"] if arguments.config_dir else []
        configs = []
        for job in _jobs(arguments.overrides, parser, added):
            _check_choices([_parse(parser, text) for text in job], config_name, directories)
            try:
                configs.append(hydra.compose(config_name, [*job, *added]))
            except Exception as error:
                raise _explain(error, job, config_name) from error
    for check in (CHECKS, JOB_CHECKS):
        for config in configs:
            check.get(config_name, _nothing)(config)


@contextmanager
def _parser() -> Iterator[OverridesParser]:
    """Hydra's parser of overrides, in a context in which `hydra.compose` can be called."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        yield OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())


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


def _jobs(texts: Sequence[str], parser: OverridesParser, search: Sequence[str]) -> Iterator[list[str]]:
    """The overrides of each job of a sweep, but those that differ only in their seed as one."""
    from qohort.ablation import asked, cells

    ablations = asked(texts, GlobalHydra.instance().config_loader(), search)
    for some in [cell.overrides for ablation in ablations for cell in cells(ablation)] if ablations else [texts]:
        for job in itertools.product(*(_values(_parse(parser, text)) for text in some)):
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
        raise ConfigError(f"{override.input_line} is no sweep: {_plain(str(error))}") from error
    if key == "seed" and not any(value.startswith("[") for value in values):
        return [f"seed=[{','.join(values)}]"]
    return [f"{key}={value}" for value in values]


def _check_choices(overrides: Sequence[Override], config_name: str, directories: Sequence[Path]) -> None:
    """Check that what is chosen of a group is there.

    Raises:
        ConfigError: If it is not.
    """
    defaults = _defaults(config_name)
    for override in overrides:
        group = override.key_or_group
        options = _options(group, directories) if group in defaults else []
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


def _defaults(config_name: str) -> dict[str, Any]:
    """The groups of a primary configuration, and what is chosen of each."""
    path = CONFIG_DIRECTORY / f"{config_name}.yaml"
    primary: Any = OmegaConf.load(path)
    entries = primary.get("defaults", [])
    return {str(group): choice for entry in entries if isinstance(entry, DictConfig) for group, choice in entry.items()}


def _options(group: str, directories: Sequence[Path]) -> list[str]:
    """What can be chosen of a group."""
    found = {path.relative_to(one / group) for one in directories for path in (one / group).rglob("*.yaml")}
    return sorted(path.with_suffix("").as_posix() for path in found)


def _explain(error: BaseException, texts: Sequence[str], config_name: str) -> ConfigError:
    """What was wrong where Hydra refused overrides."""
    cause = _cause(error)
    if isinstance(cause, ConfigError):
        return cause
    if isinstance(cause, MissingConfigException) and cause.options:
        group, _, choice = str(cause.missing_cfg_file).rpartition("/")
        return ConfigError(f"{group}={choice} is not one of the choices: {nearest(choice, cause.options)}")
    try:
        with _parser() as parser:
            overrides = [_parse(parser, text) for text in texts]
            groups = _defaults(config_name)
            chosen = [one for one in overrides if one.key_or_group in groups and not one.is_sweep_override()]
            config = hydra.compose(config_name, [str(one.input_line) for one in chosen], return_hydra_config=True)
    except Exception:  # composing was what went wrong
        return ConfigError(_plain(str(cause)))
    for override in overrides:
        mistake = "" if override in chosen else _mistake(override, config, groups)
        if mistake:
            return ConfigError(mistake)
    return ConfigError(_plain(str(cause)))


def _cause(error: BaseException) -> BaseException:
    """The first error of a chain that says what was wrong."""
    seen = error
    while isinstance(seen.__cause__, HydraException | OmegaConfBaseException | ConfigError):
        seen = seen.__cause__
    return seen


def _plain(text: str) -> str:
    """Hydra's message without its words for Hydra's users."""
    text = re.split(r"Config search path|full_key|To append|Set the env|See https|object_type|set env var", text)[0]
    return " ".join(re.sub(r"^In '[^']*': ", "", text).split())


def _mistake(override: Override, config: DictConfig, groups: Mapping[str, Any]) -> str:
    """What is wrong with an override of a configuration; empty for nothing that can be seen."""
    line, key = str(override.input_line), override.key_or_group
    node, known = _walk(config, key)
    value: Any
    if override.is_sweep_override():
        several = isinstance(node, ListConfig) or isinstance(groups.get(key), ListConfig)
        return f"{line} is a sweep: add -m to run each" + (f", or write {key}=[...] for a list" if several else "")
    if known != key:
        return "" if override.is_add() or override.is_force_add() else _unknown_key(line, key, known, node, config)
    if override.is_delete():
        value = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
        return f"{line} does not fit: {key} is {show(value)}"
    value = override.value()
    if override.is_add() and not isinstance(value, dict | list):
        return f"{line} adds what is there already: write {key}=VALUE without the +"
    if isinstance(node, DictConfig) and not isinstance(value, dict):
        return f"{line} does not fit: {key} must be a group of keys: {', '.join(map(str, node))}"
    if isinstance(node, ListConfig) and isinstance(value, dict):
        return f"{line} does not fit: {key} must be as {show(OmegaConf.to_container(node))}"
    return ""


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


def _unknown_key(line: str, key: str, known: str, node: Any, config: DictConfig) -> str:
    """An unknown key, with the nearest right ones.

    Args:
        line: The override.
        key: Its key.
        known: The part of the key that exists.
        node: The node there.
        config: The whole configuration.
    """
    line = line.lstrip("+~")
    prefix = f"{known}." if known else ""
    word = key[len(prefix) :].split(".")[0]
    if not isinstance(node, DictConfig):
        value = OmegaConf.to_container(node) if isinstance(node, ListConfig) else node
        return f"unknown key {line}: {known} is {show(value)}, in which there is no {word}"
    if elsewhere := [path for path in _paths(config) if path.endswith(f".{key}")]:
        return f"unknown key {line}: did you mean {' or '.join(elsewhere[:3])}?"
    names = {str(name) for name in node if name not in HYDRA_KEYS and name != "hydra"}
    if "_target_" in node and not known.startswith("hydra."):
        parameters = inspect.signature(locate(node["_target_"], known)).parameters
        if word in parameters:
            return f"{line} is left out by default: write +{line} to give it"
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

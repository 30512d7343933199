"""Explains in one line why Hydra refused overrides, and how to fix it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import hydra
import yaml
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qohort.config.checks import HYDRA_KEYS
from qohort.config.composition import Sources, groups_of, options_of, parser_of
from qohort.config.errors import ConfigError
from qohort.config.messages import NEEDS_GLOBAL, format_value, nearest
from qohort.config.overrides import parse_override
from qohort.config.schema import NOT_FOR_COHORTS
from qohort.config.targets import locate

DEVICES = ("device", "gpu", "cuda", "accelerator", "use_gpu", "use_cuda")
"""What other programs call the key of the device."""


def explain(error: BaseException, texts: Sequence[str], sources: Sources | None, sweeping: bool = False) -> ConfigError:
    """Return an error that explains why Hydra refused overrides.

    Args:
        error: The exception that Hydra raised.
        texts: The overrides.
        sources: The files of the configuration; None if unknown.
        sweeping: Whether the command line has -m, so that several values of a key are a sweep.
    """
    cause = _cause(error)
    if isinstance(cause, ConfigError):
        return cause
    if isinstance(cause, MissingConfigException) and cause.options:
        group, _, choice = str(cause.missing_cfg_file).rpartition("/")
        return ConfigError(f"{group}={choice} is not one of the choices: {nearest(choice, cause.options)}")
    if isinstance(cause, OSError) and cause.errno is not None:  # OmegaConf's own errors about files have no errno
        return ConfigError(f"hydra.run.dir or hydra.sweep.dir cannot be made: {cause}")
    return ConfigError((sources and _first_mistake(texts, sources, sweeping)) or _hydra_message(error, cause, sources))


def _first_mistake(texts: Sequence[str], sources: Sources, sweeping: bool) -> str:
    """Return the first mistake found by comparing the overrides with the default configuration; empty for none."""
    try:
        with parser_of(sources) as parser:
            overrides = [parse_override(parser, text) for text in texts]
            groups = groups_of(sources)
            chosen = [one for one in overrides if _is_choice(one, groups) and not one.is_sweep_override()]
            config = sources.compose([str(one.input_line) for one in chosen])
    except Exception:  # the configuration itself cannot be composed
        return ""
    others = [one for one in overrides if one not in chosen and not (sweeping and one.is_sweep_override())]
    return next(filter(None, (_mistake(one, config, groups, sources) for one in others)), "")


def _is_choice(override: Override, groups: Mapping[str, Any]) -> bool:
    """Return whether an override chooses an option of a group."""
    return override.key_or_group in groups or "/" in override.key_or_group


def _hydra_message(error: BaseException, cause: BaseException, sources: Sources | None) -> str:
    """Return Hydra's message, with the override or the file that it is about added if missing."""
    if isinstance(cause, yaml.MarkedYAMLError) and cause.problem_mark is not None:
        return _yaml_message(cause.problem_mark, str(cause.problem))
    text = plain(str(cause))
    if found := _in_defaults(str(cause), sources):
        return found
    full_key = str(getattr(cause, "full_key", None) or "")
    if "is not in struct" in text and "." in full_key:
        group, _, key = full_key.rpartition(".")
        return f"{group} has no {key}; write +{full_key}=VALUE to add it"
    about = re.match("Error merging override (.+)", str(error))
    if about and about[1].partition("=")[0] not in text:
        return f"{about[1]} does not fit: {text}"
    if ".yaml" in text:
        return text
    for path in (path for one in (sources.directories if sources else ()) for path in sorted(one.rglob("*.yaml"))):
        try:
            loaded = OmegaConf.load(path)
        except Exception as damage:
            if plain(str(damage)) == text:
                return f"{path} cannot be read: {text}"
        else:
            if "ListConfig" in text and not isinstance(loaded, DictConfig):
                return f"{path} has a list: it must have keys, as key: value"
    return text


def _yaml_message(mark: yaml.Mark, problem: str) -> str:
    """Return where and why a file is not YAML."""
    problem = re.sub(
        r"^could not determine a constructor for the tag '(?:tag:yaml\.org,2002:)?(.*)'$", r"unknown tag !!\1", problem
    )
    return f"{mark.name} cannot be read: line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _in_defaults(text: str, sources: Sources | None) -> str:
    """Return what is wrong with the defaults list of a file, from Hydra's message; empty if that is not the mistake."""
    if outside := re.search(r"Could not override '([\w/]+)@(\w+)\.\1'", text):
        return f"the file of {outside[2]} overrides {outside[1]}, which is not below {outside[2]}: {NEEDS_GLOBAL}"
    found = re.match(r"In '([\w/]+)': (.*)", text)
    if found is None or sources is None:
        return ""
    file = f"{found[1]}.yaml"
    if absent := re.match(r"Could not (?:load|find) '([\w/.-]+)'", found[2]):
        group, _, choice = absent[1].rpartition("/")
        options = options_of(group, sources)
        return f"the defaults of {file} name {absent[1]}, which does not exist: {nearest(choice, options)}"
    if unknown := re.match(r"Could not override '([\w/@]+)'", found[2]):
        group = unknown[1].partition("@")[0]
        hint = nearest(group.rpartition("/")[2], groups_of(sources))
        return f"the defaults of {file} override {group}, which is no group here: {hint}, as override /GROUP"
    if found[1] == sources.name:
        return ""
    return f"the defaults of {file} cannot be used: {plain(found[2])}"


def _cause(error: BaseException) -> BaseException:
    """Return the last error of a chain of causes that belongs to Hydra, OmegaConf or Qohort."""
    seen = error
    while isinstance(seen.__cause__, HydraException | OmegaConfBaseException | ConfigError):
        seen = seen.__cause__
    return seen


def plain(text: str) -> str:
    """Return Hydra's message without its technical details and advice."""
    text = re.split(r"Config search path|full_key|To append|Set the env|See https|object_type|set env var", text)[0]
    return " ".join(re.sub(r"^In '[^']*': ", "", text).split()).rstrip(",")


def _mistake(override: Override, config: DictConfig, groups: Mapping[str, Any], sources: Sources) -> str:
    """Return what is wrong with an override of a configuration; empty if no mistake is found."""
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
            return f"{line} deletes a key that is null already: leave it out"
        return "" if value is None else f"{line} does not fit: {key} is {format_value(_content(node))}"
    if override.is_add() and not isinstance(value, dict | list):
        return f"{line} adds a key that exists already: write {key}=VALUE without the +"
    if isinstance(node, DictConfig) and not isinstance(value, dict):
        return f"{line} does not fit: {key} must be a group of keys: {', '.join(map(str, node))}"
    if isinstance(node, ListConfig) and isinstance(value, dict):
        return f"{line} does not fit: {key} must be a list, as {format_value(_content(node))}"
    if isinstance(node, DictConfig) and not adds and (new := [name for name in value if name not in set(node)]):
        return f"{line} does not fit: {key} has no {new[0]}; write +{key}={{{new[0]}:VALUE}} to add it"
    return ""


def _content(node: Any) -> Any:
    """Return a node's value as plain containers."""
    if OmegaConf.is_config(node):
        return OmegaConf.to_container(node)
    return node._value() if isinstance(node, Node) else node


def _walk(config: DictConfig, key: str) -> tuple[Any, str]:
    """Return the deepest existing node on the way to a key, and the part of the key that leads to it."""
    node: Any = config
    parts = key.replace("[", ".").replace("]", "").split(".")
    for depth, part in enumerate(parts):
        if isinstance(node, ListConfig) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, DictConfig) and part in set(node):  # `part in node` misses keys that have no value yet
            node = node._get_node(part)
        else:
            return node, ".".join(parts[:depth])
    return node, key


def _unknown_key(override: Override, known: str, node: Any, config: DictConfig, sources: Sources) -> str:
    """Return a message about an unknown key that suggests the nearest known ones.

    Args:
        override: The override.
        known: The part of its key that exists.
        node: The node at `known`.
        config: The whole configuration.
        sources: The files of the configuration.
    """
    line, key = str(override.input_line).lstrip("+~"), override.key_or_group
    prefix = f"{known}." if known else ""
    word = key[len(prefix) :].split(".")[0]
    if key in DEVICES and "trainer" in config:
        return f"unknown key {line}: the device is chosen by trainer=gpu or trainer=cpu"
    if not isinstance(node, DictConfig):
        return f"unknown key {line}: {known} is {format_value(_content(node))} and has no key {word}"
    if known == "trainer" and word in NOT_FOR_COHORTS:
        return f"trainer.{word} does not go with a cohort: {NOT_FOR_COHORTS[word]}"
    if elsewhere := [path for path in _paths(config) if path.endswith(f".{key}")]:
        return f"unknown key {line}: did you mean {' or '.join(elsewhere[:3])}?"
    if known and "." not in known and word in options_of(known, sources):
        return f"unknown key {line}: {known}={word} is not chosen here"
    names = {str(name) for name in node if name not in HYDRA_KEYS and name != "hydra"}
    if override.is_delete() and known and not names:
        return f"unknown key {line}: there is no {word} in {known} to delete"
    if "_target_" in node and not known.startswith("hydra."):
        parameters = inspect.signature(locate(node["_target_"], known)).parameters
        if word in parameters:
            return f"{line} is not set by default" + ("" if override.is_delete() else f": write +{line} to set it")
    elif known and not names:
        return f"{line} is not set by default: write +{line} to add it"
    return (
        f"unknown key {line}: {nearest(word, names, prefix)}"
        if names
        else f"unknown key {line}: {f'the chosen {known}' if known else f'{sources.name}.yaml'} has no keys"
    )


def _paths(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the path of every key of a configuration except Hydra's own."""
    for name in node:
        if name != "hydra":
            yield f"{prefix}{name}"
            if isinstance(node._get_node(name), DictConfig):
                yield from _paths(node._get_node(name), f"{prefix}{name}.")


def compose(config_name: str, texts: Sequence[str]) -> DictConfig:
    """Compose a configuration within a running task, as that configuration's own script would.

    Args:
        config_name: The primary configuration, a file in `conf/`.
        texts: Overrides.

    Raises:
        ConfigError: If Hydra refuses them.
    """
    try:
        return hydra.compose(config_name, list(texts))
    except Exception as error:
        raise explain(error, texts, Sources(config_name)) from error

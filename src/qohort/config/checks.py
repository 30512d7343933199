"""Checks of a configuration against annotations: types, bounds, and the signatures of components.

A component (network, replay, exploration, ...) is a node with a `_target_`: its keys are checked against the
signature of that target, so a class of yours is checked like ours, and every key exists once. Bounds stand beside
the type, as in `Annotated[int, Range(1)]`, and so does what a component must be: `Annotated[Node, Role(...)]`.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import inspect
import pydoc
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qohort.config.annotations import Node, Range, Role, Sized
from qohort.config.errors import ConfigError
from qohort.config.messages import as_typed, nearest

Schema = TypeVar("Schema")


HYDRA_KEYS = ("_target_", "_convert_", "_recursive_")
"""What a component's node may hold besides its target's parameters."""


def build_config(schema: type[Schema], config: DictConfig | Mapping[str, Any]) -> Schema:
    """A dataclass from a configuration, each key checked against its annotation.

    Raises:
        ConfigError: At the first mistake.
    """
    built: Schema = _build(schema, resolve(config) if isinstance(config, DictConfig) else config, "")
    return built


def resolve(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers, with every reference replaced by what it refers to."""
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise ConfigError(f"{missing[0]} has no value: give it one with {missing[0]}=VALUE")
        tree = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        key = named = str(error.full_key)
        raw: Any = OmegaConf.to_container(config, resolve=False)
        with contextlib.suppress(LookupError, TypeError, ValueError):  # of a key that has itself a dot in it
            for part in key.replace("[", ".").replace("]", "").split("."):
                raw = raw[int(part)] if isinstance(raw, list) else raw[part]
            named = f"{key}={raw}"
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{named} refers to what is not there ({reason}): give it a value") from error
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def check_component(node: Any, path: str, role: Role | None = None) -> Node:
    """Check a node's keys against the signature of its `_target_`.

    Args:
        node: The node.
        path: Where it stands, for messages.
        role: What it must be; None for anything.

    Returns:
        The node, its values as the signature asks, and the defaults of what it leaves out.

    Raises:
        ConfigError: If the target does not exist or is of another kind, or a key is unknown, missing, of a wrong
            type or out of range.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(f"{path}={as_typed(node)} is not a group of keys with a _target_")
    name = f"{path}._target_={as_typed(node['_target_'])}"
    target = locate(node["_target_"], name)
    if role and inspect.isclass(target):
        _check_kind(target, role, name, made=False)
    try:
        parameters = inspect.signature(target).parameters
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{name} does not say what it takes: use a class or function with a signature") from error
    given = role.given if role else ()
    _check_given(parameters, given, name)
    checked = _check_parameters(node, target, parameters, given, path)
    if not given:
        made = _make(checked, path, node)
        if role:
            _check_kind(made, role, name, made=True)
    return checked


def locate(target: Any, name: str) -> Any:
    """What a `_target_` names.

    Args:
        target: The `_target_`.
        name: How it is called in messages.

    Raises:
        ConfigError: If it cannot be imported or called.
    """
    if not isinstance(target, str) or "." not in target:
        raise ConfigError(f"{name} does not fit: it must be a class or function, as module.Name")
    try:
        found = pydoc.locate(target)
    except pydoc.ErrorDuringImport as error:
        raise ConfigError(f"{name} cannot be imported: {' '.join(str(error).split())}") from error
    if found is None:
        raise ConfigError(f"{name} does not exist: it must be a class or function, as module.Name")
    if not callable(found):
        raise ConfigError(f"{name} cannot be called: it must be a class or function")
    return found


def _check_given(parameters: Mapping[str, inspect.Parameter], given: Sequence[str], name: str) -> None:
    """Whether a target takes what the program gives."""
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for parameter in given:
        if parameter not in parameters and not open_ended:
            raise ConfigError(
                f"{name} does not fit: it must take {' and '.join(given)}, which the program gives, "
                f"but takes no {parameter}"
            )


def _check_kind(thing: Any, role: Role, name: str, made: bool) -> None:
    """Whether a class, or what was made of one, can play a role."""
    lacking = _lacking(thing, role, made)
    if lacking:
        raise ConfigError(f"{name} does not fit: it must make a {role.kind}, but {lacking}")


def _lacking(thing: Any, role: Role, made: bool) -> str:
    """What a class, or what was made of it, lacks for its role; empty for nothing."""
    kind: Any = pydoc.locate(role.kind)
    if not getattr(kind, "_is_protocol", False):
        fits = isinstance(thing, kind) if made else issubclass(thing, kind)
        return "" if fits else "it is none"
    members = {name for name in (*vars(kind), *kind.__annotations__) if not name.startswith("_") or name == "__call__"}
    if not made:  # only methods: attributes may come with the instance
        members = {name for name in members if inspect.isfunction(vars(kind).get(name))}
    # Not hasattr: every class has its metaclass's __call__.
    has = {name for one in (type(thing) if made else thing).__mro__ for name in vars(one)}
    lacks = sorted(members - has - set(getattr(thing, "__dict__", ())))
    return f"it has no {', '.join(lacks)}" if lacks else ""


def _check_parameters(
    node: Mapping[str, Any],
    target: Any,
    parameters: Mapping[str, inspect.Parameter],
    given: Sequence[str],
    path: str,
) -> dict[str, Any]:
    """A node's keys against a signature."""
    hints = _hints(target)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    allowed = [name for name, p in parameters.items() if name not in given and p.kind not in variable]
    checked = {}
    for key, value in node.items():
        if key in HYDRA_KEYS:
            checked[key] = value
            continue
        if key in given or (key not in allowed and not open_ended):
            raise ConfigError(f"unknown key {path}.{key}={as_typed(value)}: {nearest(str(key), allowed, f'{path}.')}")
        checked[key] = check(hints.get(key, Any), value, f"{path}.{key}")
    for name in allowed:
        default = parameters[name].default
        if name in node:
            continue
        if default is inspect.Parameter.empty:
            raise ConfigError(f"{path}.{name} has no value: it must be {_words(hints.get(name, Any))}")
        if _is_plain(default):
            checked[name] = _as_written(default, hints.get(name, Any), f"{path}.{name}")
    return checked


def _is_plain(value: Any) -> bool:
    """Whether a default could stand in a configuration."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _as_written(default: Any, hint: Any, path: str) -> Any:
    """A default as it would be if a configuration had it, so that leaving it out and writing it down are the same."""
    written = list(default) if isinstance(default, tuple) else default
    try:
        return check(hint, written, path)
    except ConfigError:  # a default of its author's that does not keep its own annotation
        return written


def _make(node: Mapping[str, Any], path: str, written: Mapping[str, Any]) -> Any:
    """Make a component that needs nothing else, to see that its values go together.

    Args:
        node: The node, with its defaults.
        path: Where it stands, for messages.
        written: The node as the configuration has it.
    """
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        reason = " ".join(str(error.__cause__ or str(error).splitlines()[0]).split())
        values = as_typed({key: value for key, value in written.items() if key not in HYDRA_KEYS})
        # Where the reason has no value, all are told.
        raise ConfigError(f"{path}: {reason}" if "=" in reason else f"{path}={values}: {reason}") from error


def _hints(target: Any) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) and not dataclasses.is_dataclass(target) else target
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def _build(schema: type[Any], tree: Any, path: str) -> Any:
    """A dataclass from a mapping, each key checked: those that need an import last, to tell the others quickly."""
    if not isinstance(tree, Mapping):
        keys = ", ".join(f"{path}.{field.name}" for field in dataclasses.fields(schema))
        raise ConfigError(f"{path}={as_typed(tree)} is not a group of keys: it has {keys}")
    hints = typing.get_type_hints(schema, include_extras=True)
    prefix = f"{path}." if path else ""
    for key, value in tree.items():
        if key not in hints:
            parts = str(key).split(".")
            if len(parts) > 1 and parts[0] in hints:
                nested = ": {".join(parts) + ": VALUE" + "}" * (len(parts) - 1)
                raise ConfigError(f"unknown key {key}={as_typed(value)}: in a file write {nested}")
            raise ConfigError(f"unknown key {prefix}{key}={as_typed(value)}: {nearest(str(key), hints, prefix)}")
    for key, hint in hints.items():
        if key not in tree:
            raise ConfigError(f"{prefix}{key} has no value: it must be {_words(hint)}")
    order = sorted(hints, key=lambda key: "Role(" in str(hints[key]))
    return schema(**{key: check(hints[key], tree[key], f"{prefix}{key}") for key in order})


def check(hint: Any, value: Any, path: str, bounds: Sequence[Any] = ()) -> Any:
    """`value` as an annotation asks.

    Args:
        hint: The annotation.
        value: What a configuration has.
        path: Where it has it, for messages.
        bounds: What stands beside the type.

    Raises:
        ConfigError: At the first mistake.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _check_union(hint, value, path)
    if _is_component(hint) or (isinstance(value, Mapping) and "_target_" in value):
        return check_component(value, path, _role(hint))
    if hint is Any or isinstance(hint, typing.TypeVar):
        return value
    if origin is Annotated:
        return check(arguments[0], value, path, arguments[1:])
    if origin is Literal:
        return _check_literal(arguments, value, path)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type[Any], hint), value, path)
    if origin in (collections.abc.Mapping, dict):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}={as_typed(value)} is not {_words(hint)}")
        of = arguments[1] if arguments else Any
        return {key: check(of, one, f"{path}.{key}") for key, one in value.items()}
    if origin in (collections.abc.Sequence, list, tuple):
        return _check_sequence(hint, value, path, bounds)
    return _check_scalar(hint, value, path, bounds)


def _is_component(hint: Any) -> bool:
    return _role(hint) is not None


def _role(hint: Any) -> Role | None:
    """The role that an annotation gives: written beside the type, or a protocol; None where it is no component's."""
    roles = (one for one in getattr(hint, "__metadata__", ()) if isinstance(one, Role))
    protocol = Role(f"{hint.__module__}.{hint.__qualname__}") if getattr(hint, "_is_protocol", False) else None
    return next(roles, protocol)


def _check_literal(choices: Sequence[Any], value: Any, path: str) -> Any:
    if value not in choices or isinstance(value, bool):
        words = [str(choice) for choice in choices]
        raise ConfigError(f"{path}={as_typed(value)} is not one of the choices: {nearest(str(value), words)}")
    return value


def _check_union(hint: Any, value: Any, path: str) -> Any:
    arguments = typing.get_args(hint)
    if value is None and type(None) in arguments:
        return None
    candidates = [argument for argument in arguments if _from_text(argument)]
    errors = []
    for candidate in candidates:
        try:
            return check(candidate, value, path)
        except ConfigError as error:
            errors.append(error)
    if not errors:
        return value
    if len(errors) == 1:
        raise ConfigError(f"{errors[0]}{', or null' if type(None) in arguments else ''}")
    raise ConfigError(f"{path}={as_typed(value)} is not {_words(hint)}")


def _from_text(hint: Any) -> bool:
    """Whether a value of this type can stand in a configuration; one of another class cannot."""
    if typing.get_origin(hint) is not None or hint is Any or _is_component(hint) or dataclasses.is_dataclass(hint):
        return True
    return hint in (*NAMES, list, dict, tuple) or not inspect.isclass(hint)


def _check_sequence(hint: Any, value: Any, path: str, bounds: Sequence[Any]) -> Any:
    arguments = typing.get_args(hint) or (Any,)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"{path}={as_typed(value)} is not {_words(hint)}, as [A,B]")
    for bound in bounds:
        if isinstance(bound, Sized) and len(value) < bound.low:
            raise ConfigError(f"{path}={as_typed(value)} is too short: it must have at least {bound.low} elements")
    fixed = typing.get_origin(hint) is tuple and Ellipsis not in arguments
    if fixed and len(value) != len(arguments):
        raise ConfigError(f"{path}={as_typed(value)} does not fit: it must have {len(arguments)} elements")
    hints = arguments if fixed else [arguments[0]] * len(value)
    return [check(hint, one, f"{path}[{i}]") for i, (hint, one) in enumerate(zip(hints, value, strict=True))]


NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


def _check_scalar(hint: Any, value: Any, path: str, bounds: Sequence[Any]) -> Any:
    if hint in NAMES:
        accepted = (int, float) if hint is float else hint
        if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
            whole = hint is int and isinstance(value, float) and value.is_integer()
            number = hint is str and isinstance(value, int | float) and path.isidentifier()
            right = (
                f", as {int(value)}" if whole else f": quote it, as '{path}=\"{as_typed(value)}\"'" if number else ""
            )
            raise ConfigError(f"{path}={as_typed(value)} is not {_words(hint, bounds)}{right}")
        if value == "":
            raise ConfigError(f"{path}='' is empty: it must be some text")
    for bound in bounds:
        if isinstance(bound, Range) and isinstance(value, int | float) and value not in bound:
            raise ConfigError(f"{path}={as_typed(value)} is out of range: it must be {bound}")
    return float(value) if hint is float else value


def _words(hint: Any, bounds: Sequence[Any] = ()) -> str:
    """What a value must be, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if _is_component(hint):
        return "a group of keys with a _target_"
    if origin is Annotated:
        return _words(arguments[0], arguments[1:])
    if origin in (typing.Union, types.UnionType):
        names = [_words(one) for one in arguments if one is not type(None) and _from_text(one)]
        return " or ".join([*names, "null"] if type(None) in arguments else names)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (collections.abc.Mapping, dict) or dataclasses.is_dataclass(hint):
        return "a group of keys"
    if origin in (collections.abc.Sequence, list, tuple):
        of = arguments[0] if arguments else Any
        return "a list" if of is Any else f"a list, each {_words(of)}"
    ranges = [str(bound) for bound in bounds if isinstance(bound, Range)]
    return NAMES.get(hint, "given") + "".join(f" of {one}" if one.startswith("at") else f" {one}" for one in ranges)

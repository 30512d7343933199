"""Checks of a configuration against annotations: types, bounds, and the signatures of components.

A component (network, replay, exploration, ...) is a node with a `_target_`. Its keys are checked against the signature
of that target, so a user's class is checked like Qohort's own and no key is listed twice. Bounds are annotated beside
the type, as in `Annotated[int, Range(1)]`. So is the role of a component: `Annotated[Node, Role(...)]`.
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
from qohort.config.messages import format_value, nearest
from qohort.config.targets import locate

Schema = TypeVar("Schema")


HYDRA_KEYS = ("_target_", "_convert_", "_recursive_")
"""Keys that a component's node may have besides its target's parameters."""


def build_config(schema: type[Schema], config: DictConfig | Mapping[str, Any]) -> Schema:
    """Build a dataclass from a configuration and check each key against its annotation.

    Args:
        schema: The dataclass.
        config: The configuration.

    Raises:
        ConfigError: On the first invalid key.
    """
    built: Schema = _build(schema, resolve(config) if isinstance(config, DictConfig) else config, "")
    return built


def resolve(config: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain containers, with all interpolations resolved.

    Raises:
        ConfigError: If a key has no value or an interpolation cannot be resolved.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise ConfigError(f"{missing[0]} has no value: give it one with {missing[0]}=VALUE")
        tree = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        key = named = str(error.full_key)
        raw: Any = OmegaConf.to_container(config, resolve=False)
        with contextlib.suppress(LookupError, TypeError, ValueError):  # raised for a key that contains a dot itself
            for part in key.replace("[", ".").replace("]", "").split("."):
                raw = raw[int(part)] if isinstance(raw, list) else raw[part]
            named = f"{key}={raw}"
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{named} cannot be resolved ({reason}): give it a value") from error
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def _check_keys(node: Any, path: str) -> None:
    """Check that all keys are texts: in `config.yaml` and for `hash8`, 25 and "25" would be the same key."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if not isinstance(key, str):
                raise ConfigError(f"{path} has the key {key!r}, which is not a text: quote it")
            _check_keys(value, f"{path}.{key}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            _check_keys(value, f"{path}[{number}]")


def check_component(node: Any, path: str, role: Role | None = None) -> Node:
    """Check a node's keys against the signature of its `_target_`.

    Args:
        node: The node.
        path: Its key in the configuration, for messages.
        role: The role that the component must have; None for any.

    Returns:
        The node with its values converted to the annotated types and its omitted keys set to their defaults.

    Raises:
        ConfigError: If the target does not exist or has the wrong type, or if a key is unknown, missing, of the wrong
            type or out of range.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(f"{path}={format_value(node)} is not a group of keys with a _target_")
    name = f"{path}._target_={format_value(node['_target_'])}"
    target = locate(node["_target_"], name)
    if role is None and node.get("_partial_") is True:
        return dict(node)  # a function, as a wrapper's argument: it gets its other arguments later
    if role and inspect.isclass(target) and role.instead in class_names(target):
        return _check_parameters(node, target, _with_optional_directory(target), (), path)
    if role and inspect.isclass(target):
        _check_kind(target, role, name, made=False)
    if inspect.isabstract(target):
        lacks = ", ".join(sorted(getattr(target, "__abstractmethods__", ())))
        raise ConfigError(f"{name} cannot be made: it must define {lacks}")
    try:
        parameters = inspect.signature(target).parameters
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{name} has no signature: use a class or function that has one") from error
    given = role.given if role else ()
    _check_given(parameters, given, name)
    checked = _check_parameters(node, target, parameters, given, path)
    if not given:
        made = _instantiate(checked, path, node)
        if role:
            _check_kind(made, role, name, made=True)
    return checked


def class_names(kind: type[Any]) -> set[str]:
    """Return the import paths of a class and of those that it derives from; they need not be imported for this."""
    return {f"{one.__module__}.{one.__qualname__}" for one in kind.__mro__}


def _with_optional_directory(target: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of a logger, of which `save_dir` may be omitted: it is the run directory's then."""
    found = inspect.signature(target).parameters
    required = {key for key, one in found.items() if key == "save_dir" and one.default is inspect.Parameter.empty}
    return {key: one.replace(default="") if key in required else one for key, one in found.items()}


def _check_given(parameters: Mapping[str, inspect.Parameter], given: Sequence[str], name: str) -> None:
    """Check that a target takes the arguments that the program passes."""
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for parameter in given:
        if parameter not in parameters and not open_ended:
            raise ConfigError(
                f"{name} does not fit: the program calls it with {' and '.join(given)}, but it takes no {parameter}"
            )


def _check_kind(thing: Any, role: Role, name: str, made: bool) -> None:
    """Check that a class, or with `made` an instance of it, has the type that a role asks for."""
    reason = _type_mismatch(thing, role, made)
    if reason:
        raise ConfigError(f"{name} does not fit: it must make a {role.kind}, but {reason}")


def _type_mismatch(thing: Any, role: Role, made: bool) -> str:
    """Return why a class, or with `made` an instance of it, does not fit its role; empty if it fits."""
    kind: Any = pydoc.locate(role.kind)
    if not getattr(kind, "_is_protocol", False):
        fits = isinstance(thing, kind) if made else issubclass(thing, kind)
        return "" if fits else "it does not"
    members = {name for name in (*vars(kind), *kind.__annotations__) if not name.startswith("_") or name == "__call__"}
    if not made:  # only methods: attributes may be set in __init__
        members = {name for name in members if inspect.isfunction(vars(kind).get(name))}
    # hasattr would find the metaclass's __call__ on every class.
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
    """Check a node's keys against a signature and fill in the defaults of omitted ones."""
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
            raise ConfigError(
                f"unknown key {path}.{key}={format_value(value)}: {nearest(str(key), allowed, f'{path}.')}"
            )
        checked[key] = check(hints.get(key, Any), value, f"{path}.{key}")
    for name in allowed:
        default = parameters[name].default
        if name in node:
            continue
        if default is inspect.Parameter.empty:
            raise ConfigError(f"{path}.{name} has no value: it must be {_describe(hints.get(name, Any))}")
        if _is_plain(default):
            checked[name] = _as_written(default, hints.get(name, Any), f"{path}.{name}")
    return checked


def _is_plain(value: Any) -> bool:
    """Return whether a value can be written in a configuration file."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _as_written(default: Any, hint: Any, path: str) -> Any:
    """Convert a default like a configured value, so that an omitted key equals one that is set to its default."""
    written = list(default) if isinstance(default, tuple) else default
    try:
        return check(hint, written, path)
    except ConfigError:  # the default does not match its own annotation
        return written


def _instantiate(node: Mapping[str, Any], path: str, written: Mapping[str, Any]) -> Any:
    """Instantiate a component that needs no further arguments, to check that its values fit together.

    Args:
        node: The node, with its defaults.
        path: Its key in the configuration, for messages.
        written: The node as it is in the configuration.

    Raises:
        ConfigError: If the component refuses its arguments.
    """
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        reason = " ".join(str(error.__cause__ or str(error).splitlines()[0]).split())
        values = format_value({key: value for key, value in written.items() if key not in HYDRA_KEYS})
        # The message lists all values if the reason names none.
        raise ConfigError(f"{path}: {reason}" if "=" in reason else f"{path}={values}: {reason}") from error


def _hints(target: Any) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) and not dataclasses.is_dataclass(target) else target
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def _build(schema: type[Any], tree: Any, path: str) -> Any:
    """Build a dataclass from a mapping; components are checked last, since their imports are slow."""
    if not isinstance(tree, Mapping):
        keys = ", ".join(f"{path}.{field.name}" for field in dataclasses.fields(schema))
        raise ConfigError(f"{path}={format_value(tree)} is not a group of keys: it has {keys}")
    hints = typing.get_type_hints(schema, include_extras=True)
    prefix = f"{path}." if path else ""
    for key, value in tree.items():
        if key not in hints:
            parts = str(key).split(".")
            if len(parts) > 1 and parts[0] in hints:
                nested = ": {".join(parts) + ": VALUE" + "}" * (len(parts) - 1)
                raise ConfigError(f"unknown key {key}={format_value(value)}: in a file write {nested}")
            elsewhere = [f"{group}.{key}" for group, node in tree.items() if isinstance(node, Mapping) and key in node]
            hint = f"did you mean {' or '.join(elsewhere[:3])}?" if elsewhere else nearest(str(key), hints, prefix)
            raise ConfigError(f"unknown key {prefix}{key}={format_value(value)}: {hint}")
    defaults = {
        field.name
        for field in dataclasses.fields(schema)
        if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    }
    hints = {key: hint for key, hint in hints.items() if key in tree or key not in defaults}
    for key, hint in hints.items():
        if key not in tree:
            raise ConfigError(f"{prefix}{key} has no value: it must be {_describe(hint)}")
    order = sorted(hints, key=lambda key: "Role(" in str(hints[key]))
    return schema(**{key: check(hints[key], tree[key], f"{prefix}{key}") for key in order})


def check(hint: Any, value: Any, path: str, bounds: Sequence[Any] = ()) -> Any:
    """Check a value against an annotation and convert it to the annotated type.

    Args:
        hint: The annotation.
        value: The value in the configuration.
        path: Its key in the configuration, for messages.
        bounds: The metadata of the annotation: `Range` or `Sized`.

    Returns:
        The converted value, with the defaults of components filled in.

    Raises:
        ConfigError: On the first mistake.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _check_union(hint, value, path)
    if _is_component(hint) or (isinstance(value, Mapping) and "_target_" in value):
        return check_component(value, path, _role(hint))
    if hint is Any or isinstance(hint, typing.TypeVar):
        _check_keys(value, path)
        return value
    if origin is Annotated:
        return check(arguments[0], value, path, arguments[1:])
    if origin is Literal:
        return _check_literal(arguments, value, path)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type[Any], hint), value, path)
    if origin in (collections.abc.Mapping, dict):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}={format_value(value)} is not {_describe(hint)}")
        of = arguments[1] if arguments else Any
        _check_keys(value, path)
        return {key: check(of, one, f"{path}.{key}") for key, one in value.items()}
    if origin in (collections.abc.Sequence, list, tuple):
        return _check_sequence(hint, value, path, bounds)
    return _check_scalar(hint, value, path, bounds)


def _is_component(hint: Any) -> bool:
    return _role(hint) is not None


def _role(hint: Any) -> Role | None:
    """Return the role that an annotation gives, explicitly or as a protocol; None if it is not that of a component."""
    roles = (one for one in getattr(hint, "__metadata__", ()) if isinstance(one, Role))
    protocol = Role(f"{hint.__module__}.{hint.__qualname__}") if getattr(hint, "_is_protocol", False) else None
    return next(roles, protocol)


def _check_literal(choices: Sequence[Any], value: Any, path: str) -> Any:
    if value not in choices or isinstance(value, bool):
        words = [str(choice) for choice in choices]
        raise ConfigError(f"{path}={format_value(value)} is not one of the choices: {nearest(str(value), words)}")
    return value


def _check_union(hint: Any, value: Any, path: str) -> Any:
    arguments = typing.get_args(hint)
    if value is None and type(None) in arguments:
        return None
    candidates = [argument for argument in arguments if _is_configurable(argument)]
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
    raise ConfigError(f"{path}={format_value(value)} is not {_describe(hint)}")


def _is_configurable(hint: Any) -> bool:
    """Return whether a value of this type can be written in a configuration file."""
    if typing.get_origin(hint) is not None or hint is Any or _is_component(hint) or dataclasses.is_dataclass(hint):
        return True
    return hint in (*NAMES, list, dict, tuple) or not inspect.isclass(hint)


def _check_sequence(hint: Any, value: Any, path: str, bounds: Sequence[Any]) -> Any:
    arguments = typing.get_args(hint) or (Any,)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"{path}={format_value(value)} is not {_describe(hint)}, as [A,B]")
    for bound in bounds:
        if isinstance(bound, Sized) and len(value) < bound.low:
            raise ConfigError(f"{path}={format_value(value)} is too short: it must have at least {bound.low} elements")
    fixed = typing.get_origin(hint) is tuple and Ellipsis not in arguments
    if fixed and len(value) != len(arguments):
        raise ConfigError(f"{path}={format_value(value)} does not fit: it must have {len(arguments)} elements")
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
                f", as {int(value)}"
                if whole
                else f": quote it, as '{path}=\"{format_value(value)}\"'"
                if number
                else ""
            )
            raise ConfigError(f"{path}={format_value(value)} is not {_describe(hint, bounds)}{right}")
        if value == "":
            raise ConfigError(f"{path}='' is empty: it must be some text")
    for bound in bounds:
        if isinstance(bound, Range) and isinstance(value, int | float) and value not in bound:
            raise ConfigError(f"{path}={format_value(value)} is out of range: it must be {bound}")
    return float(value) if hint is float else value


def _describe(hint: Any, bounds: Sequence[Any] = ()) -> str:
    """Return in words what a value must be."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if _is_component(hint):
        return "a group of keys with a _target_"
    if origin is Annotated:
        return _describe(arguments[0], arguments[1:])
    if origin in (typing.Union, types.UnionType):
        names = [_describe(one) for one in arguments if one is not type(None) and _is_configurable(one)]
        return " or ".join([*names, "null"] if type(None) in arguments else names)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (collections.abc.Mapping, dict) or dataclasses.is_dataclass(hint):
        return "a group of keys"
    if origin in (collections.abc.Sequence, list, tuple):
        of = arguments[0] if arguments else Any
        return "a list" if of is Any else f"a list, each {_describe(of)}"
    ranges = [str(bound) for bound in bounds if isinstance(bound, Range)]
    return NAMES.get(hint, "given") + "".join(f" of {one}" if one.startswith("at") else f" {one}" for one in ranges)

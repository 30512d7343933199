"""The configuration's schema and its checks.

`TrainConfig` is the schema of what a script needs. A component (network, replay, exploration, ...) is a
node with a `_target_`: its keys are checked against the signature of that target, so a class of yours is
checked like ours, and every key exists once. Bounds stand beside the type, as in
`Annotated[int, Range(1)]`.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import hashlib
import inspect
import json
import math
import os
import pydoc
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qohort.errors import ConfigError

Schema = TypeVar("Schema")


@dataclass(frozen=True)
class Range:
    """Bounds of a number.

    Attributes:
        low: The least value, None for none.
        high: The greatest value, None for none.
        above: Whether `low` itself is excluded.
        below: Whether `high` itself is excluded.
    """

    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        """Whether a finite number lies within the bounds."""
        if not math.isfinite(value):
            return False
        if self.low is not None and (value <= self.low if self.above else value < self.low):
            return False
        return self.high is None or (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        """The bounds in words."""
        low = "" if self.low is None else f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        high = "" if self.high is None else f"below {self.high:g}" if self.below else f"at most {self.high:g}"
        return " and ".join(filter(None, (low, high))) or "finite"


@dataclass(frozen=True)
class Sized:
    """The least number of elements of a list."""

    low: int


COMPONENT = "component"
Component = Annotated[Mapping[str, Any], COMPONENT]
"""A node with a `_target_`, to be instantiated."""

PositiveInt = Annotated[int, Range(1)]
Count = Annotated[int, Range(0)]


@dataclass(frozen=True)
class EnvironmentConfig:
    """Which environment, and how many of it.

    Attributes:
        id: A Gymnasium id; `module:Name-v0` imports `module` first, so that it can register its own.
        num_envs: Environments a member.
        kwargs: Arguments for `gymnasium.make`.
        wrappers: Wrappers, innermost first: nodes whose `_target_` takes the environment as first argument.
    """

    id: str
    num_envs: PositiveInt
    kwargs: Mapping[str, Any]
    wrappers: Sequence[Component]


@dataclass(frozen=True)
class EvaluationConfig:
    """Greedy evaluation while training.

    Attributes:
        every: env_steps between evaluations.
        episodes: Episodes an evaluation.
        epsilon: The probability of a random action.
        max_episode_steps: Where an episode without an end is cut, in env_steps.
    """

    every: PositiveInt
    episodes: PositiveInt
    epsilon: Annotated[float, Range(0, 1)]
    max_episode_steps: PositiveInt


@dataclass(frozen=True)
class CheckpointConfig:
    """When the whole state is saved.

    Attributes:
        every: env_steps between checkpoints.
        minutes: Minutes after which there is one in any case.
    """

    every: PositiveInt
    minutes: Annotated[float, Range(0, above=True)]


@dataclass(frozen=True)
class TrainerConfig:
    """Where and how Lightning runs.

    Attributes:
        accelerator: `cpu`, `gpu`, or `auto`: a GPU where there is one.
        devices: Must be 1: a cohort is one program on one device.
        threads: CPU threads of torch.
        progress_bar: Whether progress is shown.
    """

    accelerator: Literal["cpu", "gpu", "auto"]
    devices: int
    threads: PositiveInt
    progress_bar: bool


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of one member. `conf/train.yaml` says what each key is, and its unit."""

    seed: Annotated[int, Range(0, 2**63 - 1)]
    agent: str
    budget: PositiveInt
    gamma: Annotated[float, Range(0, 1)]
    batch_size: PositiveInt
    train_every: PositiveInt
    gradient_steps: PositiveInt
    learning_starts: Count
    max_grad_norm: Annotated[float, Range(0, above=True)] | None
    log_every: PositiveInt
    compile: Literal["inductor", "aot_eager", "none"]
    env: EnvironmentConfig
    network: Component
    bootstrap: Component
    head: Component
    target_network: Component
    replay: Component
    exploration: Component
    optimizer: Component
    lr_schedule: Component
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    trainer: TrainerConfig
    logger: Mapping[str, Component]
    output_dir: str
    overwrite: bool
    retry_failed: bool


NOT_HASHED = ("seed", "output_dir", "overwrite", "retry_failed", "logger", "checkpoint")
"""What changes neither weights nor metric rows, besides `trainer.progress_bar`."""


class Role(NamedTuple):
    """What a component must be, and what it is given.

    Attributes:
        kind: The class or protocol of what its `_target_` makes.
        given: The parameters that the program fills in, besides the node's keys.
    """

    kind: str
    given: tuple[str, ...] = ()


ROLES = {
    "network": Role("torch.nn.Module", ("observation_space", "outputs")),
    "bootstrap": Role("qohort.td_loss.Bootstrap"),
    "head": Role("qohort.td_loss.Head"),
    "target_network": Role("qohort.update.TargetNetwork"),
    "replay": Role("qohort.replay.Replay", ("spec",)),
    "exploration": Role("qohort.exploration.Exploration"),
    "optimizer": Role("torch.optim.Optimizer", ("params",)),
    "lr_schedule": Role("qohort.exploration.Schedule"),
    "env.wrappers": Role("gymnasium.Env", ("env",)),
    "logger": Role("qohort.tracking.Sink", ("directory", "run")),
}
"""The components of a configuration, by where they stand."""

HYDRA_KEYS = ("_target_", "_convert_", "_recursive_")
"""What a component's node may hold besides its target's parameters."""

MANY = 12
"""More names than this are not listed where a near one is known."""


def nearest(word: str, words: Iterable[str], prefix: str = "") -> str:
    """The known words nearest to an unknown one, or all of them, as the end of a message.

    Args:
        word: The unknown one.
        words: The known ones.
        prefix: Stands before each near one.
    """
    known = sorted(words)
    if not known:
        return "there are none here"
    close = [prefix + one for one in difflib.get_close_matches(word, known, n=3)]
    listing = f"it must be one of {', '.join(known)}"
    if not close:
        return listing
    return f"did you mean {' or '.join(close)}?" + (f" ({listing})" if len(known) <= MANY else "")


FOLDABLE = (
    "gamma",
    "max_grad_norm",
    "optimizer.lr",
    "target_network.tau",
    *(f"exploration.{name}.{key}" for name in ("epsilon", "temperature") for key in ("value", "start", "end", "decay")),
)
"""What the members of a cohort may differ in besides their seed: numbers that each member holds for itself."""


def foldable_here(key: str, config: DictConfig) -> bool:
    """Whether a configuration has a key in which its members may differ."""
    group, _, name = key.rpartition(".")
    node = OmegaConf.select(config, group) if group else config
    if key not in FOLDABLE or not isinstance(node, DictConfig) or name not in node:
        return False
    # Only our own Adam has a learning rate a member.
    return key != "optimizer.lr" or OmegaConf.select(config, "optimizer._target_") == "qohort.optimizer.MemberAdam"


def check_config(config: DictConfig) -> list[TrainConfig]:
    """Check a composed configuration; the configuration of each member, in the order of `seed`.

    Raises:
        ConfigError: At the first mistake.
    """
    plain = config.copy()
    OmegaConf.set_struct(plain, False)
    fold = plain.pop("fold", None)
    if OmegaConf.is_missing(plain, "seed") or "seed" not in plain:
        raise ConfigError(f"seed has no value: give {SEED_WORDS}")
    seeds = _check_seeds(_resolve(plain)["seed"], apart=fold is None)
    if fold is None:
        first = _member(plain, seeds[0])
        return [dataclasses.replace(first, seed=seed) for seed in seeds]
    entries = [_check_fold(entry, config) for entry in _check_list(fold, len(seeds))]
    members = []
    made: dict[str, TrainConfig] = {}
    for seed, entry in zip(seeds, entries, strict=True):
        own = plain.copy()
        for key, value in entry.items():
            OmegaConf.update(own, key, value)
        name = json.dumps(entry, sort_keys=True)
        if name not in made:
            made[name] = _member(own, seed)
        members.append(dataclasses.replace(made[name], seed=seed))
    runs = [(seed, json.dumps(entry, sort_keys=True)) for seed, entry in zip(seeds, entries, strict=True)]
    if len(set(runs)) < len(runs):
        raise ConfigError("fold has the same seed with the same numbers twice: each member must be another run")
    return members


def _member(config: DictConfig, seed: int) -> TrainConfig:
    """One member's configuration, checked."""
    member: TrainConfig = _build(TrainConfig, {**_resolve(config), "seed": seed}, "")
    _check_together(member)
    return member


def _check_list(fold: Any, length: int) -> list[Any]:
    entries = OmegaConf.to_container(fold) if OmegaConf.is_config(fold) else fold
    if not isinstance(entries, list) or len(entries) != length:
        raise ConfigError(f"fold={show(entries)} must be a list with one {{key: number}} for each seed")
    return entries


def _check_fold(entry: Any, config: DictConfig) -> dict[str, float]:
    if not isinstance(entry, dict):
        raise ConfigError(f"fold has {show(entry)}: write {{key: number}}")
    for key, value in entry.items():
        if not foldable_here(str(key), config):
            here = [one for one in FOLDABLE if foldable_here(one, config)]
            raise ConfigError(f"fold: members may not differ in {key} here: {nearest(str(key), here)}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"fold: {key}={show(value)} must be a number")
    return entry


def build_config(schema: type[Schema], config: DictConfig | Mapping[str, Any]) -> Schema:
    """A dataclass from a configuration, each key checked against its annotation.

    Raises:
        ConfigError: At the first mistake.
    """
    built: Schema = _build(schema, _resolve(config) if isinstance(config, DictConfig) else config, "")
    return built


def _resolve(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers, with every reference replaced by what it refers to."""
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise ConfigError(f"{missing[0]} has no value: give it one with {missing[0]}=VALUE")
        tree = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        key = str(error.full_key)
        raw: Any = OmegaConf.to_container(config, resolve=False)
        for part in key.replace("[", ".").replace("]", "").split("."):
            raw = raw[int(part)] if isinstance(raw, list) else raw[part]
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{key}={raw} refers to what is not there ({reason}): give it a value") from error
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


SEED_WORDS = "an integer of at least 0 or a list of such integers"


def _check_seeds(seed: Any, apart: bool = True) -> list[int]:
    """The seeds as a list; `apart` where they must differ."""
    seeds = seed if isinstance(seed, list) else [seed]
    if not seeds:
        raise ConfigError(f"seed=[] trains nothing: give {SEED_WORDS}")
    for one in seeds:
        if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < 2**63:
            raise ConfigError(f"seed={show(seed)} is not {SEED_WORDS}")
    if apart and len(set(seeds)) < len(seeds):
        twice = next(one for one in seeds if seeds.count(one) > 1)
        raise ConfigError(f"seed={show(seeds)} has {twice} twice: the members of a cohort must have different seeds")
    return seeds


def _check_together(config: TrainConfig) -> None:
    """What no single key can tell."""
    if config.trainer.devices != 1:
        raise ConfigError(
            f"trainer.devices={config.trainer.devices} is not supported: a cohort is one program on one device; "
            "run several processes to use several"
        )
    steps = config.budget // config.env.num_envs * config.env.num_envs
    if steps == 0:
        raise ConfigError(f"budget={config.budget} is less than one step of env.num_envs={config.env.num_envs}")
    capacity = config.replay.get("capacity")
    if capacity is not None and capacity // config.env.num_envs * config.env.num_envs < config.batch_size:
        raise ConfigError(
            f"replay.capacity={capacity} holds less than a batch: give at least batch_size={config.batch_size}"
        )
    start = max(config.learning_starts, 1 if capacity is None else config.batch_size)
    first = -(-max(start, config.train_every) // config.train_every) * config.train_every
    if first > steps:
        raise ConfigError(
            f"budget={config.budget} ends before the first update at env step {first}: raise budget or lower "
            f"learning_starts={config.learning_starts}, batch_size={config.batch_size} "
            f"or train_every={config.train_every}"
        )
    if config.lr_schedule.get("per") == "episodes":
        raise ConfigError("lr_schedule.per=episodes is not supported: use env_steps or gradient_steps")
    if config.optimizer.get("fused"):
        raise ConfigError("optimizer.fused=true is not supported: it rounds differently by position; remove it")
    if "lr" in config.optimizer:
        _check(Annotated[float, Range(0, above=True)], config.optimizer["lr"], "optimizer.lr")


def check_output(config: TrainConfig) -> None:
    """Check that `output_dir` is a directory, or can become one.

    Raises:
        ConfigError: If it cannot be written.
    """
    path = Path(config.output_dir).absolute()
    existing = next(one for one in (path, *path.parents) if one.exists())
    if not existing.is_dir():
        raise ConfigError(f"output_dir={config.output_dir} cannot be made: {existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"output_dir={config.output_dir} cannot be written: you may not write to {existing}")


def check_component(node: Any, path: str, role: Role | None = None) -> Component:
    """Check a node's keys against the signature of its `_target_`.

    Args:
        node: The node.
        path: Where it stands, for messages.
        role: What it must be; None for anything.

    Returns:
        The node, its values as the signature asks.

    Raises:
        ConfigError: If the target does not exist or is of another kind, or a key is unknown, missing, of a wrong
            type or out of range.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(f"{path}={show(node)} is not a group of keys with a _target_")
    name = f"{path}._target_={show(node['_target_'])}"
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
        made = _make(checked, path)
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
            raise ConfigError(f"unknown key {path}.{key}={show(value)}: {nearest(key, allowed, f'{path}.')}")
        checked[key] = _check(hints.get(key, Any), value, f"{path}.{key}")
    for name in allowed:
        if parameters[name].default is inspect.Parameter.empty and name not in node:
            raise ConfigError(f"{path}.{name} has no value: it must be {_words(hints.get(name, Any))}")
    return checked


def _make(node: Mapping[str, Any], path: str) -> Any:
    """Make a component that needs nothing else, to see that its values go together."""
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        reason = " ".join(str(error.__cause__ or str(error).splitlines()[0]).split())
        values = show({key: value for key, value in node.items() if key not in HYDRA_KEYS})
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
        raise ConfigError(f"{path}={show(tree)} is not a group of keys: it has {keys}")
    hints = typing.get_type_hints(schema, include_extras=True)
    prefix = f"{path}." if path else ""
    for key, value in tree.items():
        if key not in hints:
            raise ConfigError(f"unknown key {prefix}{key}={show(value)}: {nearest(str(key), hints, prefix)}")
    for key, hint in hints.items():
        if key not in tree:
            raise ConfigError(f"{prefix}{key} has no value: it must be {_words(hint)}")
    order = sorted(hints, key=lambda key: COMPONENT in str(hints[key]))
    return schema(**{key: _check(hints[key], tree[key], f"{prefix}{key}") for key in order})


def _check(hint: Any, value: Any, path: str, bounds: Sequence[Any] = ()) -> Any:
    """`value` as `hint` asks, or a ConfigError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _check_union(hint, value, path)
    if _is_component(hint) or (isinstance(value, Mapping) and "_target_" in value):
        return check_component(value, path, _role(hint, path))
    if hint is Any or isinstance(hint, typing.TypeVar):
        return value
    if origin is Annotated:
        return _check(arguments[0], value, path, arguments[1:])
    if origin is Literal:
        return _check_literal(arguments, value, path)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type[Any], hint), value, path)
    if origin in (collections.abc.Mapping, dict):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}={show(value)} is not {_words(hint)}")
        of = arguments[1] if arguments else Any
        return {key: _check(of, one, f"{path}.{key}") for key, one in value.items()}
    if origin in (collections.abc.Sequence, list, tuple):
        return _check_sequence(hint, value, path, bounds)
    return _check_scalar(hint, value, path, bounds)


def _is_component(hint: Any) -> bool:
    return COMPONENT in getattr(hint, "__metadata__", ()) or getattr(hint, "_is_protocol", False)


def _role(hint: Any, path: str) -> Role | None:
    """The role of a component: by its place in the configuration, or by the protocol that its parameter names."""
    place = path.rpartition("[")[0] or (path.rpartition(".")[0] if path.startswith("logger.") else path)
    if place in ROLES:
        return ROLES[place]
    return Role(f"{hint.__module__}.{hint.__qualname__}") if getattr(hint, "_is_protocol", False) else None


def _check_literal(choices: Sequence[Any], value: Any, path: str) -> Any:
    if value not in choices or isinstance(value, bool):
        words = [str(choice) for choice in choices]
        raise ConfigError(f"{path}={show(value)} is not one of the choices: {nearest(str(value), words)}")
    return value


def _check_union(hint: Any, value: Any, path: str) -> Any:
    arguments = typing.get_args(hint)
    if value is None and type(None) in arguments:
        return None
    candidates = [argument for argument in arguments if _from_text(argument)]
    errors = []
    for candidate in candidates:
        try:
            return _check(candidate, value, path)
        except ConfigError as error:
            errors.append(error)
    if not errors:
        return value
    if len(errors) == 1:
        raise ConfigError(f"{errors[0]}{', or null' if type(None) in arguments else ''}")
    raise ConfigError(f"{path}={show(value)} is not {_words(hint)}")


def _from_text(hint: Any) -> bool:
    """Whether a value of this type can stand in a configuration; one of another class cannot."""
    if typing.get_origin(hint) is not None or hint is Any or _is_component(hint) or dataclasses.is_dataclass(hint):
        return True
    return hint in (*NAMES, list, dict, tuple) or not inspect.isclass(hint)


def _check_sequence(hint: Any, value: Any, path: str, bounds: Sequence[Any]) -> Any:
    arguments = typing.get_args(hint) or (Any,)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"{path}={show(value)} is not {_words(hint)}, as [A,B]")
    for bound in bounds:
        if isinstance(bound, Sized) and len(value) < bound.low:
            raise ConfigError(f"{path}={show(value)} is too short: it must have at least {bound.low} elements")
    fixed = typing.get_origin(hint) is tuple and Ellipsis not in arguments
    if fixed and len(value) != len(arguments):
        raise ConfigError(f"{path}={show(value)} does not fit: it must have {len(arguments)} elements")
    hints = arguments if fixed else [arguments[0]] * len(value)
    return [_check(hint, one, f"{path}[{i}]") for i, (hint, one) in enumerate(zip(hints, value, strict=True))]


NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


def _check_scalar(hint: Any, value: Any, path: str, bounds: Sequence[Any]) -> Any:
    if hint in NAMES:
        accepted = (int, float) if hint is float else hint
        if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
            whole = hint is int and isinstance(value, float) and value.is_integer()
            raise ConfigError(
                f"{path}={show(value)} is not {_words(hint, bounds)}" + (f", as {int(value)}" if whole else "")
            )
        if value == "":
            raise ConfigError(f"{path}='' is empty: it must be some text")
    for bound in bounds:
        if isinstance(bound, Range) and isinstance(value, int | float) and value not in bound:
            raise ConfigError(f"{path}={show(value)} is out of range: it must be {bound}")
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


def show(value: Any) -> str:
    """A value as one would type it."""
    text = _typed(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _typed(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value or "''"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_typed(one)}" for key, one in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(_typed, value)) + "]"
    return str(value)


def config_tree(config: TrainConfig) -> dict[str, Any]:
    """A member's configuration as plain mappings, as `config.yaml` holds it."""
    return dataclasses.asdict(config)


def config_hash(config: TrainConfig) -> str:
    """Eight hexadecimal digits of what an experiment is: equal for runs that differ in seed or in output only."""
    tree = {key: value for key, value in config_tree(config).items() if key not in NOT_HASHED}
    tree["trainer"] = {key: value for key, value in tree["trainer"].items() if key != "progress_bar"}
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()[:8]

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
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from qohort.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """Bounds of a number.

    Attributes:
        low: The least value, None for none.
        high: The greatest value, None for none.
        above: Whether `low` itself is excluded.
    """

    low: float | None = None
    high: float | None = None
    above: bool = False

    def __contains__(self, value: float) -> bool:
        """Whether a finite number lies within the bounds."""
        if not math.isfinite(value):
            return False
        if self.low is not None and (value <= self.low if self.above else value < self.low):
            return False
        return self.high is None or value <= self.high

    def __str__(self) -> str:
        """The bounds in words."""
        low = "" if self.low is None else f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        high = "" if self.high is None else f"at most {self.high:g}"
        return " and ".join(filter(None, (low, high)))


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
    """

    every: PositiveInt


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


NOT_HASHED = ("seed", "output_dir", "overwrite", "logger", "checkpoint")
"""What changes neither weights nor metric rows, besides `trainer.progress_bar`."""

GIVEN = {
    "network": ("observation_space", "outputs"),
    "replay": ("spec",),
    "optimizer": ("params",),
    "env.wrappers": ("env",),
    "logger": ("directory", "run"),
}
"""What the program gives a component besides its keys."""


def nearest(word: str, words: Iterable[str]) -> str:
    """The known words nearest to an unknown one, as the end of a message."""
    known = sorted(words)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"it must be one of {', '.join(known)}"


def check_config(config: DictConfig) -> list[TrainConfig]:
    """Check a composed configuration; the configuration of each member, in the order of `seed`.

    Raises:
        ConfigError: At the first mistake.
    """
    tree = _resolve(config)
    seeds = _check_seeds(tree.get("seed"))
    members = [_build(TrainConfig, {**tree, "seed": seed}, "") for seed in seeds]
    _check_together(members[0])
    return members


def _resolve(config: DictConfig) -> dict[str, Any]:
    missing = OmegaConf.missing_keys(config)
    if missing:
        raise ConfigError(f"{sorted(missing)[0]} has no value: give it one on the command line")
    tree = OmegaConf.to_container(config, resolve=True)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def _check_seeds(seed: Any) -> list[int]:
    seeds = seed if isinstance(seed, list) else [seed]
    if not seeds:
        raise ConfigError("seed=[] trains nothing: give an integer or a list of integers")
    for one in seeds:
        if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < 2**63:
            raise ConfigError(f"seed={seed} is not an integer of at least 0 or a list of such integers")
    if len(set(seeds)) < len(seeds):
        twice = next(one for one in seeds if seeds.count(one) > 1)
        raise ConfigError(f"seed={seeds} has {twice} twice: the members of a cohort have different seeds")
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


def check_component(node: Any, path: str, given: Sequence[str] = ()) -> Component:
    """Check a node's keys against the signature of its `_target_`.

    Args:
        node: The node.
        path: Where it stands, for messages.
        given: Parameters that the program gives.

    Raises:
        ConfigError: If the target does not exist, or a key is unknown, missing, of a wrong type or out of range.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(f"{path}={_show(node)} is not a component: it needs a _target_, or choose one by {path}=NAME")
    try:
        target = get_object(node["_target_"])
    except (InstantiationException, ImportError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}._target_={node['_target_']} cannot be imported: {reason}") from error
    if not callable(target):
        raise ConfigError(f"{path}._target_={node['_target_']} is not a class or function")
    hints = _hints(target)
    parameters = inspect.signature(target).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    allowed = [name for name in parameters if name not in given]
    for key, value in node.items():
        if key.startswith("_"):
            continue
        if key not in allowed and not open_ended:
            raise ConfigError(f"unknown key {path}.{key}={_show(value)}: {nearest(key, allowed)}")
        _check(hints.get(key, Any), value, f"{path}.{key}")
    for name in allowed:
        parameter = parameters[name]
        variable = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if parameter.default is parameter.empty and not variable and name not in node:
            raise ConfigError(f"{path}.{name} has no value: {node['_target_']} needs one")
    if not given:
        try:
            instantiate(node, _convert_="all")
        except InstantiationException as error:
            cause = error.__cause__ or error
            raise ConfigError(f"{path}: {' '.join(str(cause).split())}") from error
    return node


def _hints(target: Any) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) and not dataclasses.is_dataclass(target) else target
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):
        return {}


def _build(schema: type[Any], tree: Any, path: str) -> Any:
    """A dataclass from a mapping, each key checked."""
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path}={_show(tree)} is not a group of keys")
    hints = typing.get_type_hints(schema, include_extras=True)
    prefix = f"{path}." if path else ""
    for key, value in tree.items():
        if key not in hints:
            raise ConfigError(f"unknown key {prefix}{key}={_show(value)}: {nearest(str(key), hints)}")
    for key in hints:
        if key not in tree:
            raise ConfigError(f"{prefix}{key} has no value")
    return schema(**{key: _check(hint, tree[key], f"{prefix}{key}") for key, hint in hints.items()})


def _check(hint: Any, value: Any, path: str, bounds: Sequence[Any] = ()) -> Any:
    """`value` as `hint` asks, or a ConfigError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return value
    if COMPONENT in getattr(hint, "__metadata__", ()) or (isinstance(value, Mapping) and "_target_" in value):
        return check_component(value, path, GIVEN.get(path.rpartition("[")[0] or path.split(".")[0], ()))
    if origin is Annotated:
        return _check(arguments[0], value, path, arguments[1:])
    if origin in (typing.Union, types.UnionType):
        return _check_union(arguments, value, path)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            words = [str(argument) for argument in arguments]
            raise ConfigError(f"{path}={_show(value)} is not one of the choices: {nearest(str(value), words)}")
        return value
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type[Any], hint), value, path)
    if origin in (collections.abc.Mapping, dict):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}={_show(value)} is not a group of keys")
        return {key: _check(arguments[1], one, f"{path}.{key}") for key, one in value.items()}
    if origin in (collections.abc.Sequence, list, tuple):
        return _check_sequence(origin, arguments, value, path, bounds)
    return _check_scalar(hint, value, path, bounds)


def _check_union(arguments: Sequence[Any], value: Any, path: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    errors = []
    for argument in arguments:
        if argument is not type(None):
            try:
                return _check(argument, value, path)
            except ConfigError as error:
                errors.append(error)
    raise errors[0]


def _check_sequence(origin: Any, arguments: Sequence[Any], value: Any, path: str, bounds: Sequence[Any]) -> Any:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"{path}={_show(value)} is not a list, as in [{'24,24' if 'hidden' in path else 'a,b'}]")
    for bound in bounds:
        if isinstance(bound, Sized) and len(value) < bound.low:
            raise ConfigError(f"{path}={_show(value)} is too short: it needs at least {bound.low}")
    fixed = origin is tuple and Ellipsis not in arguments
    if fixed and len(value) != len(arguments):
        raise ConfigError(f"{path}={_show(value)} must have {len(arguments)} elements")
    hints = arguments if fixed else [arguments[0]] * len(value)
    return [_check(hint, one, f"{path}[{i}]") for i, (hint, one) in enumerate(zip(hints, value, strict=True))]


def _check_scalar(hint: Any, value: Any, path: str, bounds: Sequence[Any]) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    if hint in names and (not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)):
        raise ConfigError(f"{path}={_show(value)} is not {names[hint]}")
    for bound in bounds:
        if isinstance(bound, Range) and isinstance(value, int | float) and value not in bound:
            raise ConfigError(f"{path}={_show(value)} is out of range: it must be {bound}")
    return value


def _show(value: Any) -> str:
    """A value as one would type it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def config_tree(config: TrainConfig) -> dict[str, Any]:
    """A member's configuration as plain mappings, as `config.yaml` holds it."""
    return dataclasses.asdict(config)


def config_hash(config: TrainConfig) -> str:
    """Eight hexadecimal digits of what an experiment is: equal for runs that differ in seed or in output only."""
    tree = {key: value for key, value in config_tree(config).items() if key not in NOT_HASHED}
    tree["trainer"] = {key: value for key, value in tree["trainer"].items() if key != "progress_bar"}
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()[:8]

"""The configuration's schema: what a key of `conf/train.yaml` may be, and what no single key can tell."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf

from qohort.checking import Count, Node, PositiveInt, Range, Role, build_config, check, locate, nearest, resolve, show
from qohort.errors import ConfigError

if TYPE_CHECKING:
    from qohort.replay import Replay


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
    wrappers: Sequence[Annotated[Node, Role("gymnasium.Env", ("env",))]]

    @property
    def name(self) -> str:
        """The id without the module that registers it."""
        return self.id.rpartition(":")[2]


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
    normalize_observations: bool
    normalize_rewards: bool
    reward_scale: Annotated[float, Range(0, above=True)]
    reward_clip: Annotated[float, Range(0, above=True)] | None
    reset_every: PositiveInt | None
    log_every: PositiveInt
    compile: Literal["inductor", "aot_eager", "none"]
    env: EnvironmentConfig
    network: Annotated[Node, Role("torch.nn.Module", ("observation_space", "actions", "atoms"))]
    bootstrap: Annotated[Node, Role("qohort.bootstrap.Bootstrap")]
    head: Annotated[Node, Role("qohort.heads.Head")]
    target_network: Annotated[Node, Role("qohort.update.TargetNetwork")]
    replay: Annotated[Node, Role("qohort.replay.Replay", ("spec",))]
    exploration: Annotated[Node, Role("qohort.exploration.Exploration")]
    optimizer: Annotated[Node, Role("torch.optim.Optimizer", ("params",))]
    lr_schedule: Annotated[Node, Role("qohort.exploration.Schedule")]
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    trainer: TrainerConfig
    logger: Mapping[str, Annotated[Node, Role("qohort.tracking.Sink", ("directory", "run"))]]
    output_dir: str
    overwrite: bool
    retry_failed: bool


NOT_HASHED = ("seed", "output_dir", "overwrite", "retry_failed", "logger", "checkpoint")
"""What changes neither weights nor metric rows, besides `trainer.progress_bar`."""


FOLDABLE = (
    "gamma",
    "max_grad_norm",
    "optimizer.lr",
    "target_network.tau",
    "bootstrap.alpha",
    "bootstrap.temperature",
    *(f"exploration.{name}.{key}" for name in ("epsilon", "temperature") for key in ("value", "start", "end", "decay")),
)
"""What the members of a cohort may differ in besides their seed: numbers that each member holds for itself."""


def foldable_here(key: str, config: DictConfig) -> bool:
    """Whether a configuration has a key in which its members may differ."""
    group, _, name = key.rpartition(".")
    node = OmegaConf.select(config, group) if group else config
    if key not in FOLDABLE or not isinstance(node, DictConfig) or name not in node:
        return False
    return key != "optimizer.lr" or _own_learning_rates(OmegaConf.select(config, "optimizer._target_"))


def _own_learning_rates(optimizer: Any) -> bool:
    """Whether an optimiser has a learning rate a member: torch's have one for all."""
    from qohort.optimizer import MemberOptimizer

    try:
        return issubclass(locate(optimizer, "optimizer._target_"), MemberOptimizer)
    except (ConfigError, TypeError):  # not a class; what is wrong with it is said where it is checked
        return False


def check_config(config: DictConfig) -> list[TrainConfig]:
    """Check a composed configuration; the configuration of each member, in the order of `seed`.

    Raises:
        ConfigError: At the first mistake.
    """
    plain = config.copy()
    OmegaConf.set_struct(plain, False)
    if plain.pop("ablation", None) is not None:
        raise ConfigError("ablation is a sweep: add -m to run it (and leave hydra/sweeper as it is)")
    arm = plain.pop("arm", None)
    if arm is not None:
        plain.agent = _check_arm(arm)
    fold = plain.pop("fold", None)
    if OmegaConf.is_missing(plain, "seed") or "seed" not in plain:
        raise ConfigError(f"seed has no value: give {SEED_WORDS}")
    seeds = _check_seeds(resolve(plain)["seed"], apart=fold is None)
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
    for key in sorted({key for entry in entries for key in entry}):
        if OmegaConf.select(plain, key) is None and not all(key in entry for entry in entries):
            raise ConfigError(f"fold: {key} is null for some members and a number for others: give each a number")
    runs = [(seed, json.dumps(entry, sort_keys=True)) for seed, entry in zip(seeds, entries, strict=True)]
    if len(set(runs)) < len(runs):
        raise ConfigError("fold has the same seed with the same numbers twice: each member must be another run")
    return members


def _member(config: DictConfig, seed: int) -> TrainConfig:
    """One member's configuration, checked."""
    member: TrainConfig = build_config(TrainConfig, {**resolve(config), "seed": seed})
    _check_together(member)
    return member


def _check_arm(arm: Any) -> str:
    """A name that can be part of a directory's."""
    if not isinstance(arm, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", arm):
        raise ConfigError(f"arm={show(arm)} is not a name: use letters, digits, _, ., + and -")
    return arm


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
    replay: type[Replay] = locate(config.replay["_target_"], "replay._target_")
    if misfit := replay.misfit(config):
        raise ConfigError(misfit)
    if replay.makes_targets:
        _check_made_targets(config)
    start = max(config.learning_starts, replay.needed(config))
    first = -(-max(start, config.train_every) // config.train_every) * config.train_every
    if first > steps:
        raise ConfigError(
            f"budget={config.budget} ends before the first update at env step {first}: raise budget or lower "
            f"learning_starts={config.learning_starts}, batch_size={config.batch_size} "
            f"or train_every={config.train_every}"
        )
    if config.bootstrap.get("epsilon", 0.0) is None and "epsilon" not in config.exploration:
        raise ConfigError("bootstrap.epsilon=null is that of the exploration, which has none here: give a number")
    if config.bootstrap.get("epsilon", 0.0) is None and config.exploration.get("spread") and config.env.num_envs > 1:
        raise ConfigError(
            "bootstrap.epsilon=null is that of the exploration, which differs between environments by "
            f"exploration.spread={config.exploration['spread']}: give a number"
        )
    if config.lr_schedule.get("per") == "episodes":
        raise ConfigError("lr_schedule.per=episodes is not supported: use env_steps or gradient_steps")
    fits = getattr(locate(config.optimizer["_target_"], "optimizer._target_"), "misfit", None)
    if fits is not None and (misfit := fits(config)):
        raise ConfigError(misfit)
    if config.optimizer.get("fused"):
        raise ConfigError("optimizer.fused=true is not supported: it rounds differently by position; remove it")
    if "lr" in config.optimizer:
        check(Annotated[float, Range(0, above=True)], config.optimizer["lr"], "optimizer.lr")


def _check_made_targets(config: TrainConfig) -> None:
    """Whether all that would make a target is off, where the replay makes it."""
    from qohort.bootstrap import Greedy
    from qohort.heads import ScalarHead
    from qohort.update import NoTarget

    name = config.replay["_target_"].rpartition(".")[2]
    for key, kind, choice in (
        ("head", ScalarHead, "squared or huber"),
        ("bootstrap", Greedy, "greedy"),
        ("target_network", NoTarget, "none"),
    ):
        target = getattr(config, key)["_target_"]
        if not issubclass(locate(target, key), kind):
            raise ConfigError(f"{key}={target} has no part in the returns that {name} makes: use {key}={choice}")


def check_output(config: TrainConfig) -> None:
    """Check that `output_dir` is a directory, or can become one.

    Raises:
        ConfigError: If it cannot be written.
    """
    check_directory("output_dir", config.output_dir)


def check_directory(key: str, value: str) -> None:
    """Check that the directory that a key names is one, or can become one.

    Raises:
        ConfigError: If it cannot be written.
    """
    path = Path(value).absolute()
    try:
        existing = next(one for one in (path, *path.parents) if one.exists())
    except OSError as error:  # a name too long
        raise ConfigError(f"{key}={value} cannot be made: {error.strerror}") from error
    if not existing.is_dir():
        raise ConfigError(f"{key}={value} cannot be made: {existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{key}={value} cannot be written: you may not write to {existing}")


def config_tree(config: TrainConfig) -> dict[str, Any]:
    """A member's configuration as plain mappings, as `config.yaml` holds it."""
    return dataclasses.asdict(config)


def experiment_tree(config: TrainConfig) -> dict[str, Any]:
    """What of a configuration says what an experiment is: without seed and output."""
    tree = {key: value for key, value in config_tree(config).items() if key not in NOT_HASHED}
    tree["trainer"] = {key: value for key, value in tree["trainer"].items() if key != "progress_bar"}
    return tree


def config_hash(config: TrainConfig) -> str:
    """Eight hexadecimal digits of what an experiment is: equal for runs that differ in seed or in output only."""
    return hashlib.sha256(json.dumps(experiment_tree(config), sort_keys=True, default=str).encode()).hexdigest()[:8]

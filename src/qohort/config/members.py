"""The configuration's schema: what a key of `conf/train.yaml` may be, and what no single key can tell."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Annotated, Any

from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from qohort.replay.base import Replay

from qohort.config.annotations import Range
from qohort.config.checks import build_config, check, locate, resolve
from qohort.config.errors import ConfigError
from qohort.config.messages import nearest, show
from qohort.config.schema import TrainConfig

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
    from qohort.agent.optimizers import MemberOptimizer

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
    from qohort.agent.bootstrap import Greedy
    from qohort.agent.heads import ScalarHead
    from qohort.agent.target_networks import NoTarget

    name = config.replay["_target_"].rpartition(".")[2]
    for key, kind, choice in (
        ("head", ScalarHead, "squared or huber"),
        ("bootstrap", Greedy, "greedy"),
        ("target_network", NoTarget, "none"),
    ):
        target = getattr(config, key)["_target_"]
        if not issubclass(locate(target, key), kind):
            raise ConfigError(f"{key}={target} has no part in the returns that {name} makes: use {key}={choice}")

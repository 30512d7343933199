"""Checks a composed configuration and returns the configuration of each member.

A component declares which other keys it does not support: its class method `incompatibility(config)` returns a message,
or None if there is no conflict.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf

from qohort.config.annotations import Range
from qohort.config.checks import build_config, check, resolve
from qohort.config.errors import ConfigError
from qohort.config.folding import foldable_keys
from qohort.config.labels import label_of
from qohort.config.messages import NEEDS_GLOBAL, format_value, nearest
from qohort.config.paths import expand_paths
from qohort.config.schema import NOT_FOR_COHORTS, EnvironmentConfig, TrainConfig, evaluation_interval
from qohort.config.targets import locate


def check_config(config: DictConfig) -> list[TrainConfig]:
    """Check a composed configuration and return the configuration of each member, in the order of `seed`.

    Args:
        config: The composed configuration, without Hydra's node.

    Raises:
        ConfigError: On the first mistake.
    """
    plain = config.copy()
    OmegaConf.set_struct(plain, False)
    expand_paths(plain)
    if plain.pop("ablation", None) is not None:
        raise ConfigError("ablation is a sweep: add -m to run it (and leave hydra/sweeper as it is)")
    _check_not_stopping(plain.pop("until", None), plain.pop("sequential", None) or {})
    for group in PRESETS:
        if OmegaConf.is_config(plain.get(group)):
            raise ConfigError(
                f"{group}={format_value(OmegaConf.to_container(plain[group]))} comes from a file in {group}/ whose "
                f"keys are not those of a run: {NEEDS_GLOBAL}"
            )
    arm = plain.pop("arm", None)
    plain.agent = label_of(config) if arm is None else _check_arm(arm)
    fold = plain.pop("fold", None)
    if OmegaConf.is_missing(plain, "seed") or "seed" not in plain:
        raise ConfigError(f"seed has no value: give {SEED_WORDS}")
    seeds = _check_seeds(resolve(plain)["seed"], distinct=fold is None)
    if fold is None:
        first = _member(plain, seeds[0])
        return [dataclasses.replace(first, seed=seed) for seed in seeds]
    foldable = foldable_keys(resolve(plain))
    entries = [_check_fold(entry, foldable) for entry in _check_list(fold, len(seeds))]
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
        raise ConfigError("fold has the same seed with the same numbers twice: each member must be a different run")
    return members


def _check_not_stopping(until: Any, sequential: Mapping[str, Any]) -> None:
    """Refuse keys that say when the arms of an ablation stop: a run has none of them."""
    for key, value in {"until": until, **{f"sequential.{key}": value for key, value in sequential.items()}}.items():
        if value is not None:
            raise ConfigError(f"{key}={format_value(value)} is for ablations: add -m ablation=NAME, or leave it out")


PRESETS = ("agent", "experiment")
"""The groups whose files set keys of a run."""
EVALUATION_KEYS = ("kwargs", "wrappers")
"""The keys of `env` that may have another value in evaluation."""


def evaluation_environment(config: TrainConfig) -> EnvironmentConfig:
    """Return the environment of evaluations: that of training, with the keys of `evaluation.env`.

    Raises:
        ConfigError: If a key cannot differ, or its value has the wrong type.
    """
    for key in config.evaluation.env:
        if key not in EVALUATION_KEYS:
            raise ConfigError(f"evaluation.env.{key} cannot be set, only {' and '.join(EVALUATION_KEYS)} can differ")
    changed = dict(config.evaluation.env)
    if isinstance(changed.get("kwargs"), Mapping):
        changed["kwargs"] = {**config.env.kwargs, **changed["kwargs"]}
    try:
        return build_config(EnvironmentConfig, {**dataclasses.asdict(config.env), **changed})
    except ConfigError as error:
        raise ConfigError(f"evaluation.env: {error}") from error


def _member(config: DictConfig, seed: int) -> TrainConfig:
    """Build and check the configuration of one member."""
    for key in config.get("trainer") or {}:
        if key in NOT_FOR_COHORTS:
            raise ConfigError(f"trainer.{key} does not go with a cohort: {NOT_FOR_COHORTS[key]}")
    member: TrainConfig = build_config(TrainConfig, {**resolve(config), "seed": seed})
    if member.evaluation.every is None:  # a default that depends on the budget; omitted keys are set to their defaults
        every = evaluation_interval(member.budget)
        member = dataclasses.replace(member, evaluation=dataclasses.replace(member.evaluation, every=every))
    _check_together(member)
    return member


def _check_arm(arm: Any) -> str:
    """Check that an arm's name can be part of a directory name."""
    if not isinstance(arm, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", arm):
        raise ConfigError(f"arm={format_value(arm)} is not a name: use letters, digits, _, ., + and -")
    return arm


def _check_list(fold: Any, length: int) -> list[Any]:
    entries = OmegaConf.to_container(fold) if OmegaConf.is_config(fold) else fold
    if not isinstance(entries, list) or len(entries) != length:
        raise ConfigError(f"fold={format_value(entries)} must be a list with one {{key: number}} for each seed")
    return entries


def _check_fold(entry: Any, foldable: Sequence[str]) -> dict[str, float]:
    if not isinstance(entry, dict):
        raise ConfigError(f"fold has {format_value(entry)}: write {{key: number}}")
    for key, value in entry.items():
        if key not in foldable:
            raise ConfigError(f"fold: members may not differ in {key} here: {nearest(str(key), foldable)}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"fold: {key}={format_value(value)} must be a number")
    return entry


SEED_WORDS = "an integer of at least 0 or a list of such integers"


def _check_seeds(seed: Any, distinct: bool = True) -> list[int]:
    """Return the seeds as a list.

    Args:
        seed: The value of `seed`.
        distinct: Whether all seeds must be different.
    """
    seeds = seed if isinstance(seed, list) else [seed]
    if not seeds:
        raise ConfigError(f"seed=[] trains nothing: give {SEED_WORDS}")
    for one in seeds:
        if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < 2**63:
            raise ConfigError(f"seed={format_value(seed)} is not {SEED_WORDS}")
    if distinct and len(set(seeds)) < len(seeds):
        twice = next(one for one in seeds if seeds.count(one) > 1)
        raise ConfigError(
            f"seed={format_value(seeds)} has {twice} twice: the members of a cohort must have different seeds"
        )
    return seeds


def _check_together(config: TrainConfig) -> None:
    """Check conditions that involve several keys."""
    if config.trainer.devices != 1:
        raise ConfigError(
            f"trainer.devices={config.trainer.devices} is not supported: a cohort is one program on one device; "
            "run several processes to use several"
        )
    evaluation_environment(config)  # raises an error if it is not valid
    steps = config.budget // config.env.num_envs * config.env.num_envs
    if steps == 0:
        raise ConfigError(f"budget={config.budget} is less than one step of env.num_envs={config.env.num_envs}")
    if late := [at for at in config.evaluation.video_at if at > steps]:
        raise ConfigError(
            f"evaluation.video_at={late[0]} is after the last of {steps} env_steps: lower it, or raise budget"
        )
    components = {
        group: locate(node["_target_"], f"{group}._target_")
        for group, node in vars(config).items()
        if isinstance(node, Mapping) and "_target_" in node
    }
    for component in components.values():
        rule = getattr(component, "incompatibility", None)
        if rule is not None and (message := rule(config)):
            raise ConfigError(message)
    start = max(config.learning_starts, components["replay"].min_env_steps(config))
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
        check(Annotated[float, Range(0, above=True)], config.optimizer["lr"], "optimizer.lr")

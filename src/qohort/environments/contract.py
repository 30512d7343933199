"""Checks that an environment keeps its contract, before anything is made: what a researcher would find out too late.

Two environments are made at the same time and play a few steps. What they return must fit the spaces. An episode must
be the same from the same seed and actions, in another environment, after another episode and beside one: evaluation,
resuming and the equality of a run alone and in a cohort rest on this.
"""

from __future__ import annotations

import dataclasses
import sys
from contextlib import ExitStack
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from qohort.config.errors import ConfigError
from qohort.config.schema import EnvironmentConfig
from qohort.environments.actions import random_actions_of
from qohort.environments.checked import SINCE, CheckedEnv, EnvironmentFailure, close_all
from qohort.environments.making import check_spaces, make_environment
from qohort.environments.observations import kind_of, outside
from qohort.environments.packed import gives_mask
from qohort.networks.packing import PackedSpace, masks_of

STEPS = 20
"""The most steps of an episode of the check."""
SEEDS = (2_718_281, 314_159)
"""The seeds of its two episodes."""
INSTEAD = {
    "NormalizeObservation": "set normalize_observations=true instead, which is saved and used in evaluation",
    "NormalizeReward": "set normalize_rewards=true instead, which is saved",
}
"""What to use instead of a wrapper that remembers earlier episodes."""

Trail = list[bytes]
"""What an episode returned, step by step."""


def check_contract(config: EnvironmentConfig) -> None:
    """Check an environment by a few steps of it.

    Args:
        config: The configuration of the environment.

    Raises:
        ConfigError: If the environment does not keep its contract. The message names the innermost wrapper with which
            it does not.
    """
    problem = _problem(config)
    if problem is None:
        return
    for count in range(len(config.wrappers)):  # without the outer wrappers
        inner = dataclasses.replace(config, wrappers=config.wrappers[:count])
        try:
            found = _problem(inner)
        except ConfigError:  # its spaces may need the outer wrappers
            continue
        if found is not None:
            raise ConfigError(f"{_name(inner)} {_with_remedy(inner, found)}")
    raise ConfigError(f"{_name(config)} {_with_remedy(config, problem)}")


def _name(config: EnvironmentConfig) -> str:
    if not config.wrappers:
        return f"env.id={config.id}:"
    return f"env.wrappers: {config.wrappers[-1]['_target_']} around env.id={config.id}:"


def _with_remedy(config: EnvironmentConfig, problem: str) -> str:
    wrapper = config.wrappers[-1]["_target_"].rpartition(".")[2] if config.wrappers else ""
    if not problem.startswith(("an episode", "two episodes")):
        return problem
    remedy = INSTEAD.get(wrapper, "let reset(seed) determine all that follows")
    return f"{problem}: {remedy}, or train all the same with env.deterministic=false (no exact resume)"


def _problem(config: EnvironmentConfig) -> str | None:
    """Return what is wrong with an environment; None if nothing was found.

    Raises:
        ConfigError: If the environment cannot be made, or its spaces are not supported.
    """
    with ExitStack() as made:

        def make() -> gym.Env[Any, Any]:
            env = make_environment(config)
            made.callback(close_all, [env])
            return env

        first = make()
        check_spaces(config, first)
        try:
            second = make()
        except ConfigError as error:
            return (
                f"one was made, but not a second one beside it ({error}): each member needs its own environments, and "
                "evaluation others"
            )
        try:
            original, again = _play(first, SEEDS[0]), _play(second, SEEDS[0])
            _play(first, SEEDS[1])
            after_another = _play(first, SEEDS[0])
            beside_another = _play(first, SEEDS[0], beside=second)
        except EnvironmentFailure as failure:
            return failure.reason
    if not config.deterministic:
        return None
    if original != again:
        return "two episodes from the same seed and actions differ, so it is not deterministic"
    if original != after_another:
        return "an episode is another one after an earlier episode, so it remembers something across resets"
    if original != beside_another:
        return (
            "an episode is another one while another environment plays too, so they share something, as NumPy's global "
            "random generator"
        )
    return None


def _play(env: gym.Env[Any, Any], seed: int, beside: gym.Env[Any, Any] | None = None) -> Trail:
    """Play a few steps with fixed actions, and return what the environment returned.

    Args:
        env: The environment.
        seed: The seed of its episode.
        beside: An environment that plays another episode at the same time.

    Raises:
        EnvironmentFailure: If the environment raises an error, or returns what does not fit its spaces.
    """
    checked, space = CheckedEnv(env), env.observation_space
    observation = checked.reset(seed)
    _report_mask(env, checked.info)
    if beside is not None:
        theirs = beside.reset(seed=SEEDS[1])[0]
    trail = [_kept(checked, space, observation, "reset")]
    for action in random_actions_of(env.action_space, STEPS):
        observation, reward, terminated, truncated = checked.step(_allowed(env, action, observation))
        if not isinstance(checked.info, dict):  # too often for `CheckedEnv`
            raise checked.failure(f"step() returned {kind_of(checked.info)} as info, not a dict: {SINCE}")
        trail.append(_kept(checked, space, observation, "step") + repr((float(reward), terminated, truncated)).encode())
        if terminated or truncated:
            break
        if beside is not None:
            theirs, _, ended, cut, _ = beside.step(_allowed(beside, action, theirs))
            if ended or cut:
                theirs = beside.reset(seed=SEEDS[1])[0]
    return trail


def _allowed(env: gym.Env[Any, Any], action: Any, observation: Any) -> Any:
    """Return an action, or where actions are masked, one that is allowed."""
    masks = masks_of(env.observation_space)
    if masks is None:
        return action
    choices = np.flatnonzero(masks.allowed_array(observation))
    first = getattr(env.action_space, "start", 0)
    return np.int64(choices[(action - first) % len(choices)] + first)


_REPORTED: set[str] = set()


def _report_mask(env: gym.Env[Any, Any], info: Any) -> None:
    """Print, once, that an environment gives an action mask that is not used."""
    name = "an environment" if env.spec is None else f"env.id={env.spec.id}"
    if name in _REPORTED or masks_of(env.observation_space) is not None or not gives_mask(env.observation_space, info):
        return
    _REPORTED.add(name)
    print(
        f"qohort: {name} gives an action mask, which is not used: set env.action_mask=true to choose among the allowed "
        "actions only",
        file=sys.stderr,
    )


def _kept(checked: CheckedEnv, space: spaces.Space[Any], observation: Any, method: str) -> bytes:
    """Return an observation as bytes, if it is in its space.

    Raises:
        EnvironmentFailure: If it is not.
    """
    array = np.asarray(observation, dtype=space.dtype)
    if isinstance(space, PackedSpace):
        parts = [(leaf.name, leaf.space, part) for leaf, part in space.parts_of(array)]
    else:
        parts = [("observation", space, array)]
    for name, part_space, part in parts:
        if wrong := outside(part_space, part):
            raise checked.failure(f"{method}() returned an {name} with {wrong}, but the space is {part_space}")
    return array.tobytes()

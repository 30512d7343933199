"""Creates one environment from its configuration, and checks its spaces and its rendering."""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
import re
import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import OrderEnforcing
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from qohort.config.errors import ConfigError
from qohort.config.schema import EnvironmentConfig
from qohort.environments.actions import supported
from qohort.environments.checked import in_words
from qohort.environments.frames import FrameStack
from qohort.environments.packed import PackedEnv, packed_space
from qohort.networks.packing import UnsupportedPart
from qohort.replay.transition import Frames

EXTRAS = {"minatar": "minatar", "Box2D": "box2d", "ale_py": "atari", "cv2": "atari", "opencv": "atari"}
"""For packages that environments import, by a word of the error that their absence raises: the extra of Qohort."""


def make_environment(config: EnvironmentConfig, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Create one environment with its wrappers.

    Args:
        config: The configuration of the environment.
        render_mode: Gymnasium's render mode; None for no rendering.

    Raises:
        ConfigError: If Gymnasium cannot create the environment, or if a wrapper cannot be applied.
    """
    _without_banner(config.id)
    try:
        kwargs = copy.deepcopy(dict(config.kwargs)) | ({"render_mode": render_mode} if render_mode else {})
        env: gym.Env[Any, Any] = gym.make(config.id, disable_env_checker=True, **kwargs)
    except (Exception, SystemExit) as error:
        given = f" with env.kwargs={dict(config.kwargs)}" if config.kwargs else ""
        raise ConfigError(f"env.id={config.id}{given} cannot be made: {_reason(config.id, error)}") from error
    env = _without_order_enforcing(env)
    for wrapper in config.wrappers:
        try:
            wrapped = _wrap(wrapper, env)
        except (Exception, SystemExit) as error:
            cause = (error.__cause__ if isinstance(error, InstantiationException) else None) or error
            reason = _absent_package(cause) or in_words(cause)
            raise ConfigError(f"env.wrappers: {wrapper} cannot be applied: {reason}") from error
        if not isinstance(wrapped, gym.Env):
            raise ConfigError(f"env.wrappers: {wrapper} returned a {type(wrapped).__name__}, not an environment")
        env = wrapped
    if config.frame_stack > 1:
        try:
            env = FrameStack(env, Frames(config.frame_stack, config.frame_padding))
        except ValueError as error:
            raise ConfigError(f"env.frame_stack={config.frame_stack} with env.id={config.id}: {error}") from error
    return _packed(env, config)


def _without_banner(name: str) -> None:
    """Keep ale-py from printing its name on stderr. Its errors are printed."""
    if name.startswith("ale_py:"):
        with contextlib.suppress(ImportError):  # which making the environment reports
            ale_py = importlib.import_module("ale_py")
            ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)


def _without_order_enforcing(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Remove Gymnasium's `OrderEnforcing`, 5% of a step of CartPole: every episode begins with a reset here."""
    outer, inner = None, env
    while isinstance(inner, gym.Wrapper):
        if type(inner) is OrderEnforcing:
            if outer is None:
                return inner.env
            outer.env = inner.env
            return env
        outer, inner = inner, inner.env
    return env


def _reason(name: str, error: BaseException) -> str:
    """Return in one line why Gymnasium cannot make an environment, and what to do where that is known.

    Args:
        name: The id of the environment.
        error: The error that it raised.
    """
    if absent := _absent_package(error):
        return absent
    # Gymnasium's own errors say what is wrong; another one needs its type, as a LookupError, which is only a key.
    text = " ".join((str(error) if isinstance(error, gym.error.Error) else in_words(error)).split())
    module, sign, own = name.rpartition(":")
    if isinstance(error, gym.error.NameNotFound | gym.error.NamespaceNotFound) and "mean" not in text:
        remedy = f"{module} does not register {own}" if sign else f"if your module registers it: env.id=MODULE:{name}"
        return f"{text.rstrip('.')}; {remedy}"
    missing = getattr(error.__cause__, "name", None) if isinstance(error, ModuleNotFoundError) else None
    if missing and f"{module}.".startswith(f"{missing}."):
        return (
            f"there is no module {missing} here: correct its name, run this in the project's directory, or install the "
            "project with pip install -e"
        )
    return text


def _absent_package(error: BaseException | None) -> str:
    """Return how to install the package that an environment lacks; empty if none of ours is known to be missing."""
    text = ""
    while error is not None:
        if isinstance(error, ImportError | gym.error.DependencyNotInstalled):
            text += f"{getattr(error, 'name', None) or error} "
        error = error.__cause__ or error.__context__
    found = next((word for word in EXTRAS if re.search(rf"\b{word}\b", text)), None)
    return f"it needs a package that is not installed: pip install 'qohort[{EXTRAS[found]}]'" if found else ""


def _packed(env: gym.Env[Any, Any], config: EnvironmentConfig) -> gym.Env[Any, Any]:
    """Pack the observations of an environment, if they have several parts or an action mask.

    Raises:
        ConfigError: If they cannot be packed.
    """
    try:
        space = packed_space(env, config.action_mask)
    except UnsupportedPart as error:
        raise ConfigError(
            f"env.id={config.id} has the observation space {type(env.observation_space).__name__} with {error}: its "
            "parts must be Box, Discrete or MultiBinary"
        ) from error
    except ValueError as error:
        raise ConfigError(f"env.action_mask=true with env.id={config.id}: {error}") from error
    return env if space is None else PackedEnv(env, space)


def _wrap(wrapper: Mapping[str, Any], env: gym.Env[Any, Any]) -> Any:
    """Apply a wrapper. Its lists are plain lists or, where it refuses these, tuples, which YAML does not have."""
    build = instantiate(copy.deepcopy(wrapper), _partial_=True, _convert_="all")
    try:
        return build(env)
    except TypeError:
        tuples = {key: tuple(value) for key, value in build.keywords.items() if isinstance(value, list)}
        if not tuples:
            raise
        return build(env, **tuples)


def check_spaces(config: EnvironmentConfig, env: gym.Env[Any, Any]) -> None:
    """Check that a Q-network over discrete actions supports the spaces of an environment.

    Args:
        config: The configuration of the environment, for the message.
        env: The environment.

    Raises:
        ConfigError: If the action space is not Discrete, MultiDiscrete or MultiBinary, or has several axes, or if
            observations are not Box, Discrete or MultiBinary, or a Dict or Tuple of them.
    """
    action, observation = (getattr(env, name, None) for name in ("action_space", "observation_space"))
    for name, space in (("action_space", action), ("observation_space", observation)):
        if not isinstance(space, spaces.Space):
            raise ConfigError(
                f"env.id={config.id}: its {name} is {space!r}, but it must be a space of gymnasium.spaces"
            )
    if not (action is not None and supported(action)):
        raise ConfigError(
            f"env.id={config.id} has the action space {action}: DQN needs a Discrete one, or a MultiDiscrete or "
            "MultiBinary one with a single axis; gymnasium.wrappers.DiscretizeAction makes one of a Box"
        )
    if not isinstance(observation, spaces.Box | spaces.Discrete | spaces.MultiBinary):
        raise ConfigError(
            f"env.id={config.id} has the observation space {type(observation).__name__}: "
            "it must be Box, Discrete, MultiBinary, or a Dict or Tuple of them; a wrapper can make one of them"
        )
    if 0 in (observation.shape or ()):
        raise ConfigError(f"env.id={config.id} has the observation space {observation}, which has no numbers")


def check_rendering(env: EnvironmentConfig, seed: int, asked: str = "video=true") -> None:
    """Check that an environment can render frames.

    Args:
        env: The environment.
        seed: The seed of its first episode.
        asked: The setting that asks for a video.

    Raises:
        ConfigError: If it cannot be made, or does not render arrays `[height, width, 3]`.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame needs no screen to render frames
    make_environment(env).close()  # an environment that cannot be made at all raises its own error
    problem = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = make_environment(env, render_mode="rgb_array")
            try:
                made.reset(seed=seed)
                frame: Any = made.render()
            finally:
                made.close()
            if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[-1] != 3:
                problem = f"render() returns {type(frame).__name__}, not frames"
        except Exception as error:  # an environment's renderer may raise anything
            problem = str(error) or type(error).__name__
    if problem:
        raise ConfigError(f"{asked}: env.id={env.id} cannot render with render_mode=rgb_array: {problem}")

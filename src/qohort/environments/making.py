"""Creates one environment from its configuration, and checks its spaces."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium import spaces
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from qohort.config.errors import ConfigError
from qohort.config.schema import EnvironmentConfig


def make_environment(config: EnvironmentConfig, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Create one environment with its wrappers.

    Args:
        config: The configuration of the environment.
        render_mode: Gymnasium's render mode; None for no rendering.

    Raises:
        ConfigError: If Gymnasium cannot create the environment, or if a wrapper cannot be applied.
    """
    try:
        kwargs = dict(config.kwargs) | ({"render_mode": render_mode} if render_mode else {})
        env: gym.Env[Any, Any] = gym.make(config.id, disable_env_checker=True, **kwargs)
    except (gym.error.Error, ImportError, TypeError, AttributeError, ValueError, LookupError, AssertionError) as error:
        kind = type(error).__name__
        reason = " ".join(str(error).split()) or kind
        if isinstance(error, LookupError):  # its message is only the key
            reason = f"{kind} {reason}"
        raise ConfigError(
            f"env.id={config.id} with env.kwargs={dict(config.kwargs)} cannot be made: {reason}"
        ) from error
    for wrapper in config.wrappers:
        try:
            env = instantiate(wrapper, env)
        except InstantiationException as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise ConfigError(f"env.wrappers: {wrapper} cannot be applied: {reason}") from error
    return env


def check_spaces(config: EnvironmentConfig, env: gym.Env[Any, Any]) -> None:
    """Check that a Q-network over discrete actions supports the spaces of an environment.

    Args:
        config: The configuration of the environment, for the message.
        env: The environment.

    Raises:
        ConfigError: If the action space is not Discrete, or observations are not Box, Discrete or MultiBinary.
    """
    action, observation = env.action_space, env.observation_space
    if not isinstance(action, spaces.Discrete):
        raise ConfigError(f"env.id={config.id} has the action space {action}: DQN needs a Discrete one")
    if not isinstance(observation, spaces.Box | spaces.Discrete | spaces.MultiBinary):
        raise ConfigError(
            f"env.id={config.id} has the observation space {type(observation).__name__}: "
            "it must be Box, Discrete or MultiBinary; gymnasium.wrappers.FlattenObservation makes a Box of most others"
        )

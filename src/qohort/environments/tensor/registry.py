"""Which environments have a tensor environment, by their Gymnasium id.

Importing this module also registers them as vector environments of Gymnasium, for use without Qohort's learner:

    gymnasium.make_vec("qohort.environments.tensor.registry:qohort/CartPole-v1", num_envs=1024)
"""

from __future__ import annotations

import inspect
from typing import Any

import gymnasium as gym

from qohort.config.errors import ConfigError
from qohort.config.schema import EnvironmentConfig
from qohort.environments.tensor.base import TensorEnvironment
from qohort.environments.tensor.classic_control import Acrobot, CartPole, MountainCar
from qohort.environments.tensor.minatar.asterix import Asterix
from qohort.environments.tensor.minatar.base import MinAtarGame
from qohort.environments.tensor.minatar.breakout import Breakout
from qohort.environments.tensor.minatar.freeway import Freeway
from qohort.environments.tensor.minatar.seaquest import Seaquest
from qohort.environments.tensor.minatar.space_invaders import SpaceInvaders
from qohort.environments.tensor.toy_text import CliffWalking, FrozenLake

GAMES: dict[str, type[MinAtarGame]] = {
    "asterix": Asterix,
    "breakout": Breakout,
    "freeway": Freeway,
    "seaquest": Seaquest,
    "space_invaders": SpaceInvaders,
}
"""MinAtar's games by their names."""

TENSOR_ENVIRONMENTS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "CartPole-v1": (CartPole, {}),
    "CartPole-v0": (CartPole, {"max_episode_steps": 200}),
    "Acrobot-v1": (Acrobot, {}),
    "MountainCar-v0": (MountainCar, {}),
    "FrozenLake-v1": (FrozenLake, {}),
    "FrozenLake8x8-v1": (FrozenLake, {"map_name": "8x8", "max_episode_steps": 200}),
    "CliffWalking-v1": (CliffWalking, {}),
    **{
        f"qohort.environments.minatar:MinAtar/{game.title().replace('_', '')}-v1": (environment, {})
        for game, environment in GAMES.items()
    },
}
"""The class of each tensor environment, and those of its arguments that belong to the id."""


def tensor_environment(config: EnvironmentConfig) -> TensorEnvironment | None:
    """Return the tensor environment of a configuration, or None if it is stepped through Gymnasium.

    Raises:
        ConfigError: If `env.backend=tensor` asks for one and there is none, or `env.workers` for processes.
    """
    if config.backend == "gymnasium":
        return None
    reason = _missing(config)
    if reason is None:
        build, arguments = TENSOR_ENVIRONMENTS[config.id]
        try:
            environment: TensorEnvironment = build(**{**arguments, **config.kwargs})
        except (TypeError, ValueError) as error:
            reason = f"the tensor environment of env.id={config.id} cannot be made: {error}"
        else:
            if config.workers:
                raise ConfigError(
                    f"env.workers={config.workers}: env.id={config.id} is a tensor environment, which needs no "
                    "processes: use env.workers=0, or env.backend=gymnasium"
                )
            return environment
    if config.backend == "tensor":
        raise ConfigError(f"env.backend=tensor: {reason}; use auto or gymnasium")
    return None


def _missing(config: EnvironmentConfig) -> str | None:
    """Return why a configuration has no tensor environment, or None if it has one."""
    if config.id not in TENSOR_ENVIRONMENTS:
        return f"there is no tensor environment for env.id={config.id}, only for {', '.join(TENSOR_ENVIRONMENTS)}"
    if config.frame_stack > 1:
        return "the observations of tensor environments are not stacked"
    if config.action_mask:
        return "tensor environments have no action masks"
    if config.wrappers:
        return "Gymnasium's wrappers do not apply to tensor environments"
    known = inspect.signature(TENSOR_ENVIRONMENTS[config.id][0]).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    unknown = [name for name in config.kwargs if name not in known]
    if unknown and not takes_any:
        return f"the tensor environment of env.id={config.id} has no argument {', '.join(unknown)}"
    return None


for _name in TENSOR_ENVIRONMENTS:
    _made_by = "qohort.environments.tensor.vector:make_vector"
    gym.register(f"qohort/{_name.rpartition('/')[2]}", vector_entry_point=_made_by, kwargs={"name": _name})

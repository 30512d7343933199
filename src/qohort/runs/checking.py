"""Checks of what a run needs, before any work is done: its environment, network, optimiser, device and loggers."""

from __future__ import annotations

import os

import torch
from hydra.utils import instantiate

from qohort.agent.optimizers import MemberOptimizer, mixes_members
from qohort.agent.q_values import network_maker
from qohort.cohort.stacking import CohortNetwork, is_of_output
from qohort.config.errors import ConfigError
from qohort.config.messages import nearest
from qohort.config.schema import TrainConfig
from qohort.environments.making import check_spaces, make_environment
from qohort.runs.loggers import WANDB_MODES


def check_environment(config: TrainConfig) -> None:
    """Make one environment and one network, to see that they fit together.

    Raises:
        ConfigError: If the environment cannot be made or played, or the network or the optimiser refuses.
    """
    check_optimizer(config)
    env = make_environment(config.env)
    try:
        check_spaces(config.env, env)
        if config.normalize_observations and getattr(env.observation_space.dtype, "kind", "") != "f":
            space = env.observation_space
            raise ConfigError(
                f"normalize_observations=true needs observations of floats: env.id={config.env.id} has {space}"
            )
        actions = int(env.action_space.n)  # type: ignore[attr-defined]
        make = network_maker(config.network, env.observation_space, actions, instantiate(config.head))
        names = CohortNetwork(make, [0]).parameters_by_name()
        if config.reset_every is not None and not any(map(is_of_output, names)):
            raise ConfigError(
                f"reset_every={config.reset_every} starts a submodule `output` anew, which "
                f"network={config.network['_target_']} has not: set it to null"
            )
    except (ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split())
        raise ConfigError(reason if reason.startswith("network=") else f"network: {reason}") from error
    finally:
        env.close()


def check_optimizer(config: TrainConfig) -> None:
    """Try the optimiser on a few numbers.

    Raises:
        ConfigError: If it refuses its arguments, or a member's step would depend on the other members.
    """
    build = instantiate(config.optimizer, _partial_=True, _convert_="all")
    name = config.optimizer["_target_"]
    if "lr" not in config.optimizer:
        raise ConfigError(f"optimizer.lr has no value: {name} needs one")
    try:
        ours = isinstance(build.func, type) and issubclass(build.func, MemberOptimizer)
        mixes = mixes_members(build) if not ours else False
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise ConfigError(f"optimizer={name}: {' '.join(str(error).split())}") from error
    if mixes:
        raise ConfigError(f"optimizer={name} looks at whole tensors, so members would not be independent: use another")


def check_accelerator(config: TrainConfig) -> None:
    """Refuse a GPU that is not there.

    Raises:
        ConfigError: If `trainer.accelerator=gpu` and torch sees none.
    """
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError("trainer.accelerator=gpu, but torch sees no GPU here: use cpu, or auto")


def check_tracking(config: TrainConfig) -> None:
    """Refuse a `WANDB_MODE` that W&B would refuse once training has begun.

    Raises:
        ConfigError: If there is no such mode.
    """
    mode = os.environ.get("WANDB_MODE", "offline")
    if "wandb" in config.logger and mode not in WANDB_MODES:
        raise ConfigError(f"WANDB_MODE={mode} is not one of W&B's modes: {nearest(mode, WANDB_MODES)}")

"""Checks a run's environment, network, optimiser, device and loggers before training."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from hydra.utils import instantiate
from torch import Tensor
from torch.func import grad, vmap

import qohort
from qohort.agent.heads import Head
from qohort.agent.optimizers import MemberOptimizer, mixes_members
from qohort.agent.q_values import QValues, network_maker
from qohort.cohort.program import Compiler
from qohort.cohort.stacking import CohortNetwork, is_of_output
from qohort.config.errors import ConfigError
from qohort.config.instructions import check_bits_variable, programs_use
from qohort.config.members import evaluation_environment
from qohort.config.messages import nearest
from qohort.config.schema import EnvironmentConfig, TrainConfig
from qohort.config.targets import locate
from qohort.environments.actions import actions_of
from qohort.environments.checked import close_all, in_words
from qohort.environments.contract import check_contract
from qohort.environments.making import check_rendering, make_environment
from qohort.environments.tensor.registry import tensor_environment
from qohort.networks.branches import branches_of
from qohort.networks.layers import Features
from qohort.runs.metrics import METRICS
from qohort.runs.trackers import check_lightning_loggers
from qohort.runs.update_check import check_update, place_of
from qohort.runs.wandb_runs import WANDB_MODES, WANDB_ONLINE, wandb_agent, wandb_mode


def check_jobs(firsts: Sequence[TrainConfig]) -> None:
    """Check the jobs of a sweep before the first one starts: their devices, environments, networks and loggers.

    Args:
        firsts: The configuration of the first member of each job. What this process has checked before is not checked
            again.

    Raises:
        ConfigError: On the first mistake, or if an agent of W&B has started the sweep.
    """
    if wandb_agent() is not None and any("wandb" in first.logger for first in firsts):
        raise ConfigError(
            "WANDB_SWEEP_ID is set, and an agent of W&B trains one experiment at a time: leave out -m, and give the "
            "seeds as a list, seed=[0,1,2]"
        )
    for first in firsts:
        # Jobs that are equal in these keys are checked once.
        network = (first.network, first.head, first.bootstrap, first.optimizer, first.exploration)
        evaluation = (first.evaluation.env, first.evaluation.video_at)
        key = repr((first.env, evaluation, first.info_metrics, network, first.trainer, first.logger))
        if key in _CHECKED:
            continue
        check_accelerator(first)
        check_tracking(first)
        check_environment(first)
        _CHECKED.add(key)


_CHECKED: set[str] = set()


def check_bits(config: TrainConfig) -> None:
    """Check that this process computes with the instructions that `bits` asks for, and the variables of Qohort.

    Raises:
        ConfigError: If it does not. A command starts itself anew for this; what calls `train` itself cannot.
    """
    check_bits_variable()
    programs_use()
    if config.bits != qohort.BITS:
        raise ConfigError(
            f"bits={config.bits}: this process computes {qohort.BITS} bits, as the libraries were loaded: set the "
            f"environment variable QOHORT_BITS={config.bits} before it starts"
        )


def _check_same_spaces(training: EnvironmentConfig, evaluation: EnvironmentConfig) -> None:
    """Check that a policy that is trained in one environment can be evaluated in another.

    Raises:
        ConfigError: If their spaces differ.
    """
    envs = [make_environment(env) for env in (training, evaluation)]
    for name in ("observation_space", "action_space"):
        ours, theirs = (getattr(env, name) for env in envs)
        if ours != theirs:
            raise ConfigError(f"evaluation.env gives the {name} {theirs}, but training has {ours}: they must be equal")
    close_all(envs)


def check_environment(config: TrainConfig) -> tuple[spaces.Space[Any], int]:
    """Check that the environment keeps its contract, that the network fits it, and that the optimiser works.

    Returns:
        The observation space, and the number of actions, with branches as a `BranchedActions`.

    Raises:
        ConfigError: If the environment cannot be made, its spaces are not supported, it returns something that does not
            fit them or does not repeat its episodes, or if the network or the optimiser raises an error.
    """
    check_optimizer(config)
    _check_masks(config)
    _check_info_metrics(config)
    check_contract(config.env)
    evaluation = evaluation_environment(config)
    if evaluation != config.env:
        check_contract(evaluation)
        _check_same_spaces(config.env, evaluation)
    if config.evaluation.video_at:
        check_rendering(evaluation, 0, f"evaluation.video_at={list(config.evaluation.video_at)}")
    tensor_environment(config.env)  # raises an error if it is asked for and there is none
    env = make_environment(config.env)
    try:
        if config.normalize_observations and getattr(env.observation_space.dtype, "kind", "") != "f":
            space = env.observation_space
            raise ConfigError(
                f"normalize_observations=true needs observations of floats, but env.id={config.env.id} has {space}: "
                "set it to false"
            )
        actions = actions_of(env.action_space)
        check_branches(config, actions)
        head: Head = instantiate(config.head)
        network = CohortNetwork(network_maker(config.network, env.observation_space, actions, head), [0, 1])
        _check_values(config, network, head, env.observation_space, actions)
        if any(isinstance(module, Features) and module.pictures for module in network.network.modules()):
            print(
                f"qohort: network={config.network['_target_']} flattens observations of {env.observation_space}; for "
                "pictures there are network=nature, impala and minatar",
                file=sys.stderr,
            )
        names = network.parameters_by_name()
        if config.reset_every is not None and not any(map(is_of_output, names)):
            raise ConfigError(
                f"reset_every={config.reset_every} resets a submodule `output`, which "
                f"network={config.network['_target_']} does not have: set it to null"
            )
        check_update(config, network, head, env.observation_space)
    except (ValueError, TypeError, MemoryError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split())
        raise ConfigError(reason if reason.startswith("network=") else f"network: {reason}") from error
    except Exception as error:
        place = place_of(error, config.network["_target_"])
        if not place and "can't allocate memory" not in str(error):  # it is not the network's
            raise
        raise ConfigError(f"network={config.network['_target_']} cannot be made{place}: {in_words(error)}") from error
    finally:
        close_all([env])
    return env.observation_space, actions


def _check_values(
    config: TrainConfig, network: CohortNetwork, head: Head, space: spaces.Space[Any], actions: int
) -> None:
    """Check that a network of two members gives a value to each action of an observation, and gradients of them."""
    name = f"network={config.network['_target_']}"
    observation = torch.from_numpy(np.zeros((2, 2, *(space.shape or ())), dtype=space.dtype))
    values = QValues(network, head, Compiler("none"))

    def total(parameters: dict[str, Tensor], observation: Tensor) -> Tensor:
        return values.of_member_without_noise(parameters, {"observation": observation}).sum()

    try:
        found = tuple(values(observation).shape)
        vmap(grad(total))(network.parameters_by_name(), observation)
    except Exception as error:
        place, reason = place_of(error, config.network["_target_"]), _reason(in_words(error))
        raise ConfigError(
            f"{name} cannot be lifted over members for observations of {space}{place}: {reason}"
        ) from error
    if found != (2, 2, actions):
        raise ConfigError(f"{name} must map [B, ...] to [B, {actions}, atoms], but its values have shape {found[1:]}")


def _reason(message: str) -> str:
    """Return why a network cannot be lifted: PyTorch's message, or what to do about the usual reasons."""
    if "random operation" in message:
        return (
            "its forward draws random numbers, as Dropout does, which no member could repeat: register a buffer of "
            "noise (docs/extending.md), or leave them out"
        )
    if any(words in message for words in ("one_hot", ".item()", "data-dependent", "dynamic shape")):
        return (
            "its forward needs the value of a tensor, as F.one_hot, .item(), an if on a tensor and a boolean index do: "
            "use operations on whole tensors; for one_hot, "
            "(x.unsqueeze(-1) == torch.arange(n, device=x.device)).float()"
        )
    return message[:300]


def _check_info_metrics(config: TrainConfig) -> None:
    """Check that numbers in info become metrics of names of their own.

    Raises:
        ConfigError: If a name is used already, or twice, or the environment has no info.
    """
    names = config.info_metrics
    for name in names:
        for metric in (f"train/{name}", f"eval/{name}"):
            if metric in METRICS:
                raise ConfigError(f"info_metrics={list(names)}: {metric} is a metric already: rename it in a wrapper")
    if len(set(names)) < len(names) or "" in names:
        raise ConfigError(f"info_metrics={list(names)}: give different names, none of them empty")
    if names and tensor_environment(config.env) is not None:
        raise ConfigError(
            f"info_metrics={list(names)}: env.id={config.env.id} is a tensor environment, which has no info: set "
            "env.backend=gymnasium"
        )


def _check_masks(config: TrainConfig) -> None:
    """Check that the exploration uses action masks, if there are any.

    Raises:
        ConfigError: If it has no parameter for them.
    """
    if not config.env.action_mask:
        return
    name = config.exploration["_target_"]
    exploration = instantiate(config.exploration, _convert_="all")
    if "allowed" not in inspect.signature(exploration.act).parameters:
        raise ConfigError(
            f"exploration={name} does not know action masks: with env.action_mask=true its method act needs the "
            "parameter `allowed`"
        )


def check_branches(config: TrainConfig, actions: int) -> None:
    """Check that the optimiser goes with branches of actions, if there are some.

    Raises:
        ConfigError: If it follows the value of the action taken, which branches have several of.
    """
    optimizer, branches = locate(config.optimizer["_target_"], "optimizer._target_"), branches_of(actions)
    if branches is not None and getattr(optimizer, "follows_value", False):
        raise ConfigError(
            f"optimizer={config.optimizer['_target_']} follows the value of one action, but an action of "
            f"env.id={config.env.id} has {len(branches.sizes)} branches, each with a value: use optimizer=adam"
        )


def check_optimizer(config: TrainConfig) -> None:
    """Test the optimiser on small tensors.

    Raises:
        ConfigError: If it raises an error, or a member's step would depend on the other members.
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
        raise ConfigError(
            f"optimizer={name} computes over whole tensors, so members would not be independent: use another optimizer"
        )


def check_accelerator(config: TrainConfig) -> None:
    """Check that there is a GPU if the configuration asks for one.

    Raises:
        ConfigError: If `trainer.accelerator=gpu` and torch finds no GPU.
    """
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError("trainer.accelerator=gpu, but torch finds no GPU here: use cpu or auto")


def check_tracking(config: TrainConfig) -> None:
    """Check W&B's settings, and online its key and server, since W&B would refuse them after directories were made.

    Raises:
        ConfigError: If `WANDB_MODE` is unknown, W&B refuses a setting, or online there is no key or no server.
    """
    check_lightning_loggers(config.logger)
    if "wandb" not in config.logger:
        return
    wandb_agent()  # takes its variables out of the environment, before W&B reads them
    mode = wandb_mode()
    if mode not in WANDB_MODES:
        raise ConfigError(f"WANDB_MODE={mode} is not one of W&B's modes: {nearest(mode, WANDB_MODES)}")
    if mode == "disabled":
        return
    import wandb

    options = config.logger["wandb"]
    try:
        wandb.Settings(
            project=options.get("project"),
            entity=options.get("entity"),
            run_group=options.get("group"),
            run_tags=tuple(options.get("tags") or ()),
        )
    except Exception as error:
        raise ConfigError(f"logger.wandb: {_first_reason(error)}") from error
    if mode in WANDB_ONLINE:
        try:
            _ = wandb.Api(timeout=10).viewer
        except Exception as error:
            raise ConfigError(
                f"WANDB_MODE={mode}, but W&B cannot be used ({in_words(error)[:200]}): log in with `wandb login`, or "
                "leave WANDB_MODE out to write the same run offline"
            ) from error


def _first_reason(error: Exception) -> str:
    """Return an error's reason in one line; that of one setting if a validator has collected several."""
    listed = getattr(error, "errors", None)
    return " ".join(str(listed()[0]["msg"]).split()) if callable(listed) else in_words(error)

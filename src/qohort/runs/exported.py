"""What rebuilds a policy without its run: `config.json`, and `model.safetensors` with its weights."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from hydra.utils import instantiate
from numpy.typing import NDArray

import qohort
from qohort.agent.q_values import network_maker
from qohort.config.checks import build_config
from qohort.config.errors import ConfigError
from qohort.config.identity import config_tree
from qohort.config.schema import TrainConfig
from qohort.runs.policy import Policy, PolicyNetwork

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
FORMAT = 1
"""The version of `config.json`. Another version is refused with a message."""


def description(policy: Policy) -> dict[str, Any]:
    """Return the content of `config.json`: configuration, spaces and env_steps.

    Paths and loggers, which say something of the user's machine and accounts, are left out.
    """
    public = dataclasses.replace(policy.config, output_dir="outputs", logger={}, callbacks={})
    return {
        "format": FORMAT,
        "qohort": qohort.__version__,
        "env_steps": policy.env_steps,
        "observation_space": space_tree(policy.observation_space),
        "action_space": space_tree(policy.action_space),
        "config": config_tree(public),
    }


def is_exported(path: Path) -> bool:
    """Return whether a directory is an export of a policy, complete or without its weights."""
    try:
        tree: Any = json.loads((path / CONFIG).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(tree, dict) and {"format", "qohort", "config"} <= {*tree}


def read_exported(path: Path) -> Policy:
    """Read a policy that was exported with its weights.

    Args:
        path: The directory, with `config.json` and `model.safetensors`.

    Raises:
        ConfigError: If a file is missing, is of another version or does not fit.
    """
    require("safetensors", f"{path}/{WEIGHTS}")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (path / WEIGHTS).is_file():
        raise ConfigError(f"{path} has no {WEIGHTS}: export it with format=safetensors or format=all")
    tree = json.loads((path / CONFIG).read_text())
    if tree["format"] != FORMAT:
        raise ConfigError(f"{path}/{CONFIG} has format {tree['format']}, but this version reads {FORMAT}: export again")
    try:
        config = build_config(TrainConfig, tree["config"])
        observations, actions = space_of(tree["observation_space"]), space_of(tree["action_space"])
        assert isinstance(actions, spaces.Discrete)
        head = instantiate(config.head)
        network = network_maker(config.network, observations, int(actions.n), head)()
        weights = load_file(path / WEIGHTS)
        plain = PolicyNetwork(network, head, weights.get("mean"), weights.get("variance"))
        plain.load_state_dict(weights)
    except (ValueError, TypeError, LookupError, RuntimeError, SafetensorError, OSError) as error:
        raise ConfigError(f"{path} cannot be loaded: {' '.join(str(error).split())}") from error
    return Policy(plain, config, observations, actions, int(tree["env_steps"]))


def require(package: str, reason: str) -> None:
    """Check that an optional package is installed.

    Args:
        package: The name with which it is imported.
        reason: What needs it, for the message.

    Raises:
        ConfigError: If it is not.
    """
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise ConfigError(f"{reason} needs the package {package}: pip install 'qohort[export]'")


def space_tree(space: spaces.Space[Any]) -> dict[str, Any]:
    """Return a space as containers that JSON has.

    Args:
        space: A `Box`, `Discrete` or `MultiBinary` space.

    Raises:
        ConfigError: If it is another one.
    """
    name = type(space).__name__
    if isinstance(space, spaces.Discrete):
        return {"type": name, "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiBinary):
        return {"type": name, "n": [int(n) for n in space.shape]}
    if isinstance(space, spaces.Box):
        bounds = {"low": _bound(space.low), "high": _bound(space.high)}
        return {"type": name, "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    raise ConfigError(f"observations of {name} cannot be exported: Box, Discrete and MultiBinary can")


def space_of(tree: Mapping[str, Any]) -> spaces.Space[Any]:
    """Return the space that `space_tree` has described."""
    if tree["type"] == "Discrete":
        return spaces.Discrete(tree["n"], start=tree["start"])
    if tree["type"] == "MultiBinary":
        return spaces.MultiBinary(tree["n"])
    dtype, shape = np.dtype(tree["dtype"]), tuple(tree["shape"])
    low, high = (
        np.broadcast_to(np.array(tree[name], dtype=object).astype(dtype), shape).copy() for name in ("low", "high")
    )
    return spaces.Box(low, high, shape, dtype.type)


def _bound(bound: NDArray[Any]) -> Any:
    """Return the bound of a `Box` as nested lists; one number if all are equal. JSON has no infinity: it is a text."""
    if bound.size and (bound == bound.flat[0]).all():
        return _number(bound.flat[0].item())
    numbers = np.array([_number(one) for one in bound.reshape(-1).tolist()], dtype=object)
    return numbers.reshape(bound.shape).tolist()


def _number(number: Any) -> Any:
    return number if np.isfinite(number) else str(number)


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what a package prints, logs and warns of."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)

"""Checks before training that the loss can be computed: a loss or a bootstrap of one's own may raise an error in it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from hydra.utils import instantiate
from torch import Tensor
from torch.func import grad_and_value, vmap

from qohort.agent.bootstrap import Bootstrap
from qohort.agent.heads import Head
from qohort.agent.td_loss import TDLoss
from qohort.cohort.held import with_numbers
from qohort.cohort.noise import Noise
from qohort.cohort.stacking import CohortNetwork
from qohort.config.errors import ConfigError
from qohort.config.schema import TrainConfig
from qohort.environments.checked import in_words
from qohort.networks.packing import masks_of

BATCH = 3
"""Transitions in the batch of the check."""
GROUPS = ("network", "head", "bootstrap")
"""The components that take part in a loss."""


def check_update(config: TrainConfig, network: CohortNetwork, head: Head, space: spaces.Space[Any]) -> None:
    """Compute the loss of two members and its gradient once, on a batch of zeros.

    Args:
        config: The configuration of a member.
        network: The networks of two members.
        head: The head.
        space: The observation space.

    Raises:
        ConfigError: If a component raises an error, or the head returns something else than a loss and a TD error for
            each sample.
    """
    try:
        _update(config, network, _WatchedHead(head, config.head["_target_"]), space)
    except ConfigError:
        raise
    except Exception as error:
        group, place = _culprit(config, error)
        name = f"{group}={getattr(config, group)['_target_']}"
        raise ConfigError(f"{name}: the loss of two members fails{place}: {in_words(error)[:300]}") from error


def _update(config: TrainConfig, network: CohortNetwork, head: Any, space: spaces.Space[Any]) -> None:
    """Compute the gradients of two members, as an update does. Branches of actions count as one set of actions here."""
    bootstrap: Bootstrap = instantiate(config.bootstrap)
    if bootstrap.follows_exploration:
        bootstrap = with_numbers(bootstrap, "bootstrap", {"bootstrap.epsilon": torch.tensor(0.5)})
    masks = masks_of(space)
    td_loss = TDLoss(network.member_forward, bootstrap, head, None if masks is None else masks.allowed)
    number = torch.zeros(2, BATCH, dtype=torch.float32)
    observation = torch.from_numpy(np.zeros((2, BATCH, *(space.shape or ())), dtype=space.dtype))
    noise = Noise([0, 1], network.normals, head.fractions, ("online", "target", "policy"), BATCH, 1, number.device)
    batch = {
        "observation": observation,
        "action": number.long(),
        "reward": number,
        "discount": number + 0.5,
        "next_observation": observation,
        **noise.for_update(),
    }
    parameters = network.parameters_by_name()
    vmap(grad_and_value(td_loss, has_aux=True))(parameters, parameters, batch)


class _WatchedHead:
    """A head whose `divergence` is checked.

    Args:
        head: The head.
        target: Its `_target_`, for messages.
    """

    def __init__(self, head: Head, target: str) -> None:
        self._head, self._target = head, target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._head, name)

    def divergence(self, online: Tensor, target: Any, fractions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what the head returns.

        Raises:
            ConfigError: If it is not a loss and a TD error for each sample.
        """
        returned: Any = self._head.divergence(online, target, fractions)
        fits = isinstance(returned, tuple | list) and len(returned) == 2
        if not fits or any(not isinstance(one, Tensor) or tuple(one.shape) != (BATCH,) for one in returned):
            raise ConfigError(
                f"head={self._target}: divergence must return the loss [B] and the TD error [B], but for B={BATCH} it "
                f"returned {_shape(returned)}"
            )
        return returned[0], returned[1]


def _shape(value: Any) -> str:
    """Return in words what a function returned."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_shape, value))})"
    return f"{value!r}"[:80] if value is None or isinstance(value, bool | int | float) else type(value).__name__


def _culprit(config: TrainConfig, error: Exception) -> tuple[str, str]:
    """Return the group of the component in whose file an error was raised, and that place in words.

    Without such a file, the head and no place are returned.
    """
    places = {group: place_of(error, getattr(config, group)["_target_"]) for group in GROUPS}
    return next(((group, place) for group, place in places.items() if place), ("head", ""))


def place_of(error: Exception, target: str) -> str:
    """Return where in the file of a component an error was raised, as ` (heads.py, line 3)`; empty if elsewhere.

    Args:
        error: The error.
        target: The component's `_target_`. The files of Qohort's own ones are not named.
    """
    module = sys.modules.get(target.rpartition(".")[0])
    file = getattr(module, "__file__", None)
    if file is None or target.startswith("qohort."):
        return ""
    frames: Sequence[traceback.FrameSummary] = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    return f" ({Path(file).name}, line {lines[-1]})" if lines else ""

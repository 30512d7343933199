"""What all storages of transitions have in common: the dtypes of observations, and n-step transitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor

STORED_DTYPES = {
    "float16": torch.float32,
    "float32": torch.float32,
    "float64": torch.float32,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "bool": torch.bool,
}
"""The storage dtype of observations by the dtype of their space. Other integers are stored as int64."""


def stored_dtype(space: spaces.Space[Any]) -> torch.dtype:
    """Return the storage dtype of the observations of a space."""
    return STORED_DTYPES.get(str(space.dtype), torch.int64)


class Windows(NamedTuple):
    """The n-step transitions of a batch, `[M, B]` each."""

    reward: Tensor
    """The discounted sums of rewards."""
    discount: Tensor
    """γ to the power of the number of steps; 0 where terminated."""
    last: Tensor
    """The slots of the last steps."""


def windows(
    rows: Callable[[str, Tensor], Tensor], index: Tensor, gamma: Tensor, n_step: int, stride: int, capacity: int
) -> Windows:
    """Return the n-step transitions that start at slots `index [M, B]`. A window ends with its episode.

    Where a life was lost, it goes on, but what comes after is discounted by 0.

    Args:
        rows: Returns `reward`, `continues` or `ended` at slots.
        index: The slots, `[M, B]`.
        gamma: The discount factor of each member, `[M, 1]`.
        n_step: The number of steps, n.
        stride: The slots between consecutive steps of an environment.
        capacity: The number of slots after which the ring wraps around.
    """
    last, running = index, torch.ones_like(index, dtype=torch.bool)
    total = torch.zeros_like(index, dtype=torch.float32)
    discount, power = torch.zeros_like(total), torch.ones_like(total)
    for step in range(n_step):
        slot = index + step * stride
        slot = torch.where(slot < capacity, slot, slot - capacity)
        last = torch.where(running, slot, last)
        total = torch.where(running, total + power * rows("reward", slot), total)
        power = power * gamma * rows("continues", slot)
        discount = torch.where(running, power, discount)
        running = running & ~rows("ended", slot)
    return Windows(total, discount, last)

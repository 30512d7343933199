"""Hyperparameters that differ between the members of a cohort, as arrays `[M]`.

A component declares them: `foldable = ("tau",)` in its class means that `tau` may differ between members.
`qohort.config.folding` reads this attribute, also from your own classes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")


def per_member(values: Sequence[float], device: torch.device | str = "cpu") -> Tensor:
    """Return a float32 tensor `[M]` with one number per member."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def across_members(objects: Sequence[T]) -> T:
    """Merge the members' objects into one object whose hyperparameters are arrays `[M]`.

    Numbers become arrays even if they are all equal, because the power of an array may differ from the power of a
    number in the last bit.

    Args:
        objects: One object per member, of the same class: schedules, or objects that contain schedules. Every number
            of a dataclass becomes an array. In other classes, only the numbers declared as `foldable` do.
    """
    first = objects[0]
    merged = copy.copy(first)
    declared = getattr(first, "foldable", ())
    for name, value in vars(first).items():
        values = [getattr(member_object, name) for member_object in objects]
        if is_dataclass(value) or hasattr(value, "foldable"):
            object.__setattr__(merged, name, across_members(values))
        elif isinstance(value, int | float) and (is_dataclass(first) or name in declared):
            object.__setattr__(merged, name, np.array(values, dtype=np.float64))
    return merged


def with_numbers(component: T, group: str, held: Mapping[str, Tensor]) -> T:
    """Return a copy of a component with the hyperparameters of one member.

    Args:
        component: The component.
        group: The group of the component in the configuration, for example `bootstrap`.
        held: The hyperparameters of one member by configuration key. Keys of other groups are ignored.
    """
    member_component = copy.copy(component)
    for key, value in held.items():
        key_group, _, name = key.rpartition(".")
        if key_group == group:
            object.__setattr__(member_component, name, value)
    return member_component

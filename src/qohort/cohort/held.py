"""TODO cohort.held."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor


def per_member(values: Sequence[float], device: torch.device | str = "cpu") -> Tensor:
    """One float32 number a member: `[M]`."""
    return torch.tensor(values, dtype=torch.float32, device=device)


T = TypeVar("T")


def across_members(objects: Sequence[T]) -> T:
    """One object whose numbers are the members' own, `[M]`, from each member's object.

    Numbers become arrays even where all are equal, since an array's power may differ from a number's in the last bit.

    Args:
        objects: Dataclasses of one kind: schedules, or what holds schedules. Only their numbers differ.
    """
    merged = copy.copy(objects[0])
    for field in fields(merged):  # type: ignore[arg-type]
        values = [getattr(one, field.name) for one in objects]
        if is_dataclass(values[0]):
            object.__setattr__(merged, field.name, across_members(values))
        elif isinstance(values[0], int | float):
            object.__setattr__(merged, field.name, np.array(values, dtype=np.float64))
    return merged





def with_numbers(component: T, group: str, held: Mapping[str, Tensor]) -> T:
    """A copy of a component, some of whose numbers are a member's own.

    Args:
        component: A dataclass.
        group: Where it stands in the configuration.
        held: One member's numbers by their key in the configuration; those of other groups are passed over.
    """
    own = copy.copy(component)
    for key, value in held.items():
        place, _, name = key.rpartition(".")
        if place == group:
            object.__setattr__(own, name, value)
    return own

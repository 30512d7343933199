"""Held numbers: what each member of a cohort may have of its own besides its seed, as arrays `[M]`.

A component declares them: `foldable = ("tau",)` says that its number `tau` may differ between members.
`qohort.config.folding` reads this from classes, so one of yours is read like ours.
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
    """One float32 number a member: `[M]`."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def across_members(objects: Sequence[T]) -> T:
    """One object whose numbers are the members' own, `[M]`, from each member's object.

    Numbers become arrays even where all are equal: an array's power may differ from a number's in the last bit.

    Args:
        objects: Schedules, or what holds schedules, of one class; only their numbers differ. Of a dataclass every
            number becomes an array, of another class those that it declares as `foldable`.
    """
    first = objects[0]
    merged = copy.copy(first)
    declared = getattr(first, "foldable", ())
    for name, value in vars(first).items():
        values = [getattr(one, name) for one in objects]
        if is_dataclass(value) or hasattr(value, "foldable"):
            object.__setattr__(merged, name, across_members(values))
        elif isinstance(value, int | float) and (is_dataclass(first) or name in declared):
            object.__setattr__(merged, name, np.array(values, dtype=np.float64))
    return merged


def with_numbers(component: T, group: str, held: Mapping[str, Tensor]) -> T:
    """A copy of a component, some of whose numbers are a member's own.

    Args:
        component: The component.
        group: Its group in the configuration, as in `bootstrap`.
        held: One member's numbers by their key in the configuration; those of other groups are passed over.
    """
    own = copy.copy(component)
    for key, value in held.items():
        place, _, name = key.rpartition(".")
        if place == group:
            object.__setattr__(own, name, value)
    return own

"""Branches of actions: an action of several numbers, each of which is chosen by a branch of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor


class BranchedActions(int):
    """The number of actions of all branches together, A = Σ n_k, which also knows the actions of each branch.

    It is an int, so that a network that needs the number of its outputs only needs no change. Values `[..., A]` are
    those of the first branch, then those of the second, and so on. An action is `[..., K]`, with a number from 0 to
    n_k - 1 for each of the K branches.

    Args:
        sizes: The number of actions of each branch, n_1, ..., n_K.
    """

    sizes: tuple[int, ...]
    """The number of actions of each branch."""
    parts: tuple[slice, ...]
    """Where the values of each branch are."""

    def __new__(cls, sizes: Iterable[int]) -> BranchedActions:
        """Return the sum of the sizes."""
        sizes = tuple(int(size) for size in sizes)
        actions = super().__new__(cls, sum(sizes))
        actions.sizes = sizes
        ends = [0, *itertools.accumulate(sizes)]
        actions.parts = tuple(slice(first, end) for first, end in itertools.pairwise(ends))
        return actions

    def __getnewargs__(self) -> tuple[tuple[int, ...]]:  # type: ignore[override]
        """Return how to make a copy."""
        return (self.sizes,)


def branches_of(actions: int) -> BranchedActions | None:
    """Return the branches of actions; None if an action is one number."""
    return actions if isinstance(actions, BranchedActions) else None


def greedy_actions(values: Tensor, actions: int) -> Tensor:
    """Return the greedy actions of values `[..., A]`: `[...]`, or `[..., K]` with branches."""
    branches = branches_of(actions)
    if branches is None:
        return values.argmax(-1)
    return torch.stack([values[..., part].argmax(-1) for part in branches.parts], -1)

"""The actions of an environment: as a Q-network and a replay count them, and as the environment does.

Networks and replays have int64 actions that are counted from 0: one number for a `Discrete` space, K for a
`MultiDiscrete` or `MultiBinary` one, each of which belongs to a branch (`qohort.networks.branches`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from qohort.networks.branches import BranchedActions

Recorded = int | list[int]
"""An action as it is kept in a checkpoint or a file, counted as the environment does."""


def supported(space: spaces.Space[Any]) -> bool:
    """Return whether a Q-network can have a value for each action of a space, or of each of its branches."""
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        return len(space.shape) == 1 and space.shape[0] > 0
    return isinstance(space, spaces.Discrete)


def actions_of(space: spaces.Space[Any]) -> int:
    """Return the number of actions of a space that is `supported`; a `BranchedActions` if it has several numbers."""
    if isinstance(space, spaces.MultiBinary):
        return BranchedActions([2] * space.shape[0])
    if isinstance(space, spaces.MultiDiscrete):
        return BranchedActions(space.nvec)
    assert isinstance(space, spaces.Discrete)
    return int(space.n)


def counted_from_0(space: spaces.Space[Any]) -> bool:
    """Return whether an environment takes NumPy's int64 as a Q-network counts them."""
    return isinstance(space, spaces.Discrete) and space.start == 0


def as_counted(space: spaces.Space[Any], actions: NDArray[np.int64]) -> NDArray[Any]:
    """Return actions `[N]` or `[N, K]` as the environment counts them, in the dtype of its space."""
    if counted_from_0(space):
        return actions  # NumPy integers, because Gymnasium checks these faster than Python's
    dtype = np.int64 if isinstance(space, spaces.Discrete) else space.dtype
    return (actions + getattr(space, "start", 0)).astype(dtype)  # new memory: an environment may keep its action


def from_record(space: spaces.Space[Any], action: Recorded) -> Any:
    """Return the action of an environment that was kept."""
    return np.int64(action) if isinstance(action, int) else np.array(action, dtype=space.dtype)


def random_actions_of(space: spaces.Space[Any], count: int) -> NDArray[Any]:
    """Return random actions `[count]` or `[count, K]`, always the same, as the environment counts them."""
    actions, rng = actions_of(space), np.random.default_rng(0)
    if isinstance(actions, BranchedActions):
        return as_counted(space, rng.integers(actions.sizes, size=(count, len(actions.sizes))))
    return as_counted(space, rng.integers(actions, size=count))

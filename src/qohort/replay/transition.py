"""What goes into a replay and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Batch = dict[str, Tensor]
"""A batch of transitions by name: tensors `[M, B, ...]` for a cohort, `[B, ...]` inside a loss.

Every batch has `observation` and `action`. It also has either `reward`, `discount` (γⁿ, 0 where terminated) and
`next_observation`, or `target` if the replay computes the targets itself. Optional entries are:

- `weight`: the importance weights of prioritised replay.
- `ended`: whether the episode ended with the transition, terminated or truncated.
- `normal_<use>`, `fractions_<use>`: the random numbers for one use of a network (`online`, `target` or `policy`).
"""

Values = Callable[[Tensor], Tensor]
"""A function from observations `[M, B, ...]` to action values `[M, B, A]`."""


class Transition(NamedTuple):
    """One step of every environment of a cohort, as arrays `[M, E, ...]`."""

    observation: NDArray[Any]
    action: NDArray[np.int64]
    """The actions, counted from 0, `[M, E]`; `[M, E, K]` with branches."""
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    next_observation: NDArray[Any]
    """The observation after the step; where the episode ended, its final observation."""
    life_lost: NDArray[np.bool_] | None = None
    """Where the discount after the step is 0 although the episode goes on; None for nowhere."""

    @property
    def continues(self) -> NDArray[np.bool_]:
        """Whether the discount after the step is γ, and not 0."""
        return ~self.terminated if self.life_lost is None else ~(self.terminated | self.life_lost)

    @property
    def ended(self) -> NDArray[np.bool_]:
        """Whether the episode ended with the step, terminated or truncated."""
        return self.terminated | self.truncated


class Frames(NamedTuple):
    """How observations are made of frames."""

    stack: int
    """The number of frames of an observation, on its first axis; 1 for an observation that is its own frame."""
    padding: Literal["reset", "zero"]
    """What stands for the frames before the first one of an episode: the first one, or zeros."""

"""Statistics of training episodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Episode(NamedTuple):
    """A training episode that has ended."""

    member: int
    score: float
    """Its undiscounted return."""
    length: int
    """Its env_steps."""


class EpisodeStatistics:
    """The running episodes of a cohort's environments: what they returned so far, and lately.

    Args:
        members: M.
        num_envs: Environments a member, E.
    """

    def __init__(self, members: int, num_envs: int) -> None:
        self._returns = np.zeros((members, num_envs))
        self._lengths = np.zeros((members, num_envs), dtype=np.int64)
        self.recent = np.full(members, np.nan)
        """A moving average of each member's episodes' returns, `[M]`, NaN before the first has ended."""

    def add(self, reward: NDArray[np.float64]) -> None:
        """One step of every environment, its rewards `[M, E]`."""
        self._returns += reward
        self._lengths += 1

    def end(self, ended: NDArray[np.bool_]) -> list[Episode]:
        """The episodes that end where `ended [M, E]` says so; others begin there."""
        episodes = []
        for m, e in np.argwhere(ended).tolist():
            score, length = float(self._returns[m, e]), int(self._lengths[m, e])
            old = self.recent[m]
            self.recent[m] = score if np.isnan(old) else 0.95 * old + 0.05 * score
            episodes.append(Episode(m, score, length))
        self._returns[ended] = 0.0
        self._lengths[ended] = 0
        return episodes

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all three."""
        arrays = {"returns": self._returns, "lengths": self._lengths, "recent": self.recent}
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put them back."""
        self._returns[:] = state["returns"].numpy()
        self._lengths[:] = state["lengths"].numpy()
        self.recent[:] = state["recent"].numpy()

"""The returns and lengths of training episodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Episode(NamedTuple):
    """A training episode that has ended."""

    member: int
    """The index of the member."""
    score: float
    """The undiscounted return."""
    length: int
    """The length in env_steps."""
    metrics: Mapping[str, float] = MappingProxyType({})
    """The numbers in the info of its last step that were asked for, and that it has."""


class EpisodeStatistics:
    """Tracks the returns and lengths of the current episodes, and a moving average of the returns.

    Args:
        members: The number of members, M.
        num_envs: Environments per member, E.
        names: The names of numbers in the info of an episode's last step.
    """

    def __init__(self, members: int, num_envs: int, names: Sequence[str] = ()) -> None:
        self._names = names
        self._returns = np.zeros((members, num_envs))
        self._lengths = np.zeros((members, num_envs), dtype=np.int64)
        self.recent = np.full(members, np.nan)
        """The moving average of each member's returns, `[M]`; NaN before the first episode has ended."""

    def add(self, reward: NDArray[np.float64]) -> None:
        """Add the rewards `[M, E]` of one step of every environment."""
        self._returns += reward
        self._lengths += 1

    def end(self, ended: NDArray[np.bool_], metrics: NDArray[np.float64] | None = None) -> list[Episode]:
        """Return the episodes that ended, and start new ones in their place.

        Args:
            ended: Whether the episode ended, `[M, E]`.
            metrics: The numbers in the info of its last step, `[M, E, names]`; NaN for what it does not have.
        """
        episodes = []
        for m, e in np.argwhere(ended).tolist():
            episode = self.record(m, float(self._returns[m, e]), int(self._lengths[m, e]))
            if metrics is not None and self._names:
                named = zip(self._names, metrics[m, e].tolist(), strict=True)
                episode = episode._replace(metrics={name: value for name, value in named if not math.isnan(value)})
            episodes.append(episode)
        self._returns[ended] = 0.0
        self._lengths[ended] = 0
        return episodes

    def record(self, m: int, score: float, length: int) -> Episode:
        """Return an episode that ended, and add its return to the moving average of its member."""
        average = self.recent[m]
        self.recent[m] = score if np.isnan(average) else 0.95 * average + 0.05 * score
        return Episode(m, score, length)

    @property
    def running(self) -> dict[str, Tensor]:
        """The returns and lengths of the current episodes, `[M, E]`; a program may write them in place."""
        return {"returns": torch.from_numpy(self._returns), "lengths": torch.from_numpy(self._lengths)}

    def drop(self) -> None:
        """Start new episodes in place of the current ones, which do not count."""
        self._returns[:] = 0
        self._lengths[:] = 0

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the returns, the lengths and the moving averages."""
        arrays = {"returns": self._returns, "lengths": self._lengths, "recent": self.recent}
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state that `state_dict` returned."""
        self._returns[:] = state["returns"].numpy()
        self._lengths[:] = state["lengths"].numpy()
        self.recent[:] = state["recent"].numpy()

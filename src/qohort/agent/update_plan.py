"""When updates are due."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from qohort.cohort.schedules import Progress

Count = TypeVar("Count", int, NDArray[np.int64])
"""One number of env_steps, or several."""


class UpdatePlan:
    """The updates that are due: `gradient_steps` after each multiple of `train_every` env_steps, once learning starts.

    Args:
        train_every: The env_steps between rounds of updates.
        gradient_steps: The updates of a round.
        first: The env_steps before which there is no update.
    """

    def __init__(self, train_every: int, gradient_steps: int, first: int) -> None:
        self._every, self._per_round, self._first = train_every, gradient_steps, first
        self._waits_until, self._done, self._skipped = 0, 0, 0

    def due_by(self, env_steps: Count) -> Count:
        """Return the number of updates that are due within the first `env_steps`."""
        due = self._planned(env_steps) - self._skipped
        return due + (env_steps < self._waits_until) * (self._done - due)

    def _planned(self, env_steps: Count) -> Count:
        rounds = env_steps // self._every - (self._first - 1) // self._every
        return rounds * (rounds > 0) * self._per_round

    def env_steps_of(self, updates: int) -> int:
        """Return the env_steps after which a number of updates is done."""
        rounds = -(-(updates + self._skipped) // self._per_round) + (self._first - 1) // self._every
        return max(rounds * self._every, self._waits_until)

    def wait_for_replay(self, progress: Progress) -> int:
        """Skip the updates until an empty replay has as many transitions again as learning starts with.

        Args:
            progress: The progress of the cohort, whose replay is empty.

        Returns:
            The env_steps of the next update.
        """
        self._waits_until = -(-(progress.env_steps + self._first) // self._every) * self._every
        self._done = progress.gradient_steps
        self._skipped = self._planned(self._waits_until) - self._per_round - self._done
        return self._waits_until

    def state_dict(self) -> dict[str, Any]:
        """Return which updates are skipped."""
        return {"waits_until": self._waits_until, "done": self._done, "skipped": self._skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._waits_until, self._done, self._skipped = (int(state[name]) for name in ("waits_until", "done", "skipped"))

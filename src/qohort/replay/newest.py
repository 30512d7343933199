"""Learning without a replay: each batch is the newest transition of each environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qohort.cohort.schedules import Progress
from qohort.config.schema import TrainConfig
from qohort.replay.base import Batch, Replay, ReplaySpec, Transition
from qohort.replay.ring import Storage


class NewestTransition(Replay):
    """Yields the newest transition of each environment as a batch, B = E.

    Used by `experiment=article/approximate_q_learning` and `agent=stream_q`. Batches have the entry `ended`, `[M, E]`.

    Args:
        spec: See `ReplaySpec`. Its batch size is not used.
    """

    newest_only = True

    def __init__(self, spec: ReplaySpec) -> None:
        self._storage = Storage(spec, spec.num_envs, ended=True)
        self._index = np.tile(np.arange(spec.num_envs), (len(spec.seeds), 1))
        self._added = 0

    @classmethod
    def batch_size(cls, config: TrainConfig) -> int:
        """Return one transition per environment."""
        return config.env.num_envs

    def add(self, transition: Transition) -> None:
        """Replace the stored transitions by one step of every environment."""
        self._storage.write(0, transition)
        self._added += 1

    def sample(self, progress: Progress) -> Batch:
        """Return the newest transitions, `[M, E]`."""
        return self._storage.batch(self._index)

    def state_dict(self) -> dict[str, Any]:
        """Return the stored transitions."""
        written = self._index.shape[1] if self._added else 0
        return {"transitions": self._storage.state_dict(written), "added": self._added}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._storage.load_state_dict(state["transitions"])
        self._added = int(state["added"])

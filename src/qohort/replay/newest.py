"""Learning without a replay: each batch is the newest transition of each environment."""

from __future__ import annotations

import numpy as np

from qohort.cohort.schedules import Progress
from qohort.config.schema import TrainConfig
from qohort.replay.base import ReplaySpec
from qohort.replay.ring import StoredSteps
from qohort.replay.storage import Storage
from qohort.replay.transition import Batch


class NewestTransition(StoredSteps):
    """Yields the newest transition of each environment as a batch, B = E.

    Used by `experiment=article/approximate_q_learning` and `agent=stream_q`. Batches have the entry `ended`, `[M, E]`.

    Args:
        spec: See `ReplaySpec`. Its batch size is not used.
    """

    newest_only = True
    refillable = False  # there is nothing to fill

    def __init__(self, spec: ReplaySpec) -> None:
        super().__init__(Storage(spec, spec.num_envs, ended=True), spec.num_envs, spec.num_envs)
        self._index = np.tile(np.arange(spec.num_envs), (len(spec.seeds), 1))

    @classmethod
    def batch_size(cls, config: TrainConfig) -> int:
        """Return one transition per environment."""
        return config.env.num_envs

    def sample(self, progress: Progress) -> Batch:
        """Return the newest transitions, `[M, E]`."""
        return self.storage.batch(self._index)

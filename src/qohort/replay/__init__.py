"""Replay: stores the transitions of all members and samples batches from them.

The files in reading order:

- `base.py`: `Transition`, `Batch` and the interface `Replay`.
- `storage.py`: transitions in pairs of observations, and n-step transitions.
- `frames.py`: large observations and stacked frames, stored once.
- `ring.py`: the ring buffer and uniform replay.
- `sum_tree.py`: the sum tree for sampling in proportion to priorities.
- `prioritized.py`: proportional prioritised replay.
- `lambda_returns.py`: λ-returns as targets, for DQN(λ) and PQN.
- `newest.py`: no replay; learns from the newest transition only.
"""

from qohort.replay.base import Replay, ReplaySpec
from qohort.replay.ring import Ring, UniformReplay
from qohort.replay.transition import Batch, Frames, Transition

__all__ = ["Batch", "Frames", "Replay", "ReplaySpec", "Ring", "Transition", "UniformReplay"]

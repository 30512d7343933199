"""Replay: stores the transitions of all members and samples batches from them.

The files in reading order:

- `base.py`: `Transition`, `Batch` and the interface `Replay`.
- `ring.py`: the ring buffer, uniform replay and n-step transitions.
- `sum_tree.py`: the sum tree for sampling in proportion to priorities.
- `prioritized.py`: proportional prioritised replay.
- `lambda_returns.py`: λ-returns as targets, for DQN(λ) and PQN.
- `newest.py`: no replay; learns from the newest transition only.
"""

from qohort.replay.base import Batch, Replay, ReplaySpec, Transition
from qohort.replay.ring import Ring, UniformReplay

__all__ = ["Batch", "Replay", "ReplaySpec", "Ring", "Transition", "UniformReplay"]

"""What the TD loss and an update return."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LossTerms(NamedTuple):
    """Statistics of one loss evaluation, detached from the graph."""

    loss: Tensor
    """The mean loss, a scalar."""
    td_error: Tensor
    """The TD error of each sample, `[B]`."""
    q_mean: Tensor
    """The mean value of the actions taken in the batch, a scalar."""
    greedy: Tensor
    """Whether the action of each sample is greedy under the online network, `[B]`."""


class UpdateResult(NamedTuple):
    """The statistics of an update, per member."""

    loss: Tensor
    """The mean loss of the batch, `[M]`."""
    grad_norm: Tensor
    """The gradient's 2-norm before clipping, `[M]`."""
    td_error: Tensor
    """The TD error of each sample, `[M, B]`."""
    q_mean: Tensor
    """The mean value of the actions taken in the batch, `[M]`."""

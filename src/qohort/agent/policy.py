"""What a bootstrap returns and a head averages over: a policy over the next actions."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Policy(NamedTuple):
    """A policy over the next actions.

    Attributes:
        probabilities: The probability of each next action, `[B, A]`.
        bonus: Added to the return of each next action, `[B, A]`; None for no bonus.
        one_hot: Whether the policy is deterministic. Heads take a shorter path in this case.
    """

    probabilities: Tensor
    bonus: Tensor | None = None
    one_hot: bool = False

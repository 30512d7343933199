"""The TD loss of one member, built from independent choices: a bootstrap policy and a value head.

    policy = bootstrap(next_online, next_target)                   which next actions count
    target = head.backup(reward, discount, next_target, policy)    what the values should be
    loss   = head.divergence(online at action, target)             how far they are from it

Shapes here are of one member: `[B, ...]`. Nothing here can touch the agent's state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from qohort.checking import Range

Parameters = Mapping[str, Tensor]
Batch = Mapping[str, Tensor]
"""`observation [B, ...]`, `action [B]`, `reward [B]`, `discount [B]` (γ, 0 where terminated), `next_observation`."""


class Bootstrap(Protocol):
    """Chooses the policy whose value is bootstrapped from."""

    uses_online: bool
    """Whether the online network's next values are needed."""

    def __call__(self, next_online: Tensor | None, next_target: Tensor) -> Tensor:
        """Action values `[B, A]` of the two networks to action probabilities `[B, A]`."""


class Head(Protocol):
    """What a network's outputs mean, and how far they are from a target."""

    def outputs(self, actions: int) -> int:
        """The number of outputs a network needs for that many actions."""

    def distribution(self, outputs: Tensor, actions: int) -> Tensor:
        """A network's outputs `[B, outputs]`, arranged by action: `[B, A, ...]`."""

    def mean(self, distribution: Tensor) -> Tensor:
        """The action values `[B, A]` of `[B, A, ...]`."""

    def backup(self, reward: Tensor, discount: Tensor, next_target: Tensor, policy: Tensor) -> Tensor:
        """The target `[B, ...]` of the action taken, from the next distribution `[B, A, ...]` and policy."""

    def divergence(self, online: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The loss `[B]` and the TD error `[B]` of the action's distribution `[B, ...]` and its target."""


@dataclass(frozen=True)
class Greedy:
    """Bootstrap from the target network's best action: Q-learning (Watkins, 1989), DQN (Mnih et al., 2015, eq. 2).

    Both choice and value are the target network's: this is not Double Q-learning.
    """

    uses_online = False

    def __call__(self, next_online: Tensor | None, next_target: Tensor) -> Tensor:
        """`[B, A]` to one-hot `[B, A]`; the first of equal actions."""
        best = next_target.argmax(-1, keepdim=True)
        return (torch.arange(next_target.shape[-1], device=next_target.device) == best).to(next_target.dtype)


@dataclass(frozen=True)
class Expected:
    """One expected return an action: y = r + d Σ_a π(a) Q'(s', a), as in DQN (Mnih et al., 2015).

    Attributes:
        loss: `squared`, (y - Q)², or `huber`, quadratic below `huber_delta` and linear above.
        huber_delta: Where the Huber loss turns linear, in units of reward.

    Deviations: 1. the squared loss has no factor ½, as in the article and CleanRL.
    """

    loss: Literal["squared", "huber"] = "squared"
    huber_delta: Annotated[float, Range(0, above=True)] = 1.0

    def outputs(self, actions: int) -> int:
        """One output an action."""
        return actions

    def distribution(self, outputs: Tensor, actions: int) -> Tensor:
        """`[B, A]`, as it is."""
        return outputs

    def mean(self, distribution: Tensor) -> Tensor:
        """`[B, A]`, as it is."""
        return distribution

    def backup(self, reward: Tensor, discount: Tensor, next_target: Tensor, policy: Tensor) -> Tensor:
        """Y = r + d Σ_a π(a) Q'(s', a): `[B]`."""
        return reward + discount * (policy * next_target).sum(-1)

    def divergence(self, online: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The loss `[B]` and the TD error y - Q `[B]`."""
        if self.loss == "squared":
            loss = (target - online).square()
        else:
            # Written out: torch's own can be compiled for one number of members only.
            error = (target - online).abs()
            linear = self.huber_delta * (error - 0.5 * self.huber_delta)
            loss = torch.where(error < self.huber_delta, 0.5 * error.square(), linear)
        return loss, target - online


def _at_action(distribution: Tensor, action: Tensor) -> Tensor:
    """The rows of `[B, A, ...]` at `action [B]`: `[B, ...]`.

    By a mask and a sum, not by an index: its gradient needs no scatter, and it compiles for any number of members.
    """
    mask = torch.arange(distribution.shape[1], device=action.device) == action.unsqueeze(-1)
    mask = mask.view(*mask.shape, *[1] * (distribution.dim() - 2))
    return torch.where(mask, distribution, 0.0).sum(1)


class LossTerms(NamedTuple):
    """What an update reports besides its loss."""

    td_error: Tensor
    """The TD error of each sample: `[B]`."""
    q_mean: Tensor
    """The mean value of the actions taken in the batch: a scalar."""


@dataclass(frozen=True)
class TDLoss:
    """The TD loss of one member: a pure function of its parameters and a batch.

    Attributes:
        forward: One member's network: parameters and observations `[B, ...]` to outputs `[B, outputs]`.
        bootstrap: The policy that is bootstrapped from.
        head: What the outputs mean.
        actions: The number of actions, A.
    """

    forward: Callable[[Parameters, Tensor], Tensor]
    bootstrap: Bootstrap
    head: Head
    actions: int

    def __call__(self, online: Parameters, target: Parameters, batch: Batch) -> tuple[Tensor, LossTerms]:
        """The mean loss over the batch, and what else is worth knowing of it.

        Args:
            online: The parameters that are learned; the loss is differentiated by these.
            target: The parameters that are bootstrapped from; no gradient flows through them.
            batch: See `Batch`.
        """
        head = self.head
        with torch.no_grad():
            next_target = self._distribution(target, batch["next_observation"])
            next_online = self._distribution(online, batch["next_observation"]) if self.bootstrap.uses_online else None
            policy = self.bootstrap(None if next_online is None else head.mean(next_online), head.mean(next_target))
            goal = head.backup(batch["reward"], batch["discount"], next_target, policy)
        distribution = self._distribution(online, batch["observation"])
        chosen = _at_action(distribution, batch["action"])
        loss, td_error = head.divergence(chosen, goal)
        q_mean = head.mean(chosen.unsqueeze(1)).mean()
        return loss.mean(), LossTerms(td_error.detach(), q_mean.detach())

    def _distribution(self, parameters: Parameters, observation: Tensor) -> Tensor:
        return self.head.distribution(self.forward(parameters, observation), self.actions)

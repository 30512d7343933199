"""The TD loss of one member, composed of a bootstrap policy and a value head.

    policy = bootstrap(next_online, next_target)                   the policy at the next observation
    target = head.backup(reward, discount, next_target, policy)    the TD target
    loss   = head.divergence(online[action], target)               the loss and the TD error

Shapes are those of one member, `[B, ...]`. All functions are pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from qohort.agent.bootstrap import Bootstrap
from qohort.agent.heads import Head
from qohort.agent.results import LossTerms
from qohort.networks.packing import without_masked
from qohort.replay.transition import Batch

Parameters = Mapping[str, Tensor]


class Forward(Protocol):
    """The network of one member as a function of its parameters."""

    def __call__(
        self, parameters: Parameters, observation: Tensor, normal: Tensor | None, fractions: Tensor | None
    ) -> Tensor:
        """Map observations `[B, ...]` to outputs `[B, A, atoms]`, or to `[B, A, N]` given fractions `[B, N]`."""


@dataclass(frozen=True)
class TDLoss:
    """The TD loss of one member, a pure function of its parameters and a batch.

    Attributes:
        forward: The network of one member.
        bootstrap: The bootstrap policy.
        head: The value head.
        allowed: Returns the action masks `[B, A]` of observations `[B, ...]`; None for no masks.
    """

    forward: Forward
    bootstrap: Bootstrap
    head: Head
    allowed: Callable[[Tensor], Tensor] | None = None

    def __call__(self, online: Parameters, target: Parameters, batch: Batch) -> tuple[Tensor, LossTerms]:
        """Compute the mean loss over the batch.

        Args:
            online: The parameters of the online network. The loss is differentiated with respect to these.
            target: The parameters of the target network. No gradient flows through them.
            batch: See `Batch`.

        Returns:
            The mean loss, and the statistics of the batch.
        """
        loss, _, terms = self._of(online, target, batch)
        return loss, terms

    def value(self, online: Parameters, target: Parameters, batch: Batch) -> tuple[Tensor, LossTerms]:
        """Compute the mean value of the actions taken instead of the loss.

        Optimisers with eligibility traces follow its gradient (`MemberOptimizer.follows_value`).
        """
        _, value, terms = self._of(online, target, batch)
        return value, terms

    def _of(self, online: Parameters, target: Parameters, batch: Batch) -> tuple[Tensor, Tensor, LossTerms]:
        """Return the mean loss, the mean value of the actions taken, and the statistics of the batch."""
        with torch.no_grad():
            td_target = batch["target"] if "target" in batch else self._target(online, target, batch)
        distribution = self._distribution(online, batch, "observation", "online")
        taken = self._taken(distribution, batch["action"])
        loss, td_error = self._divergence(taken, td_target, batch.get("fractions_online"))
        if "weight" in batch:
            loss = batch["weight"] * loss
        loss = loss.mean()
        value = self._value(taken)
        greedy = self._greedy(value, self._values(distribution, batch, "observation"))
        value = value.mean()
        return loss, value, LossTerms(loss.detach(), td_error.detach(), value.detach(), greedy.detach())

    def _target(self, online: Parameters, target: Parameters, batch: Batch) -> Any:
        """Compute the TD target of each sample."""
        head, bootstrap = self.head, self.bootstrap
        next_target = self._distribution(target, batch, "next_observation", "target")
        next_online = None
        if bootstrap.uses_online:
            next_online = head.mean(self._distribution(online, batch, "next_observation", "policy"))
        # IQN selects the action with separate random fractions. Other heads reuse the distribution that is backed up.
        separate = head.fractions is not None and not bootstrap.uses_online
        policy_distribution = (
            self._distribution(target, batch, "next_observation", "policy") if separate else next_target
        )
        policy = self._policy(next_online, head.mean(policy_distribution), batch)
        reward = batch["reward"]
        if bootstrap.adds_to_reward:
            values = self._values(self._distribution(target, batch, "observation", "policy"), batch, "observation")
            reward = reward + self._reward_bonus(values, batch["action"])
        return self._backup(reward, batch["discount"], next_target, policy)

    def _values(self, distribution: Tensor, batch: Batch, observation: str) -> Tensor:
        """Compute the action values `[B, A]` of a return distribution; -inf where an action is masked."""
        values = self.head.mean(distribution)
        return values if self.allowed is None else without_masked(values, self.allowed(batch[observation]))

    def _distribution(self, parameters: Parameters, batch: Batch, observation: str, use: str) -> Tensor:
        numbers = batch.get(f"normal_{use}"), batch.get(f"fractions_{use}")
        return self.head.distribution(self.forward(parameters, batch[observation], *numbers))

    # What is different if an action has several numbers: see `qohort.agent.branches`.

    def _policy(self, next_online: Tensor | None, next_target: Tensor, batch: Batch) -> Any:
        """Return the policy at the next observation from action values `[B, A]`."""
        if self.allowed is None:
            return self.bootstrap(next_online, next_target)
        # The values that are backed up are not masked: 0 times -inf would be NaN.
        return self.bootstrap.among(self.allowed(batch["next_observation"]), next_online, next_target)

    def _reward_bonus(self, values: Tensor, action: Tensor) -> Tensor:
        """Return what the bootstrap adds to the reward, `[B]`."""
        return self.bootstrap.reward_bonus(values, action)

    def _backup(self, reward: Tensor, discount: Tensor, next_target: Tensor, policy: Any) -> Any:
        """Compute the TD target of the action taken."""
        return self.head.backup(reward, discount, next_target, policy)

    def _taken(self, distribution: Tensor, action: Tensor) -> Tensor:
        """Return the distribution of the action taken, `[B, ...]`."""
        return at_action(distribution, action)

    def _divergence(self, taken: Tensor, target: Any, fractions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute the loss and the TD error of each sample, `[B]`."""
        return self.head.divergence(taken, target, fractions)

    def _value(self, taken: Tensor) -> Tensor:
        """Return the value of the action taken, `[B, 1]`."""
        return self.head.mean(taken.unsqueeze(1))

    def _greedy(self, value: Tensor, values: Tensor) -> Tensor:
        """Return whether the action taken, of this value, has the greatest of the values `[B, A]`: `[B]`."""
        return value.squeeze(1) >= values.amax(1)


def at_action(distribution: Tensor, action: Tensor) -> Tensor:
    """Select the rows of `[B, A, ...]` at `action [B]`: `[B, ...]`.

    Uses a mask and a sum instead of an index. Its gradient needs no scatter, and it compiles for any number of members.
    """
    mask = torch.arange(distribution.shape[1], device=action.device) == action.unsqueeze(-1)
    mask = mask.view(*mask.shape, *[1] * (distribution.dim() - 2))
    return torch.where(mask, distribution, 0.0).sum(1)

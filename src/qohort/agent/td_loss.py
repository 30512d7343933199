"""The TD loss of one member, built from independent choices: a bootstrap policy and a value head.

    policy = bootstrap(next_online, next_target)                   which next actions count
    target = head.backup(reward, discount, next_target, policy)    what the values should be
    loss   = head.divergence(online at action, target)             how far they are from it

Shapes here are of one member: `[B, ...]`. Nothing here can touch the agent's state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from qohort.agent.bootstrap import Bootstrap
from qohort.agent.heads import Head
from qohort.replay.base import Batch

Parameters = Mapping[str, Tensor]


class Forward(Protocol):
    """One member's network."""

    def __call__(
        self, parameters: Parameters, observation: Tensor, normal: Tensor | None, fractions: Tensor | None
    ) -> Tensor:
        """Observations `[B, ...]` to outputs `[B, A, atoms]`, or `[B, A, N]` at fractions `[B, N]`."""


class LossTerms(NamedTuple):
    """What an update reports, without gradients."""

    loss: Tensor
    """The mean loss: a scalar."""
    td_error: Tensor
    """The TD error of each sample: `[B]`."""
    q_mean: Tensor
    """The mean value of the actions taken in the batch: a scalar."""
    greedy: Tensor
    """Whether the action of each sample is greedy now: `[B]`."""


@dataclass(frozen=True)
class TDLoss:
    """The TD loss of one member: a pure function of its parameters and a batch.

    Attributes:
        forward: One member's network.
        bootstrap: The policy that is bootstrapped from.
        head: What the outputs mean.
    """

    forward: Forward
    bootstrap: Bootstrap
    head: Head

    def __call__(self, online: Parameters, target: Parameters, batch: Batch) -> tuple[Tensor, LossTerms]:
        """The mean loss over the batch, and what else is worth knowing of it.

        Args:
            online: The parameters that are learned; the loss is differentiated by these.
            target: The parameters that are bootstrapped from; no gradient flows through them.
            batch: See `Batch`.
        """
        loss, _, terms = self._of(online, target, batch)
        return loss, terms

    def value(self, online: Parameters, target: Parameters, batch: Batch) -> tuple[Tensor, LossTerms]:
        """In place of the loss the mean value of the actions taken, for those who follow its gradient."""
        _, value, terms = self._of(online, target, batch)
        return value, terms

    def _of(self, online: Parameters, target: Parameters, batch: Batch) -> tuple[Tensor, Tensor, LossTerms]:
        """The mean loss, the mean value of the actions taken, and what is told of both."""
        head = self.head
        with torch.no_grad():
            goal = batch["target"] if "target" in batch else self._target(online, target, batch)
        distribution = self._distribution(online, batch, "observation", "online")
        chosen = _at_action(distribution, batch["action"])
        loss, td_error = head.divergence(chosen, goal, batch.get("fractions_online"))
        if "weight" in batch:
            loss = batch["weight"] * loss
        loss, value = loss.mean(), head.mean(chosen.unsqueeze(1))
        greedy = value.squeeze(1) >= head.mean(distribution).amax(1)
        value = value.mean()
        return loss, value, LossTerms(loss.detach(), td_error.detach(), value.detach(), greedy.detach())

    def _target(self, online: Parameters, target: Parameters, batch: Batch) -> Tensor:
        """The target of each sample, as the head keeps it."""
        head, bootstrap = self.head, self.bootstrap
        next_target = self._distribution(target, batch, "next_observation", "target")
        next_online = None
        if bootstrap.uses_online:
            next_online = head.mean(self._distribution(online, batch, "next_observation", "policy"))
        # Random fractions of its own choose the action, as in IQN; else the values are those that are backed up.
        draws_anew = head.fractions is not None and not bootstrap.uses_online
        judged = self._distribution(target, batch, "next_observation", "policy") if draws_anew else next_target
        policy = bootstrap(next_online, head.mean(judged))
        reward = batch["reward"]
        if bootstrap.adds_to_reward:
            values = head.mean(self._distribution(target, batch, "observation", "policy"))
            reward = reward + bootstrap.reward_bonus(values, batch["action"])
        goal: Tensor = head.backup(reward, batch["discount"], next_target, policy)
        return goal

    def _distribution(self, parameters: Parameters, batch: Batch, observation: str, use: str) -> Tensor:
        random = batch.get(f"normal_{use}"), batch.get(f"fractions_{use}")
        return self.head.distribution(self.forward(parameters, batch[observation], *random))


def _at_action(distribution: Tensor, action: Tensor) -> Tensor:
    """The rows of `[B, A, ...]` at `action [B]`: `[B, ...]`.

    By a mask and a sum, not by an index: its gradient needs no scatter, and it compiles for any number of members.
    """
    mask = torch.arange(distribution.shape[1], device=action.device) == action.unsqueeze(-1)
    mask = mask.view(*mask.shape, *[1] * (distribution.dim() - 2))
    return torch.where(mask, distribution, 0.0).sum(1)

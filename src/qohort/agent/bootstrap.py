"""Bootstrap policies: which next actions' values a TD target is made of.

Shapes are of one member: `[B, ...]`. A bootstrap is a frozen dataclass; numbers in it may be a member's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from qohort.config.annotations import Range
from qohort.config.schema import TrainConfig


class Policy(NamedTuple):
    """The policy that is bootstrapped from.

    Attributes:
        probabilities: Of each next action, `[B, A]`.
        bonus: What is added to the return after each next action, `[B, A]`; None for nothing.
        one_hot: Whether each row has a single action, which heads may count on.
    """

    probabilities: Tensor
    bonus: Tensor | None = None
    one_hot: bool = False


class Bootstrap(ABC):
    """Chooses the policy whose value is bootstrapped from."""

    uses_online: ClassVar[bool] = False
    """Whether the online network's next values are needed."""
    adds_to_reward: ClassVar[bool] = False
    """Whether `reward_bonus` is added to the reward."""
    maximum: ClassVar[bool] = False
    """Whether it is the best action of the target network and nothing else."""
    foldable: ClassVar[tuple[str, ...]] = ()
    """The numbers in which the members of a cohort may differ."""

    @property
    def follows_exploration(self) -> bool:
        """Whether its `epsilon` is the exploration's, as it is at the update."""
        return False

    @abstractmethod
    def __call__(self, next_online: Tensor | None, next_target: Tensor) -> Policy:
        """The policy, from the action values `[B, A]` that the two networks give the next observation.

        Args:
            next_online: The online network's; None unless `uses_online`.
            next_target: The target network's.
        """

    def reward_bonus(self, values: Tensor, action: Tensor) -> Tensor:
        """What is added to the reward `[B]`.

        Args:
            values: The target network's values of the observation that the action was taken in, `[B, A]`.
            action: The action, `[B]`.
        """
        raise NotImplementedError


def one_hot_best(values: Tensor) -> Tensor:
    """The best action of each row as one-hot probabilities `[B, A]`; the first of equal actions."""
    best = values.argmax(-1, keepdim=True)
    return (torch.arange(values.shape[-1], device=values.device) == best).to(values.dtype)


@dataclass(frozen=True)
class Greedy(Bootstrap):
    """The target network's best action: Q-learning (Watkins, 1989), DQN (Mnih et al., 2015, eq. 2).

    Both choice and value are the target network's: this is not Double Q-learning.
    """

    maximum = True

    def __call__(self, next_online: Tensor | None, next_target: Tensor) -> Policy:
        """The policy of values `[B, A]`."""
        return Policy(one_hot_best(next_target), one_hot=True)


@dataclass(frozen=True)
class Double(Bootstrap):
    """The online network's best action, with the target network's value (van Hasselt et al., 2016, eq. 4)."""

    uses_online = True

    def __call__(self, next_online: Tensor | None, next_target: Tensor) -> Policy:
        """The policy of values `[B, A]`."""
        assert next_online is not None
        return Policy(one_hot_best(next_online), one_hot=True)


@dataclass(frozen=True)
class Soft(Bootstrap):
    """The softmax of the target network's values, its entropy counted as reward: Munchausen (Vieillard et al., 2020).

    With π = softmax(Q'/τ) the target is r + α [τ log π(a|s)] + d Σ_b π(b|s') (Q'(s', b) - τ log π(b|s')), where the
    bracket is clipped to [`clip`, 0] (section 2; the clip: section 4). At α = 0 it is soft Q-learning.

    Attributes:
        alpha: α, how much of the clipped log-policy is added to the reward.
        temperature: τ, in units of Q.
        clip: The least value of the log-policy term, in units of reward.

    Deviations: 1. with `replay.n_step` above 1 only the first action's log-policy is added.
    """

    foldable = ("alpha", "temperature")

    alpha: Annotated[float, Range(0, 1)] = 0.9
    temperature: Annotated[float, Range(0, above=True)] = 0.03
    clip: Annotated[float, Range(None, 0)] = -1.0
    adds_to_reward = True

    def __call__(self, next_online: Tensor | None, next_target: Tensor) -> Policy:
        """The policy of values `[B, A]`, with the bonus -τ log π."""
        scaled_log = self._scaled_log_policy(next_target)
        return Policy((scaled_log / self.temperature).exp(), bonus=-scaled_log)

    def reward_bonus(self, values: Tensor, action: Tensor) -> Tensor:
        """α [τ log π(a|s)], clipped: `[B]`."""
        taken = torch.arange(values.shape[-1], device=values.device) == action.unsqueeze(-1)
        scaled_log = torch.where(taken, self._scaled_log_policy(values), 0.0).sum(-1)
        return self.alpha * scaled_log.clamp(self.clip, 0.0)

    def _scaled_log_policy(self, values: Tensor) -> Tensor:
        """Τ log softmax(values / τ), as (values - v) - τ log Σ exp((values - v) / τ) with v the largest."""
        above = values - values.amax(-1, keepdim=True)
        return above - self.temperature * (above / self.temperature).exp().sum(-1, keepdim=True).log()


@dataclass(frozen=True)
class ExpectedSarsa(Bootstrap):
    """The target network's best action, but for a random one with probability ε (van Seijen et al., 2009, eq. 6).

    Attributes:
        epsilon: ε; None for that of the exploration, as it is at the update.
    """

    epsilon: Annotated[float, Range(0, 1)] | None = None

    @classmethod
    def incompatibility(cls, config: TrainConfig) -> str | None:
        """Whether the exploration has no single ε of a member."""
        if config.bootstrap.get("epsilon") is not None:
            return None
        if "epsilon" not in config.exploration:
            return "bootstrap.epsilon=null is the exploration's, which has none here: give a number"
        spread = config.exploration.get("spread")
        if spread and config.env.num_envs > 1:
            return (
                "bootstrap.epsilon=null is the exploration's, which differs between environments by "
                f"exploration.spread={spread}: give a number"
            )
        return None

    @property
    def follows_exploration(self) -> bool:
        """Whether no number was given."""
        return self.epsilon is None

    def __call__(self, next_online: Tensor | None, next_target: Tensor) -> Policy:
        """The policy of values `[B, A]`."""
        assert self.epsilon is not None  # the learner has put the exploration's in its place
        actions = next_target.shape[-1]
        return Policy((1 - self.epsilon) * one_hot_best(next_target) + self.epsilon / actions)

"""Bootstrap policies: the policy over next actions that a TD target averages over.

Shapes are those of one member, `[B, ...]`. A bootstrap is a frozen dataclass. Its `foldable` fields may differ between
the members of a cohort.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from qohort.agent.policy import Policy as Policy
from qohort.config.annotations import Range
from qohort.config.schema import TrainConfig
from qohort.networks.packing import without_masked


class Bootstrap(ABC):
    """Base class of the bootstrap policies."""

    uses_online: ClassVar[bool] = False
    """Whether the policy depends on the online network's action values."""
    adds_to_reward: ClassVar[bool] = False
    """Whether `reward_bonus` is added to the reward."""
    maximum: ClassVar[bool] = False
    """Whether the policy is greedy with respect to the target network, so that the target is a plain maximum."""
    foldable: ClassVar[tuple[str, ...]] = ()
    """The fields that may differ between the members of a cohort."""

    @property
    def follows_exploration(self) -> bool:
        """Whether `epsilon` is the current ε of the exploration."""
        return False

    @abstractmethod
    def __call__(self, next_online: Tensor | None, next_target: Tensor) -> Policy:
        """Return the policy at the next observation.

        Args:
            next_online: The online network's action values of the next observation, `[B, A]`; None unless
                `uses_online`.
            next_target: The target network's action values of the next observation, `[B, A]`.
        """

    def among(self, allowed: Tensor, next_online: Tensor | None, next_target: Tensor) -> Policy:
        """Return the policy at the next observation over the actions that its action mask allows.

        Override it for a policy that depends on the number of actions.

        Args:
            allowed: Whether each next action is allowed, `[B, A]`; at least one is.
            next_online: As in a call.
            next_target: As in a call.
        """
        policy = self(
            None if next_online is None else without_masked(next_online, allowed), without_masked(next_target, allowed)
        )
        bonus = None if policy.bonus is None else torch.where(allowed, policy.bonus, 0.0)
        return policy._replace(probabilities=torch.where(allowed, policy.probabilities, 0.0), bonus=bonus)

    def reward_bonus(self, values: Tensor, action: Tensor) -> Tensor:
        """Return the bonus that is added to the reward, `[B]`. Only called if `adds_to_reward`.

        Args:
            values: The target network's action values of the current observation, `[B, A]`; -inf where masked.
            action: The action taken, `[B]`.
        """
        raise NotImplementedError


def one_hot_best(values: Tensor) -> Tensor:
    """Return the greedy policy as one-hot probabilities `[B, A]`. Ties go to the first action."""
    best = values.argmax(-1, keepdim=True)
    return (torch.arange(values.shape[-1], device=values.device) == best).to(values.dtype)


@dataclass(frozen=True)
class Greedy(Bootstrap):
    """The greedy action of the target network: Q-learning (Watkins, 1989), DQN (Mnih et al., 2015, eq. 2).

    The target network both selects and evaluates the action, so this is not Double Q-learning.
    """

    maximum = True

    def __call__(self, next_online: Tensor | None, next_target: Tensor) -> Policy:
        """Return the policy `[B, A]`."""
        return Policy(one_hot_best(next_target), one_hot=True)


@dataclass(frozen=True)
class Double(Bootstrap):
    """The greedy action of the online network, evaluated by the target network (van Hasselt et al., 2016, eq. 4)."""

    uses_online = True

    def __call__(self, next_online: Tensor | None, next_target: Tensor) -> Policy:
        """Return the policy `[B, A]`."""
        assert next_online is not None
        return Policy(one_hot_best(next_online), one_hot=True)


@dataclass(frozen=True)
class Soft(Bootstrap):
    """The softmax policy of the target network, with an entropy bonus: Munchausen-DQN (Vieillard et al., 2020).

    With π = softmax(Q'/τ), the target is r + α [τ log π(a|s)] + d Σ_b π(b|s') (Q'(s', b) - τ log π(b|s')) (section 2).
    The term in brackets is clipped to [`clip`, 0] (section 4). With α = 0 this is soft Q-learning.

    Attributes:
        alpha: α, the factor of the clipped log-policy term that is added to the reward.
        temperature: τ, in units of Q.
        clip: The lower bound of the log-policy term, in units of reward.

    Deviations: 1. With `replay.n_step` above 1, only the log-policy of the first action is added.
    """

    foldable = ("alpha", "temperature")

    alpha: Annotated[float, Range(0, 1)] = 0.9
    temperature: Annotated[float, Range(0, above=True)] = 0.03
    clip: Annotated[float, Range(None, 0)] = -1.0
    adds_to_reward = True

    def __call__(self, next_online: Tensor | None, next_target: Tensor) -> Policy:
        """Return the policy `[B, A]` with the bonus -τ log π."""
        scaled_log = self._scaled_log_policy(next_target)
        return Policy((scaled_log / self.temperature).exp(), bonus=-scaled_log)

    def reward_bonus(self, values: Tensor, action: Tensor) -> Tensor:
        """Return α [τ log π(a|s)] with the bracket clipped, `[B]`."""
        taken = torch.arange(values.shape[-1], device=values.device) == action.unsqueeze(-1)
        scaled_log = torch.where(taken, self._scaled_log_policy(values), 0.0).sum(-1)
        return self.alpha * scaled_log.clamp(self.clip, 0.0)

    def _scaled_log_policy(self, values: Tensor) -> Tensor:
        """Compute τ log softmax(values / τ) as (values - v) - τ log Σ exp((values - v) / τ), where v = max values."""
        shifted = values - values.amax(-1, keepdim=True)
        return shifted - self.temperature * (shifted / self.temperature).exp().sum(-1, keepdim=True).log()


@dataclass(frozen=True)
class ExpectedSarsa(Bootstrap):
    """The ε-greedy policy of the target network: Expected SARSA (van Seijen et al., 2009, eq. 6).

    Attributes:
        epsilon: ε; None uses the exploration's ε at the time of the update.
    """

    epsilon: Annotated[float, Range(0, 1)] | None = None

    @classmethod
    def incompatibility(cls, config: TrainConfig) -> str | None:
        """Return a message if `epsilon` is None and the exploration has no single ε per member."""
        if config.bootstrap.get("epsilon") is not None:
            return None
        if "epsilon" not in config.exploration:
            return "bootstrap.epsilon=null uses the epsilon of the exploration, which has none here: give a number"
        spread = config.exploration.get("spread")
        if spread and config.env.num_envs > 1:
            return (
                "bootstrap.epsilon=null uses the epsilon of the exploration, which differs between environments with "
                f"exploration.spread={spread}: give a number"
            )
        return None

    @property
    def follows_exploration(self) -> bool:
        """Whether `epsilon` is None."""
        return self.epsilon is None

    def __call__(self, next_online: Tensor | None, next_target: Tensor) -> Policy:
        """Return the policy `[B, A]`."""
        assert self.epsilon is not None  # the learner replaces None by the exploration's ε
        actions = next_target.shape[-1]
        return Policy((1 - self.epsilon) * one_hot_best(next_target) + self.epsilon / actions)

    def among(self, allowed: Tensor, next_online: Tensor | None, next_target: Tensor) -> Policy:
        """Return the policy `[B, A]` that explores uniformly among the allowed actions."""
        assert self.epsilon is not None
        uniform = allowed / allowed.sum(-1, keepdim=True)
        greedy = one_hot_best(without_masked(next_target, allowed))
        return Policy((1 - self.epsilon) * greedy + self.epsilon * uniform)

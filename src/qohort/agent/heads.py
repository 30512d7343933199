"""Value heads: what a network's outputs mean, how they are backed up, and how far they are from a target.

Shapes are of one member: `[B, ...]`; A actions, N atoms or quantiles.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from qohort.agent.bootstrap import Policy
from qohort.config.annotations import PositiveInt, Range


class Head(ABC):
    """What a network's outputs mean."""

    atoms: int = 1
    """The outputs that a network has for each action."""
    scalar: ClassVar[bool] = False
    """Whether it is one expected return for each action, so that a target is one number."""
    fractions: ClassVar[Mapping[str, int] | None] = None
    """How many fractions are drawn for each use of a network (`online`, `target`, `policy`); None: it takes none."""

    def network(self, network: nn.Module) -> nn.Module:
        """A network that can have this head, from one that maps `[B, ...]` to `[B, A, atoms]`."""
        return network

    def distribution(self, outputs: Tensor) -> Tensor:
        """A network's outputs `[B, A, atoms]` as this head keeps them: `[B, A, ...]`."""
        return outputs

    @abstractmethod
    def mean(self, distribution: Tensor) -> Tensor:
        """The action values `[B, A]` of `[B, A, ...]`."""

    @abstractmethod
    def backup(self, reward: Tensor, discount: Tensor, next_target: Tensor, policy: Policy) -> Any:
        """The target of the action taken.

        Args:
            reward: `[B]`.
            discount: `[B]`, 0 where terminated.
            next_target: The target network's distribution of the next observation, `[B, A, ...]`.
            policy: Which of it counts.
        """

    @abstractmethod
    def divergence(self, online: Tensor, target: Any, fractions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The loss `[B]`, and the TD error `[B]` by which transitions are prioritised.

        Args:
            online: The distribution of the action taken, `[B, ...]`.
            target: What `backup` gave.
            fractions: Those that the online network was given, `[B, N]`, where it takes any.
        """


def huber(error: Tensor, delta: float) -> Tensor:
    """½ error² below `delta`, linear above (Huber, 1964). Written out: torch's compiles for one number of members."""
    size = error.abs()
    return torch.where(size < delta, 0.5 * error.square(), delta * (size - 0.5 * delta))


class ScalarHead(Head):
    """One expected return an action: y = r + d Σ_a π(a) (Q'(s', a) + bonus(a)), as in DQN (Mnih et al., 2015)."""

    scalar = True

    def distribution(self, outputs: Tensor) -> Tensor:
        """`[B, A, 1]` as `[B, A]`."""
        return outputs.squeeze(-1)

    def mean(self, distribution: Tensor) -> Tensor:
        """`[B, A]`, as it is."""
        return distribution

    def backup(self, reward: Tensor, discount: Tensor, next_target: Tensor, policy: Policy) -> Tensor:
        """`[B]`."""
        values = next_target if policy.bonus is None else next_target + policy.bonus
        return reward + discount * (policy.probabilities * values).sum(-1)


@dataclass(frozen=True)
class Expected(ScalarHead):
    """The squared or the Huber loss of one expected return an action.

    Attributes:
        loss: `squared`, (y - Q)², or `huber`, quadratic below `huber_delta` and linear above.
        huber_delta: Where the Huber loss turns linear, in units of reward.

    Deviations: 1. the squared loss has no factor ½, as in the article and CleanRL.
    """

    loss: Literal["squared", "huber"] = "squared"
    huber_delta: Annotated[float, Range(0, above=True)] = 1.0

    def divergence(self, online: Tensor, target: Tensor, fractions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The loss and the TD error y - Q."""
        error = target - online
        return error.square() if self.loss == "squared" else huber(error, self.huber_delta), error


@dataclass(frozen=True)
class Categorical(Head):
    """The return's distribution over fixed atoms: C51 (Bellemare et al., 2017, algorithm 1).

    The target's distribution is projected to the atoms; the loss is the cross-entropy. A policy with more than one
    action backs up the mixture of their distributions.

    Attributes:
        v_min: The least atom, in units of return.
        v_max: The greatest.
        atoms: How many there are, at equal distances.

    Deviations: 1. the TD error, for prioritised replay, is the Kullback-Leibler divergence (as Rainbow's).
    """

    v_min: float = -10.0
    v_max: float = 10.0
    atoms: Annotated[int, Range(2)] = 51

    def __post_init__(self) -> None:
        if self.v_min >= self.v_max:
            raise ValueError(f"v_min={self.v_min} must be below v_max={self.v_max}")

    def _support(self, like: Tensor) -> Tensor:
        step = (self.v_max - self.v_min) / (self.atoms - 1)
        return self.v_min + step * torch.arange(self.atoms, device=like.device, dtype=like.dtype)

    def mean(self, distribution: Tensor) -> Tensor:
        """`[B, A]` of logits `[B, A, N]`."""
        return (distribution.softmax(-1) * self._support(distribution)).sum(-1)

    def backup(self, reward: Tensor, discount: Tensor, next_target: Tensor, policy: Policy) -> Tensor:
        """The projected probabilities `[B, N]`."""
        support = self._support(next_target)
        reward, discount = reward.unsqueeze(-1), discount.unsqueeze(-1)
        if policy.one_hot:
            chosen = (policy.probabilities.unsqueeze(-1) * next_target).sum(1)
            return self._project(reward + discount * support, chosen.softmax(-1))
        probabilities = policy.probabilities.unsqueeze(-1) * next_target.softmax(-1)
        if policy.bonus is None:
            return self._project(reward + discount * support, probabilities.sum(1))
        # Each action's atoms are moved by its own bonus.
        moved = reward.unsqueeze(-1) + discount.unsqueeze(-1) * (support + policy.bonus.unsqueeze(-1))
        return self._project(moved.flatten(1), probabilities.flatten(1))

    def _project(self, values: Tensor, probabilities: Tensor) -> Tensor:
        """The probabilities `[B, K]` of values `[B, K]`, shared between the atoms beside each value: `[B, N]`.

        By distances between all pairs: it needs no scatter, and compiles to one loop for any number of members.
        """
        atoms_per_unit = (self.atoms - 1) / (self.v_max - self.v_min)
        place = (values.clamp(self.v_min, self.v_max) - self.v_min) * atoms_per_unit  # in atoms: no division a pair
        atom = torch.arange(self.atoms, device=values.device, dtype=values.dtype).unsqueeze(-1)
        return ((1 - (place.unsqueeze(1) - atom).abs()).clamp(min=0) * probabilities.unsqueeze(1)).sum(-1)

    def divergence(self, online: Tensor, target: Tensor, fractions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The cross-entropy, and the Kullback-Leibler divergence."""
        loss = -(target * online.log_softmax(-1)).sum(-1)
        entropy = -torch.where(target > 0, target * target.clamp(min=1e-30).log(), 0.0).sum(-1)
        return loss, loss - entropy


class Atoms(NamedTuple):
    """A distribution as weighted values.

    Attributes:
        values: `[B, K]`.
        weights: `[B, K]`, of sum 1 in each row; None where they are equal.
    """

    values: Tensor
    weights: Tensor | None


@dataclass(frozen=True)
class Quantile(Head):
    """The return's quantiles at the middles of N equal parts: QR-DQN (Dabney et al., 2018a, eq. 10).

    A policy with more than one action backs up the mixture of their distributions.

    Attributes:
        quantiles: N.
        kappa: Where the quantile Huber loss turns linear, in units of return; 0 for the plain quantile loss.

    Deviations: 1. the Huber loss is divided by κ, as IQN has it; at κ = 1 there is no difference. 2. the TD error, for
    prioritised replay, is that of the means.
    """

    quantiles: PositiveInt = 200
    kappa: Annotated[float, Range(0)] = 1.0

    @property
    def atoms(self) -> int:  # type: ignore[override]
        """One output a quantile."""
        return self.quantiles

    def mean(self, distribution: Tensor) -> Tensor:
        """`[B, A]` of `[B, A, N]`."""
        return distribution.mean(-1)

    def backup(self, reward: Tensor, discount: Tensor, next_target: Tensor, policy: Policy) -> Atoms:
        """The target's atoms: N of them for a policy with one action, else A N."""
        return back_up_quantiles(reward, discount, next_target, policy)

    def divergence(self, online: Tensor, target: Atoms, fractions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The quantile Huber loss, and the TD error of the means."""
        if fractions is None:
            middles = torch.arange(self.quantiles, device=online.device, dtype=online.dtype) + 0.5
            fractions = middles / self.quantiles
        return quantile_loss(online, fractions, target, self.kappa)


def back_up_quantiles(reward: Tensor, discount: Tensor, next_target: Tensor, policy: Policy) -> Atoms:
    """The atoms r + d (z' + bonus) of next quantiles `[B, A, N]`, weighted by the policy."""
    reward, discount = reward.unsqueeze(-1), discount.unsqueeze(-1)
    probabilities = policy.probabilities.unsqueeze(-1)
    if policy.one_hot:
        return Atoms(reward + discount * (probabilities * next_target).sum(1), None)
    moved = next_target if policy.bonus is None else next_target + policy.bonus.unsqueeze(-1)
    weights = (probabilities / next_target.shape[-1]).expand(next_target.shape)
    return Atoms(reward + discount * moved.flatten(1), weights.flatten(1))


def quantile_loss(online: Tensor, fractions: Tensor, target: Atoms, kappa: float) -> tuple[Tensor, Tensor]:
    """Σ_i E_j |τ_i - 1{u_ij < 0}| L(u_ij) / κ with u_ij = target_j - online_i (Dabney et al., 2018b, eq. 3).

    Args:
        online: The quantiles `[B, N]`.
        fractions: Which ones they are, `[N]` or `[B, N]`.
        target: The target's atoms.
        kappa: Where L, the Huber loss, turns linear; 0 for the absolute value.

    Returns:
        The loss `[B]`, and the difference of the means `[B]`.
    """
    error = target.values.unsqueeze(1) - online.unsqueeze(2)
    size = error.abs() if kappa == 0 else huber(error, kappa) / kappa
    loss = (fractions.unsqueeze(-1) - (error < 0).to(online.dtype)).abs() * size
    if target.weights is None:
        return loss.mean(2).sum(1), target.values.mean(-1) - online.mean(-1)
    mean = (target.weights * target.values).sum(-1)
    return (loss * target.weights.unsqueeze(1)).sum(2).sum(1), mean - online.mean(-1)


class FractionEmbedding(nn.Module):
    """A network whose outputs depend on a fraction of the return's distribution (Dabney et al., 2018b, eq. 4).

    The features are multiplied by φ(τ) = ReLU(W cos(π i τ) + b), i = 0 ... size - 1.

    Args:
        network: It has a `torso` with a `width` and an `output`, as `qohort.networks.layers.QNetwork` has.
        size: The number of cosines.

    Raises:
        ValueError: If the network has no such parts.
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        width = getattr(getattr(network, "torso", None), "width", None)
        if width is None or not hasattr(network, "output"):
            raise ValueError(
                f"head=implicit_quantile needs a network with a torso and an output (see qohort.networks.layers.QNetwork), "
                f"got {type(network).__name__}"
            )
        self.network = network
        self.embedding = nn.Linear(size, width)
        self._size = size

    def forward(self, observation: Tensor, fractions: Tensor) -> Tensor:
        """Observations `[B, ...]` and fractions `[B, N]` to quantiles `[B, A, N]`."""
        features = self.network.torso(observation)  # type: ignore[operator]
        cosines = torch.arange(self._size, device=fractions.device) * math.pi
        embedded = self.embedding((fractions.unsqueeze(-1) * cosines).cos()).relu()
        quantiles: Tensor = self.network.output(features.unsqueeze(1) * embedded)  # type: ignore[operator]
        return quantiles.squeeze(-1).transpose(1, 2)


@dataclass(frozen=True)
class ImplicitQuantile(Head):
    """The return's quantiles at random fractions: IQN (Dabney et al., 2018b).

    Attributes:
        online_samples: N, fractions of the quantiles that learn.
        target_samples: N', fractions of the target's quantiles.
        policy_samples: K, fractions by whose mean actions are chosen, in the target and when acting.
        embedding: Cosines that a fraction is embedded by.
        kappa: Where the quantile Huber loss turns linear, in units of return; 0 for the plain quantile loss.

    Deviations: 1. in evaluation the fractions are the middles of K equal parts, not random. 2. the TD error, for
    prioritised replay, is that of the means. 3. a soft policy backs up the mixture of the actions' distributions;
    M-IQN averages their quantiles, which has the same mean.
    """

    online_samples: PositiveInt = 64
    target_samples: PositiveInt = 64
    policy_samples: PositiveInt = 32
    embedding: PositiveInt = 64
    kappa: Annotated[float, Range(0)] = 1.0

    @property
    def fractions(self) -> Mapping[str, int]:  # type: ignore[override]
        """How many fractions are drawn for each use of a network."""
        return {"online": self.online_samples, "target": self.target_samples, "policy": self.policy_samples}

    def network(self, network: nn.Module) -> nn.Module:
        """The network, with an embedding of the fraction."""
        return FractionEmbedding(network, self.embedding)

    def mean(self, distribution: Tensor) -> Tensor:
        """`[B, A]` of `[B, A, N]`."""
        return distribution.mean(-1)

    def backup(self, reward: Tensor, discount: Tensor, next_target: Tensor, policy: Policy) -> Atoms:
        """The target's atoms: N' of them for a policy with one action, else A N'."""
        return back_up_quantiles(reward, discount, next_target, policy)

    def divergence(self, online: Tensor, target: Atoms, fractions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The quantile Huber loss, and the TD error of the means."""
        assert fractions is not None
        return quantile_loss(online, fractions, target, self.kappa)

"""Value heads: the meaning of a network's outputs, their TD target and their loss.

Shapes are those of one member, `[B, ...]`, with A actions and N atoms or quantiles.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from qohort.agent.policy import Policy
from qohort.config.annotations import PositiveInt, Range


class Head(ABC):
    """Base class of the value heads."""

    atoms: int = 1
    """The number of network outputs per action."""
    scalar: ClassVar[bool] = False
    """Whether the head has one expected return per action, so that the target is one number."""
    fractions: ClassVar[Mapping[str, int] | None] = None
    """The number of random fractions per use of a network (`online`, `target`, `policy`); None if it takes none."""

    def network(self, network: nn.Module) -> nn.Module:
        """Wrap a network for this head.

        Args:
            network: Maps observations `[B, ...]` to outputs `[B, A, atoms]`.
        """
        return network

    def distribution(self, outputs: Tensor) -> Tensor:
        """Convert network outputs `[B, A, atoms]` to the return distribution of this head, `[B, A, ...]`."""
        return outputs

    @abstractmethod
    def mean(self, distribution: Tensor) -> Tensor:
        """Return the action values `[B, A]` of a return distribution `[B, A, ...]`."""

    @abstractmethod
    def backup(self, reward: Tensor, discount: Tensor, next_target: Tensor, policy: Policy) -> Any:
        """Compute the TD target for the action taken.

        Args:
            reward: The reward, `[B]`; over n steps if `replay.n_step` is above 1.
            discount: γⁿ, 0 where terminated, `[B]`.
            next_target: The target network's return distribution at the next observation, `[B, A, ...]`.
            policy: The policy at the next observation.
        """

    @abstractmethod
    def divergence(self, online: Tensor, target: Any, fractions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the loss `[B]` and the TD error `[B]`, which prioritised replay uses.

        Args:
            online: The online network's return distribution of the action taken, `[B, ...]`.
            target: The TD target from `backup`.
            fractions: The fractions given to the online network, `[B, N]`; None if it takes none.
        """


def huber(error: Tensor, delta: float) -> Tensor:
    """Return the Huber loss: ½ error² where |error| < `delta`, linear elsewhere (Huber, 1964).

    In elementary operations, because torch's own function compiles for a single number of members only.
    """
    size = error.abs()
    return torch.where(size < delta, 0.5 * error.square(), delta * (size - 0.5 * delta))


class ScalarHead(Head):
    """One expected return per action, as in DQN: y = r + d Σ_a π(a) (Q'(s', a) + bonus(a)) (Mnih et al., 2015)."""

    scalar = True

    def distribution(self, outputs: Tensor) -> Tensor:
        """Convert outputs `[B, A, 1]` to action values `[B, A]`."""
        return outputs.squeeze(-1)

    def mean(self, distribution: Tensor) -> Tensor:
        """Return the action values `[B, A]` unchanged."""
        return distribution

    def backup(self, reward: Tensor, discount: Tensor, next_target: Tensor, policy: Policy) -> Tensor:
        """Compute the TD target y, `[B]`."""
        values = next_target if policy.bonus is None else next_target + policy.bonus
        return reward + discount * (policy.probabilities * values).sum(-1)


@dataclass(frozen=True)
class Expected(ScalarHead):
    """One expected return per action, with a squared or a Huber loss.

    Attributes:
        loss: `squared` for (y - Q)², `huber` for the Huber loss.
        huber_delta: The error above which the Huber loss is linear, in units of reward.

    Deviations: 1. The squared loss has no factor ½, as in CleanRL and in the article of `experiment=article`.
    """

    loss: Literal["squared", "huber"] = "squared"
    huber_delta: Annotated[float, Range(0, above=True)] = 1.0

    def divergence(self, online: Tensor, target: Tensor, fractions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the loss `[B]` and the TD error y - Q, `[B]`."""
        error = target - online
        return error.square() if self.loss == "squared" else huber(error, self.huber_delta), error


@dataclass(frozen=True)
class Categorical(Head):
    """A categorical return distribution over fixed atoms: C51 (Bellemare et al., 2017, algorithm 1).

    The target distribution is projected onto the atoms, and the loss is the cross-entropy. A stochastic policy backs up
    the mixture of the distributions of its actions.

    Attributes:
        v_min: The smallest atom, in units of return.
        v_max: The largest atom, in units of return.
        atoms: The number of equally spaced atoms.

    Deviations: 1. The TD error for prioritised replay is the Kullback-Leibler divergence, as in Rainbow.
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
        """Return the action values `[B, A]` of logits `[B, A, N]`."""
        return (distribution.softmax(-1) * self._support(distribution)).sum(-1)

    def backup(self, reward: Tensor, discount: Tensor, next_target: Tensor, policy: Policy) -> Tensor:
        """Compute the projected target probabilities `[B, N]`."""
        support = self._support(next_target)
        reward, discount = reward.unsqueeze(-1), discount.unsqueeze(-1)
        if policy.one_hot:
            logits = (policy.probabilities.unsqueeze(-1) * next_target).sum(1)
            return self._project(reward + discount * support, logits.softmax(-1))
        probabilities = policy.probabilities.unsqueeze(-1) * next_target.softmax(-1)
        if policy.bonus is None:
            return self._project(reward + discount * support, probabilities.sum(1))
        # Each action has its own bonus, so its atoms are shifted separately.
        values = reward.unsqueeze(-1) + discount.unsqueeze(-1) * (support + policy.bonus.unsqueeze(-1))
        return self._project(values.flatten(1), probabilities.flatten(1))

    def _project(self, values: Tensor, probabilities: Tensor) -> Tensor:
        """Project values `[B, K]` with probabilities `[B, K]` onto the atoms: probabilities `[B, N]`.

        The probability of each value is split between its two neighbouring atoms. The distances of all pairs are
        computed instead of a scatter, which compiles to one loop for any number of members.
        """
        atoms_per_unit = (self.atoms - 1) / (self.v_max - self.v_min)
        # In units of the distance between atoms, so that no division is needed per pair.
        position = (values.clamp(self.v_min, self.v_max) - self.v_min) * atoms_per_unit
        atom = torch.arange(self.atoms, device=values.device, dtype=values.dtype).unsqueeze(-1)
        return ((1 - (position.unsqueeze(1) - atom).abs()).clamp(min=0) * probabilities.unsqueeze(1)).sum(-1)

    def divergence(self, online: Tensor, target: Tensor, fractions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the cross-entropy `[B]` and the Kullback-Leibler divergence `[B]`."""
        loss = -(target * online.log_softmax(-1)).sum(-1)
        entropy = -torch.where(target > 0, target * target.clamp(min=1e-30).log(), 0.0).sum(-1)
        return loss, loss - entropy


class Atoms(NamedTuple):
    """A return distribution as weighted atoms.

    Attributes:
        values: The atoms, `[B, K]`.
        weights: Their probabilities, `[B, K]`; None if they are uniform.
    """

    values: Tensor
    weights: Tensor | None


@dataclass(frozen=True)
class Quantile(Head):
    """Quantiles of the return at the midpoints of N equal fractions: QR-DQN (Dabney et al., 2018a, eq. 10).

    A stochastic policy backs up the mixture of the distributions of its actions.

    Attributes:
        quantiles: The number of quantiles, N.
        kappa: The error above which the quantile Huber loss is linear, in units of return; 0 for the plain quantile
            loss.

    Deviations: 1. The Huber loss is divided by κ, as in IQN. There is no difference for κ = 1. 2. The TD error for
    prioritised replay is the difference of the means.
    """

    quantiles: PositiveInt = 200
    kappa: Annotated[float, Range(0)] = 1.0

    @property
    def atoms(self) -> int:  # type: ignore[override]
        """The number of network outputs per action, one per quantile."""
        return self.quantiles

    def mean(self, distribution: Tensor) -> Tensor:
        """Return the action values `[B, A]` of quantiles `[B, A, N]`."""
        return distribution.mean(-1)

    def backup(self, reward: Tensor, discount: Tensor, next_target: Tensor, policy: Policy) -> Atoms:
        """Compute the target atoms: N for a deterministic policy, else A N."""
        return back_up_quantiles(reward, discount, next_target, policy)

    def divergence(self, online: Tensor, target: Atoms, fractions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the quantile Huber loss `[B]` and the difference of the means `[B]`."""
        if fractions is None:
            midpoints = torch.arange(self.quantiles, device=online.device, dtype=online.dtype) + 0.5
            fractions = midpoints / self.quantiles
        return quantile_loss(online, fractions, target, self.kappa)


def back_up_quantiles(reward: Tensor, discount: Tensor, next_target: Tensor, policy: Policy) -> Atoms:
    """Compute the atoms r + d (z' + bonus) of the next quantiles z' `[B, A, N]`, weighted by the policy."""
    reward, discount = reward.unsqueeze(-1), discount.unsqueeze(-1)
    probabilities = policy.probabilities.unsqueeze(-1)
    if policy.one_hot:
        return Atoms(reward + discount * (probabilities * next_target).sum(1), None)
    values = next_target if policy.bonus is None else next_target + policy.bonus.unsqueeze(-1)
    weights = (probabilities / next_target.shape[-1]).expand(next_target.shape)
    return Atoms(reward + discount * values.flatten(1), weights.flatten(1))


def quantile_loss(online: Tensor, fractions: Tensor, target: Atoms, kappa: float) -> tuple[Tensor, Tensor]:
    """Compute the quantile Huber loss (Dabney et al., 2018b, eq. 3).

    The loss is Σ_i E_j |τ_i - 1{u_ij < 0}| L(u_ij) / κ with u_ij = target_j - online_i.

    Args:
        online: The quantiles of the online network, `[B, N]`.
        fractions: The fraction τ of each quantile, `[N]` or `[B, N]`.
        target: The target atoms.
        kappa: The threshold κ of the Huber loss L; 0 for the absolute error.

    Returns:
        The loss `[B]`, and the difference between the means of target and online `[B]`.
    """
    error = target.values.unsqueeze(1) - online.unsqueeze(2)
    size = error.abs() if kappa == 0 else huber(error, kappa) / kappa
    loss = (fractions.unsqueeze(-1) - (error < 0).to(online.dtype)).abs() * size
    if target.weights is None:
        return loss.mean(2).sum(1), target.values.mean(-1) - online.mean(-1)
    mean = (target.weights * target.values).sum(-1)
    return (loss * target.weights.unsqueeze(1)).sum(2).sum(1), mean - online.mean(-1)


class FractionEmbedding(nn.Module):
    """Wraps a network to output the quantiles at given fractions (Dabney et al., 2018b, eq. 4).

    The features are multiplied by φ(τ) = ReLU(W cos(π i τ) + b), i = 0, ..., size - 1.

    Args:
        network: A network with an `output` and a `torso` that has a `width`, like `qohort.networks.layers.QNetwork`.
        size: The number of cosines.

    Raises:
        ValueError: If the network has no such `torso` or no `output`.
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        width = getattr(getattr(network, "torso", None), "width", None)
        if width is None or not hasattr(network, "output"):
            raise ValueError(
                "head=implicit_quantile needs a network with a torso and an output "
                f"(see qohort.networks.layers.QNetwork), got {type(network).__name__}"
            )
        self.network = network
        self.embedding = nn.Linear(size, width)
        self._size = size

    def forward(self, observation: Tensor, fractions: Tensor) -> Tensor:
        """Map observations `[B, ...]` and fractions `[B, N]` to quantiles `[B, A, N]`."""
        features = self.network.torso(observation)  # type: ignore[operator]
        cosines = torch.arange(self._size, device=fractions.device) * math.pi
        embedded = self.embedding((fractions.unsqueeze(-1) * cosines).cos()).relu()
        quantiles: Tensor = self.network.output(features.unsqueeze(1) * embedded)  # type: ignore[operator]
        return quantiles.squeeze(-1).transpose(1, 2)


@dataclass(frozen=True)
class ImplicitQuantile(Head):
    """Quantiles of the return at random fractions: IQN (Dabney et al., 2018b).

    Attributes:
        online_samples: N, the number of fractions for the online network.
        target_samples: N', the number of fractions for the target network.
        policy_samples: K, the number of fractions that are averaged to select actions, in the target and when acting.
        embedding: The number of cosines in the embedding of a fraction.
        kappa: The error above which the quantile Huber loss is linear, in units of return; 0 for the plain quantile
            loss.

    Deviations: 1. Evaluation uses the midpoints of K equal fractions instead of random ones. 2. The TD error for
    prioritised replay is the difference of the means. 3. A soft policy backs up the mixture of the distributions of
    its actions. M-IQN averages their quantiles, which has the same mean.
    """

    online_samples: PositiveInt = 64
    target_samples: PositiveInt = 64
    policy_samples: PositiveInt = 32
    embedding: PositiveInt = 64
    kappa: Annotated[float, Range(0)] = 1.0

    @property
    def fractions(self) -> Mapping[str, int]:  # type: ignore[override]
        """The number of random fractions per use of a network."""
        return {"online": self.online_samples, "target": self.target_samples, "policy": self.policy_samples}

    def network(self, network: nn.Module) -> nn.Module:
        """Wrap the network in a `FractionEmbedding`."""
        return FractionEmbedding(network, self.embedding)

    def mean(self, distribution: Tensor) -> Tensor:
        """Return the action values `[B, A]` of quantiles `[B, A, N]`."""
        return distribution.mean(-1)

    def backup(self, reward: Tensor, discount: Tensor, next_target: Tensor, policy: Policy) -> Atoms:
        """Compute the target atoms: N' for a deterministic policy, else A N'."""
        return back_up_quantiles(reward, discount, next_target, policy)

    def divergence(self, online: Tensor, target: Atoms, fractions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the quantile Huber loss `[B]` and the difference of the means `[B]`."""
        assert fractions is not None
        return quantile_loss(online, fractions, target, self.kappa)

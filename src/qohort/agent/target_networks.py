"""Target networks: which network is bootstrapped from, and how it follows the online one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

from torch import Tensor

from qohort.config.annotations import Range


class TargetNetwork(Protocol):
    """Which network is bootstrapped from, and how it follows the online one."""

    separate: bool
    """Whether it is a network of its own; if not, the online network is bootstrapped from."""
    every: int | None
    """env_steps between whole copies of the online network; None for no copies."""

    def follow(self, target: Tensor, online: Tensor) -> Tensor:
        """A target parameter after an update.

        Called after each update if it returns anything but the tensor `target` itself.

        Args:
            target: Its value before, of one member.
            online: The online network's parameter, after the update.
        """


@dataclass(frozen=True)
class NoTarget:
    """Bootstrap from the online network itself: Q-learning, and the article's DQN."""

    separate = False
    every = None

    def follow(self, target: Tensor, online: Tensor) -> Tensor:
        """`target`: it is the online network."""
        return target


@dataclass(frozen=True)
class HardTarget:
    """A copy of the online network, renewed at intervals (Mnih et al., 2015).

    Attributes:
        every: env_steps between copies.
    """

    every: Annotated[int, Range(1)]
    separate = True

    def follow(self, target: Tensor, online: Tensor) -> Tensor:
        """`target`: it stays as it is between copies."""
        return target


@dataclass(frozen=True)
class PolyakTarget:
    """A moving average of the online network: θ' ← θ' + τ (θ - θ') after each update (Lillicrap et al., 2016).

    Attributes:
        tau: τ.
    """

    foldable: ClassVar[tuple[str, ...]] = ("tau",)

    tau: Annotated[float, Range(0, 1, above=True)]
    separate = True
    every = None

    def follow(self, target: Tensor, online: Tensor) -> Tensor:
        """θ' + τ (θ - θ')."""
        return target + self.tau * (online - target)

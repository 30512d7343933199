"""Target networks: the network that TD targets bootstrap from, and how it follows the online network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol

from torch import Tensor

from qohort.config.annotations import Range


class TargetNetwork(Protocol):
    """How the target network follows the online network."""

    separate: bool
    """Whether the target network has its own parameters. If not, targets bootstrap from the online network."""
    every: int | None
    """The env_steps between copies of the online network; None for no copies. With an attribute `per`, of the value
    `gradient_steps`, it is the number of updates."""

    def follow(self, target: Tensor, online: Tensor) -> Tensor:
        """Return the new value of a target parameter after an update.

        A target network that returns the tensor `target` itself is not called during training.

        Args:
            target: The target parameter of one member, before the update.
            online: The online parameter of the same member, after the update.
        """


def unit_of(target_network: TargetNetwork) -> Literal["env_steps", "gradient_steps"]:
    """Return the unit of `every`."""
    unit: Literal["env_steps", "gradient_steps"] = getattr(target_network, "per", "env_steps")
    return unit


@dataclass(frozen=True)
class NoTarget:
    """No target network: bootstrap from the online network, as in Q-learning and in `experiment=article/dqn`."""

    separate = False
    every = None

    def follow(self, target: Tensor, online: Tensor) -> Tensor:
        """Return `target`, which is the online network itself."""
        return target


@dataclass(frozen=True)
class HardTarget:
    """A periodic copy of the online network (Mnih et al., 2015).

    Attributes:
        every: The number of `per` between copies.
        per: The unit of `every`: env_steps, or gradient_steps (updates).
    """

    every: Annotated[int, Range(1)]
    per: Literal["env_steps", "gradient_steps"] = "env_steps"
    separate = True

    def follow(self, target: Tensor, online: Tensor) -> Tensor:
        """Return `target`, which is constant between copies."""
        return target


@dataclass(frozen=True)
class PolyakTarget:
    """A moving average of the online network: θ' ← θ' + τ (θ - θ') after each update (Lillicrap et al., 2016).

    Attributes:
        tau: τ, the step size of the moving average.
    """

    foldable: ClassVar[tuple[str, ...]] = ("tau",)

    tau: Annotated[float, Range(0, 1, above=True)]
    separate = True
    every = None

    def follow(self, target: Tensor, online: Tensor) -> Tensor:
        """Return θ' + τ (θ - θ')."""
        return target + self.tau * (online - target)

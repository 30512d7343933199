"""Exploration: how actions are drawn from action values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from qohort.cohort.schedules import Floats, Progress, Schedule
from qohort.config.annotations import Range


class Exploration(Protocol):
    """Draws actions."""

    name: str
    """What the parameter is called in the logs: `epsilon` or `temperature`."""

    def draws(self, actions: int) -> int:
        """How many uniform numbers one action needs."""

    def parameter(self, progress: Progress) -> Floats:
        """The parameter of each member now: `[M]`."""

    def act(self, values: Callable[[], Floats], parameter: Floats, uniforms: Floats, actions: int) -> NDArray[np.int64]:
        """Actions `[M, E]`.

        Args:
            values: Gives the action values `[M, E, A]`; called only where an action depends on them.
            parameter: `[M]`.
            uniforms: Uniform numbers `[M, E, draws]`.
            actions: A.
        """


@dataclass(frozen=True)
class EpsilonGreedy:
    """A uniformly random action with probability ε, otherwise the best one.

    Attributes:
        epsilon: The schedule of ε.
        spread: Of a member's E environments, the e-th (from 0) has ε^(1 + spread e / (E - 1)), as Ape-X's actors have
            (Horgan et al., 2018, appendix D, where it is 7); 0: all have ε.
    """

    foldable: ClassVar[tuple[str, ...]] = ("epsilon",)

    epsilon: Schedule
    spread: Annotated[float, Range(0)] = 0.0
    name = "epsilon"

    def __post_init__(self) -> None:
        for key in ("value", "start", "end"):
            bound: Any = getattr(self.epsilon, key, 0.0)
            if bound > 1:
                raise ValueError(f"epsilon.{key}={bound} is out of range: a probability lies between 0 and 1")

    def draws(self, actions: int) -> int:
        """One number decides, one chooses."""
        return 2

    def parameter(self, progress: Progress) -> Floats:
        """ε of each member: `[M]`."""
        return self.epsilon(progress)

    def act(self, values: Callable[[], Floats], parameter: Floats, uniforms: Floats, actions: int) -> NDArray[np.int64]:
        """Actions `[M, E]`."""
        epsilon = parameter[:, None]
        environments = uniforms.shape[1]
        if environments > 1 and np.any(self.spread):
            place = np.arange(environments) / (environments - 1)
            epsilon = epsilon ** (1 + np.reshape(self.spread, (-1, 1)) * place)
        greedy = uniforms[..., 0] >= epsilon
        action = (uniforms[..., 1] * actions).astype(np.int64)
        if greedy.any():
            np.copyto(action, values().argmax(-1), where=greedy)
        return action


@dataclass(frozen=True)
class Boltzmann:
    """An action with probability proportional to exp(Q / temperature) (Sutton & Barto, 2018, eq. 2.11).

    Drawn by the Gumbel-max trick: argmax(Q / temperature - log(-log u)).

    Attributes:
        temperature: The schedule of the temperature, in units of Q.
    """

    foldable: ClassVar[tuple[str, ...]] = ("temperature",)

    temperature: Schedule
    name = "temperature"

    def __post_init__(self) -> None:
        for key in ("value", "start", "end"):
            bound: Any = getattr(self.temperature, key, 1.0)
            if bound <= 0:
                raise ValueError(f"temperature.{key}={bound} is out of range: a temperature is above 0")

    def draws(self, actions: int) -> int:
        """One number an action."""
        return actions

    def parameter(self, progress: Progress) -> Floats:
        """The temperature of each member: `[M]`."""
        return self.temperature(progress)

    def act(self, values: Callable[[], Floats], parameter: Floats, uniforms: Floats, actions: int) -> NDArray[np.int64]:
        """Actions `[M, E]`."""
        with np.errstate(divide="ignore"):  # u = 0 gives -inf: never chosen, as it should be
            gumbel = -np.log(-np.log(uniforms))
        chosen: NDArray[np.int64] = (values() / parameter[:, None, None] + gumbel).argmax(-1)
        return chosen

"""Exploration: how actions are selected from action values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qohort.cohort.schedules import Floats, Progress, Schedule
from qohort.config.annotations import Range
from qohort.networks.branches import BranchedActions

Allowed = NDArray[np.bool_]
"""Action masks `[M, E, A]`: whether each action may be chosen."""


class Exploration(Protocol):
    """Selects actions. If an action has several numbers, it selects those of one branch after another.

    An exploration may also have `choose(values, parameter, uniforms)`, the same rule for one member as a pure function
    of tensors: values `[E, A]`, a scalar, and uniforms `[E, draws]` in float64 give actions `[E]`. Tensor environments
    are stepped much faster with it; see `qohort.agent.rounds`.
    """

    name: str
    """The name of the parameter in the logs: `epsilon` or `temperature`."""

    def draws(self, actions: int) -> int:
        """Return the number of uniform random numbers needed per action.

        Args:
            actions: The number of actions, A.
        """

    def parameter(self, progress: Progress) -> Floats:
        """Return the current parameter of each member, `[M]`."""

    def act(
        self,
        values: Callable[[], Floats],
        parameter: Floats,
        uniforms: Floats,
        actions: int,
        allowed: Allowed | None = None,
    ) -> NDArray[np.int64]:
        """Return actions `[M, E]`.

        Args:
            values: Returns the action values `[M, E, A]`; -inf where masked. Only called if an action depends on them.
            parameter: The parameter of each member, `[M]`.
            uniforms: Random numbers uniform in [0, 1), `[M, E, draws]`.
            actions: The number of actions, A.
            allowed: The action masks; None for no masks. Only an exploration with this parameter goes with
                `env.action_mask=true`.
        """


def nth_allowed(allowed: Allowed, uniforms: Floats) -> NDArray[np.int64]:
    """Return uniformly random allowed actions `[...]`.

    Args:
        allowed: The action masks, `[..., A]`.
        uniforms: Random numbers uniform in [0, 1), `[...]`.
    """
    which = (uniforms * allowed.sum(-1)).astype(np.int64)
    action: NDArray[np.int64] = (allowed.cumsum(-1) > which[..., None]).argmax(-1)
    return action


@dataclass(frozen=True)
class EpsilonGreedy:
    """Selects a uniformly random action with probability ε, otherwise the greedy action.

    Attributes:
        epsilon: The schedule of ε.
        spread: How much ε varies over the E environments of a member. Environment e = 0, ..., E - 1 uses
            ε^(1 + spread e / (E - 1)), as the actors of Ape-X do with a spread of 7 (Horgan et al., 2018, appendix D).
            With 0, all environments use ε.
    """

    foldable: ClassVar[tuple[str, ...]] = ("epsilon",)

    epsilon: Schedule
    spread: Annotated[float, Range(0)] = 0.0
    name = "epsilon"

    def __post_init__(self) -> None:
        for key in ("value", "start", "end"):
            value: Any = getattr(self.epsilon, key, 0.0)
            if value > 1:
                raise ValueError(f"epsilon.{key}={value} is out of range: a probability must be between 0 and 1")

    def draws(self, actions: int) -> int:
        """Return 2: one number decides whether to explore, the other selects the random action."""
        return 2

    def parameter(self, progress: Progress) -> Floats:
        """Return ε of each member, `[M]`."""
        return self.epsilon(progress)

    def act(
        self,
        values: Callable[[], Floats],
        parameter: Floats,
        uniforms: Floats,
        actions: int,
        allowed: Allowed | None = None,
    ) -> NDArray[np.int64]:
        """Return actions `[M, E]`."""
        epsilon = parameter[:, None]
        environments = uniforms.shape[1]
        if environments > 1 and np.any(self.spread):
            position = np.arange(environments) / (environments - 1)
            epsilon = epsilon ** (1 + np.reshape(self.spread, (-1, 1)) * position)
        greedy = uniforms[..., 0] >= epsilon
        random = uniforms[..., 1]
        action = (random * actions).astype(np.int64) if allowed is None else nth_allowed(allowed, random)
        if greedy.any():
            np.copyto(action, values().argmax(-1), where=greedy)
        return action

    def choose(self, values: Tensor, parameter: Tensor, uniforms: Tensor) -> Tensor:
        """Return the actions `[E]` of one member."""
        environments, actions = values.shape
        epsilon = parameter
        if environments > 1 and np.any(self.spread):
            position = torch.arange(environments, dtype=torch.float64, device=values.device) / (environments - 1)
            epsilon = epsilon ** (1 + float(np.max(self.spread)) * position)
        random = (uniforms[:, 1] * actions).long()
        return torch.where(uniforms[:, 0] >= epsilon, values.argmax(-1), random)


@dataclass(frozen=True)
class Boltzmann:
    """Selects actions with probability proportional to exp(Q / temperature) (Sutton & Barto, 2018, eq. 2.11).

    Actions are sampled by the Gumbel-max trick: argmax(Q / temperature - log(-log u)) with u uniform in [0, 1).

    Attributes:
        temperature: The schedule of the temperature, in units of Q.
    """

    foldable: ClassVar[tuple[str, ...]] = ("temperature",)

    temperature: Schedule
    name = "temperature"

    def __post_init__(self) -> None:
        for key in ("value", "start", "end"):
            value: Any = getattr(self.temperature, key, 1.0)
            if value <= 0:
                raise ValueError(f"temperature.{key}={value} is out of range: a temperature must be above 0")

    def draws(self, actions: int) -> int:
        """Return one random number per available action."""
        return actions

    def parameter(self, progress: Progress) -> Floats:
        """Return the temperature of each member, `[M]`."""
        return self.temperature(progress)

    def act(
        self,
        values: Callable[[], Floats],
        parameter: Floats,
        uniforms: Floats,
        actions: int,
        allowed: Allowed | None = None,
    ) -> NDArray[np.int64]:
        """Return actions `[M, E]`."""
        with np.errstate(divide="ignore"):  # u = 0 gives -inf, which is never selected
            gumbel = -np.log(-np.log(uniforms))
        if allowed is not None:  # -inf is the value of masked actions
            gumbel = np.maximum(gumbel, np.finfo(np.float64).min)
        action: NDArray[np.int64] = (values() / parameter[:, None, None] + gumbel).argmax(-1)
        return action

    def choose(self, values: Tensor, parameter: Tensor, uniforms: Tensor) -> Tensor:
        """Return the actions `[E]` of one member."""
        return (values / parameter - (-uniforms.log()).log()).argmax(-1)


def draws_of(exploration: Exploration, branches: BranchedActions) -> int:
    """Return the number of uniform random numbers needed per action, of all branches."""
    return sum(map(exploration.draws, branches.sizes))


def act_in_branches(
    exploration: Exploration,
    values: Callable[[], Floats],
    parameter: Floats,
    uniforms: Floats,
    branches: BranchedActions,
) -> NDArray[np.int64]:
    """Return actions `[M, E, K]`: each branch explores with random numbers of its own, as in the authors' code.

    Args:
        exploration: Selects the actions of one branch.
        values: Returns the action values `[M, E, A]` of all branches. Called once at most.
        parameter: The parameter of the exploration of each member, `[M]`.
        uniforms: Random numbers uniform in [0, 1), `[M, E, draws]`: those of the first branch, then of the second, ...
        branches: The branches.
    """
    once = functools.cache(values)
    own = np.split(uniforms, np.cumsum([exploration.draws(size) for size in branches.sizes])[:-1], axis=-1)
    chosen = [
        exploration.act(lambda part=part: once()[..., part], parameter, numbers, size)  # type: ignore[misc]
        for part, size, numbers in zip(branches.parts, branches.sizes, own, strict=True)
    ]
    return np.stack(chosen, -1)

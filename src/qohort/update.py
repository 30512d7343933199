"""The update of a cohort: gradients, clipping, Adam and the target network as one lifted function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import grad_and_value

from qohort.cohort import CohortNetwork, compiled, lift
from qohort.config import Range
from qohort.optimizer import MemberAdam, adam_step, clip_by_norm
from qohort.td_loss import TDLoss

Tensors = dict[str, Tensor]


class TargetNetwork(Protocol):
    """Which network is bootstrapped from, and how it follows the online one."""

    separate: bool
    """Whether it is a network of its own."""
    every: int | None
    """env_steps between whole copies of the online network, None for no copies."""

    def follow(self, target: Tensor, online: Tensor, tau: Tensor | None) -> Tensor:
        """A target parameter after an update, from its old value and the online one."""


@dataclass(frozen=True)
class NoTarget:
    """Bootstrap from the online network itself: Q-learning, and the article's DQN."""

    separate = False
    every = None

    def follow(self, target: Tensor, online: Tensor, tau: Tensor | None) -> Tensor:
        """There is nothing to follow."""
        return target


@dataclass(frozen=True)
class HardTarget:
    """A copy of the online network, renewed at intervals (Mnih et al., 2015).

    Attributes:
        every: env_steps between copies.
    """

    every: Annotated[int, Range(1)]
    separate = True

    def follow(self, target: Tensor, online: Tensor, tau: Tensor | None) -> Tensor:
        """It stays as it is between copies."""
        return target


@dataclass(frozen=True)
class PolyakTarget:
    """An exponential average of the online network: θ' ← θ' + τ (θ - θ') after each update (Lillicrap et al., 2016).

    Attributes:
        tau: The part of the way taken an update.
    """

    tau: Annotated[float, Range(0, 1, above=True)]
    separate = True
    every = None

    def follow(self, target: Tensor, online: Tensor, tau: Tensor | None) -> Tensor:
        """θ' + τ (θ - θ')."""
        assert tau is not None
        return target + tau * (online - target)


class UpdateResult(NamedTuple):
    """What an update reports of each member."""

    loss: Tensor
    """The mean loss of the batch, `[M]`."""
    grad_norm: Tensor
    """The gradient's 2-norm before clipping, `[M]`."""
    td_error: Tensor
    """The TD error of each sample, `[M, B]`."""
    q_mean: Tensor
    """The mean value of the actions taken in the batch, `[M]`."""


class Update:
    """One gradient step of every member.

    With `MemberAdam` all of it is one compiled function that works in place on the parameters and on the
    optimiser's state. With any other optimiser the gradients are compiled, and the optimiser's own `step`
    applies them.

    Args:
        td_loss: The loss of one member.
        online: The networks that learn.
        target: The networks that are bootstrapped from; may be `online`.
        target_network: How the target follows.
        optimizer: Holds `online`'s parameters.
        limits: Per-member scalars `[M]` by name: `max_grad_norm` and `tau`, where they are used.
        compile_mode: One of `COMPILE_MODES`.
    """

    def __init__(
        self,
        td_loss: TDLoss,
        online: CohortNetwork,
        target: CohortNetwork,
        target_network: TargetNetwork,
        optimizer: torch.optim.Optimizer,
        limits: Tensors,
        compile_mode: str,
    ) -> None:
        self._td_loss = td_loss
        self._target_network = target_network
        self._limits = limits
        self._parameters = dict(online.network.named_parameters())
        self._online = online.parameters_by_name()
        self._target = target.parameters_by_name()
        self.run: Callable[[Tensors], UpdateResult]
        if isinstance(optimizer, MemberAdam):
            self._prepare_adam(optimizer, compile_mode)
        else:
            self._gradients = lift(self._member_gradients, (0, 0, 0, 0), compile_mode)
            self.run = self._leave_gradients

    def __call__(self, batch: Mapping[str, Tensor]) -> UpdateResult:
        """The closure of the optimiser's step: with `MemberAdam` the whole update, else the gradients."""
        return self.run(dict(batch))

    @torch.no_grad()
    def follow(self) -> None:
        """Let the target follow after an optimiser's own step; with `MemberAdam` it has followed already."""
        if self.run == self._leave_gradients and isinstance(self._target_network, PolyakTarget):
            tau = self._limits["tau"]
            for name, target in self._target.items():
                scale = tau.view(-1, *[1] * (target.dim() - 1))
                target.copy_(self._target_network.follow(target, self._online[name], scale))

    def copy_target(self) -> None:
        """Copy the online network to the target."""
        for name, target in self._target.items():
            target.copy_(self._online[name])

    def _member_gradients(
        self, online: Tensors, target: Tensors, limits: Tensors, batch: Tensors
    ) -> tuple[Tensors, UpdateResult]:
        gradients, (loss, terms) = grad_and_value(self._td_loss, has_aux=True)(online, target, batch)
        gradients, norm = clip_by_norm(gradients, limits.get("max_grad_norm"))
        return gradients, UpdateResult(loss, norm, terms.td_error, terms.q_mean)

    def _leave_gradients(self, batch: Tensors) -> UpdateResult:
        gradients, result = self._gradients(self._online, self._target, self._limits, batch)
        for name, parameter in self._parameters.items():
            parameter.grad = gradients[name]
        return result  # type: ignore[no-any-return]

    def _prepare_adam(self, optimizer: MemberAdam, compile_mode: str) -> None:
        group = optimizer.param_groups[0]
        betas, eps = group["betas"], group["eps"]
        means = {name: optimizer.state[p]["mean"] for name, p in self._parameters.items()}
        squares = {name: optimizer.state[p]["square"] for name, p in self._parameters.items()}

        def member_update(
            online: Tensors,
            target: Tensors,
            means: Tensors,
            squares: Tensors,
            limits: Tensors,
            lr: Tensor,
            step: Tensor,
            batch: Tensors,
        ) -> tuple[list[tuple[Tensor, ...]], UpdateResult]:
            gradients, result = self._member_gradients(online, target, limits, batch)
            new = []
            for name, gradient in gradients.items():
                moved = adam_step(online[name], gradient, means[name], squares[name], step, lr, betas, eps)
                followed = self._target_network.follow(target[name], moved[0], limits.get("tau"))
                new.append((*moved, followed))
            return new, result

        lifted = torch.func.vmap(member_update, in_dims=(0, 0, 0, 0, 0, 0, None, 0))
        follows = isinstance(self._target_network, PolyakTarget)

        def update(
            online: Tensors,
            target: Tensors,
            means: Tensors,
            squares: Tensors,
            limits: Tensors,
            lr: Tensor,
            step: Tensor,
            batch: Tensors,
        ) -> UpdateResult:
            step.add_(1)
            new, result = lifted(online, target, means, squares, limits, lr, step, batch)
            for name, (parameter, mean, square, followed) in zip(online, new, strict=True):
                online[name].copy_(parameter)
                means[name].copy_(mean)
                squares[name].copy_(square)
                if follows:
                    target[name].copy_(followed)
            return result  # type: ignore[no-any-return]

        program = compiled(update, compile_mode)
        state: Any = (self._online, self._target, means, squares, self._limits, group["lr"], group["step"])

        @torch.no_grad()
        def run(batch: Tensors) -> UpdateResult:
            result: UpdateResult = program(*state, batch)
            return result

        self.run = run

"""The update of a cohort: gradients, clipping, the optimiser's step and the target network as one lifted function."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from qohort.agent.optimizers import MemberOptimizer, clip_by_norm
from qohort.agent.target_networks import PolyakTarget, TargetNetwork
from qohort.agent.td_loss import Batch, LossTerms, TDLoss
from qohort.cohort.held import with_numbers
from qohort.cohort.program import CohortNetwork, Program

Tensors = dict[str, Tensor]


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

    With a `MemberOptimizer` all of it is one compiled function that works in place on the parameters and on the
    optimiser's state. With any other optimiser the gradients are compiled, and the optimiser's own `step`
    applies them.

    Args:
        td_loss: The loss of one member.
        online: The networks that learn.
        target: The networks that are bootstrapped from; may be `online`.
        target_network: How the target follows.
        optimizer: Holds `online`'s parameters.
        held: Numbers that each member holds for itself, `[M]`, by their key in the configuration: `max_grad_norm`, and
            fields of the bootstrap and of the target network.
        compile_mode: One of `COMPILE_MODES`.
    """

    def __init__(
        self,
        td_loss: TDLoss,
        online: CohortNetwork,
        target: CohortNetwork,
        target_network: TargetNetwork,
        optimizer: torch.optim.Optimizer,
        held: Tensors,
        compile_mode: str,
    ) -> None:
        self._td_loss = td_loss
        self._target_network = target_network
        self._held = held
        self._parameters = dict(online.network.named_parameters())
        self._online = online.parameters_by_name()
        self._target = target.parameters_by_name()
        self._follows = isinstance(target_network, PolyakTarget)
        networks = {"online": self._online, "target": self._target, "held": held}
        self._fused = optimizer if isinstance(optimizer, MemberOptimizer) else None
        if self._fused is not None:
            kept = {
                key: {name: optimizer.state[parameter][key] for name, parameter in self._parameters.items()}
                for key in self._fused.kept
            }
            self._program = Program(self._update, {**networks, "kept": kept}, compile_mode, cached=True)
        else:
            self._program = Program(vmap(self._gradients), networks, compile_mode, cached=True)

    def __call__(self, batch: Batch) -> UpdateResult:
        """The closure of the optimiser's step: with a `MemberOptimizer` the whole update, else the gradients."""
        result: UpdateResult
        if self._fused is not None:
            result = self._program({**batch, **self._fused.advance()})
            return result
        gradients, result = self._program(batch)
        for name, parameter in self._parameters.items():
            parameter.grad = gradients[name]
        return result

    @torch.no_grad()
    def follow(self) -> None:
        """Let the target follow after an optimiser's own step; with a `MemberOptimizer` it has followed already."""
        if self._follows and self._fused is None:
            for name, target in self._target.items():
                target.copy_(vmap(self._follow)(self._held, target, self._online[name]))

    @torch.no_grad()
    def copy_target(self) -> None:
        """Copy the online network to the target."""
        for name, target in self._target.items():
            target.copy_(self._online[name])

    def _follow(self, held: Tensors, target: Tensor, online: Tensor) -> Tensor:
        return with_numbers(self._target_network, "target_network", held).follow(target, online)

    def _member_gradients(
        self, state: dict[str, Any], batch: Batch, value: bool = False
    ) -> tuple[Tensors, UpdateResult, LossTerms]:
        """One member's clipped gradients, of the loss or of the value of the actions taken."""
        bootstrap = with_numbers(self._td_loss.bootstrap, "bootstrap", state["held"])
        td_loss = replace(self._td_loss, bootstrap=bootstrap)
        differentiated = grad_and_value(td_loss.value if value else td_loss, has_aux=True)
        gradients, (_, terms) = differentiated(state["online"], state["target"], batch)
        gradients, norm = clip_by_norm(gradients, state["held"].get("max_grad_norm"))
        return gradients, UpdateResult(terms.loss, norm, terms.td_error, terms.q_mean), terms

    def _gradients(self, state: dict[str, Any], batch: Batch) -> tuple[Tensors, UpdateResult]:
        gradients, result, _ = self._member_gradients(state, batch)
        return gradients, result

    def _member_update(self, state: dict[str, Any], batch: Batch) -> tuple[dict[str, Any], UpdateResult]:
        """One member's new parameters, target, and what its optimiser keeps."""
        assert self._fused is not None
        gradients, result, terms = self._member_gradients(state, batch, self._fused.follows_value)
        parameters, kept = self._fused.apply(state["online"], gradients, state["kept"], terms, batch)
        target = {}
        if self._follows:
            target = {name: self._follow(state["held"], state["target"][name], new) for name, new in parameters.items()}
        return {"online": parameters, "target": target, **kept}, result

    def _update(self, state: dict[str, Any], batch: Batch) -> UpdateResult:
        """The lifted update, written to the state in place."""
        new, result = vmap(self._member_update)(state, batch)
        held = {"online": state["online"], "target": state["target"], **state["kept"]}
        for key, tensors in new.items():
            for name, tensor in tensors.items():
                held[key][name].copy_(tensor)
        return result

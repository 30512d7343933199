"""The update: gradient, clipping, optimiser step and target network, lifted over the members."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from qohort.agent.optimizers import GradientsOnly, MemberOptimizer, Tensors, clip_by_norm
from qohort.agent.results import UpdateResult
from qohort.agent.target_networks import TargetNetwork
from qohort.agent.td_loss import TDLoss
from qohort.cohort.held import with_numbers
from qohort.cohort.program import Compiler
from qohort.cohort.stacking import CohortNetwork
from qohort.cohort.tape import Call
from qohort.replay.transition import Batch


class Update:
    """Performs one gradient step of every member, and lets the target network follow.

    `__call__` is the closure of the optimiser's step. It is one program that updates the parameters and the optimiser
    state in place. With a `MemberOptimizer`, it is the whole step. With an optimiser of `torch.optim`, it writes the
    clipped gradients to `grad`, and the optimiser's own step applies them.

    Args:
        td_loss: The loss of one member.
        online: The online networks.
        target: The target networks; may be `online`.
        target_network: How the target networks follow the online networks.
        optimizer: The optimiser of the parameters of `online`.
        held: The per-member hyperparameters by configuration key, `[M]` each: `max_grad_norm`, and those of the
            bootstrap and the target network.
        compiler: Compiles the programs.
    """

    def __init__(
        self,
        td_loss: TDLoss,
        online: CohortNetwork,
        target: CohortNetwork,
        target_network: TargetNetwork,
        optimizer: torch.optim.Optimizer,
        held: Tensors,
        compiler: Compiler,
    ) -> None:
        self._td_loss, self._target_network = td_loss, target_network
        self._online, self._target = online.parameters_by_name(), target.parameters_by_name()
        parameters = dict(online.network.named_parameters())
        self._rule: MemberOptimizer | GradientsOnly = (
            optimizer if isinstance(optimizer, MemberOptimizer) else GradientsOnly(parameters.values())
        )
        kept = {
            key: {name: self._rule.state[parameter][key] for name, parameter in parameters.items()}
            for key in self._rule.kept
        }
        networks = {"online": self._online, "target": self._target, "held": held}
        self._step = compiler.program("the update", self._update, {**networks, "kept": kept}, in_parts=True)
        self._follow = compiler.program("the target network", self._follow_online, networks, in_parts=True)
        probe = torch.zeros(1)
        self._follows = target_network.separate and target_network.follow(probe, torch.ones(1)) is not probe

    def __call__(self, batch: Batch) -> UpdateResult:
        """Update every member on its batch `[M, B, ...]`."""
        result: UpdateResult = self._step({**batch, **self._rule.advance()})
        return result

    def bind(self, batch: Batch) -> list[Call]:
        """Return the calls of an update for a tape.

        Args:
            batch: The batch `[M, B, ...]` and the optimiser's numbers, which are filled anew before each playing.
        """
        return [self._step.bind(batch), *([self._follow.bind({})] if self._follows else [])]

    def follow(self) -> None:
        """Let the target network follow the online network. Call it after the optimiser's step."""
        if self._follows:
            self._follow({})

    @torch.no_grad()
    def copy_target(self) -> None:
        """Copy the online network to the target network."""
        for name, target in self._target.items():
            target.copy_(self._online[name])

    def _update(self, state: dict[str, Any], batch: Batch) -> UpdateResult:
        """Update all members and write the results to the state in place."""
        new, result = vmap(self._member_update)(state, batch)
        written = {"online": state["online"], **state["kept"]}
        for key, tensors in new.items():
            for name, tensor in tensors.items():
                written[key][name].copy_(tensor)
        return result

    def _member_update(self, state: dict[str, Any], batch: Batch) -> tuple[dict[str, Tensors], UpdateResult]:
        """Return the new parameters and optimiser state of one member."""
        bootstrap = with_numbers(self._td_loss.bootstrap, "bootstrap", state["held"])
        td_loss = replace(self._td_loss, bootstrap=bootstrap)
        differentiated = grad_and_value(td_loss.value if self._rule.follows_value else td_loss, has_aux=True)
        gradients, (_, terms) = differentiated(state["online"], state["target"], batch)
        gradients, norm = clip_by_norm(gradients, state["held"].get("max_grad_norm"))
        parameters, kept = self._rule.apply(state["online"], gradients, state["kept"], terms, batch)
        result = UpdateResult(terms.loss, norm, terms.td_error, terms.q_mean)
        return {"online": parameters, **kept}, result

    def _follow_online(self, state: dict[str, Any], _: Any) -> dict[str, Tensor]:
        """Update the target networks of all members in place."""
        new = vmap(self._member_follow)(state["held"], state["target"], state["online"])
        for name, tensor in new.items():
            state["target"][name].copy_(tensor)
        return {}

    def _member_follow(self, held: Tensors, target: Tensors, online: Tensors) -> Tensors:
        """Return the new target parameters of one member."""
        target_network = with_numbers(self._target_network, "target_network", held)
        return {name: target_network.follow(tensor, online[name]) for name, tensor in target.items()}

"""Optimisers of a cohort: each with one learning rate a member, and a rule for one member that is lifted with its loss.

`MemberAdam` follows the loss; `ObGD` follows the value of the action taken, as eligibility traces do.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from qohort.agent.td_loss import LossTerms
from qohort.config.annotations import Range
from qohort.config.checks import locate
from qohort.config.schema import TrainConfig
from qohort.replay.base import Batch

Tensors = dict[str, Tensor]


class MemberOptimizer(torch.optim.Optimizer):
    """An optimiser with a rule for one member, `apply`, which is lifted and compiled with the loss.

    To Lightning and PyTorch it is an optimiser like any other: it holds learning rates and state, and `step(closure)`
    calls the closure, which is `qohort.agent.update.Update`: the whole step.

    Args:
        params: Parameters `[M, ...]`.
        lr: The learning rate, a number or one a member, `[M]`.
        settings: What else torch is to keep in a group.
    """

    foldable: ClassVar[tuple[str, ...]] = ("lr",)
    kept: ClassVar[tuple[str, ...]]
    """What is kept of each parameter besides itself, in its shape; zero at first."""
    follows_value: ClassVar[bool] = False
    """Whether gradients are those of the value of the action taken, not those of the loss."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float | Tensor, **settings: Any) -> None:
        super().__init__(params, {"lr": lr, **settings})
        for group in self.param_groups:
            members, device = group["params"][0].shape[0], group["params"][0].device
            rate = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)
            group["lr"] = rate.expand(members).clone()
            group["step"] = 0  # the members of a cohort make their steps together
            for parameter in group["params"]:
                self.state[parameter] = {key: torch.zeros_like(parameter) for key in self.kept}

    @classmethod
    def incompatibility(cls, config: TrainConfig) -> str | None:
        """What in a configuration does not go with this optimiser, as a message; None for nothing."""
        return None

    @abstractmethod
    def advance(self) -> Tensors:
        """Count a step; its numbers for each member, `[M]`."""

    @abstractmethod
    def apply(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        kept: Mapping[str, Mapping[str, Tensor]],
        terms: LossTerms,
        batch: Batch,
    ) -> tuple[Tensors, dict[str, Tensors]]:
        """One member's step, a pure function.

        Args:
            parameters: By name.
            gradients: Of the loss, or of the value of the action taken, as `follows_value` says.
            kept: What is kept of each parameter, by `kept` and name.
            terms: What else the loss reports.
            batch: The batch, and this member's numbers from `advance`.

        Returns:
            The new parameters, and what is then kept.
        """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Call the closure, which makes the whole step; returns what it returned."""
        return None if closure is None else closure()

    # torch wraps `step` in a profiler's record that costs a third of a small update; "hooked" says that it has.
    step.hooked = True  # type: ignore[attr-defined]


class GradientsOnly:
    """The rule for an optimiser of torch's: leave the gradients in `grad`, where its own step looks for them.

    Args:
        parameters: Parameters `[M, ...]`.
    """

    kept = ("gradient",)
    follows_value = False

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.state = {}
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
            self.state[parameter] = {"gradient": parameter.grad}

    def advance(self) -> Tensors:
        """No numbers."""
        return {}

    def apply(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        kept: Mapping[str, Mapping[str, Tensor]],
        terms: LossTerms,
        batch: Batch,
    ) -> tuple[Tensors, dict[str, Tensors]]:
        """No new parameters; the gradients are kept."""
        return {}, {"gradient": dict(gradients)}


def adam_step(
    parameter: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    rate: Tensor,
    root: Tensor | float,
    betas: tuple[float, float],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of Adam (Kingma & Ba, 2015, algorithm 1) on one tensor.

    Args:
        parameter: The parameter.
        gradient: Its gradient.
        mean: The running mean of gradients (m).
        square: The running mean of squared gradients (v).
        rate: The learning rate over the first bias correction, α / (1 - β₁ᵗ): broadcasts against the parameter.
        root: The root of the second bias correction, √(1 - β₂ᵗ): broadcasts against the parameter.
        betas: The decay rates of the two means.
        eps: Added to the root of the second mean.

    Returns:
        The new parameter, mean and square.
    """
    beta1, beta2 = betas
    mean = mean.lerp(gradient, 1 - beta1)
    square = beta2 * square + (1 - beta2) * gradient * gradient
    return parameter - rate * (mean / (square.sqrt() / root + eps)), mean, square


def bias_corrections(step: int, betas: tuple[float, float]) -> tuple[float, float]:
    """What Adam divides its two means by: 1 - β₁ᵗ, and the root √(1 - β₂ᵗ).

    Apart from `adam_step`, because a compiler would fuse these powers into its loops over all parameters, and in
    plain numbers, because a tensor of one number costs as much as the update of a small layer.

    Args:
        step: The number of the step, from 1.
        betas: The decay rates of the two means.
    """
    return 1 - betas[0] ** step, math.sqrt(1 - betas[1] ** step)


class MemberAdam(MemberOptimizer):
    """Adam with one learning rate a member: for one member, `torch.optim.Adam` to rounding.

    Args:
        params: Parameters `[M, ...]`.
        lr: The learning rate, a number or one a member, `[M]`.
        betas: The decay rates of the running means of gradients and of squared gradients.
        eps: Added to the root of the second mean.
    """

    kept = ("mean", "square")

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: Annotated[float, Range(0, above=True)] | Tensor = 2.5e-4,
        betas: tuple[Annotated[float, Range(0, 1, below=True)], Annotated[float, Range(0, 1, below=True)]] = (
            0.9,
            0.999,
        ),
        eps: Annotated[float, Range(0, above=True)] = 1e-8,
    ) -> None:
        super().__init__(params, lr, betas=tuple(betas), eps=eps)
        group = self.param_groups[0]
        self._betas, self._eps = group["betas"], group["eps"]
        self._numbers = {"rate": torch.empty_like(group["lr"]), "root": torch.empty_like(group["lr"])}

    def advance(self) -> Tensors:
        """α / (1 - β₁ᵗ) and √(1 - β₂ᵗ), `[M]` each."""
        group = self.param_groups[0]
        group["step"] += 1
        correction, root = bias_corrections(group["step"], self._betas)
        torch.div(group["lr"], correction, out=self._numbers["rate"])
        self._numbers["root"].fill_(root)
        return self._numbers

    def apply(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        kept: Mapping[str, Mapping[str, Tensor]],
        terms: LossTerms,
        batch: Batch,
    ) -> tuple[Tensors, dict[str, Tensors]]:
        """`adam_step` on each parameter."""
        new: Tensors = {}
        means: Tensors = {}
        squares: Tensors = {}
        rate, root = batch["rate"], batch["root"]
        for name, gradient in gradients.items():
            old = (parameters[name], gradient, kept["mean"][name], kept["square"][name])
            new[name], means[name], squares[name] = adam_step(*old, rate, root, self._betas, self._eps)
        return new, {"mean": means, "square": squares}


class ObGD(MemberOptimizer):
    """Overshooting-bounded gradient descent with eligibility traces: of Stream Q(λ) (Elsayed et al., 2024, alg. 3).

        z ← z + ∇q(s, a)
        w ← w + α / max(1, α κ max(|δ|, 1) ‖z‖₁) · δ z
        z ← γ λ z, or 0 where the episode ended or the action was not greedy

    with q's TD error δ and the 1-norm over all parameters of a member. It learns from each transition once and in
    order, so it needs `replay=none`, one environment and an update a step.

    Args:
        params: Parameters `[M, ...]`.
        lr: The learning rate α, a number or one a member, `[M]`.
        trace_decay: λ.
        kappa: κ: a step may not change the TD error by more than its 1 / κ-th part.

    Deviations: 1. a truncated episode is bootstrapped from, where the authors' code treats it as terminated; its traces
    end in either case.
    """

    kept = ("trace",)
    follows_value = True

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: Annotated[float, Range(0, above=True)] | Tensor = 1.0,
        trace_decay: Annotated[float, Range(0, 1)] = 0.8,
        kappa: Annotated[float, Range(0, above=True)] = 2.0,
    ) -> None:
        super().__init__(params, lr, trace_decay=trace_decay, kappa=kappa)
        self._trace_decay, self._kappa = trace_decay, kappa

    @classmethod
    def incompatibility(cls, config: TrainConfig) -> str | None:
        """Whether transitions would not come one by one and in order, or have no TD error."""
        if not getattr(locate(config.replay["_target_"], "replay._target_"), "newest_only", False):
            return "optimizer=obgd learns from each transition once: use replay=none"
        if not getattr(locate(config.head["_target_"], "head._target_"), "scalar", False):
            return "optimizer=obgd follows the TD error of one value an action: use head=squared"
        for key, value in (
            ("env.num_envs", config.env.num_envs),
            ("train_every", config.train_every),
            ("gradient_steps", config.gradient_steps),
        ):
            if value != 1:
                return f"{key}={value} does not go with the traces of optimizer=obgd: use {key}=1"
        if config.network.get("noisy"):  # which action is greedy would be judged by other noise than it was chosen by
            return "network.noisy=true does not go with the traces of optimizer=obgd: use network.noisy=false"
        if config.max_grad_norm is not None:
            return f"max_grad_norm={config.max_grad_norm}: optimizer=obgd has kappa for that, use max_grad_norm=null"
        return None

    def advance(self) -> Tensors:
        """α, `[M]`."""
        group = self.param_groups[0]
        group["step"] += 1
        return {"rate": group["lr"]}

    def apply(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        kept: Mapping[str, Mapping[str, Tensor]],
        terms: LossTerms,
        batch: Batch,
    ) -> tuple[Tensors, dict[str, Tensors]]:
        """The three lines above, on one transition."""
        traces = {name: kept["trace"][name] + gradient for name, gradient in gradients.items()}
        norm = torch.stack([trace.abs().sum() for trace in traces.values()]).sum()
        error, rate = terms.td_error.sum(), batch["rate"]
        bound = rate * self._kappa * error.abs().clamp(min=1.0) * norm
        step = rate / bound.clamp(min=1.0) * error
        goes_on = terms.greedy & ~batch["ended"]
        decay = torch.where(goes_on, self._trace_decay * batch["discount"], 0.0).sum()
        new = {name: parameters[name] + step * trace for name, trace in traces.items()}
        return new, {"trace": {name: decay * trace for name, trace in traces.items()}}


def clip_by_norm(gradients: dict[str, Tensor], max_norm: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
    """One member's gradients, scaled so that their joint 2-norm is at most `max_norm`; and the norm before.

    Written for one member and lifted, so that the order of its sums does not depend on M.

    Args:
        gradients: The gradients by parameter name.
        max_norm: A scalar, or None to leave them as they are.
    """
    norm = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
    if max_norm is None:
        return gradients, norm
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return {name: gradient * scale for name, gradient in gradients.items()}, norm


def mixes_members(build: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]) -> bool:
    """Whether an optimiser's step of one member depends on the other members.

    Optimisers that work element by element do not; those that look at whole tensors (Muon, Adafactor) do.
    Tried on three members against one, for three steps.
    """

    def run(start: Tensor) -> Tensor:
        parameter = nn.Parameter(start.clone())
        optimizer = build([parameter])
        for step in range(3):
            parameter.grad = (start + step).cos()
            optimizer.step()
        return parameter.detach()

    start = (
        torch.arange(3 * 4 * 5, dtype=torch.float32).reshape(3, 4, 5).sin()
        * torch.tensor([1.0, 9.0, 0.1])[:, None, None]
    )
    return not torch.equal(run(start)[1:2], run(start[1:2]))

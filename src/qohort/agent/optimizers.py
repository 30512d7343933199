"""Optimisers of a cohort: one learning rate per member, and an update rule that is lifted together with the loss.

`MemberAdam` and `MemberRMSprop` follow the gradient of the loss. `ObGD` uses eligibility traces, so it follows the
gradient of the value of the action taken.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qohort.agent.results import LossTerms
from qohort.config.annotations import Range
from qohort.config.schema import TrainConfig
from qohort.config.targets import locate
from qohort.replay.transition import Batch

Tensors = dict[str, Tensor]


class MemberOptimizer(torch.optim.Optimizer):
    """Base class of optimisers whose update rule for one member, `apply`, is lifted and compiled with the loss.

    Lightning and PyTorch see an ordinary optimiser with learning rates and state. Its `step(closure)` only calls the
    closure, `qohort.agent.update.Update`, which performs the whole step.

    Args:
        params: The stacked parameters, `[M, ...]`.
        lr: The learning rate: one number, or one per member, `[M]`.
        settings: Further settings to keep in the parameter groups.
    """

    foldable: ClassVar[tuple[str, ...]] = ("lr",)
    kept: tuple[str, ...]
    """The names of the state tensors of each parameter. They have the shape of the parameter and start at zero."""
    follows_value: ClassVar[bool] = False
    """Whether `apply` gets the gradient of the value of the action taken instead of the gradient of the loss."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float | Tensor, **settings: Any) -> None:
        super().__init__(params, {"lr": lr, **settings})
        for group in self.param_groups:
            members, device = group["params"][0].shape[0], group["params"][0].device
            rate = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)
            group["lr"] = rate.expand(members).clone()
            group["step"] = 0  # one count, because all members step together
            for parameter in group["params"]:
                self.state[parameter] = {key: torch.zeros_like(parameter) for key in self.kept}

    @classmethod
    def incompatibility(cls, config: TrainConfig) -> str | None:
        """Return a message if a configuration is incompatible with this optimiser, else None."""
        return None

    @abstractmethod
    def advance(self) -> Tensors:
        """Increment the step count and return the per-member numbers of this step, `[M]` each, for `apply`."""

    def ahead(self, rates: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Increment the step count, and return what `advance` would return at each of several steps.

        Args:
            rates: The learning rates of each step, `[n, M]`.

        Returns:
            The numbers of each step, `[n, M]` each.
        """
        self.param_groups[0]["step"] += len(rates)
        return {"rate": rates}

    @abstractmethod
    def apply(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        kept: Mapping[str, Mapping[str, Tensor]],
        terms: LossTerms,
        batch: Batch,
    ) -> tuple[Tensors, dict[str, Tensors]]:
        """Perform one step of one member. A pure function.

        Args:
            parameters: The parameters by name.
            gradients: The gradients by parameter name: of the value if `follows_value`, else of the loss.
            kept: The optimiser state by state name and parameter name.
            terms: The statistics of the loss.
            batch: The batch, and the numbers of this member from `advance`.

        Returns:
            The new parameters and the new optimiser state.
        """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Call the closure, which performs the whole step, and return its result."""
        return None if closure is None else closure()

    # torch wraps `step` in a profiler record, which costs a third of a small update. `hooked` marks it as wrapped.
    step.hooked = True  # type: ignore[attr-defined]


class GradientsOnly:
    """The update rule for an optimiser of `torch.optim`: write the gradients to `grad` for the optimiser's own step.

    Args:
        parameters: The stacked parameters, `[M, ...]`.
    """

    kept = ("gradient",)
    follows_value = False

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.state = {}
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
            self.state[parameter] = {"gradient": parameter.grad}

    def advance(self) -> Tensors:
        """Return no numbers."""
        return {}

    def apply(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        kept: Mapping[str, Mapping[str, Tensor]],
        terms: LossTerms,
        batch: Batch,
    ) -> tuple[Tensors, dict[str, Tensors]]:
        """Return no new parameters, and the gradients as state."""
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
    """Perform one step of Adam (Kingma & Ba, 2015, algorithm 1) on one tensor.

    Args:
        parameter: The parameter.
        gradient: Its gradient.
        mean: The running mean of gradients, m.
        square: The running mean of squared gradients, v.
        rate: The bias-corrected learning rate, α / (1 - β₁ᵗ). Broadcasts against the parameter.
        root: The square root of the second bias correction, √(1 - β₂ᵗ). Broadcasts against the parameter.
        betas: The decay rates of the two running means, β₁ and β₂.
        eps: Added to the denominator, √(v / (1 - β₂ᵗ)).

    Returns:
        The new parameter, mean and square.
    """
    beta1, beta2 = betas
    mean = mean.lerp(gradient, 1 - beta1)
    square = beta2 * square + (1 - beta2) * gradient * gradient
    return parameter - rate * (mean / (square.sqrt() / root + eps)), mean, square


def bias_corrections(step: int, betas: tuple[float, float]) -> tuple[float, float]:
    """Return Adam's bias corrections 1 - β₁ᵗ and √(1 - β₂ᵗ).

    They are not part of `adam_step`, because a compiler would fuse the powers into the loops over all parameters. They
    are Python floats, because an operation on a one-element tensor costs as much as the update of a small layer.

    Args:
        step: The step count t, starting at 1.
        betas: The decay rates of the two running means, β₁ and β₂.
    """
    return 1 - betas[0] ** step, math.sqrt(1 - betas[1] ** step)


class MemberAdam(MemberOptimizer):
    """Adam with one learning rate per member. For each member it equals `torch.optim.Adam` up to rounding.

    Args:
        params: The stacked parameters, `[M, ...]`.
        lr: The learning rate: one number, or one per member, `[M]`.
        betas: The decay rates of the running means of gradients and of squared gradients.
        eps: Added to the denominator of the update.
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
        """Return α / (1 - β₁ᵗ) and √(1 - β₂ᵗ), `[M]` each."""
        group = self.param_groups[0]
        group["step"] += 1
        correction, root = bias_corrections(group["step"], self._betas)
        torch.div(group["lr"], correction, out=self._numbers["rate"])
        self._numbers["root"].fill_(root)
        return self._numbers

    def ahead(self, rates: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return α / (1 - β₁ᵗ) and √(1 - β₂ᵗ) of several steps, `[n, M]` each, equal to those of `advance`."""
        before = self.param_groups[0]["step"]
        super().ahead(rates)
        corrections = [bias_corrections(before + 1 + n, self._betas) for n in range(len(rates))]
        first, second = np.array(corrections, dtype=np.float32).T[:, :, None]
        return {"rate": rates / first, "root": np.broadcast_to(second, rates.shape)}

    def apply(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        kept: Mapping[str, Mapping[str, Tensor]],
        terms: LossTerms,
        batch: Batch,
    ) -> tuple[Tensors, dict[str, Tensors]]:
        """Apply `adam_step` to each parameter."""
        new: Tensors = {}
        means: Tensors = {}
        squares: Tensors = {}
        rate, root = batch["rate"], batch["root"]
        for name, gradient in gradients.items():
            old = (parameters[name], gradient, kept["mean"][name], kept["square"][name])
            new[name], means[name], squares[name] = adam_step(*old, rate, root, self._betas, self._eps)
        return new, {"mean": means, "square": squares}


def rmsprop_step(
    parameter: Tensor,
    gradient: Tensor,
    square: Tensor,
    mean: Tensor | None,
    rate: Tensor,
    alpha: float,
    eps: float,
    eps_inside_root: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Perform one step of RMSprop (Tieleman & Hinton, 2012) on one tensor.

    Args:
        parameter: The parameter.
        gradient: Its gradient.
        square: The running mean of squared gradients, v.
        mean: The running mean of gradients, m; None for 0 (not centred).
        rate: The learning rate. Broadcasts against the parameter.
        alpha: The decay rate of the running means.
        eps: Added to √(v - m²), or below the root.
        eps_inside_root: Whether the denominator is √(v - m² + eps), as in Mnih et al. (2015). With their eps of 0.01,
            a small gradient then has a step that is ten times as small.

    Returns:
        The new parameter, square and mean.
    """
    square = torch.addcmul(square * alpha, gradient, gradient, value=1 - alpha)
    variance = square
    if mean is not None:
        mean = mean.lerp(gradient, 1 - alpha)
        variance = torch.addcmul(square, mean, mean, value=-1)
    root = (variance + eps).sqrt() if eps_inside_root else variance.sqrt() + eps
    return parameter - rate * gradient / root, square, mean


class MemberRMSprop(MemberOptimizer):
    """RMSprop with one learning rate per member. For each member it equals `torch.optim.RMSprop` up to rounding.

    Args:
        params: The stacked parameters, `[M, ...]`.
        lr: The learning rate: one number, or one per member, `[M]`.
        alpha: The decay rate of the running means.
        eps: Added to the denominator of the update.
        centered: Whether the denominator is the standard deviation of gradients, not their root mean square.
        eps_inside_root: Whether `eps` is added below the root.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: Annotated[float, Range(0, above=True)] | Tensor = 2.5e-4,
        alpha: Annotated[float, Range(0, 1, below=True)] = 0.99,
        eps: Annotated[float, Range(0, above=True)] = 1e-8,
        centered: bool = False,
        eps_inside_root: bool = False,
    ) -> None:
        self.kept = ("square", "mean") if centered else ("square",)
        super().__init__(params, lr, alpha=alpha, eps=eps, centered=centered, eps_inside_root=eps_inside_root)
        self._settings = (alpha, eps, eps_inside_root)

    def advance(self) -> Tensors:
        """Return the learning rates, `[M]`."""
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
        """Apply `rmsprop_step` to each parameter."""
        new: Tensors = {}
        state: dict[str, Tensors] = {key: {} for key in self.kept}
        for name, gradient in gradients.items():
            means = kept["mean"][name] if "mean" in kept else None
            old = (parameters[name], gradient, kept["square"][name], means)
            new[name], square, mean = rmsprop_step(*old, batch["rate"], *self._settings)
            state["square"][name] = square
            if mean is not None:
                state["mean"][name] = mean
        return new, state


class ObGD(MemberOptimizer):
    """Overshooting-bounded gradient descent with eligibility traces, for Stream Q(λ) (Elsayed et al., 2024, alg. 3).

        z ← z + ∇q(s, a)
        w ← w + α / max(1, α κ max(|δ|, 1) ‖z‖₁) · δ z
        z ← γ λ z, or 0 where the episode ended or the action was not greedy

    Here δ is the TD error, and the 1-norm is taken over all parameters of a member. The optimiser learns from each
    transition once and in order, so it needs `replay=none`, one environment and one update per step.

    Args:
        params: The stacked parameters, `[M, ...]`.
        lr: The learning rate α: one number, or one per member, `[M]`.
        trace_decay: λ, the decay of the eligibility traces.
        kappa: κ; a step changes the TD error by at most a fraction 1 / κ of it.

    Deviations: 1. Targets bootstrap at the end of a truncated episode. The authors' code treats it as terminated. The
    traces are reset in both cases.
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
        """Return a message if transitions do not come one by one and in order, or if there is no scalar TD error."""
        if not getattr(locate(config.replay["_target_"], "replay._target_"), "newest_only", False):
            return "optimizer=obgd learns from each transition once: use replay=none"
        if not getattr(locate(config.head["_target_"], "head._target_"), "scalar", False):
            return "optimizer=obgd needs the TD error of one value per action: use head=squared"
        for key, value in (
            ("env.num_envs", config.env.num_envs),
            ("train_every", config.train_every),
            ("gradient_steps", config.gradient_steps),
        ):
            if value != 1:
                return f"{key}={value} does not go with the traces of optimizer=obgd: use {key}=1"
        # Acting and the update draw different noise, so they may disagree on whether an action is greedy.
        if config.network.get("noisy"):
            return "network.noisy=true does not go with the traces of optimizer=obgd: use network.noisy=false"
        if config.max_grad_norm is not None:
            return (
                f"max_grad_norm={config.max_grad_norm}: optimizer=obgd bounds its steps itself, use max_grad_norm=null"
            )
        return None

    def advance(self) -> Tensors:
        """Return α, `[M]`."""
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
        """Apply the three lines of the class's docstring to one transition."""
        traces = {name: kept["trace"][name] + gradient for name, gradient in gradients.items()}
        norm = torch.stack([trace.abs().sum() for trace in traces.values()]).sum()
        error, rate = terms.td_error.sum(), batch["rate"]
        bound = rate * self._kappa * error.abs().clamp(min=1.0) * norm
        step = rate / bound.clamp(min=1.0) * error
        trace_continues = terms.greedy & ~batch["ended"]
        decay = torch.where(trace_continues, self._trace_decay * batch["discount"], 0.0).sum()
        new = {name: parameters[name] + step * trace for name, trace in traces.items()}
        return new, {"trace": {name: decay * trace for name, trace in traces.items()}}


def clip_by_norm(gradients: dict[str, Tensor], max_norm: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
    """Clip the gradients of one member to a maximum joint 2-norm.

    Written for one member and lifted, so that the order of the sums does not depend on M.

    Args:
        gradients: The gradients by parameter name.
        max_norm: The maximum norm, a scalar; None for no clipping.

    Returns:
        The clipped gradients, and their norm before clipping.
    """
    norm = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
    if max_norm is None:
        return gradients, norm
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return {name: gradient * scale for name, gradient in gradients.items()}, norm


def mixes_members(build: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]) -> bool:
    """Return whether an optimiser's step of one member depends on the other members.

    Element-wise optimisers do not mix members. Those that use statistics of whole tensors do (Muon, Adafactor). The
    test compares three steps of three members with those of one member alone.
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

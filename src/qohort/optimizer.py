"""Adam with one learning rate a member, as a pure function that a lifted update can hold and as an optimiser."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from qohort.checking import Range


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


class MemberAdam(torch.optim.Optimizer):
    """Adam with one learning rate a member: for one member, `torch.optim.Adam` to rounding.

    The learner compiles `adam_step` into its lifted update, on the state that is held here; then no
    parameter has a gradient when `step` is called, and `step` has nothing left to do. Given gradients, `step`
    applies them as any optimiser does.

    Args:
        params: Parameters `[M, ...]`.
        lr: The learning rate, a number or one a member, `[M]`.
        betas: The decay rates of the running means of gradients and of squared gradients.
        eps: Added to the root of the second mean.
    """

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
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps})
        for group in self.param_groups:
            members, device = group["params"][0].shape[0], group["params"][0].device
            rate = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)
            group["lr"] = rate.expand(members).clone()
            group["step"] = 0  # the members of a cohort make their steps together
            for parameter in group["params"]:
                self.state[parameter] = {"mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply the gradients, after the closure where there is one; returns what the closure returned."""
        result = None if closure is None else closure()
        for group in self.param_groups:
            graded = [parameter for parameter in group["params"] if parameter.grad is not None]
            if graded:
                self._apply(group, graded)
        return result

    # torch wraps `step` in a profiler's record that costs a third of a small update; "hooked" says that it has.
    step.hooked = True  # type: ignore[attr-defined]

    @torch.no_grad()
    def _apply(self, group: dict[str, Any], parameters: Sequence[nn.Parameter]) -> None:
        group["step"] += 1
        correction, root = bias_corrections(group["step"], group["betas"])
        for parameter in parameters:
            state = self.state[parameter]
            rate = (group["lr"] / correction).view(-1, *[1] * (parameter.dim() - 1))
            old = (parameter, state["mean"], state["square"])
            gradient = parameter.grad
            assert gradient is not None
            new = adam_step(parameter, gradient, *old[1:], rate, root, group["betas"], group["eps"])
            for tensor, value in zip(old, new, strict=True):
                tensor.copy_(value)


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


def takes_fused(optimizer_class: type) -> bool:
    """Whether an optimiser has a `fused` switch."""
    return "fused" in inspect.signature(optimizer_class).parameters

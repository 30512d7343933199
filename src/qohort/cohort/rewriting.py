"""Operations that a program is traced with instead of PyTorch's, so that its bits do not depend on how it is compiled.

`compiler` applies them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from qohort.cohort.convolution import convolution, max_pool


class Rewritten(TorchFunctionMode):
    """Replaces functions that do not compile to the same bits for any number of members.

    Args:
        products: Whether matrix products become sums of products, too. NVIDIA's library chooses its kernel, and so the
            order of the sums, by the number of members. A compiled sum has one kernel for any number.
    """

    def __init__(self, products: bool) -> None:
        super().__init__()
        self._rewritten: dict[Any, Callable[..., Any]] = {
            torch.nn.functional.conv2d: _conv2d,
            torch.nn.functional.max_pool2d: _max_pool2d,
            torch.nn.functional.layer_norm: _layer_norm,
        }
        if products:
            self._rewritten |= {torch.nn.functional.linear: _linear, **dict.fromkeys(PRODUCTS, _matmul)}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call what replaces a function, or the function."""
        if rewritten := self._rewritten.get(func):
            with self:  # for the products in a convolution
                result = rewritten(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        return func(*args, **(kwargs or {}))


def _square(*pairs: int | Sequence[int]) -> list[int] | None:
    """Return the one number of each pair; None if a pair has two different ones."""
    numbers = [{*pair} if isinstance(pair, Sequence) else {pair} for pair in pairs]
    return [number.pop() for number in numbers] if all(len(number) == 1 for number in numbers) else None


def _conv2d(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Return `conv2d` with square kernels, strides and borders."""
    if isinstance(padding, str) or image.dim() != 4:
        return NotImplemented
    sizes = _square(weight.shape[2:], stride, padding, dilation)
    if sizes is None or groups != 1 or sizes.pop() != 1:
        return NotImplemented
    return convolution(image, weight.flatten(1), bias, *sizes)


def _max_pool2d(
    image: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Return `max_pool2d` with square patches, strides and borders. Equal largest pixels share the gradient."""
    sizes = _square(kernel_size, kernel_size if stride is None else stride, padding, dilation)
    if sizes is None or sizes.pop() != 1 or ceil_mode or return_indices:
        return NotImplemented
    return max_pool(image, *sizes)


def _layer_norm(
    value: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return `layer_norm` in elementary operations."""
    axes = [*range(-len(normalized_shape), 0)]
    centred = value - value.mean(axes, keepdim=True)
    normalised = centred / (centred.square().mean(axes, keepdim=True) + eps).sqrt()
    if weight is not None:
        normalised = normalised * weight
    return normalised if bias is None else normalised + bias


PRODUCTS = (torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm)
"""The matrix products without an addition."""


def _linear(value: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `value [..., I]` times `weight [O, I]` transposed, plus `bias [O]`."""
    product = (value.unsqueeze(-2) * weight).sum(-1)
    return product if bias is None else product + bias


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    """Return the matrix product, with the rules of `torch.matmul`."""
    if right.dim() == 1:
        return (left * right).sum(-1)
    if left.dim() == 1:
        return (left.unsqueeze(-1) * right).sum(-2)
    return (left.unsqueeze(-1) * right.unsqueeze(-3)).sum(-2)


NARROW = 8
"""A matrix product with fewer rows or columns is compiled as a sum of products on the CPU. For these alone, MKL has a
kernel for each make of CPU, with other bits, even with `MKL_CBWR=AVX2,STRICT`."""


def _narrow_bmm(left: Tensor, right: Tensor) -> Any:
    """Return the product of `left [M, R, K]` and `right [M, K, C]` if it is narrow."""
    if min(left.shape[1], right.shape[2]) >= NARROW:
        return NotImplemented
    return (left.unsqueeze(-1) * right.unsqueeze(1)).sum(2)


def _narrow_mm(left: Tensor, right: Tensor) -> Any:
    """Return the product of `left [R, K]` and `right [K, C]` if it is narrow."""
    if min(left.shape[0], right.shape[1]) >= NARROW:
        return NotImplemented
    return (left.unsqueeze(-1) * right.unsqueeze(0)).sum(1)


def _clone(tensor: Tensor, memory_format: torch.memory_format | None = None) -> Any:
    """Compute a tensor once, and in order, before what reads it. Inductor takes a clone for the expression itself."""
    if memory_format is not None:
        return NotImplemented
    strides = torch.empty_like(tensor, memory_format=torch.contiguous_format).stride()
    return torch.ops.prims.inductor_force_stride_order.default(tensor, strides)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.bmm.default: _narrow_bmm,
    torch.ops.aten.mm.default: _narrow_mm,
    torch.ops.aten.clone.default: _clone,
}

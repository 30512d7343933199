"""Convolutions as matrix products of patches, bitwise equal for one member and for many.

torch's own convolution, lifted over members, rounds differently for one member and for many. Here a convolution is one
product per member, of the kernels and the patches of a whole batch, at the speed of torch's own.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

Border = int | tuple[int, int]
"""The width of the border around an image, in pixels: of all sides, or of top and left, and of bottom and right."""


def convolution(image: Tensor, weight: Tensor, bias: Tensor | None, size: int, stride: int, padding: Border) -> Tensor:
    """Convolve images `[B, C, H, W]`: `[B, C', H', W']`.

    Args:
        image: The images.
        weight: The kernels, `[C', C size²]`.
        bias: What is added to each channel, `[C']`.
        size: The side of a kernel, in pixels.
        stride: The stride, in pixels.
        padding: The width of the border of zeros; see `Border`.
    """
    extracted = patches(image, size, stride, padding)  # [B, C, size, size, H', W']
    columns = extracted.movedim(0, 3).flatten(3).flatten(0, 2)  # [C size², B H' W'], for one product
    flat = weight @ columns
    if bias is not None:
        flat = flat + bias.unsqueeze(-1)
    return flat.view(weight.shape[0], image.shape[0], *extracted.shape[-2:]).transpose(0, 1)


def max_pool(image: Tensor, size: int, stride: int, padding: Border) -> Tensor:
    """Return the maximum of each patch of images `[B, C, H, W]`: `[B, C, H', W']`."""
    return patches(image, size, stride, padding, float("-inf")).amax((-4, -3))


def adaptive_max_pool(image: Tensor, side: int) -> Tensor:
    """Return the maxima of `side x side` windows of images `[B, C, H, W]`: `[B, C, side, side]`.

    Window i of n reaches from pixel ⌊i H / n⌋ to the one before ⌈(i + 1) H / n⌉, as in `torch.nn.AdaptiveMaxPool2d`.
    Equal largest pixels share the gradient.
    """
    rows, columns = (_windows(length, side, image) for length in image.shape[-2:])
    tall = rows @ image
    tall = tall.view(*tall.shape[:-2], side, -1, tall.shape[-1]).amax(-2)  # [B, C, side, W]
    wide = tall @ columns.transpose(0, 1)
    return wide.view(*wide.shape[:-1], side, -1).amax(-1)


def _windows(length: int, count: int, like: Tensor) -> Tensor:
    """Return a matrix of zeros and ones, `[count * widest, length]`. Its product with an axis has window after window.

    A narrower window has its last pixel again.
    """
    spans = [(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]
    widest = max(stop - start for start, stop in spans)
    pixel = [min(start + offset, stop - 1) for start, stop in spans for offset in range(widest)]
    every = torch.arange(length, device=like.device)
    return (torch.tensor(pixel, device=like.device).unsqueeze(1) == every).to(like.dtype)


def patches(image: Tensor, size: int, stride: int, padding: Border = 0, fill: float = 0.0) -> Tensor:
    """Extract square patches from images.

    Args:
        image: The images, `[..., H, W]`.
        size: The side of a patch, in pixels.
        stride: The distance between patches, in pixels.
        padding: The width of the border; see `Border`.
        fill: The value of the border.

    Returns:
        The patches, `[..., size, size, H', W']`.
    """
    border = (padding, padding) if isinstance(padding, int) else padding
    extracted: Tensor = _Patches.apply(image, size, stride, border, fill)  # type: ignore[no-untyped-call]
    return extracted


class _Patches(torch.autograd.Function):
    """The patches of images, with a gradient of our own: that of torch's `unfold` scatters them one by one.

    Functions have a rule for `vmap`, because the rules of `pad` and `unfold` compile for one number of members only.
    """

    @staticmethod
    def forward(image: Tensor, size: int, stride: int, border: tuple[int, int], fill: float) -> Tensor:
        """Return the patches of images `[..., H, W]`."""
        height, width = image.shape[-2:]
        # In a program, a clone is computed once. Otherwise each pixel would be converted anew for each patch.
        whole = image.clone()
        if any(border):
            before = border[0]
            whole = image.new_full((*image.shape[:-2], height + sum(border), width + sum(border)), fill)
            whole[..., before : before + height, before : before + width] = image
        return whole.unfold(-2, size, stride).unfold(-2, size, stride).movedim((-4, -3), (-2, -1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the sizes."""
        image, ctx.size, ctx.stride, ctx.border, _ = inputs
        ctx.sides = image.shape[-2:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the images."""
        padded = [side + sum(ctx.border) for side in ctx.sides]
        whole: Tensor = _PatchSums.apply(gradient, padded, ctx.stride)  # type: ignore[no-untyped-call]
        for axis, side in zip((-2, -1), ctx.sides, strict=True):
            whole = whole.narrow(axis, ctx.border[0], side)
        return whole, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], image: Tensor, *settings: Any) -> tuple[Tensor, int]:
        """Return the patches of every member."""
        return patches(image.movedim(in_dims[0] or 0, 0), *settings), 0


class _PatchSums(torch.autograd.Function):
    """The sums of patches at the pixels that they are from: the gradient of `_Patches`, and the other way round."""

    @staticmethod
    def forward(patch: Tensor, sides: tuple[int, int], stride: int) -> Tensor:
        """Return the sums `[..., H, W]` of patches `[..., size, size, H', W']`.

        Pixel `stride * q + r` is number `r + stride * t` of patch `q - t`. So the pixels of one remainder r are a sum
        over t of shifted patches, without a scatter, and the remainders are interleaved.
        """
        size, down, across = patch.shape[-4], *patch.shape[-2:]
        quotients = [-(-side // stride) for side in sides]
        grid = []
        for row, column in itertools.product(range(stride), range(stride)):
            total = nothing = patch.new_zeros((*patch.shape[:-4], *quotients))
            for t, u in itertools.product(range(row, size, stride), range(column, size, stride)):
                shifted, top, left = torch.zeros_like(nothing), t // stride, u // stride
                shifted[..., top : top + down, left : left + across] = patch[..., t, u, :, :]
                total = total + shifted
            grid.append(total)
        rows = [torch.stack(grid[row * stride : (row + 1) * stride], -1) for row in range(stride)]
        whole = torch.stack(rows, -3)  # [..., q, r, q', r']
        return whole.flatten(-2).flatten(-3, -2)[..., : sides[0], : sides[1]]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the sizes."""
        patch, _, ctx.stride = inputs
        ctx.size = patch.shape[-4]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the patches."""
        return patches(gradient, ctx.size, ctx.stride), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], patch: Tensor, *settings: Any) -> tuple[Tensor, int]:
        """Return the sums of every member."""
        return _PatchSums.apply(patch.movedim(in_dims[0] or 0, 0), *settings), 0  # type: ignore[no-untyped-call]

"""Layers for images.

Convolutions are those of `qohort.cohort.convolution`, whose bits do not depend on the number of members.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gymnasium import spaces
from torch import Tensor, nn

from qohort.cohort.convolution import Border, adaptive_max_pool, convolution
from qohort.networks.layers import (
    pixel_scale,
    spectrally_normalized,
)


def sides(shape: Sequence[int], size: int, stride: int, padding: int = 0) -> list[int]:
    """Return the height and width of a convolution's output for an image `[..., H, W]`.

    Args:
        shape: The shape of the image.
        size: The side of the kernel, in pixels.
        stride: The stride, in pixels.
        padding: The width of the border around the image, in pixels.
    """
    return [(side + 2 * padding - size) // stride + 1 for side in shape[-2:]]


class Conv(nn.Module):
    """A convolution with torch's initialisation.

    Args:
        inputs: The number of input channels.
        outputs: The number of output channels.
        size: The side of the kernel, in pixels.
        stride: The stride, in pixels.
        padding: The width of the border of zeros around the image, in pixels; see `qohort.cohort.convolution.Border`.
        spectral_norm: Whether the kernels are divided by their largest singular value, as a matrix `[C', C size²]`; see
            `qohort.networks.layers.spectrally_normalized`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int = 1,
        padding: Border = 0,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        kernel = nn.Linear(inputs * size * size, outputs)  # has the same initialisation
        self.weight, self.bias = kernel.weight, kernel.bias
        self._size, self._stride, self._padding, self._spectral_norm = size, stride, padding, spectral_norm

    def forward(self, image: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to `[B, C', H', W']`."""
        weight = spectrally_normalized(self.weight) if self._spectral_norm else self.weight
        return convolution(image, weight, self.bias, self._size, self._stride, self._padding)


class ImageNorm(nn.Module):
    """A normalisation of vectors, for images: over all channels and pixels.

    Args:
        norm: Normalises `[B, C H W]`.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, image: Tensor) -> Tensor:
        """Normalise images `[B, C, H, W]`."""
        flat: Tensor = self.norm(image.flatten(1))
        return flat.view(image.shape)


class AdaptiveMaxPool(nn.Module):
    """Max pooling to `side x side` pixels; see `qohort.cohort.convolution.adaptive_max_pool`.

    Args:
        side: The height and width of the output, in pixels.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self._side = side

    def forward(self, image: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to `[B, C, side, side]`."""
        return adaptive_max_pool(image, self._side)


class Pixels(nn.Module):
    """Converts observations `[B, ...]` to float images `[B, C, H, W]`, divided by 255 (`pixel_scale`).

    Args:
        space: The observation space, a `Box` of three axes.
        channels_last: Whether the channels are the last axis, as in MinAtar, instead of the first. None takes the axis
            that is shorter than both others.

    Raises:
        ValueError: If the observations are not images, or it is not clear which axis has the channels.
    """

    def __init__(self, space: spaces.Space[Any], channels_last: bool | None) -> None:
        super().__init__()
        if not isinstance(space, spaces.Box) or len(space.shape) != 3:
            raise ValueError(f"this network needs images, a Box of three axes, got {space}: use network=mlp")
        self._last = _channels_are_last(space.shape) if channels_last is None else channels_last
        self._scale = pixel_scale(space)
        first, second, third = space.shape
        self.shape = (third, first, second) if self._last else (first, second, third)

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations `[B, ...]` to images `[B, C, H, W]`."""
        image = observation.float()
        image = image if self._scale == 1.0 else image * self._scale
        return image.permute(0, 3, 1, 2) if self._last else image


def _channels_are_last(shape: Sequence[int]) -> bool:
    """Return whether the last axis has the channels of an image, because it is shorter than both others.

    Raises:
        ValueError: If neither the first nor the last axis is shorter than both others.
    """
    first, second, third = shape
    if first < min(second, third):
        return False
    if third < min(first, second):
        return True
    raise ValueError(
        f"it is not clear which axis of {tuple(shape)} has the channels: set network.channels_last to true (the last "
        "axis) or false (the first)"
    )

"""Q-networks for images: plain convolutions (the networks of MinAtar and Nature) and IMPALA's residual network.

A convolution is computed as a matrix product over patches. torch's own convolution, lifted over members, rounds
differently for one member and for many.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from qohort.config.annotations import PositiveInt, Range, Sized
from qohort.networks.layers import ActionValues, LayerNorm, QNetwork, Widths, layer_maker, pixel_scale

Convolution = tuple[PositiveInt, PositiveInt, PositiveInt]


def patches(image: Tensor, size: int, stride: int, padding: int = 0, fill: float = 0.0) -> Tensor:
    """Extract square patches from images.

    Uses an index of pixels. The gradients of slices and `unfold` compile for a single number of members only.

    Args:
        image: The images, `[B, C, H, W]`.
        size: The side of a patch, in pixels.
        stride: The distance between patches, in pixels.
        padding: The width of the border around the image, in pixels.
        fill: The value of the border.

    Returns:
        The patches, `[B, C, size², H' W']`.
    """
    pixel, inside = _patch_pixels(*image.shape[2:], size, stride, padding)
    extracted = image.flatten(2)[:, :, torch.from_numpy(pixel).to(image.device)]
    if not padding:
        return extracted
    return torch.where(torch.from_numpy(inside).to(image.device), extracted, fill)


@cache
def _patch_pixels(
    height: int, width: int, size: int, stride: int, padding: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the pixel index of each position in each patch, and whether the position is inside the image.

    A position outside the image gets the nearest pixel. The index is computed by NumPy, because inductor fails if it is
    computed in the same program as a padded image.
    """
    top, left = (np.arange(count) * stride - padding for count in sides((height, width), size, stride, padding))
    offset = np.arange(size)
    row, column = np.broadcast_arrays(
        top.reshape(1, 1, -1, 1) + offset.reshape(-1, 1, 1, 1), left + offset.reshape(1, -1, 1, 1)
    )
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    pixel = row.clip(0, height - 1) * width + column.clip(0, width - 1)
    return pixel.reshape(size * size, -1), inside.reshape(size * size, -1)


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
        padding: The width of the border of zeros around the image, in pixels.
    """

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        kernel = nn.Linear(inputs * size * size, outputs)  # has the same initialisation
        self.weight, self.bias = kernel.weight, kernel.bias
        self._size, self._stride, self._padding = size, stride, padding

    def forward(self, image: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to `[B, C', H', W']`."""
        rows = patches(image, self._size, self._stride, self._padding).flatten(1, 2)  # [B, C size², H' W']
        flat = self.weight @ rows + self.bias.unsqueeze(-1)
        return flat.view(*flat.shape[:2], *sides(image.shape, self._size, self._stride, self._padding))


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


class ConvTorso(nn.Module):
    """Convolutions with ReLU: the torso of a convolutional network.

    Args:
        space: The observation space.
        convolutions: The (channels, kernel side, stride) of each convolution.
        channels_last: See `Pixels`.
        layer_norm: Whether each convolution is normalised over channels and pixels before its ReLU.

    Raises:
        ValueError: If the observations are not images, or too small for the kernels.
    """

    def __init__(
        self,
        space: spaces.Space[Any],
        convolutions: Sequence[Sequence[int]],
        channels_last: bool | None,
        layer_norm: bool,
    ) -> None:
        super().__init__()
        self.pixels = Pixels(space, channels_last)
        channels, *pixels = self.pixels.shape
        layers: list[nn.Module] = []
        norms: list[nn.Module] = []
        for outputs, size, stride in convolutions:
            if min(pixels) < size:
                raise ValueError(f"convolutions={list(convolutions)}: a kernel of {size} does not fit {pixels} pixels")
            layers.append(Conv(channels, outputs, size, stride))
            pixels = sides(pixels, size, stride)
            channels = outputs
            norms.append(LayerNorm(channels * pixels[0] * pixels[1]) if layer_norm else nn.Identity())
        self.layers, self.norms = nn.ModuleList(layers), nn.ModuleList(norms)
        self.width = channels * pixels[0] * pixels[1]

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations `[B, ...]` to features `[B, width]`."""
        image: Tensor = self.pixels(observation)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            output: Tensor = layer(image)
            image = norm(output.flatten(1)).view(output.shape).relu()
        return image.flatten(1)


class ConvNetwork(QNetwork):
    """Convolutions and fully connected layers: the networks of the Nature DQN (Mnih et al., 2015) and of MinAtar.

    Args:
        observation_space: A space of images.
        actions: The number of actions.
        atoms: The number of outputs per action.
        convolutions: The (channels, kernel side, stride) of each convolution.
        hidden: The number of units of each fully connected layer. With `dueling`, each stream has its own layers.
        channels_last: See `Pixels`.
        layer_norm: Whether the convolutions are normalised before their ReLU. The fully connected layers are not.
        dueling: Whether the output has two streams (Wang et al., 2016).
        noisy: Whether the fully connected layers have learned noise (Fortunato et al., 2018).
        noisy_sigma: σ₀; the noise of a layer starts at σ₀ / √inputs.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        actions: int,
        atoms: int,
        convolutions: Annotated[Sequence[Convolution], Sized(1)],
        hidden: Widths,
        channels_last: bool | None = None,
        layer_norm: bool = False,
        dueling: bool = False,
        noisy: bool = False,
        noisy_sigma: Annotated[float, Range(0)] = 0.5,
    ) -> None:
        torso = ConvTorso(observation_space, convolutions, channels_last, layer_norm)
        layer = layer_maker(noisy, noisy_sigma)
        super().__init__(torso, ActionValues(torso.width, actions, atoms, dueling, layer, hidden))


class ResidualStage(nn.Module):
    """A convolution, 3 x 3 max pooling with stride 2, and two residual blocks.

    Args:
        inputs: The number of input channels.
        outputs: The number of output channels.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = Conv(inputs, outputs, 3, padding=1)
        self.blocks = nn.ModuleList(Conv(outputs, outputs, 3, padding=1) for _ in range(4))

    def forward(self, image: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to `[B, C', ⌈H / 2⌉, ⌈W / 2⌉]`."""
        full: Tensor = self.first(image)
        pooled = patches(full, 3, 2, 1, float("-inf")).amax(2)
        image = pooled.view(*pooled.shape[:2], *sides(full.shape, 3, 2, 1))
        for number in (0, 2):
            inner = self.blocks[number](image.relu()).relu()
            image = image + self.blocks[number + 1](inner)
        return image


class ImpalaTorso(nn.Module):
    """The residual stages of IMPALA's network.

    Args:
        space: The observation space.
        channels: The number of channels of each stage.
        channels_last: See `Pixels`.

    Raises:
        ValueError: If the observations are not images.
    """

    def __init__(self, space: spaces.Space[Any], channels: Sequence[int], channels_last: bool | None) -> None:
        super().__init__()
        self.pixels = Pixels(space, channels_last)
        inputs, *pixels = self.pixels.shape
        stages: list[nn.Module] = []
        for outputs in channels:
            stages.append(ResidualStage(inputs, outputs))
            inputs = outputs
            pixels = sides(pixels, 3, 2, 1)
        self.stages = nn.Sequential(*stages)
        self.width = inputs * pixels[0] * pixels[1]

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations `[B, ...]` to features `[B, width]`."""
        image: Tensor = self.stages(self.pixels(observation))
        return image.relu().flatten(1)


class ImpalaNetwork(QNetwork):
    """IMPALA's residual network (Espeholt et al., 2018, figure 3, right) and fully connected layers.

    Args:
        observation_space: A space of images.
        actions: The number of actions.
        atoms: The number of outputs per action.
        channels: The number of channels of each stage. Wider variants use multiples of the default.
        hidden: The number of units of each fully connected layer. With `dueling`, each stream has its own layers.
        channels_last: See `Pixels`.
        dueling: Whether the output has two streams (Wang et al., 2016).
        noisy: Whether the fully connected layers have learned noise (Fortunato et al., 2018).
        noisy_sigma: σ₀; the noise of a layer starts at σ₀ / √inputs.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        actions: int,
        atoms: int,
        channels: Widths = (16, 32, 32),
        hidden: Widths = (256,),
        channels_last: bool | None = None,
        dueling: bool = False,
        noisy: bool = False,
        noisy_sigma: Annotated[float, Range(0)] = 0.5,
    ) -> None:
        torso = ImpalaTorso(observation_space, channels, channels_last)
        layer = layer_maker(noisy, noisy_sigma)
        super().__init__(torso, ActionValues(torso.width, actions, atoms, dueling, layer, hidden))

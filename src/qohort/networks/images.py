"""Q-networks of images: plain convolutions (MinAtar's and Nature's networks) and IMPALA's residual network.

A convolution is written as a matrix product of patches: lifted over members, torch's own rounds differently for one
member and for many.
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
from qohort.networks.layers import ActionValues, LayerNorm, QNetwork, Widths, layer_maker

Convolution = tuple[PositiveInt, PositiveInt, PositiveInt]


def patches(image: Tensor, size: int, stride: int, padding: int = 0, fill: float = 0.0) -> Tensor:
    """Square patches of images.

    By an index of pixels, not by slices or `unfold`: their gradients compile for one number of members only.

    Args:
        image: `[B, C, H, W]`.
        size: Of a patch, in pixels.
        stride: Between patches, in pixels.
        padding: Pixels around the image.
        fill: Their value.

    Returns:
        `[B, C, size², H' W']`.
    """
    pixel, inside = _places(*image.shape[2:], size, stride, padding)
    drawn = image.flatten(2)[:, :, torch.from_numpy(pixel).to(image.device)]
    if not padding:
        return drawn
    return torch.where(torch.from_numpy(inside).to(image.device), drawn, fill)


@cache
def _places(high: int, wide: int, size: int, stride: int, padding: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The pixel at each place of each patch, the nearest one for those around the image, and whether it is inside.

    Made by NumPy and not as a part of the function: inductor fails at an index that is computed beside a padded image.
    """
    down, right = (np.arange(one) * stride - padding for one in sides((high, wide), size, stride, padding))
    within = np.arange(size)
    row, column = np.broadcast_arrays(
        down.reshape(1, 1, -1, 1) + within.reshape(-1, 1, 1, 1), right + within.reshape(1, -1, 1, 1)
    )
    inside = (row >= 0) & (row < high) & (column >= 0) & (column < wide)
    pixel = row.clip(0, high - 1) * wide + column.clip(0, wide - 1)
    return pixel.reshape(size * size, -1), inside.reshape(size * size, -1)


def sides(shape: Sequence[int], size: int, stride: int, padding: int = 0) -> list[int]:
    """The height and width of what a kernel makes of an image `[..., H, W]`."""
    return [(side + 2 * padding - size) // stride + 1 for side in shape[-2:]]


class Conv(nn.Module):
    """A convolution, initialised as torch's.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        size: Of the kernel, in pixels.
        stride: Between its places, in pixels.
        padding: Zeros around the image, in pixels.
    """

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        kernel = nn.Linear(inputs * size * size, outputs)  # the same initialisation
        self.weight, self.bias = kernel.weight, kernel.bias
        self._size, self._stride, self._padding = size, stride, padding

    def forward(self, image: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C', H', W']`."""
        rows = patches(image, self._size, self._stride, self._padding).flatten(1, 2)  # [B, C size², H' W']
        flat = self.weight @ rows + self.bias.unsqueeze(-1)
        return flat.view(*flat.shape[:2], *sides(image.shape, self._size, self._stride, self._padding))


class Pixels(nn.Module):
    """Observations as images of floats: `[B, ...]` to `[B, C, H, W]`; bytes are divided by 255.

    Args:
        space: A `Box` of three axes.
        channels_last: Whether the channels are its last axis, as MinAtar has them, and not its first.

    Raises:
        ValueError: If the observations are no images.
    """

    def __init__(self, space: spaces.Space[Any], channels_last: bool) -> None:
        super().__init__()
        if not isinstance(space, spaces.Box) or len(space.shape) != 3:
            raise ValueError(f"this network needs images, a Box of three axes, got {space}: use network=mlp")
        self._last = channels_last
        self._scale = 1 / 255 if space.dtype == "uint8" else 1.0
        first, second, third = space.shape
        self.shape = (third, first, second) if channels_last else (first, second, third)

    def forward(self, observation: Tensor) -> Tensor:
        """`[B, ...]` to `[B, C, H, W]`."""
        image = observation.float()
        image = image if self._scale == 1.0 else image * self._scale
        return image.permute(0, 3, 1, 2) if self._last else image


class ConvTorso(nn.Module):
    """Convolutions with ReLU.

    Args:
        space: The observation space.
        convolutions: (channels, kernel, stride) of each.
        channels_last: See `Pixels`.
        layer_norm: Whether each is normalised over channels and pixels before its ReLU.

    Raises:
        ValueError: If the observations are no images, or too small for the kernels.
    """

    def __init__(
        self,
        space: spaces.Space[Any],
        convolutions: Sequence[Sequence[int]],
        channels_last: bool,
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
        """`[B, ...]` to `[B, width]`."""
        image: Tensor = self.pixels(observation)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            made: Tensor = layer(image)
            image = norm(made.flatten(1)).view(made.shape).relu()
        return image.flatten(1)


class ConvNetwork(QNetwork):
    """Convolutions, then fully connected layers: the networks of Nature's DQN (Mnih et al., 2015) and of MinAtar.

    Args:
        observation_space: Images.
        actions: The number of actions.
        atoms: Outputs an action.
        convolutions: (channels, kernel, stride) of each convolution.
        hidden: Units of the fully connected layers; with `dueling`, of each stream's own.
        channels_last: Whether an observation's last axis has the channels, not its first.
        layer_norm: Whether the convolutions are normalised; the fully connected layers are not.
        dueling: Whether there are two streams (Wang et al., 2016).
        noisy: Whether the fully connected layers have learned noise (Fortunato et al., 2018).
        noisy_sigma: σ₀, the noise at first, over √inputs of a layer.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        actions: int,
        atoms: int,
        convolutions: Annotated[Sequence[Convolution], Sized(1)],
        hidden: Widths,
        channels_last: bool = False,
        layer_norm: bool = False,
        dueling: bool = False,
        noisy: bool = False,
        noisy_sigma: Annotated[float, Range(0)] = 0.5,
    ) -> None:
        torso = ConvTorso(observation_space, convolutions, channels_last, layer_norm)
        layer = layer_maker(noisy, noisy_sigma)
        super().__init__(torso, ActionValues(torso.width, actions, atoms, dueling, layer, hidden))


class ResidualStage(nn.Module):
    """A convolution, a maximum over 3 x 3 pixels at every second one, and two residual blocks.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = Conv(inputs, outputs, 3, padding=1)
        self.blocks = nn.ModuleList(Conv(outputs, outputs, 3, padding=1) for _ in range(4))

    def forward(self, image: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C', H / 2, W / 2]`, halves rounded up."""
        wide: Tensor = self.first(image)
        pooled = patches(wide, 3, 2, 1, float("-inf")).amax(2)
        image = pooled.view(*pooled.shape[:2], *sides(wide.shape, 3, 2, 1))
        for number in (0, 2):
            inner = self.blocks[number](image.relu()).relu()
            image = image + self.blocks[number + 1](inner)
        return image


class ImpalaTorso(nn.Module):
    """IMPALA's residual stages.

    Args:
        space: The observation space.
        channels: Of each stage.
        channels_last: See `Pixels`.
    """

    def __init__(self, space: spaces.Space[Any], channels: Sequence[int], channels_last: bool) -> None:
        super().__init__()
        self.pixels = Pixels(space, channels_last)
        before, *pixels = self.pixels.shape
        stages: list[nn.Module] = []
        for outputs in channels:
            stages.append(ResidualStage(before, outputs))
            before = outputs
            pixels = sides(pixels, 3, 2, 1)
        self.stages = nn.Sequential(*stages)
        self.width = before * pixels[0] * pixels[1]

    def forward(self, observation: Tensor) -> Tensor:
        """`[B, ...]` to `[B, width]`."""
        image: Tensor = self.stages(self.pixels(observation))
        return image.relu().flatten(1)


class ImpalaNetwork(QNetwork):
    """IMPALA's residual network (Espeholt et al., 2018, figure 3, right), then fully connected layers.

    Args:
        observation_space: Images.
        actions: The number of actions.
        atoms: Outputs an action.
        channels: Of each stage; wider ones are multiples of these.
        hidden: Units of the fully connected layers; with `dueling`, of each stream's own.
        channels_last: Whether an observation's last axis has the channels, not its first.
        dueling: Whether there are two streams (Wang et al., 2016).
        noisy: Whether the fully connected layers have learned noise (Fortunato et al., 2018).
        noisy_sigma: σ₀, the noise at first, over √inputs of a layer.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        actions: int,
        atoms: int,
        channels: Widths = (16, 32, 32),
        hidden: Widths = (256,),
        channels_last: bool = False,
        dueling: bool = False,
        noisy: bool = False,
        noisy_sigma: Annotated[float, Range(0)] = 0.5,
    ) -> None:
        torso = ImpalaTorso(observation_space, channels, channels_last)
        layer = layer_maker(noisy, noisy_sigma)
        super().__init__(torso, ActionValues(torso.width, actions, atoms, dueling, layer, hidden))

"""The Hadamax encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from qohort.cohort.convolution import max_pool
from qohort.config.annotations import PositiveInt, Range, Sized
from qohort.networks.images.layers import Conv, Pixels
from qohort.networks.layers import (
    ActionValues,
    LayerNorm,
    QNetwork,
    Widths,
    layer_maker,
)

"""The (channels, kernel side, stride) of one convolution after another."""
Block = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel, with a weight and a bias for each channel.

    Args:
        channels: The number of channels.
        eps: Added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))
        self._eps = eps

    def forward(self, image: Tensor) -> Tensor:
        """Normalise images `[B, C, H, W]` over the axis C."""
        centred = image - image.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + self._eps).sqrt() * self.weight + self.bias


class Gelu(nn.Module):
    """The Gaussian error linear unit in its approximation by tanh (Hendrycks & Gimpel, 2016)."""

    def forward(self, value: Tensor) -> Tensor:
        """Map `[...]` to `[...]`."""
        return nn.functional.gelu(value, approximate="tanh")


class HadamaxBlock(nn.Module):
    """The product of two convolutions, max-pooled. Convolutions and pooling keep the size but for the strides.

    Args:
        inputs: The number of input channels.
        outputs: The number of output channels.
        size: The side of the kernels, in pixels.
        pool: The side of the pooled patches, in pixels.
        stride: The stride of the pooling, in pixels.
        pixels: The height and width of the images, which are equal.
    """

    def __init__(self, inputs: int, outputs: int, size: int, pool: int, stride: int, pixels: int) -> None:
        super().__init__()
        border = (size - 1) // 2, size // 2
        self.convolutions = nn.ModuleList(
            nn.Sequential(Conv(inputs, outputs, size, padding=border), ChannelNorm(outputs), Gelu()) for _ in range(2)
        )
        self.side = -(-pixels // stride)
        """The height and width of the output."""
        missing = max((self.side - 1) * stride + pool - pixels, 0)
        self._pool = pool, stride, (missing // 2, missing - missing // 2)

    def forward(self, image: Tensor) -> Tensor:
        """Map images `[B, C, H, H]` to `[B, C', side, side]`."""
        one, other = (convolution(image) for convolution in self.convolutions)
        return max_pool(one * other, *self._pool)


class HadamaxTorso(nn.Module):
    """The blocks of the Hadamax encoder.

    Args:
        space: The observation space.
        blocks: The (channels, kernel side, pooled side, stride) of each block.
        channels_last: See `Pixels`.

    Raises:
        ValueError: If the observations are not square images.
    """

    def __init__(self, space: spaces.Space[Any], blocks: Sequence[Sequence[int]], channels_last: bool | None) -> None:
        super().__init__()
        self.pixels = Pixels(space, channels_last)
        channels, height, width = self.pixels.shape
        if height != width:
            raise ValueError(f"this network needs square images, got {height} x {width} pixels: use network=nature")
        made: list[nn.Module] = []
        for outputs, size, pool, stride in blocks:
            block = HadamaxBlock(channels, outputs, size, pool, stride, height)
            made.append(block)
            channels, height = outputs, block.side
        self.blocks = nn.Sequential(*made)
        self.width = channels * height * height

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations `[B, ...]` to features `[B, width]`."""
        image: Tensor = self.blocks(self.pixels(observation))
        return image.flatten(1)


class HadamaxNetwork(QNetwork):
    """The Hadamax encoder (Kooi et al., 2025) and fully connected layers, all with layer normalisation and GELU.

    Deviations: 1. torch's initialisation instead of Xavier's and He's normal ones.

    Args:
        observation_space: A space of square images.
        actions: The number of actions.
        atoms: The number of outputs per action.
        blocks: The (channels, kernel side, pooled side, stride of the pooling) of each block.
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
        blocks: Annotated[Sequence[Block], Sized(1)],
        hidden: Widths,
        channels_last: bool | None = None,
        dueling: bool = False,
        noisy: bool = False,
        noisy_sigma: Annotated[float, Range(0)] = 0.5,
    ) -> None:
        torso = HadamaxTorso(observation_space, blocks, channels_last)
        layer = layer_maker(noisy, noisy_sigma)
        super().__init__(torso, ActionValues(torso.width, actions, atoms, dueling, layer, hidden, LayerNorm, Gelu))

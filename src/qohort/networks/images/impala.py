"""IMPALA's residual network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from gymnasium import spaces
from torch import Tensor, nn

from qohort.cohort.convolution import max_pool
from qohort.config.annotations import PositiveInt, Range
from qohort.networks.images.layers import AdaptiveMaxPool, Conv, ImageNorm, Pixels, sides
from qohort.networks.layers import (
    ActionValues,
    LayerNorm,
    Norm,
    QNetwork,
    Widths,
    layer_maker,
)


class ResidualStage(nn.Module):
    """A convolution, 3 x 3 max pooling with stride 2, and two residual blocks.

    Args:
        inputs: The number of input channels.
        outputs: The number of output channels.
        pixels: The height and width of the images.
        norm: Builds the normalisation of each convolution, given the number of its channels and pixels; None for none.
        spectral_norm: Whether the kernels in the residual blocks are divided by their largest singular value.
    """

    def __init__(
        self, inputs: int, outputs: int, pixels: Sequence[int], norm: Norm | None, spectral_norm: bool
    ) -> None:
        super().__init__()

        def normalized(convolution: Conv, pixels: Sequence[int]) -> nn.Module:
            if norm is None:
                return convolution
            return nn.Sequential(convolution, ImageNorm(norm(outputs * pixels[0] * pixels[1])))

        self.pixels = sides(pixels, 3, 2, 1)
        """The height and width of the output."""
        self.first = normalized(Conv(inputs, outputs, 3, padding=1), pixels)
        self.blocks = nn.ModuleList(
            normalized(Conv(outputs, outputs, 3, padding=1, spectral_norm=spectral_norm), self.pixels) for _ in range(4)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to `[B, C', ⌈H / 2⌉, ⌈W / 2⌉]`."""
        full: Tensor = self.first(image)
        image = max_pool(full, 3, 2, 1)
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
        norm: See `ResidualStage`.
        spectral_norm: See `ResidualStage`.
        pool: The side of the pooled images, in pixels; None for no pooling.

    Raises:
        ValueError: If the observations are not images.
    """

    def __init__(
        self,
        space: spaces.Space[Any],
        channels: Sequence[int],
        channels_last: bool | None,
        norm: Norm | None,
        spectral_norm: bool,
        pool: int | None,
    ) -> None:
        super().__init__()
        self.pixels = Pixels(space, channels_last)
        inputs, *pixels = self.pixels.shape
        stages: list[nn.Module] = []
        for outputs in channels:
            stage = ResidualStage(inputs, outputs, pixels, norm, spectral_norm)
            stages.append(stage)
            inputs, pixels = outputs, stage.pixels
        self.stages = nn.Sequential(*stages)
        self.pool = nn.Identity() if pool is None else AdaptiveMaxPool(pool)
        pixels = pixels if pool is None else [pool, pool]
        self.width = inputs * pixels[0] * pixels[1]

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations `[B, ...]` to features `[B, width]`."""
        image: Tensor = self.stages(self.pixels(observation))
        pooled: Tensor = self.pool(image.relu())
        return pooled.flatten(1)


class ImpalaNetwork(QNetwork):
    """IMPALA's residual network (Espeholt et al., 2018, figure 3, right) and fully connected layers.

    With spectral normalisation and pooling it is the network of Beyond the Rainbow (Clark et al., 2025).

    Args:
        observation_space: A space of images.
        actions: The number of actions.
        atoms: The number of outputs per action.
        channels: The number of channels of each stage. Wider variants use multiples of the default.
        hidden: The number of units of each fully connected layer. With `dueling`, each stream has its own layers.
        channels_last: See `Pixels`.
        layer_norm: Whether every layer but the last is normalised (Ba et al., 2016), convolutions over channels and
            pixels.
        spectral_norm: Whether the kernels in the residual blocks are divided by their largest singular value.
        pool: The side to which images are max-pooled after the stages, in pixels; None for no pooling.
        dueling: Whether the output has two streams (Wang et al., 2016).
        dueling_gradient: The factor of the gradient from two streams to the convolutions.
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
        layer_norm: bool = False,
        spectral_norm: bool = False,
        pool: PositiveInt | None = None,
        dueling: bool = False,
        dueling_gradient: Annotated[float, Range(0)] = 1.0,
        noisy: bool = False,
        noisy_sigma: Annotated[float, Range(0)] = 0.5,
    ) -> None:
        norm = LayerNorm if layer_norm else None
        torso = ImpalaTorso(observation_space, channels, channels_last, norm, spectral_norm, pool)
        layer = layer_maker(noisy, noisy_sigma)
        super().__init__(
            torso, ActionValues(torso.width, actions, atoms, dueling, layer, hidden, norm, nn.ReLU, dueling_gradient)
        )

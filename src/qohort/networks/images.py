"""Q-networks for images: plain convolutions (the networks of MinAtar and Nature), IMPALA's and the Hadamax encoder.

Convolutions are those of `qohort.cohort.convolution`, whose bits do not depend on the number of members.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from qohort.cohort.convolution import Border, adaptive_max_pool, convolution, max_pool
from qohort.config.annotations import PositiveInt, Range, Sized
from qohort.networks.layers import (
    ActionValues,
    LayerNorm,
    LayerNormWithoutWeights,
    Norm,
    QNetwork,
    Widths,
    layer_maker,
    pixel_scale,
    sparse_layer_maker,
    spectrally_normalized,
)

Convolutions = Annotated[Sequence[tuple[PositiveInt, PositiveInt, PositiveInt]], Sized(1)]
"""The (channels, kernel side, stride) of one convolution after another."""
Block = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]
"""The (channels, kernel side, pooled side, stride of the pooling) of a block."""


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


class ConvTorso(nn.Module):
    """Convolutions, each followed by a normalisation and an activation function: the torso of a network for images.

    Args:
        space: The observation space.
        convolutions: The (channels, kernel side, stride) of each convolution.
        channels_last: See `Pixels`.
        make: Builds a convolution from its numbers of input and output channels, kernel side and stride.
        norm: Builds the normalisation over channels and pixels, given their number; None for no normalisation.
        activation: Builds the activation function.
        pool: The side of the pooled images, in pixels; None for no pooling.

    Raises:
        ValueError: If the observations are not images, or too small for the kernels.
    """

    def __init__(
        self,
        space: spaces.Space[Any],
        convolutions: Sequence[Sequence[int]],
        channels_last: bool | None,
        make: Callable[[int, int, int, int], nn.Module] = Conv,
        norm: Norm | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
        pool: int | None = None,
    ) -> None:
        super().__init__()
        self.pixels = Pixels(space, channels_last)
        channels, *pixels = self.pixels.shape
        layers: list[nn.Module] = []
        for outputs, size, stride in convolutions:
            if min(pixels) < size:
                raise ValueError(f"convolutions={list(convolutions)}: a kernel of {size} does not fit {pixels} pixels")
            layers.append(make(channels, outputs, size, stride))
            channels, pixels = outputs, sides(pixels, size, stride)
            if norm is not None:
                layers.append(ImageNorm(norm(channels * pixels[0] * pixels[1])))
            layers.append(activation())
        if pool is not None:
            layers.append(AdaptiveMaxPool(pool))
            pixels = [pool, pool]
        self.layers = nn.Sequential(*layers)
        self.width = channels * pixels[0] * pixels[1]

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations `[B, ...]` to features `[B, width]`."""
        image: Tensor = self.layers(self.pixels(observation))
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
        layer_norm: Whether every layer but the last is normalised before its ReLU (Ba et al., 2016), convolutions over
            channels and pixels.
        spectral_norm: Whether the kernels of each convolution are divided by their largest singular value.
        pool: The side to which images are max-pooled after the convolutions, in pixels; None for no pooling.
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
        convolutions: Convolutions,
        hidden: Widths,
        channels_last: bool | None = None,
        layer_norm: bool = False,
        spectral_norm: bool = False,
        pool: PositiveInt | None = None,
        dueling: bool = False,
        dueling_gradient: Annotated[float, Range(0)] = 1.0,
        noisy: bool = False,
        noisy_sigma: Annotated[float, Range(0)] = 0.5,
    ) -> None:
        make = functools.partial(Conv, spectral_norm=spectral_norm)
        norm = LayerNorm if layer_norm else None
        torso = ConvTorso(observation_space, convolutions, channels_last, make, norm, pool=pool)
        layer = layer_maker(noisy, noisy_sigma)
        super().__init__(
            torso, ActionValues(torso.width, actions, atoms, dueling, layer, hidden, norm, nn.ReLU, dueling_gradient)
        )


class SparseConvNetwork(QNetwork):
    """The network of Stream Q(λ) for images (Elsayed et al., 2024): see `qohort.networks.vectors.SparseMLP`.

    Args:
        observation_space: A space of images.
        actions: The number of actions.
        atoms: The number of outputs per action.
        convolutions: The (channels, kernel side, stride) of each convolution.
        hidden: The number of units of each fully connected layer.
        channels_last: See `Pixels`.
        sparsity: The fraction of the weights of each unit and of each kernel that starts at 0.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        actions: int,
        atoms: int,
        convolutions: Convolutions,
        hidden: Widths,
        channels_last: bool | None = None,
        sparsity: Annotated[float, Range(0, 1)] = 0.9,
    ) -> None:
        layer = sparse_layer_maker(sparsity)

        def sparse(inputs: int, outputs: int, size: int, stride: int) -> Conv:
            made, kernel = Conv(inputs, outputs, size, stride), layer(inputs * size * size, outputs)
            made.load_state_dict(kernel.state_dict())
            return made

        def norm(_: int) -> nn.Module:
            return LayerNormWithoutWeights()

        def activation() -> nn.Module:
            return nn.LeakyReLU(0.01)

        torso = ConvTorso(observation_space, convolutions, channels_last, sparse, norm, activation)
        values = ActionValues(torso.width, actions, atoms, layer=layer, hidden=hidden, norm=norm, activation=activation)
        super().__init__(torso, values)


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

"""Networks of plain convolutions: those of MinAtar and Nature, and that of Stream Q(λ) with sparse weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from gymnasium import spaces
from torch import Tensor, nn

from qohort.config.annotations import PositiveInt, Range, Sized
from qohort.networks.images.layers import AdaptiveMaxPool, Conv, ImageNorm, Pixels, sides
from qohort.networks.layers import (
    ActionValues,
    LayerNorm,
    LayerNormWithoutWeights,
    Norm,
    QNetwork,
    Widths,
    layer_maker,
    sparse_layer_maker,
)

Convolutions = Annotated[Sequence[tuple[PositiveInt, PositiveInt, PositiveInt]], Sized(1)]


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

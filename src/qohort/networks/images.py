"""Q-networks for images: plain convolutions (the networks of MinAtar and Nature) and IMPALA's residual network.

Convolutions are those of `qohort.cohort.convolution`, whose bits do not depend on the number of members.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from gymnasium import spaces
from torch import Tensor, nn

from qohort.cohort.convolution import convolution, max_pool
from qohort.config.annotations import PositiveInt, Range, Sized
from qohort.networks.layers import ActionValues, LayerNorm, QNetwork, Widths, layer_maker, pixel_scale

Convolution = tuple[PositiveInt, PositiveInt, PositiveInt]


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
        return convolution(image, self.weight, self.bias, self._size, self._stride, self._padding)


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

"""A Q-network for observations of several parts: images and vectors side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from qohort.config.annotations import Range
from qohort.networks.images import Convolutions, ConvTorso
from qohort.networks.layers import ActionValues, Features, LayerNorm, QNetwork, Widths, layer_maker
from qohort.networks.packing import parts_of
from qohort.networks.vectors import Perceptron


class PartFeatures(nn.Module):
    """Converts each part of an observation to a vector, and concatenates them: `[B, width]`.

    A `Box` of three axes is an image and goes through convolutions. All else is converted by `Features`.

    Args:
        space: The observation space, a `Dict` or a `Tuple`, which may be nested.
        convolutions: The (channels, kernel side, stride) of each convolution.
        channels_last: See `qohort.networks.images.Pixels`.
    """

    def __init__(
        self, space: spaces.Space[Any], convolutions: Sequence[Sequence[int]], channels_last: bool | None
    ) -> None:
        super().__init__()
        keyed = parts_of(space)
        self._keys = [key for key, _ in keyed]
        encoders = [encoder_of(part, convolutions, channels_last) for _, part in keyed]
        self.encoders = nn.ModuleList(encoders)
        self.width: int = sum(one.width for one in encoders)

    def forward(self, observation: Any) -> Tensor:
        """Map an observation, whose tensors are `[B, ...]`, to features `[B, width]`."""
        return torch.cat([one(observation[key]) for key, one in zip(self._keys, self.encoders, strict=True)], 1)


def encoder_of(
    space: spaces.Space[Any], convolutions: Sequence[Sequence[int]], channels_last: bool | None
) -> PartFeatures | ConvTorso | Features:
    """Return the module that converts a part of an observation to features; see `PartFeatures`."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return PartFeatures(space, convolutions, channels_last)
    if isinstance(space, spaces.Box) and len(space.shape) == 3:
        return ConvTorso(space, convolutions, channels_last)
    return Features(space)


class MultiInputNetwork(QNetwork):
    """An MLP on the features of all parts of an observation; images go through convolutions first.

    It is the `CombinedExtractor` of Stable-Baselines3 in one network. Without an image it is `network=mlp`.

    Args:
        observation_space: A `Dict` or a `Tuple`, which may be nested, or any space of one part.
        actions: The number of actions.
        atoms: The number of outputs per action.
        convolutions: The (channels, kernel side, stride) of each convolution, the same for all images.
        hidden: The number of units of each hidden layer.
        channels_last: See `qohort.networks.images.Pixels`.
        layer_norm: Whether each hidden layer is normalised before its ReLU (Ba et al., 2016).
        dueling: Whether the output has two streams (Wang et al., 2016) of one layer each.
        dueling_gradient: The factor of the gradient from two streams to the hidden layers; 1/√2 in the paper.
        noisy: Whether every fully connected layer has learned noise (Fortunato et al., 2018).
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
        dueling: bool = False,
        dueling_gradient: Annotated[float, Range(0)] = 1.0,
        noisy: bool = False,
        noisy_sigma: Annotated[float, Range(0)] = 0.5,
    ) -> None:
        features = encoder_of(observation_space, convolutions, channels_last)
        layer = layer_maker(noisy, noisy_sigma)
        torso = Perceptron(features, features.width, hidden, layer, layer, LayerNorm if layer_norm else None)
        values = ActionValues(torso.width, actions, atoms, dueling, layer, dueling_gradient=dueling_gradient)
        super().__init__(torso, values)

"""Q-networks: ordinary modules of one member.

A network is a class that takes the observation space and the number of outputs, and any options of its own.
It maps `[B, ...]` observations, as the environment gives them, to `[B, outputs]`. The value head says what
the outputs mean. It must not hold buffers or data-dependent control flow, since it is lifted over members.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from qohort.checking import Range, Sized


class Features(nn.Module):
    """Observations as a flat float vector: `[B, ...]` to `[B, size]`.

    Discrete observations become one-hot vectors, unsigned bytes (images) are divided by 255, everything
    else is cast to float32 and flattened.

    Args:
        space: The observation space: `Box`, `Discrete` or `MultiBinary`.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__()
        self._categories = int(space.n) if isinstance(space, spaces.Discrete) else 0
        self._first = int(space.start) if isinstance(space, spaces.Discrete) else 0
        self._scale = 1 / 255 if space.dtype == "uint8" else 1.0
        self.size = self._categories or math.prod(space.shape or ())

    def forward(self, observation: Tensor) -> Tensor:
        """`[B, ...]` to `[B, size]`."""
        if self._categories:
            categories = torch.arange(self._first, self._first + self._categories, device=observation.device)
            return (observation.unsqueeze(-1) == categories).float()
        flat = observation.reshape(observation.shape[0], -1).float()
        return flat if self._scale == 1.0 else flat * self._scale


class Table(nn.Module):
    """A table of values, one row a state, all zero at first: tabular Q-learning (Watkins, 1989).

    Args:
        observation_space: A `Discrete` space.
        outputs: The number of values a state.

    Raises:
        ValueError: If the observations are not Discrete.
    """

    def __init__(self, observation_space: spaces.Space[Any], outputs: int) -> None:
        super().__init__()
        if not isinstance(observation_space, spaces.Discrete):
            raise ValueError(f"network=table needs Discrete observations, got {observation_space}: use network=linear")
        self.features = Features(observation_space)
        self.values = nn.Linear(self.features.size, outputs, bias=False)
        nn.init.zeros_(self.values.weight)

    def forward(self, observation: Tensor) -> Tensor:
        """`[B]` to `[B, outputs]`."""
        output: Tensor = self.values(self.features(observation))
        return output


class Linear(nn.Module):
    """Values linear in the features, all zero at first.

    Args:
        observation_space: Any space that `Features` takes.
        outputs: The number of outputs.
        bias: Whether there is a constant feature.
    """

    def __init__(self, observation_space: spaces.Space[Any], outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.features = Features(observation_space)
        self.values = nn.Linear(self.features.size, outputs, bias=bias)
        for parameter in self.values.parameters():
            nn.init.zeros_(parameter)

    def forward(self, observation: Tensor) -> Tensor:
        """`[B, ...]` to `[B, outputs]`."""
        output: Tensor = self.values(self.features(observation))
        return output


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis (Ba et al., 2016), in elementary operations.

    `torch.nn.LayerNorm` can be used in a network too, but cannot be compiled for any number of members, so
    the whole update is left to TorchScript then.

    Args:
        units: The length of the last axis.
        eps: Added to the variance.
    """

    def __init__(self, units: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(units))
        self.bias = nn.Parameter(torch.zeros(units))
        self._eps = eps

    def forward(self, value: Tensor) -> Tensor:
        """`[..., units]` to `[..., units]`."""
        centred = value - value.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + self._eps).sqrt()
        return centred / deviation * self.weight + self.bias


class MLP(nn.Module):
    """A multilayer perceptron with ReLU between its layers and a linear output.

    Args:
        observation_space: Any space that `Features` takes.
        outputs: The number of outputs.
        hidden: The widths of the hidden layers, in units.
        layer_norm: Whether each hidden layer is normalised before its ReLU (Ba et al., 2016).
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        outputs: int,
        hidden: Annotated[Sequence[Annotated[int, Range(1)]], Sized(1)] = (120, 84),
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        features = Features(observation_space)
        layers: list[nn.Module] = [features]
        width = features.size
        for units in hidden:
            layers.append(nn.Linear(width, units))
            if layer_norm:
                layers.append(LayerNorm(units))
            layers.append(nn.ReLU())
            width = units
        layers.append(nn.Linear(width, outputs))
        self.layers = nn.Sequential(*layers)

    def forward(self, observation: Tensor) -> Tensor:
        """`[B, ...]` to `[B, outputs]`."""
        output: Tensor = self.layers(observation)
        return output

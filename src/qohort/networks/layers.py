"""Q-networks: ordinary modules of one member.

A network is a class that takes the observation space, the number of actions and of atoms (outputs an action), and
any options of its own. It maps `[B, ...]` observations, as the environment gives them, to `[B, actions, atoms]`.
The value head says what the outputs mean. It must not have data-dependent control flow, since it is lifted over
members, and a buffer in it is noise: filled with standard normal numbers, a member's own, at each use, and with
zeros in evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from qohort.config.annotations import Range, Sized


class Features(nn.Module):
    """Observations as a flat float vector: `[B, ...]` to `[B, width]`.

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
        self.width = self._categories or math.prod(space.shape or ())

    def forward(self, observation: Tensor) -> Tensor:
        """`[B, ...]` to `[B, width]`."""
        if self._categories:
            categories = torch.arange(self._first, self._first + self._categories, device=observation.device)
            return (observation.unsqueeze(-1) == categories).float()
        flat = observation.reshape(observation.shape[0], -1).float()
        return flat if self._scale == 1.0 else flat * self._scale


class Standardised(nn.Module):
    """Each vector less its mean and over its deviation: layer normalisation without weights.

    Args:
        eps: Added to the variance.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self._eps = eps

    def forward(self, value: Tensor) -> Tensor:
        """`[..., units]` to `[..., units]`."""
        centred = value - value.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + self._eps).sqrt()


class LayerNorm(Standardised):
    """Layer normalisation over the last axis (Ba et al., 2016), in elementary operations.

    `torch.nn.LayerNorm` can be used in a network too, but cannot be compiled for any number of members, so
    the whole update is left to TorchScript then.

    Args:
        units: The length of the last axis.
        eps: Added to the variance.
    """

    def __init__(self, units: int, eps: float = 1e-5) -> None:
        super().__init__(eps)
        self.weight = nn.Parameter(torch.ones(units))
        self.bias = nn.Parameter(torch.zeros(units))

    def forward(self, value: Tensor) -> Tensor:
        """`[..., units]` to `[..., units]`."""
        return super().forward(value) * self.weight + self.bias


def linear(value: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`torch.nn.functional.linear`, with the same bits for one member and for many.

    A layer of one output would be a matrix-vector product for one member and a matrix product for many, which round
    differently: two equal outputs are a matrix product for any number.
    """
    if weight.shape[0] > 1:
        return nn.functional.linear(value, weight, bias)
    return nn.functional.linear(value, weight.expand(2, -1), bias.expand(2)).mean(-1, keepdim=True)


class Dense(nn.Linear):
    """`torch.nn.Linear`, which may have a single output."""

    def forward(self, value: Tensor) -> Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        return linear(value, self.weight, self.bias)


class NoisyLinear(nn.Module):
    """A linear layer whose weights have learned noise, factorised (Fortunato et al., 2018, eq. 9 to 11, section 3.2).

    y = (μ_w + σ_w ⊙ f(ε_out) f(ε_in)ᵀ) x + μ_b + σ_b ⊙ f(ε_out), with f(ε) = sign(ε) √|ε|.

    Args:
        inputs: The length of the input.
        outputs: The length of the output.
        sigma: σ₀: each σ starts at σ₀ / √inputs.
    """

    normal_in: Tensor
    normal_out: Tensor

    def __init__(self, inputs: int, outputs: int, sigma: float) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))
        self.weight_sigma = nn.Parameter(torch.full((outputs, inputs), sigma * bound))
        self.bias_sigma = nn.Parameter(torch.full((outputs,), sigma * bound))
        self.register_buffer("normal_in", torch.zeros(inputs), persistent=False)
        self.register_buffer("normal_out", torch.zeros(outputs), persistent=False)

    def forward(self, value: Tensor) -> Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        noise_in, noise_out = _signed_root(self.normal_in), _signed_root(self.normal_out)
        weight = self.weight + self.weight_sigma * (noise_out.unsqueeze(-1) * noise_in)
        return linear(value, weight, self.bias + self.bias_sigma * noise_out)


def _signed_root(value: Tensor) -> Tensor:
    return value.sign() * value.abs().sqrt()


class SpectralLinear(nn.Module):
    """A linear layer divided by its largest singular value (Miyato et al., 2018; in DQN: Gogianu et al., 2021).

    Args:
        inputs: The length of the input.
        outputs: The length of the output.
        iterations: Power iterations at each use.

    Deviations: 1. the power iterations start from the same vector at each use, where the paper goes on from the one
    before: so there is no state besides the parameters, and more than one iteration. They fall short of the largest
    singular value, in a fresh layer by some 5%.
    """

    def __init__(self, inputs: int, outputs: int, iterations: int = 5) -> None:
        super().__init__()
        layer = nn.Linear(inputs, outputs)
        self.weight, self.bias = layer.weight, layer.bias
        self._iterations = iterations

    def forward(self, value: Tensor) -> Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        with torch.no_grad():
            left = self.weight.sum(1)
            for _ in range(self._iterations):
                right = _unit(self.weight.transpose(0, 1) @ _unit(left))
                left = self.weight @ right
            left = _unit(left)
        largest = (left.unsqueeze(-1) * self.weight * right).sum()
        return nn.functional.linear(value, self.weight / largest, self.bias)


def _unit(vector: Tensor) -> Tensor:
    return vector / (vector.square().sum().sqrt() + 1e-12)


Layer = Callable[[int, int], nn.Module]
"""Makes a fully connected layer of some inputs and outputs."""


def layer_maker(noisy: bool, sigma: float) -> Layer:
    """`NoisyLinear` or `torch.nn.Linear`."""
    return (lambda inputs, outputs: NoisyLinear(inputs, outputs, sigma)) if noisy else nn.Linear


class ActionValues(nn.Module):
    """The last layers of a network: features to the outputs of each action.

    Dueling, two streams of layers give V and A, and the outputs are V + A - mean of A over actions, for each atom
    (Wang et al., 2016, eq. 9; with atoms: Hessel et al., 2018).

    Deviations: 1. the gradient that both streams give the features is not divided by √2.

    Args:
        width: The length of the features.
        actions: The number of actions.
        atoms: Outputs an action.
        dueling: Whether there are two streams.
        layer: Makes the layers.
        hidden: Units of each stream's hidden layers.
    """

    def __init__(
        self,
        width: int,
        actions: int,
        atoms: int,
        dueling: bool = False,
        layer: Layer = nn.Linear,
        hidden: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self._shape = (actions, atoms)
        self.advantage = _perceptron(width, hidden, actions * atoms, layer)
        single = Dense if layer is nn.Linear else layer
        self.value = _perceptron(width, hidden, atoms, single) if dueling else None

    def forward(self, features: Tensor) -> Tensor:
        """`[..., width]` to `[..., actions, atoms]`."""
        flat: Tensor = self.advantage(features)
        advantage = flat.view(*flat.shape[:-1], *self._shape)
        if self.value is None:
            return advantage
        value: Tensor = self.value(features)
        return value.unsqueeze(-2) + advantage - advantage.mean(-2, keepdim=True)


def _perceptron(width: int, hidden: Sequence[int], outputs: int, layer: Layer) -> nn.Module:
    layers: list[nn.Module] = []
    for units in hidden:
        layers += [layer(width, units), nn.ReLU()]
        width = units
    last = layer(width, outputs)
    return nn.Sequential(*layers, last) if layers else last


class QNetwork(nn.Module):
    """A torso, which makes features of an observation, and an output, which makes values of features.

    Args:
        torso: `[B, ...]` to `[B, width]`; it has a `width`.
        output: `[..., width]` to `[..., actions, atoms]`.
    """

    def __init__(self, torso: nn.Module, output: nn.Module) -> None:
        super().__init__()
        self.torso, self.output = torso, output

    def forward(self, observation: Tensor) -> Tensor:
        """`[B, ...]` to `[B, actions, atoms]`."""
        values: Tensor = self.output(self.torso(observation))
        return values


Widths = Annotated[Sequence[Annotated[int, Range(1)]], Sized(1)]

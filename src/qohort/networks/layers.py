"""The layers of Q-networks, and the interface of a Q-network.

A network is a class that takes the observation space, the number of actions, the number of atoms (outputs per action)
and any options of its own. It is an ordinary module of one member that maps observations `[B, ...]`, as the environment
returns them, to outputs `[B, actions, atoms]`. The value head defines the meaning of the outputs. If an action has
several numbers, `actions` counts those of all branches (`qohort.networks.branches`).

A network is lifted over members, so it must not have data-dependent control flow. Its buffers are noise: each use of
the network fills them with standard normal numbers from the member's own stream. Evaluation fills them with zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from gymnasium import spaces
from torch import Tensor, nn

from qohort.config.annotations import Range, Sized
from qohort.networks.branches import branches_of
from qohort.networks.packing import parts_of


def pixel_scale(space: spaces.Space[Any]) -> float:
    """Return 1/255 for a `Box` whose largest values are all 255, as those of images, and 1 for other spaces."""
    return 1 / 255 if isinstance(space, spaces.Box) and bool((space.high == 255).all()) else 1.0


class Features(nn.Module):
    """Converts observations `[B, ...]` to flat float vectors `[B, width]`.

    Discrete observations become one-hot vectors, and images are divided by 255 (`pixel_scale`). All other observations
    are cast to float32 and flattened. Of a `Dict` or `Tuple`, the features of all parts are concatenated.

    Args:
        space: The observation space: `Box`, `Discrete` or `MultiBinary`, or a `Dict` or `Tuple` of such spaces.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__()
        self._parts = [(key, Features(part)) for key, part in parts_of(space)]
        self._categories = int(space.n) if isinstance(space, spaces.Discrete) else 0
        self._first = int(space.start) if isinstance(space, spaces.Discrete) else 0
        self._scale = pixel_scale(space)
        self.pictures = isinstance(space, spaces.Box) and len(space.shape) == 3
        """Whether the observations look like pictures, whose pixels lose their places here."""
        self.width: int = self._categories or math.prod(space.shape or ())
        if self._parts:
            self.pictures = any(part.pictures for _, part in self._parts)
            self.width = sum(part.width for _, part in self._parts)

    def forward(self, observation: Any) -> Tensor:
        """Map observations `[B, ...]` to features `[B, width]`."""
        if self._parts:
            return torch.cat([features(observation[key]) for key, features in self._parts], 1)
        if self._categories:
            categories = torch.arange(self._first, self._first + self._categories, device=observation.device)
            one_hot: Tensor = (observation.unsqueeze(-1) == categories).float()
            return one_hot
        flat: Tensor = observation.reshape(observation.shape[0], -1).float()
        return flat if self._scale == 1.0 else flat * self._scale


class LayerNormWithoutWeights(nn.Module):
    """Layer normalisation without weights: (x - mean) / std over the last axis.

    Args:
        eps: Added to the variance.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self._eps = eps

    def forward(self, value: Tensor) -> Tensor:
        """Normalise `[..., units]` over the last axis."""
        centred = value - value.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + self._eps).sqrt()


class LayerNorm(LayerNormWithoutWeights):
    """Layer normalisation over the last axis (Ba et al., 2016), in elementary operations, as a program computes it.

    A network may use `torch.nn.LayerNorm` instead.

    Args:
        units: The length of the last axis.
        eps: Added to the variance.
    """

    def __init__(self, units: int, eps: float = 1e-5) -> None:
        super().__init__(eps)
        self.weight = nn.Parameter(torch.ones(units))
        self.bias = nn.Parameter(torch.zeros(units))

    def forward(self, value: Tensor) -> Tensor:
        """Normalise `[..., units]` over the last axis."""
        return super().forward(value) * self.weight + self.bias


def linear(value: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute `torch.nn.functional.linear`, bitwise equal for one member and for many.

    With a single output, torch computes a matrix-vector product for one member and a matrix product for many, which
    round differently. With two equal outputs, it computes a matrix product for any number of members.
    """
    if weight.shape[0] > 1:
        return nn.functional.linear(value, weight, bias)
    return nn.functional.linear(value, weight.expand(2, -1), bias.expand(2)).mean(-1, keepdim=True)


class Dense(nn.Linear):
    """`torch.nn.Linear` that is bitwise equal for one member and for many, also with a single output."""

    def forward(self, value: Tensor) -> Tensor:
        """Map `[..., inputs]` to `[..., outputs]`."""
        return linear(value, self.weight, self.bias)


class XavierLinear(Dense):
    """A linear layer whose weights start uniform in ±√(6 / (inputs + outputs)), its biases at 0.

    This is the initialisation of Glorot & Bengio (2010, eq. 16), also called variance scaling with `fan_avg`. That of
    `torch.nn.Linear` is uniform in ±1/√inputs for both.
    """

    def reset_parameters(self) -> None:
        """Initialise the parameters."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)


class NoisyLinear(nn.Module):
    """A linear layer with learned, factorised Gaussian noise (Fortunato et al., 2018, eq. 9 to 11, section 3.2).

    y = (μ_w + σ_w ⊙ f(ε_out) f(ε_in)ᵀ) x + μ_b + σ_b ⊙ f(ε_out), with f(ε) = sign(ε) √|ε|.

    Args:
        inputs: The length of the input.
        outputs: The length of the output.
        sigma: σ₀; each σ starts at σ₀ / √inputs.
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
        """Map `[..., inputs]` to `[..., outputs]`."""
        noise_in, noise_out = _signed_root(self.normal_in), _signed_root(self.normal_out)
        weight = self.weight + self.weight_sigma * (noise_out.unsqueeze(-1) * noise_in)
        return linear(value, weight, self.bias + self.bias_sigma * noise_out)


def _signed_root(value: Tensor) -> Tensor:
    return value.sign() * value.abs().sqrt()


def spectrally_normalized(weight: Tensor, iterations: int = 5) -> Tensor:
    """Divide a matrix by its largest singular value (Miyato et al., 2018; in DQN: Gogianu et al., 2021).

    Args:
        weight: The matrix, `[outputs, inputs]`.
        iterations: The number of power iterations.

    Deviations: 1. The power iterations start from the same vector at each use. In the paper they start from the
    previous result. A layer therefore has no state besides its parameters, but needs more than one iteration. The
    estimate is below the largest singular value, by about 5% for a newly initialised layer.
    """
    with torch.no_grad():
        left = weight.sum(1)
        for _ in range(iterations):
            right = _unit(weight.transpose(0, 1) @ _unit(left))
            left = weight @ right
        left = _unit(left)
    return weight / (left.unsqueeze(-1) * weight * right).sum()


class SpectralLinear(nn.Linear):
    """A linear layer divided by its largest singular value; see `spectrally_normalized`."""

    def forward(self, value: Tensor) -> Tensor:
        """Map `[..., inputs]` to `[..., outputs]`."""
        return nn.functional.linear(value, spectrally_normalized(self.weight), self.bias)


def _unit(vector: Tensor) -> Tensor:
    return vector / (vector.square().sum().sqrt() + 1e-12)


Layer = Callable[[int, int], nn.Module]
"""A function from the numbers of inputs and outputs to a fully connected layer."""

Norm = Callable[[int], nn.Module]
"""A function from the number of units of a layer to its normalisation."""


Initialization = Literal["torch", "xavier_uniform"]
"""How linear layers start: as `torch.nn.Linear`, or as `XavierLinear`."""


def layer_maker(noisy: bool, sigma: float, initialization: Initialization = "torch") -> Layer:
    """Return a function that builds `NoisyLinear` layers, or layers without noise.

    Args:
        noisy: Whether the layers are noisy.
        sigma: σ₀ of noisy layers.
        initialization: How layers without noise start.
    """
    if noisy:
        return lambda inputs, outputs: NoisyLinear(inputs, outputs, sigma)
    return nn.Linear if initialization == "torch" else XavierLinear


def sparse_layer_maker(sparsity: float) -> Layer:
    """Return a function that builds sparsely initialised layers; see `qohort.networks.vectors.SparseMLP`.

    Args:
        sparsity: The fraction of the weights of each unit that starts at 0.
    """

    def layer(inputs: int, outputs: int) -> nn.Module:
        linear = nn.Linear(inputs, outputs)
        bound = 1 / math.sqrt(inputs)
        zeros = math.ceil(sparsity * inputs)
        with torch.no_grad():
            linear.weight.uniform_(-bound, bound)
            for row in linear.weight:
                row[torch.randperm(inputs)[:zeros]] = 0.0
            linear.bias.zero_()
        return linear

    return layer


class ActionValues(nn.Module):
    """The output layers of a network, which map features to the outputs of each action.

    With `dueling`, two streams compute V and A, and the outputs are V + A - mean of A over actions, for each atom
    (Wang et al., 2016, eq. 9; with atoms: Hessel et al., 2018). Branches of actions have V in common, and each has the
    mean over its own actions (Tavakoli et al., 2018, eq. 1).

    Args:
        width: The length of the features.
        actions: The number of actions, with branches as a `BranchedActions`.
        atoms: The number of outputs per action.
        dueling: Whether there are two streams.
        layer: Builds the layers.
        hidden: The number of units of each hidden layer of a stream.
        norm: Builds the normalisation of a hidden layer, given its number of units; None for no normalisation.
        activation: Builds the activation function of the hidden layers.
        dueling_gradient: The factor of the gradient from two streams to the features; 1/√2 in the paper.
    """

    def __init__(
        self,
        width: int,
        actions: int,
        atoms: int,
        dueling: bool = False,
        layer: Layer = nn.Linear,
        hidden: Sequence[int] = (),
        norm: Norm | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dueling_gradient: float = 1.0,
    ) -> None:
        super().__init__()
        self._shape, self._dueling_gradient = (int(actions), atoms), dueling_gradient
        self._branches = branches_of(actions)
        self.advantage = _perceptron(width, hidden, actions * atoms, layer, norm, activation)
        single = Dense if layer is nn.Linear else layer
        self.value = _perceptron(width, hidden, atoms, single, norm, activation) if dueling else None

    def forward(self, features: Tensor) -> Tensor:
        """Map features `[..., width]` to outputs `[..., actions, atoms]`."""
        if self.value is not None and self._dueling_gradient != 1:
            constant = features.detach()
            features = constant + self._dueling_gradient * (features - constant)
        flat: Tensor = self.advantage(features)
        advantage = flat.view(*flat.shape[:-1], *self._shape)
        if self.value is None:
            return advantage
        value: Tensor = self.value(features)
        if self._branches is None:
            return value.unsqueeze(-2) + advantage - advantage.mean(-2, keepdim=True)
        own = torch.split(advantage, list(self._branches.sizes), -2)
        return value.unsqueeze(-2) + torch.cat([branch - branch.mean(-2, keepdim=True) for branch in own], -2)


def _perceptron(
    width: int,
    hidden: Sequence[int],
    outputs: int,
    layer: Layer,
    norm: Norm | None,
    activation: Callable[[], nn.Module],
) -> nn.Module:
    layers: list[nn.Module] = []
    for units in hidden:
        layers += [layer(width, units), *([norm(units)] if norm is not None else []), activation()]
        width = units
    last = layer(width, outputs)
    return nn.Sequential(*layers, last) if layers else last


class QNetwork(nn.Module):
    """A Q-network that consists of a torso, which computes features, and output layers.

    Args:
        torso: Maps observations `[B, ...]` to features `[B, width]`. It has an attribute `width`.
        output: Maps features `[..., width]` to outputs `[..., actions, atoms]`.
    """

    def __init__(self, torso: nn.Module, output: nn.Module) -> None:
        super().__init__()
        self.torso, self.output = torso, output

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations `[B, ...]` to outputs `[B, actions, atoms]`."""
        values: Tensor = self.output(self.torso(observation))
        return values


Widths = Annotated[Sequence[Annotated[int, Range(1)]], Sized(1)]
"""The number of units, or channels, of one layer after another."""

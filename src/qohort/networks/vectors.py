"""Q-networks for vectors and discrete observations: table, linear network and multilayer perceptrons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from gymnasium import spaces
from torch import Tensor, nn

from qohort.config.annotations import Range
from qohort.networks.layers import (
    ActionValues,
    Features,
    Initialization,
    Layer,
    LayerNorm,
    LayerNormWithoutWeights,
    Norm,
    QNetwork,
    SpectralLinear,
    Widths,
    layer_maker,
    sparse_layer_maker,
)


class TableNetwork(QNetwork):
    """A table of values with one row per state, initialised to zero: tabular Q-learning (Watkins, 1989).

    Args:
        observation_space: A `Discrete` space.
        actions: The number of actions.
        atoms: The number of outputs per action.

    Raises:
        ValueError: If the observations are not Discrete.
    """

    def __init__(self, observation_space: spaces.Space[Any], actions: int, atoms: int) -> None:
        if not isinstance(observation_space, spaces.Discrete):
            raise ValueError(f"network=table needs Discrete observations, got {observation_space}: use network=linear")
        features = Features(observation_space)
        super().__init__(features, ActionValues(features.width, actions, atoms, layer=_zero_layer(bias=False)))


class LinearNetwork(QNetwork):
    """A linear function of the features, initialised to zero.

    Args:
        observation_space: A space that `Features` supports.
        actions: The number of actions.
        atoms: The number of outputs per action.
        bias: Whether there is a constant feature.
    """

    def __init__(self, observation_space: spaces.Space[Any], actions: int, atoms: int, bias: bool = True) -> None:
        features = Features(observation_space)
        super().__init__(features, ActionValues(features.width, actions, atoms, layer=_zero_layer(bias)))


def _zero_layer(bias: bool) -> Layer:
    def layer(inputs: int, outputs: int) -> nn.Module:
        linear = nn.Linear(inputs, outputs, bias=bias)
        for parameter in linear.parameters():
            nn.init.zeros_(parameter)
        return linear

    return layer


class Perceptron(nn.Module):
    """Hidden layers with ReLU: the torso of an MLP.

    Args:
        features: Converts observations `[B, ...]` to features `[B, width]`.
        width: The length of the features.
        hidden: The number of units of each layer.
        layer: Builds all layers but the last.
        last: Builds the last layer.
        norm: Builds the normalisation of a layer, given its number of units; None for no normalisation.
        slope: The slope of the ReLU below 0.
    """

    def __init__(
        self,
        features: nn.Module,
        width: int,
        hidden: Sequence[int],
        layer: Layer,
        last: Layer,
        norm: Norm | None = None,
        slope: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [features]
        for number, units in enumerate(hidden, start=1):
            layers.append((last if number == len(hidden) else layer)(width, units))
            if norm is not None:
                layers.append(norm(units))
            layers.append(nn.LeakyReLU(slope) if slope else nn.ReLU())
            width = units
        self.layers = nn.Sequential(*layers)
        self.width = width

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations `[B, ...]` to features `[B, width]`."""
        output: Tensor = self.layers(observation)
        return output


class MLP(QNetwork):
    """A multilayer perceptron with ReLU between its layers and a linear output.

    Args:
        observation_space: A space that `Features` supports.
        actions: The number of actions.
        atoms: The number of outputs per action.
        hidden: The number of units of each hidden layer.
        layer_norm: Whether each hidden layer is normalised before its ReLU (Ba et al., 2016).
        spectral_norm: Whether the last hidden layer is divided by its largest singular value (Gogianu et al., 2021).
        dueling: Whether the output has two streams (Wang et al., 2016) of one layer each.
        dueling_gradient: The factor of the gradient from two streams to the hidden layers; 1/√2 in the paper.
        noisy: Whether every layer has learned noise (Fortunato et al., 2018).
        noisy_sigma: σ₀; the noise of a layer starts at σ₀ / √inputs.
        initialization: How layers without noise start: `torch` or `xavier_uniform`, see `XavierLinear`. A last hidden
            layer with `spectral_norm` starts as `torch`.

    Raises:
        ValueError: If `noisy` and `spectral_norm` are both true.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        actions: int,
        atoms: int,
        hidden: Widths = (120, 84),
        layer_norm: bool = False,
        spectral_norm: bool = False,
        dueling: bool = False,
        dueling_gradient: Annotated[float, Range(0)] = 1.0,
        noisy: bool = False,
        noisy_sigma: Annotated[float, Range(0)] = 0.5,
        initialization: Initialization = "torch",
    ) -> None:
        if noisy and spectral_norm:
            raise ValueError("noisy=true and spectral_norm=true do not go together: switch one off")
        layer = layer_maker(noisy, noisy_sigma, initialization)
        last = SpectralLinear if spectral_norm else layer
        features = Features(observation_space)
        torso = Perceptron(features, features.width, hidden, layer, last, LayerNorm if layer_norm else None)
        values = ActionValues(torso.width, actions, atoms, dueling, layer, dueling_gradient=dueling_gradient)
        super().__init__(torso, values)


class SparseMLP(QNetwork):
    """The network of Stream Q(λ) (Elsayed et al., 2024): sparse initialisation, LayerNorm without weights, leaky ReLU.

    The weights of each unit are uniform in ±1/√inputs. A random fraction of them is set to 0, drawn separately for each
    unit. Biases are 0 (algorithm 1 of the paper).

    Args:
        observation_space: A space that `Features` supports.
        actions: The number of actions.
        atoms: The number of outputs per action.
        hidden: The number of units of each hidden layer.
        sparsity: The fraction of the weights of each unit that starts at 0. The number of weights is rounded up.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        actions: int,
        atoms: int,
        hidden: Widths = (32, 32),
        sparsity: Annotated[float, Range(0, 1)] = 0.9,
    ) -> None:
        layer = sparse_layer_maker(sparsity)
        features = Features(observation_space)
        torso = Perceptron(
            features, features.width, hidden, layer, layer, lambda _: LayerNormWithoutWeights(), slope=0.01
        )
        super().__init__(torso, ActionValues(torso.width, actions, atoms, layer=layer))

import math
from functools import partial

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.func import grad, vmap

import reference as ref
from matrix import matrix
from qohort.cohort.convolution import adaptive_max_pool, patches
from qohort.cohort.program import Compiler
from qohort.cohort.stacking import CohortNetwork
from qohort.networks.images import ConvNetwork, HadamaxNetwork, ImpalaNetwork, Pixels, SparseConvNetwork
from qohort.networks.images.hadamax import ChannelNorm, Gelu, HadamaxBlock
from qohort.networks.images.impala import ResidualStage
from qohort.networks.images.layers import Conv
from qohort.networks.layers import (
    ActionValues,
    Dense,
    Features,
    LayerNorm,
    LayerNormWithoutWeights,
    NoisyLinear,
    SpectralLinear,
    sparse_layer_maker,
    spectrally_normalized,
)
from qohort.networks.vectors import MLP, LinearNetwork, SparseMLP, TableNetwork


def observed(space, count=5):
    """Observations as the replay gives them."""
    space.seed(0)
    return torch.from_numpy(np.stack([np.asarray(space.sample()) for _ in range(count)]))


def test_discrete_observations_are_one_hot_from_their_start():
    features = Features(spaces.Discrete(4, start=-1))
    assert features.width == 4
    out = features(torch.tensor([-1, 2, 0]))
    assert out.dtype == torch.float32
    assert out.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0]]


def test_multibinary_observations_are_flattened():
    features = Features(spaces.MultiBinary((2, 2)))
    assert features.width == 4
    out = features(torch.tensor([[[1, 0], [0, 1]]], dtype=torch.int8))
    assert out.dtype == torch.float32
    assert out.tolist() == [[1, 0, 0, 1]]


def test_unsigned_bytes_are_divided_by_255():
    features = Features(spaces.Box(0, 255, (2, 2, 1), np.uint8))
    assert features.width == 4
    out = features(torch.tensor([[[[0], [51]], [[102], [255]]]], dtype=torch.uint8))
    torch.testing.assert_close(out, torch.tensor([[0.0, 0.2, 0.4, 1.0]]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int32, np.int64, np.int8])
def test_other_numbers_are_cast_and_not_scaled(dtype):
    features = Features(spaces.Box(-100, 100, (3,), dtype))
    out = features(torch.from_numpy(np.array([[-100, 0, 7]], dtype=dtype)))
    assert out.dtype == torch.float32
    assert out.tolist() == [[-100, 0, 7]]


@pytest.mark.parametrize("build", [LinearNetwork, MLP, SparseMLP])
@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (3,)),
        spaces.Box(-1, 1, (3,), np.float64),
        spaces.Box(-1, 1, ()),
        spaces.Box(0, 255, (4, 5, 2), np.uint8),
        spaces.Box(0, 1, (3, 2), np.bool_),
        spaces.Discrete(6, start=3),
        spaces.MultiBinary(4),
    ],
)
def test_every_space_maps_to_the_outputs(build, space):
    out = build(space, 7, 3)(observed(space))
    assert out.shape == (5, 7, 3)
    assert out.dtype == torch.float32


def test_table_is_zero_at_first_and_looks_up_its_rows():
    table = TableNetwork(spaces.Discrete(3, start=1), 2, 1)
    assert [parameter.shape for parameter in table.parameters()] == [(2, 3)]
    assert table(torch.tensor([1, 2, 3])).abs().sum() == 0
    with torch.no_grad():
        table.output.advantage.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    assert table(torch.tensor([3, 1])).squeeze(-1).tolist() == [[3, 6], [1, 4]]


@pytest.mark.parametrize("space", [spaces.Box(0, 1, (2,)), spaces.MultiBinary(2)])
def test_table_needs_discrete_observations(space):
    with pytest.raises(ValueError, match=r"network=table needs Discrete observations.*network=linear"):
        TableNetwork(space, 2, 1)


@pytest.mark.parametrize(("bias", "count"), [(True, 2), (False, 1)])
def test_linear_is_zero_at_first(bias, count):
    network = LinearNetwork(spaces.Box(-1, 1, (3,)), 2, 1, bias=bias)
    parameters = list(network.parameters())
    assert len(parameters) == count
    assert all(not parameter.any() for parameter in parameters)
    with torch.no_grad():
        network.output.advantage.weight.copy_(torch.tensor([[1.0, 0.0, 2.0], [0.0, -1.0, 0.0]]))
    assert network(torch.tensor([[1.0, 2.0, 3.0]])).squeeze(-1).tolist() == [[7, -2]]


def test_mlp_has_the_widths_it_is_given_and_a_linear_output():
    network = MLP(spaces.Box(-1, 1, (4,)), 2, 1, hidden=(37, 21))
    kinds = [type(layer) for layer in network.torso.layers]
    assert kinds == [Features, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU]
    assert [tuple(p.shape) for p in network.parameters() if p.dim() == 2] == [(37, 4), (21, 37), (2, 21)]
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    first, second = [layer for layer in network.torso.layers if isinstance(layer, nn.Linear)]
    last = network.output.advantage
    assert torch.equal(network(x).squeeze(-1), last(second(first(x).clamp(min=0)).clamp(min=0)))


def test_mlp_normalises_before_each_relu():
    network = MLP(spaces.Box(-1, 1, (4,)), 2, 1, hidden=(8, 5), layer_norm=True)
    kinds = [type(layer) for layer in network.torso.layers]
    block = [nn.Linear, LayerNorm, nn.ReLU]
    assert kinds == [Features, *block, *block]


@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_layer_norm_equals_torchs(eps):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = LayerNorm(21, eps), nn.LayerNorm(21, eps)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    with torch.no_grad():
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(a, b)
            a.copy_(torch.randn(a.shape, generator=generator))
            b.copy_(a)
    x = 5 + 3 * torch.randn(2, 6, 21, generator=generator)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    weights = torch.randn(x.shape, generator=generator)
    for network, value in zip((ours, theirs), inputs, strict=True):
        (network(value) * weights).sum().backward()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(3, 1, 0), (8, 4, 0), (3, 2, 1), (1, 1, 0), (2, 3, 0), (5, 5, 1)]
)
def test_a_convolution_equals_torchs(size, stride, padding):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = Conv(3, 5, size, stride, padding), nn.Conv2d(3, 5, size, stride, padding)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight.view(5, 3, size, size))
        theirs.bias.copy_(ours.bias)
    images = [torch.randn(2, 3, 13, 11, generator=generator.manual_seed(1)).requires_grad_() for _ in range(2)]
    outputs = [network(image) for network, image in zip((ours, theirs), images, strict=True)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    sum(output.square().sum() for output in outputs).backward()
    torch.testing.assert_close(ours.weight.grad.view_as(theirs.weight), theirs.weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(images[0].grad, images[1].grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 2, 1), (2, 3, 0), (4, 1, (1, 2))])
def test_the_gradients_of_patches_are_those_of_differences(size, stride, padding):
    image = torch.randn(2, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda image: patches(image, size, stride, padding), image)
    assert torch.autograd.gradgradcheck(lambda image: patches(image, size, stride, padding), image)


class TorchsOwn(nn.Module):
    """A network of torch's own layers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2, padding=1),
            nn.LayerNorm([3, 5, 4]),
            nn.ReLU(),
            nn.Conv2d(3, 4, 2),
            nn.MaxPool2d(2, stride=1, padding=1),
            nn.Flatten(),
            nn.Linear(4 * 5 * 4, 9),
            nn.LayerNorm(9),
            nn.Linear(9, 3),
        )

    def forward(self, image):
        return self.layers(image.float())


@pytest.mark.slow
@pytest.mark.matrix
def test_torchs_own_layers_compile_to_the_same_bits_alone_and_in_a_cohort(capsys):
    image = torch.randn(3, 8, 2, 9, 8, generator=torch.Generator().manual_seed(0))

    def gradients(seeds, image, mode):
        network = CohortNetwork(TorchsOwn, seeds)

        def loss(parameters, inputs):
            return network.member_forward(parameters, inputs["observation"]).square().sum()

        lifted = vmap(grad(loss))
        program = Compiler(mode).program("gradients", lifted, network.parameters_by_name())
        return program({"observation": image})

    together = gradients([4, 5, 6], image, "inductor")
    alone = gradients([5], image[1:2], "inductor")
    slow = gradients([4, 5, 6], image, "none")
    for name, one in together.items():
        assert torch.equal(alone[name][0], one[1])
        torch.testing.assert_close(one, slow[name], rtol=1e-3, atol=1e-4)
    assert capsys.readouterr().err == ""  # nothing ran in another mode


def test_a_residual_stage_equals_torchs_operations():
    stage = ResidualStage(2, 4, [7, 10], None, spectral_norm=False)

    def conv(layer, x):
        return nn.functional.conv2d(x, layer.weight.view(4, -1, 3, 3), layer.bias, padding=1)

    x = torch.randn(3, 2, 7, 10, generator=torch.Generator().manual_seed(0))
    y = nn.functional.max_pool2d(conv(stage.first, x), 3, stride=2, padding=1)
    for first, second in (stage.blocks[:2], stage.blocks[2:]):
        y = y + conv(second, conv(first, y.relu()).relu())
    torch.testing.assert_close(stage(x), y, rtol=1e-4, atol=1e-5)


IMAGE_NETWORKS = {
    "impala": partial(ImpalaNetwork, channels=(2, 3), hidden=(5,)),
    "beyond the rainbow": partial(
        ImpalaNetwork, channels=(2, 3), hidden=(5,), spectral_norm=True, pool=2, dueling=True, noisy=True
    ),
    "impala with LayerNorm": partial(ImpalaNetwork, channels=(3,), hidden=(5,), layer_norm=True),
    "convolutions": partial(
        ConvNetwork,
        convolutions=[(3, 3, 1)],
        hidden=(5,),
        layer_norm=True,
        spectral_norm=True,
        pool=3,
        dueling=True,
        dueling_gradient=0.5,
    ),
    "hadamax": partial(HadamaxNetwork, blocks=[(3, 4, 2, 2), (5, 3, 3, 1)], hidden=(5,)),
    "sparse": partial(SparseConvNetwork, convolutions=[(3, 3, 1), (4, 2, 2)], hidden=(5,)),
}


@pytest.mark.parametrize("name", matrix(IMAGE_NETWORKS, [], in_ci=["beyond the rainbow", "hadamax", "sparse"]))
def test_image_networks_compile_to_the_same_bits_alone_and_in_a_cohort(name, capsys):
    space = spaces.Box(0, 255, (2, 7, 7), np.uint8)
    observation = torch.randint(256, (3, 4, 2, 7, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def gradients(seeds, observation, mode):
        network = CohortNetwork(lambda: IMAGE_NETWORKS[name](space, 2, 1), seeds)

        def loss(parameters, inputs):
            return network.member_forward(parameters, inputs["observation"]).square().sum()

        program = Compiler(mode).program("gradients", vmap(grad(loss)), network.parameters_by_name())
        return program({"observation": observation})

    together = gradients([4, 5, 6], observation, "inductor")
    alone = gradients([5], observation[1:2], "inductor")
    slow = gradients([4, 5, 6], observation, "none")
    for parameter, one in together.items():
        assert torch.equal(alone[parameter][0], one[1])
        torch.testing.assert_close(one, slow[parameter], rtol=1e-3, atol=1e-4)
    assert capsys.readouterr().err == ""  # nothing ran in another mode


@pytest.mark.parametrize(("height", "width", "side"), [(11, 11, 6), (7, 10, 3), (4, 5, 4), (3, 3, 5)])
def test_adaptive_pooling_equals_torchs(height, width, side):
    image = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0), requires_grad=True)
    own, theirs = adaptive_max_pool(image, side), nn.functional.adaptive_max_pool2d(image, side)
    assert torch.equal(own, theirs)
    weight = torch.randn(own.shape, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((pooled * weight).sum(), image)[0] for pooled in (own, theirs)]
    torch.testing.assert_close(*gradients)


def test_a_spectral_convolution_is_divided_by_the_largest_singular_value_of_its_kernels():
    conv = Conv(2, 4, 3, spectral_norm=True)
    image = torch.randn(3, 2, 7, 6, generator=torch.Generator().manual_seed(0))
    kernels = spectrally_normalized(conv.weight.detach()).view(4, 2, 3, 3)
    assert 0.99 < torch.linalg.matrix_norm(kernels.flatten(1), 2) < 1.15
    torch.testing.assert_close(conv(image), nn.functional.conv2d(image, kernels, conv.bias), rtol=1e-4, atol=1e-5)


def test_a_hadamax_block_equals_torchs_operations():
    torch.manual_seed(0)
    block = HadamaxBlock(2, 5, size=4, pool=2, stride=2, pixels=7)
    image = torch.randn(3, 2, 7, 7)
    padded = nn.functional.pad(image, (1, 2, 1, 2))  # "SAME" of an even kernel has the wider border at the end
    product = 1.0
    for layers in block.convolutions:
        conv, norm = layers[0], layers[1]
        torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
        value = nn.functional.conv2d(padded, conv.weight.view(5, 2, 4, 4), conv.bias).permute(0, 2, 3, 1)
        value = nn.functional.layer_norm(value, (5,), norm.weight.flatten(), norm.bias.flatten(), eps=1e-6)
        product = product * nn.functional.gelu(value, approximate="tanh").permute(0, 3, 1, 2)
    pooled = nn.functional.max_pool2d(product, 2, 2, ceil_mode=True)
    assert pooled.shape == (3, 5, block.side, block.side) == (3, 5, 4, 4)
    torch.testing.assert_close(block(image), pooled, rtol=1e-4, atol=1e-5)


def test_the_hadamax_encoder_has_the_sizes_of_the_paper():
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    network = HadamaxNetwork(space, 6, 1, [(32, 8, 4, 4), (64, 4, 2, 2), (64, 3, 3, 1)], [512])
    assert [block.side for block in network.torso.blocks] == [21, 11, 11]
    assert [type(one) for one in network.output.advantage] == [nn.Linear, LayerNorm, Gelu, nn.Linear]
    assert type(network.torso.blocks[0].convolutions[0][1]) is ChannelNorm
    with pytest.raises(ValueError, match="needs square images, got 7 x 8 pixels"):
        HadamaxNetwork(spaces.Box(0, 255, (2, 7, 8), np.uint8), 2, 1, [(3, 3, 1, 1)], [5])


def test_beyond_the_rainbow_has_the_width_of_its_authors():
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    network = ImpalaNetwork(space, 6, 1, (32, 64, 64), (512,), spectral_norm=True, pool=6, dueling=True, noisy=True)
    assert network.torso.width == 1152 * 2


def test_layer_norm_comes_before_every_relu_of_a_convolutional_network():
    network = ConvNetwork(spaces.Box(0, 1, (6, 6, 3), bool), 2, 1, [(4, 3, 1)], [5, 7], True, layer_norm=True)
    assert [type(one).__name__ for one in network.torso.layers] == ["Conv", "ImageNorm", "ReLU"]
    names = [type(one).__name__ for one in network.output.advantage]
    assert names == ["Linear", "LayerNorm", "ReLU", "Linear", "LayerNorm", "ReLU", "Linear"]


def test_a_sparse_convolution_starts_with_a_part_of_each_kernel_at_zero():
    network = SparseConvNetwork(spaces.Box(0, 255, (4, 84, 84), np.uint8), 3, 1, [(32, 8, 5), (64, 4, 3)], [7])
    first = network.torso.layers[0]
    assert (first.weight == 0).sum(1).tolist() == [231] * 32  # ⌈0.9 · 256⌉
    assert first.weight.abs().max() <= 1 / 16
    assert not first.bias.any()
    assert [type(one).__name__ for one in network.torso.layers][:3] == ["Conv", "ImageNorm", "LeakyReLU"]


def test_xavier_uniform_is_bounded_by_the_average_of_inputs_and_outputs():
    torch.manual_seed(0)
    space = spaces.Box(-1, 1, (5,))
    for dueling in (False, True):  # with one output of the state value
        network = MLP(space, 3, 1, hidden=(400, 600), dueling=dueling, initialization="xavier_uniform")
        layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
        assert len(layers) == 3 + dueling
        for layer in layers:
            outputs, inputs = layer.weight.shape
            bound = math.sqrt(6 / (inputs + outputs))
            assert 0.98 * bound < layer.weight.abs().max() <= bound
            assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)  # of a uniform variable
            assert not layer.bias.any()
    noisy = MLP(space, 3, 1, hidden=(8,), noisy=True, initialization="xavier_uniform")
    assert not any(isinstance(module, nn.Linear) for module in noisy.modules())


def test_the_gradient_from_two_streams_is_scaled_and_nothing_else():
    torch.manual_seed(0)
    plain, scaled = ActionValues(6, 3, 2, True), ActionValues(6, 3, 2, True, dueling_gradient=0.25)
    scaled.load_state_dict(plain.state_dict())
    features = torch.randn(5, 6, requires_grad=True)
    outputs = [values(features) for values in (plain, scaled)]
    assert torch.equal(*outputs)
    one, other = (torch.autograd.grad(output.square().sum(), features)[0] for output in outputs)
    assert torch.equal(0.25 * one, other)


@pytest.mark.parametrize("options", [{}, {"dueling": True}, {"noisy": True, "layer_norm": True}])
def test_image_networks_take_channels_first_or_last(options):
    first, last = spaces.Box(0, 255, (3, 12, 9), np.uint8), spaces.Box(0, 1, (12, 9, 3), bool)
    for space, where in ((first, False), (last, True)):
        network = ConvNetwork(space, 4, 2, [(5, 3, 2), (6, 2, 1)], [7], channels_last=where, **options)
        assert network(observed(space)).shape == (5, 4, 2)
        assert network.torso.width == 6 * 4 * 3
        impala = ImpalaNetwork(space, 4, 2, channels=(3, 5), hidden=(7,), channels_last=where)
        assert impala(observed(space)).shape == (5, 4, 2)
        assert impala.torso.width == 5 * 3 * 3
    with pytest.raises(ValueError, match=r"needs images, a Box of three axes.*use network=mlp"):
        ConvNetwork(spaces.Box(0, 1, (4,)), 2, 1, [(5, 3, 2)], [7])
    with pytest.raises(ValueError, match=r"a kernel of 8 does not fit \[5, 4\] pixels"):
        ConvNetwork(first, 2, 1, [(5, 3, 2), (6, 8, 1)], [7])


def test_dueling_equals_the_reference():
    generator = torch.Generator().manual_seed(0)
    output = ActionValues(6, 3, 4, dueling=True)
    features = torch.randn(5, 6, generator=generator)
    value, advantage = output.value(features), output.advantage(features).view(5, 3, 4)
    expected = ref.dueling(value.detach().numpy(), advantage.detach().numpy())
    np.testing.assert_allclose(output(features).detach(), expected, rtol=1e-5, atol=1e-6)
    assert [type(one) for one in ActionValues(6, 3, 1, True, hidden=(8,)).value] == [Dense, nn.ReLU, Dense]


def test_a_noisy_layer_equals_the_reference_and_is_quiet_without_noise():
    torch.manual_seed(0)
    layer = NoisyLinear(7, 4, sigma=0.5)
    bound, sigma = ref.noisy_init(7, 0.5)
    for mean, deviation in ((layer.weight, layer.weight_sigma), (layer.bias, layer.bias_sigma)):
        assert 0.5 * bound < mean.abs().max() <= bound
        torch.testing.assert_close(deviation, torch.full_like(deviation, sigma))
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    layer.normal_in.copy_(torch.linspace(-2, 2, 7)), layer.normal_out.copy_(torch.tensor([0.5, -1.0, 0.0, 3.0]))
    numbers = (layer.weight, layer.weight_sigma, layer.bias, layer.bias_sigma, layer.normal_in, layer.normal_out)
    expected = ref.noisy_linear(x.numpy(), *(one.detach().numpy() for one in numbers))
    np.testing.assert_allclose(layer(x).detach(), expected, rtol=1e-4, atol=1e-5)


def test_a_spectral_layer_is_divided_by_its_largest_singular_value():
    layer = SpectralLinear(9, 6)
    largest = torch.linalg.matrix_norm(layer.weight, 2)
    torch.testing.assert_close(spectrally_normalized(layer.weight, 60), layer.weight / largest, rtol=1e-4, atol=1e-5)
    x = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    expected = nn.functional.linear(x, spectrally_normalized(layer.weight), layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"noisy=true and spectral_norm=true do not go together"):
        MLP(spaces.Box(-1, 1, (4,)), 2, 1, noisy=True, spectral_norm=True)


def test_a_layer_of_one_output_equals_torchs():
    dense = Dense(5, 1)
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(dense(x), nn.functional.linear(x, dense.weight, dense.bias))


def test_standardised_equals_the_reference():
    x = 5 + 3 * torch.randn(2, 6, 21, generator=torch.Generator().manual_seed(0))
    for eps in (1e-5, 0.1):
        layer = LayerNormWithoutWeights(eps)
        assert list(layer.parameters()) == []
        expected = np.stack([ref.layer_norm(one, eps) for one in x.double().numpy()])
        np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)
    assert LayerNormWithoutWeights()(torch.full((3, 4), 7.0)).tolist() == [[0.0] * 4] * 3


@pytest.mark.parametrize(
    ("inputs", "sparsity", "zeros"), [(37, 0.9, 34), (10, 0.9, 9), (4, 0.9, 4), (7, 0.5, 4), (7, 0.0, 0), (7, 1.0, 7)]
)
def test_a_sparse_layer_starts_with_a_part_of_each_units_weights_at_zero(inputs, sparsity, zeros):
    torch.manual_seed(0)
    layer = sparse_layer_maker(sparsity)(inputs, 200)
    weight, bound = layer.weight.detach(), inputs**-0.5
    reference = ref.sparse_init(200, inputs, sparsity, np.random.default_rng(0))
    assert (weight == 0).sum(1).tolist() == (reference == 0).sum(1).tolist() == [zeros] * 200
    assert weight.abs().max() <= bound
    assert not layer.bias.any()
    assert all(parameter.requires_grad for parameter in layer.parameters())
    if 0 < zeros < inputs:
        # Other places in each row, and each place about as often.
        assert len({tuple(row.tolist()) for row in weight != 0}) > min(200, inputs) // 2
        np.testing.assert_allclose((weight == 0).float().mean(0), zeros / inputs, atol=0.15)
    if zeros < inputs:
        left = weight[weight != 0]
        assert left.min() < -0.9 * bound < 0.9 * bound < left.max()
        assert abs(float(left.mean())) < 0.1 * bound
        np.testing.assert_allclose(float(left.std()), bound / 3**0.5, rtol=0.1)


def test_sparse_mlp_is_sparse_and_normalised_in_every_hidden_layer_and_leaks_below_zero():
    torch.manual_seed(0)
    network = SparseMLP(spaces.Box(-1, 1, (12,)), 3, 2, hidden=(37, 21), sparsity=0.75)
    block = [nn.Linear, LayerNormWithoutWeights, nn.LeakyReLU]
    assert [type(layer) for layer in network.torso.layers] == [Features, *block, *block]
    first, second = [layer for layer in network.torso.layers if isinstance(layer, nn.Linear)]
    layers = {first: (37, 12, 9), second: (21, 37, 28), network.output.advantage: (6, 21, 16)}
    for layer, (outputs, inputs, zeros) in layers.items():
        assert layer.weight.shape == (outputs, inputs)
        assert (layer.weight == 0).sum(1).tolist() == [zeros] * outputs
        assert not layer.bias.any()
    assert len(list(network.parameters())) == 6
    with torch.no_grad():
        for layer in layers:
            layer.bias.uniform_(-1, 1)
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    value = x.double().numpy()
    for layer in (first, second):
        value = value @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
        value = ref.layer_norm(value)
        value = np.where(value > 0, value, 0.01 * value)
    last = network.output.advantage
    value = value @ last.weight.detach().double().numpy().T + last.bias.detach().double().numpy()
    np.testing.assert_allclose(network(x).detach(), value.reshape(5, 3, 2), rtol=1e-4, atol=1e-5)


def test_sparse_mlp_has_the_sizes_of_the_paper_by_default():
    network = SparseMLP(spaces.Box(-1, 1, (10,)), 2, 1)
    assert [tuple(p.shape) for p in network.parameters() if p.dim() == 2] == [(32, 10), (32, 32), (2, 32)]
    assert (network.torso.layers[1].weight == 0).sum(1).tolist() == [9] * 32


@pytest.mark.parametrize("rows", [1, 33])
def test_a_member_of_sparse_mlps_is_the_same_to_the_bit_alone_and_in_a_cohort(rows):
    def build():
        return SparseMLP(spaces.Box(-1, 1, (5,)), 3, 1, hidden=(37, 21), sparsity=0.7)

    observation = torch.randn(4, rows, 5, generator=torch.Generator().manual_seed(0))
    together = CohortNetwork(build, [0, 1, 2, 3])
    assert not torch.equal(together.network.torso.layers[1].weight[0], together.network.torso.layers[1].weight[1])
    for m in range(4):
        alone = CohortNetwork(build, [m])
        for one, many in zip(alone.parameters(), together.parameters(), strict=True):
            assert torch.equal(one[0], many[m])
        assert torch.equal(alone(observation[m : m + 1])[0], together(observation)[m])


@pytest.mark.parametrize(
    ("shape", "last"),
    [((96, 96, 3), True), ((4, 84, 84), False), ((10, 10, 4), True), ((3, 64, 48), False), ((10, 10, 10), None)],
)
@pytest.mark.parametrize(
    "network",
    [partial(ConvNetwork, convolutions=[(2, 3, 1)], hidden=[4]), partial(ImpalaNetwork, channels=[2], hidden=[4])],
)
def test_the_axis_of_the_channels_is_recognised(shape, last, network):
    space = spaces.Box(0, 255, shape, np.uint8)
    if last is None:
        with pytest.raises(ValueError, match=r"\(10, 10, 10\) has the channels: set network.channels_last to true"):
            network(space, 2, 1)
        return
    torch.manual_seed(0)
    recognised = network(space, 2, 1)
    torch.manual_seed(0)
    told = network(space, 2, 1, channels_last=last)
    observation = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, *shape)).astype(np.uint8))
    assert torch.equal(recognised(observation), told(observation))


@pytest.mark.parametrize(
    ("space", "scale"),
    [
        (spaces.Box(0, 255, (3, 8, 8), np.uint8), 1 / 255),
        (spaces.Box(0, 255, (3, 8, 8), np.float32), 1 / 255),
        (spaces.Box(0, 1, (3, 8, 8), np.uint8), 1),
        (spaces.Box(0, 1, (3, 8, 8), np.int8), 1),
        (spaces.Box(0, 15, (3, 8, 8), np.uint8), 1),
    ],
)
def test_images_are_divided_by_255_where_their_high_is_255(space, scale):
    observation = torch.ones(2, 3, 8, 8).to(torch.from_numpy(np.zeros(1, space.dtype)).dtype)
    assert torch.allclose(Features(space)(observation), torch.full((2, 192), float(scale)))
    assert torch.allclose(Pixels(space, False)(observation), torch.full((2, 3, 8, 8), float(scale)))

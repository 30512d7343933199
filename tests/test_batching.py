"""The rules by which operations are lifted over members equal a loop over the members."""

import pytest
import torch
from torch import nn
from torch.func import grad, vmap

from matrix import MARKS
from qohort.cohort.batching import register
from qohort.cohort.program import Compiler

register()
INDEX = torch.tensor([[0, 3], [1, 1], [4, 0]])

OPERATIONS = {
    "slice": lambda x: x[:, 1:4] * x[:, -3:],
    "slice with steps": lambda x: x[1:, ::2] * x[:-1, 1::2].sum(),
    "slice of nothing": lambda x: x[:, 2:2].sum() + x,
    "slice at the other axis": lambda x: x[2:],
    "cat": lambda x: torch.cat([x, 2 * x[:, :2], torch.ones(3, 1)], -1),
    "cat at the first axis": lambda x: torch.cat([x, x.sum(0, keepdim=True)]),
    "chunk": lambda x: x.chunk(3, -1)[1] * x.chunk(3, -1)[0],
    "gather": lambda x: x.gather(-1, INDEX),
    "gather at the first axis": lambda x: x.gather(0, torch.tensor([[2, 0, 1, 1, 0]])),
    "max": lambda x: x.max(-1).values * x.min(0).values[0],
    "sort": lambda x: x.sort(-1).values * torch.arange(5),
    "descending": lambda x: x.sort(0, descending=True).values * torch.arange(3).unsqueeze(1),
    "topk": lambda x: x.topk(2, -1).values * torch.arange(2),
    "pad": lambda x: nn.functional.pad(x, (1, 2), value=3.0) * torch.arange(8),
    "pad both axes": lambda x: nn.functional.pad(x, (0, -2, 1, 0)) * torch.arange(3),
    "gelu": nn.functional.gelu,
    "gelu by tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
}


def gradient_of(operation):
    def loss(parameters, inputs):
        return operation(inputs["observation"] @ parameters["weight"]).square().sum()

    return grad(loss)


def operands(members):
    generator = torch.Generator().manual_seed(0)
    weight, observation = torch.randn(3, 4, 5, generator=generator), torch.randn(3, 3, 4, generator=generator)
    return {"weight": weight[members]}, {"observation": observation[members]}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_lifted_operation_equals_a_loop_over_members(name):
    gradient = gradient_of(OPERATIONS[name])
    parameters, inputs = operands(slice(None))
    together = vmap(gradient)(parameters, inputs)["weight"]
    for m in range(3):
        alone = gradient({"weight": parameters["weight"][m]}, {"observation": inputs["observation"][m]})
        torch.testing.assert_close(together[m], alone["weight"])
    with_one_weight = vmap(gradient, (None, 0))({"weight": parameters["weight"][0]}, inputs)["weight"]
    torch.testing.assert_close(with_one_weight[0], together[0])


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS) for name in OPERATIONS])
def test_an_operation_compiles_to_the_same_bits_alone_and_in_a_cohort(name, capsys):
    lifted = vmap(gradient_of(OPERATIONS[name]))

    def compiled(members):
        parameters, inputs = operands(members)
        return Compiler("inductor").program("gradients", lifted, parameters)(inputs)["weight"]

    together = compiled(slice(None))
    assert torch.equal(compiled(slice(1, 2))[0], together[1])
    torch.testing.assert_close(together, lifted(*operands(slice(None)))["weight"])
    assert capsys.readouterr().err == ""  # nothing ran in another mode

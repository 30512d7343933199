import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.func import grad, vmap

from qohort.bootstrap import Greedy
from qohort.cohort import CohortNetwork
from qohort.convolutions import ConvNetwork, ImpalaNetwork
from qohort.heads import Expected
from qohort.networks import MLP, Linear, Table
from qohort.optimizer import MemberAdam, clip_by_norm, mixes_members, takes_fused
from qohort.td_loss import TDLoss
from qohort.update import HardTarget, NoTarget, PolyakTarget, Update

SHAPES = [(5, 3), (5,), (2, 5), (2,)]


def parameters(members, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(members, *shape, generator=generator)) for shape in SHAPES]


def gradients(like, step):
    """Gradients of very different sizes, the same for a member whatever the others."""
    generator = torch.Generator().manual_seed(1000 + step)
    return [torch.randn(one.shape, generator=generator) * 10 ** (step % 7 - 4) for one in like]


def steps(optimizer, ours, count, of=slice(None), whole=None):
    for step in range(count):
        for parameter, gradient in zip(ours, gradients(whole or ours, step), strict=True):
            parameter.grad = gradient[of].clone()
        optimizer.step()


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("options", [{}, {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-3}])
def test_member_adam_equals_torchs_adam(members, options):
    ours, theirs = parameters(members), parameters(members)
    start = parameters(members)
    steps(MemberAdam(ours, **options), ours, 50)
    steps(torch.optim.Adam(theirs, **{"lr": 2.5e-4, **options}), theirs, 50)
    for a, b, before in zip(ours, theirs, start, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        moved = (a - before).norm()
        assert (a - b).norm() < 1e-4 * moved
        assert moved > 0


def test_first_step_moves_by_the_learning_rate_against_the_gradients_sign():
    parameter = nn.Parameter(torch.zeros(2, 3))
    optimizer = MemberAdam([parameter], lr=torch.tensor([0.1, 0.02]))
    parameter.grad = torch.tensor([[5.0, -0.3, 1.0], [-5.0, 2.0, 0.0]])
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.tensor([[-0.1, 0.1, -0.1], [0.02, -0.02, 0.0]]))


def test_one_learning_rate_a_member_equals_separate_optimisers_to_the_bit():
    rates = [1e-2, 3e-4, 0.7]
    whole = parameters(3)
    steps(MemberAdam(whole, lr=torch.tensor(rates)), whole, 50)
    for m, rate in enumerate(rates):
        alone = [nn.Parameter(one[m : m + 1].detach().clone()) for one in parameters(3)]
        steps(MemberAdam(alone, lr=rate), alone, 50, slice(m, m + 1), parameters(3))
        for a, b in zip(alone, whole, strict=True):
            assert torch.equal(a, b[m : m + 1])


def test_member_adam_goes_on_exactly_from_its_state():
    whole, halves = parameters(2), parameters(2)
    rates = torch.tensor([1e-2, 1e-3])
    first = MemberAdam(halves, lr=rates)
    uninterrupted = MemberAdam(whole, lr=rates)
    steps(first, halves, 5)
    second = MemberAdam(halves, lr=0.5)
    second.load_state_dict(first.state_dict())
    steps(second, halves, 5)
    steps(uninterrupted, whole, 5)
    steps(uninterrupted, whole, 5)
    assert second.param_groups[0]["step"] == 10
    for a, b in zip(halves, whole, strict=True):
        assert torch.equal(a, b)


def test_without_gradients_a_step_only_calls_its_closure():
    ours = parameters(2)
    optimizer = MemberAdam(ours)
    assert optimizer.step(lambda: "loss") == "loss"
    assert optimizer.param_groups[0]["step"] == 0
    for a, b in zip(ours, parameters(2), strict=True):
        assert torch.equal(a, b)


def test_clip_by_norm_by_hand():
    given = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    clipped, norm = clip_by_norm(given, torch.tensor(1.0))
    assert norm == 5.0
    torch.testing.assert_close(clipped["a"], torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(clipped["b"], torch.tensor([[0.8]]))
    for limit in (None, torch.tensor(5.1), torch.tensor(1e9)):
        kept, norm = clip_by_norm(given, limit)
        assert norm == 5.0
        assert all(torch.equal(kept[name], given[name]) for name in given)


def test_clipping_lifted_is_per_member_and_equals_torchs():
    generator = torch.Generator().manual_seed(0)
    stacked = {str(i): torch.randn(3, *shape, generator=generator) * 3 for i, shape in enumerate(SHAPES)}
    limits = torch.tensor([0.5, 2.0, 1e6])
    clipped, norm = vmap(clip_by_norm)(stacked, limits)
    for m in range(3):
        alone = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
        for parameter, gradient in zip(alone, stacked.values(), strict=True):
            parameter.grad = gradient[m].clone()
        torch.testing.assert_close(norm[m], nn.utils.clip_grad_norm_(alone, float(limits[m])))
        for parameter, gradient in zip(alone, clipped.values(), strict=True):
            torch.testing.assert_close(gradient[m], parameter.grad)


def test_optimisers_that_look_at_whole_tensors_mix_members():
    assert mixes_members(lambda ps: torch.optim.Adafactor(ps, lr=1e-2))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_is_refused():
    """It raises on the stacked weights, which have three axes, before it could mix them."""
    with pytest.raises(ValueError, match="2D"):
        mixes_members(lambda ps: torch.optim.Muon(ps, lr=1e-2))


def test_a_norm_over_all_members_is_found():
    class Normalised(torch.optim.SGD):
        def step(self, closure=None):
            for parameter in self.param_groups[0]["params"]:
                parameter.grad /= parameter.grad.norm()
            super().step(closure)

    assert mixes_members(lambda ps: Normalised(ps, lr=1e-2))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {}),
        ("SGD", {"momentum": 0.9, "nesterov": True}),
        ("RMSprop", {"centered": True}),
        ("Adam", {"amsgrad": True}),
        ("AdamW", {}),
        ("RAdam", {}),
        ("NAdam", {}),
        ("Adagrad", {}),
    ],
)
def test_elementwise_optimisers_do_not_mix_members(name, options):
    assert not mixes_members(lambda ps: getattr(torch.optim, name)(ps, lr=1e-2, **options))


def test_takes_fused():
    assert takes_fused(torch.optim.Adam)
    assert not takes_fused(torch.optim.RMSprop)
    assert not takes_fused(MemberAdam)


SEEDS = (3, 8)
TAU, LIMITS = torch.tensor([0.1, 0.5]), torch.tensor([0.05, 1e3])


def small_cohort():
    space = spaces.Box(-1, 1, (4,))
    return CohortNetwork(lambda: MLP(space, 3, 1, hidden=(6, 5)), SEEDS)


def small_batch(step):
    generator = torch.Generator().manual_seed(step)
    return {
        "observation": torch.randn(2, 5, 4, generator=generator),
        "action": torch.randint(3, (2, 5), generator=generator),
        "reward": torch.randn(2, 5, generator=generator),
        "next_observation": torch.randn(2, 5, 4, generator=generator),
        "discount": torch.where(torch.rand(2, 5, generator=generator) < 0.3, 0.0, 0.99),
    }


def loss_of(network):
    return TDLoss(network.member_forward, Greedy(), Expected("huber"))


@pytest.mark.parametrize("mode", ["none", "aot_eager", "inductor"])
def test_update_equals_gradients_clipping_adam_and_polyak_one_after_the_other(mode, capsys):
    online, reference = small_cohort(), small_cohort()
    target, reference_target = online.frozen_copy(), reference.frozen_copy()
    rates = torch.tensor([1e-2, 1e-3])
    fused, stepwise = MemberAdam(online.parameters(), rates), MemberAdam(reference.parameters(), rates)
    held = {"max_grad_norm": LIMITS, "target_network.tau": TAU}
    update = Update(loss_of(online), online, target, PolyakTarget(0.1), fused, held, mode)
    for step in range(4):
        batch = small_batch(step)
        results = []
        fused.step(closure=lambda batch=batch, results=results: results.append(update(batch)))
        update.follow()

        weights, frozen = reference.parameters_by_name(), reference_target.parameters_by_name()
        loss = loss_of(reference)
        values, terms = vmap(loss)(weights, frozen, batch)
        raw, _ = vmap(grad(loss, has_aux=True))(weights, frozen, batch)
        clipped, norm = vmap(clip_by_norm)(raw, LIMITS)
        for name, parameter in reference.network.named_parameters():
            parameter.grad = clipped[name]
        stepwise.step()
        for name, old in frozen.items():
            shape = (-1, *[1] * (old.dim() - 1))
            old.copy_((1 - TAU.view(shape)) * old + TAU.view(shape) * weights[name])

        (result,) = results
        expected = (values, norm, terms.td_error, terms.q_mean)
        for seen, wanted in zip(result, expected, strict=True):
            torch.testing.assert_close(seen, wanted, rtol=1e-5, atol=1e-6)
        assert norm[0] > LIMITS[0]
        for ours, theirs in ((online, reference), (target, reference_target)):
            for a, b in zip(ours.parameters_by_name().values(), theirs.parameters_by_name().values(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)
    assert fused.param_groups[0]["step"] == 4
    assert capsys.readouterr().err == ""  # inductor says so where it leaves the update to TorchScript


@pytest.mark.parametrize(
    ("space", "build", "loss"),
    [
        (spaces.Discrete(4), Table, "huber"),
        (spaces.Box(-1, 1, (4,)), Linear, "squared"),
        (spaces.Box(0, 255, (2, 2), np.uint8), MLP, "huber"),
        (spaces.Box(-1, 1, (4,)), partial(MLP, hidden=(7, 5), layer_norm=True), "squared"),
        (spaces.Box(-1, 1, (4,)), partial(MLP, hidden=(7, 5), spectral_norm=True, dueling=True), "squared"),
        (spaces.Box(0, 255, (2, 5, 4), np.uint8), partial(ConvNetwork, convolutions=[(3, 2, 1)], hidden=[5]), "huber"),
        (
            spaces.Box(0, 1, (6, 5, 2), bool),
            partial(ImpalaNetwork, channels=[3], hidden=[4], channels_last=True),
            "huber",
        ),
    ],
)
def test_update_is_unrolled_for_any_number_of_members(space, build, loss, monkeypatch, capsys):
    """The graph that inductor is given, run as it is on a cohort of 2, though it was unrolled for 7."""
    graphs = []

    def leave_uncompiled(graph, stand_ins):
        graphs.append(graph)
        return SimpleNamespace(current_callable=lambda tensors: graph(*tensors))

    monkeypatch.setattr("qohort.cohort.compile_fx_inner", leave_uncompiled)

    def run(mode):
        online = CohortNetwork(lambda: build(space, 3, 1), SEEDS)
        optimizer = MemberAdam(online.parameters(), 1e-2)
        td_loss = TDLoss(online.member_forward, Greedy(), Expected(loss))
        held = {"max_grad_norm": LIMITS, "target_network.tau": TAU}
        update = Update(td_loss, online, online.frozen_copy(), PolyakTarget(0.1), optimizer, held, mode)
        batch = small_batch(0)
        shape = batch["action"].shape + space.shape
        for key in ("observation", "next_observation"):
            numbers = (batch[key] * 100).abs().long().flatten()
            batch[key] = numbers.repeat(-(-math.prod(shape) // len(numbers)))[: math.prod(shape)].reshape(shape) % 4
        results = [update(batch) for _ in range(2)]
        return [tensor for result in results for tensor in result], online.parameters_by_name()

    ours, parameters = run("inductor")
    theirs, expected = run("none")
    assert len(graphs) == 1
    assert capsys.readouterr().err == ""
    for a, b in zip([*ours, *parameters.values()], [*theirs, *expected.values()], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_update_with_another_optimiser_applies_its_own_step_then_follows():
    online = small_cohort()
    target = online.frozen_copy()
    before = {name: one.clone() for name, one in online.parameters_by_name().items()}
    sgd = torch.optim.SGD(online.parameters(), lr=0.1)
    update = Update(loss_of(online), online, target, PolyakTarget(0.1), sgd, {"target_network.tau": TAU}, "none")
    batch = small_batch(0)
    raw, _ = vmap(grad(loss_of(online), has_aux=True))(before, before, batch)
    sgd.step(closure=lambda: update(batch) and None)
    update.follow()
    for name, old in before.items():
        new = online.parameters_by_name()[name]
        torch.testing.assert_close(new, old - 0.1 * raw[name])
        tau = TAU.view(-1, *[1] * (old.dim() - 1))
        torch.testing.assert_close(target.parameters_by_name()[name], old + tau * (new - old))


def test_hard_target_stays_until_it_is_copied():
    online = small_cohort()
    target = online.frozen_copy()
    before = {name: one.clone() for name, one in target.parameters_by_name().items()}
    optimizer = MemberAdam(online.parameters(), 0.1)
    update = Update(loss_of(online), online, target, HardTarget(10), optimizer, {}, "none")
    optimizer.step(closure=lambda: update(small_batch(0)))
    update.follow()
    for name, old in before.items():
        assert torch.equal(target.parameters_by_name()[name], old)
        assert not torch.equal(online.parameters_by_name()[name], old)
    update.copy_target()
    for name, new in online.parameters_by_name().items():
        assert torch.equal(target.parameters_by_name()[name], new)
        assert target.parameters_by_name()[name].data_ptr() != new.data_ptr()


@pytest.mark.parametrize("mode", ["none", "aot_eager"])
def test_without_a_target_the_newest_online_network_is_bootstrapped_from(mode):
    online, twin = small_cohort(), small_cohort()
    optimizer, twins = MemberAdam(online.parameters(), 0.1), MemberAdam(twin.parameters(), 0.1)
    update = Update(loss_of(online), online, online, NoTarget(), optimizer, {}, mode)
    copied = twin.frozen_copy()
    update_twin = Update(loss_of(twin), twin, copied, HardTarget(1), twins, {}, "none")
    for step in range(3):
        result = update(small_batch(step))
        update_twin.copy_target()
        torch.testing.assert_close(result.td_error, update_twin(small_batch(step)).td_error, rtol=1e-5, atol=1e-5)

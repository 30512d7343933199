import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hydra import compose, initialize_config_dir
from torch import nn
from torch.func import grad, vmap

import reference as ref
from matrix import MARKS
from qohort.agent.bootstrap import Greedy
from qohort.agent.heads import Expected
from qohort.agent.learner import QLearning
from qohort.agent.optimizers import MemberAdam, MemberOptimizer, MemberRMSprop, ObGD, clip_by_norm, mixes_members
from qohort.agent.results import LossTerms
from qohort.agent.target_networks import HardTarget, NoTarget, PolyakTarget
from qohort.agent.td_loss import TDLoss
from qohort.agent.update import Update
from qohort.cohort.program import Compiler
from qohort.cohort.stacking import CohortNetwork
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.config.errors import ConfigError
from qohort.config.members import check_config
from qohort.networks.images import ConvNetwork, ImpalaNetwork
from qohort.networks.vectors import MLP, LinearNetwork, SparseMLP, TableNetwork
from test_exactness import run

SHAPES = [(5, 3), (5,), (2, 5), (2,)]


def parameters(members, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(members, *shape, generator=generator)) for shape in SHAPES]


def gradients(like, step):
    """Gradients of very different sizes, the same for a member whatever the others."""
    generator = torch.Generator().manual_seed(1000 + step)
    return [torch.randn(one.shape, generator=generator) * 10 ** (step % 7 - 4) for one in like]


def steps(optimizer, ours, count, of=slice(None), whole=None):
    """Steps from given gradients: by the rule of one member, lifted, or by a step of torch's."""
    for step in range(count):
        given = [gradient[of].clone() for gradient in gradients(whole or ours, step)]
        if isinstance(optimizer, MemberOptimizer):
            apply_rule(optimizer, ours, given)
            continue
        for parameter, gradient in zip(ours, given, strict=True):
            parameter.grad = gradient
        optimizer.step()


@torch.no_grad()
def apply_rule(optimizer, ours, given):
    """One step of every member's rule, written back as the update writes it."""
    names = [str(i) for i in range(len(ours))]
    kept = {key: {name: optimizer.state[p][key] for name, p in zip(names, ours, strict=True)} for key in optimizer.kept}
    weights = dict(zip(names, (one.detach() for one in ours), strict=True))
    batch = {**optimizer.advance(), "size": torch.zeros(len(ours[0]), 1)}
    rule = vmap(lambda *arguments: optimizer.apply(*arguments[:3], None, arguments[3]))
    new, new_kept = rule(weights, dict(zip(names, given, strict=True)), kept, batch)
    for name in names:
        weights[name].copy_(new[name])
        for key, tensors in new_kept.items():
            kept[key][name].copy_(tensors[name])


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
    apply_rule(optimizer, [parameter], [torch.tensor([[5.0, -0.3, 1.0], [-5.0, 2.0, 0.0]])])
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


def test_a_step_calls_its_closure_which_is_the_update():
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


@pytest.mark.parametrize("mode", ["none", "fx", pytest.param("inductor", marks=MARKS)])
def test_update_equals_gradients_clipping_adam_and_polyak_one_after_the_other(mode, capsys):
    online, reference = small_cohort(), small_cohort()
    target, reference_target = online.frozen_copy(), reference.frozen_copy()
    rates = torch.tensor([1e-2, 1e-3])
    fused, stepwise = MemberAdam(online.parameters(), rates), MemberAdam(reference.parameters(), rates)
    held = {"max_grad_norm": LIMITS, "target_network.tau": TAU}
    update = Update(loss_of(online), online, target, PolyakTarget(0.1), fused, held, Compiler(mode))
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
        ordered = [clipped[name] for name, _ in reference.network.named_parameters()]
        apply_rule(stepwise, list(reference.network.parameters()), ordered)
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
        (spaces.Discrete(4), TableNetwork, "huber"),
        (spaces.Box(-1, 1, (4,)), LinearNetwork, "squared"),
        pytest.param(spaces.Box(0, 255, (2, 2), np.uint8), MLP, "huber", marks=MARKS),
        (spaces.Box(-1, 1, (4,)), partial(MLP, hidden=(7, 5), layer_norm=True), "squared"),
        pytest.param(
            spaces.Box(-1, 1, (4,)),
            partial(MLP, hidden=(7, 5), spectral_norm=True, dueling=True),
            "squared",
            marks=MARKS,
        ),
        pytest.param(
            spaces.Box(0, 255, (2, 5, 4), np.uint8),
            partial(ConvNetwork, convolutions=[(3, 2, 1)], hidden=[5]),
            "huber",
            marks=MARKS,
        ),
        pytest.param(
            spaces.Box(0, 1, (6, 5, 2), bool),
            partial(ImpalaNetwork, channels=[3], hidden=[4], channels_last=True),
            "huber",
            marks=MARKS,
        ),
    ],
)
def test_update_is_unrolled_for_any_number_of_members(space, build, loss, monkeypatch, capsys):
    """The graph that inductor is given, run as it is on a cohort of 2, though it was unrolled for 7."""
    graphs = []

    def leave_uncompiled(graph, stand_ins, **_):
        graphs.append(graph)
        return SimpleNamespace(current_callable=lambda tensors: graph(*tensors))

    monkeypatch.setattr("qohort.cohort.compiler.compile_fx.compile_fx_inner", leave_uncompiled)
    monkeypatch.setattr("qohort.cohort.program._on_gpu", lambda *tensors: True)  # a graph cannot be called from C++

    def run(mode):
        online = CohortNetwork(lambda: build(space, 3, 1), SEEDS)
        optimizer = MemberAdam(online.parameters(), 1e-2)
        td_loss = TDLoss(online.member_forward, Greedy(), Expected(loss))
        held = {"max_grad_norm": LIMITS, "target_network.tau": TAU}
        update = Update(td_loss, online, online.frozen_copy(), PolyakTarget(0.1), optimizer, held, Compiler(mode))
        batch = small_batch(0)
        shape = batch["action"].shape + space.shape
        for key in ("observation", "next_observation"):
            numbers = (batch[key] * 100).abs().long().flatten()
            batch[key] = numbers.repeat(-(-math.prod(shape) // len(numbers)))[: math.prod(shape)].reshape(shape) % 4
        results = [update(batch) for _ in range(2)]
        return [tensor for result in results for tensor in result], online.parameters_by_name()

    ours, parameters = run("inductor")
    theirs, expected = run("none")
    assert len(graphs) == 1  # the target network's own program is not called
    assert capsys.readouterr().err == ""
    for a, b in zip([*ours, *parameters.values()], [*theirs, *expected.values()], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_update_with_another_optimiser_applies_its_own_step_then_follows():
    online = small_cohort()
    target = online.frozen_copy()
    before = {name: one.clone() for name, one in online.parameters_by_name().items()}
    sgd = torch.optim.SGD(online.parameters(), lr=0.1)
    update = Update(
        loss_of(online), online, target, PolyakTarget(0.1), sgd, {"target_network.tau": TAU}, Compiler("none")
    )
    batch = small_batch(0)
    raw, _ = vmap(grad(loss_of(online), has_aux=True))(before, before, batch)
    sgd.step(closure=lambda: update(batch) and None)
    update.follow()
    for name, old in before.items():
        new = online.parameters_by_name()[name]
        torch.testing.assert_close(new, old - 0.1 * raw[name])
        tau = TAU.view(-1, *[1] * (old.dim() - 1))
        torch.testing.assert_close(target.parameters_by_name()[name], old + tau * (new - old))


@pytest.mark.parametrize("backend", ["tensor", "gymnasium"])
def test_the_target_is_copied_every_so_many_updates(tmp_path, monkeypatch, backend):
    copies, copy_target = [], Update.copy_target
    moment = []

    def noted(update):
        copies.append((moment[0].env_steps, moment[0].gradient_steps))
        copy_target(update)

    def remembered(module):
        moment[:] = [module.progress]
        between_steps(module)

    between_steps = QLearning.between_steps
    monkeypatch.setattr(Update, "copy_target", noted)
    monkeypatch.setattr(QLearning, "between_steps", remembered)
    settings = ("target_network.every=7", "target_network.per=gradient_steps", "train_every=3", "gradient_steps=2")
    run(tmp_path, [3], "compile=none", f"env.backend={backend}", "learning_starts=60", *settings)
    # A batch of 128 is there at 129. Two updates follow it, 132, 135, ...
    assert copies[:3] == [(138, 8), (147, 14), (159, 22)]
    assert len(copies) == 2 * ((399 - 129) // 3 + 1) // 7


def test_hard_target_stays_until_it_is_copied():
    online = small_cohort()
    target = online.frozen_copy()
    before = {name: one.clone() for name, one in target.parameters_by_name().items()}
    optimizer = MemberAdam(online.parameters(), 0.1)
    update = Update(loss_of(online), online, target, HardTarget(10), optimizer, {}, Compiler("none"))
    optimizer.step(closure=lambda: update(small_batch(0)))
    update.follow()
    for name, old in before.items():
        assert torch.equal(target.parameters_by_name()[name], old)
        assert not torch.equal(online.parameters_by_name()[name], old)
    update.copy_target()
    for name, new in online.parameters_by_name().items():
        assert torch.equal(target.parameters_by_name()[name], new)
        assert target.parameters_by_name()[name].data_ptr() != new.data_ptr()


@pytest.mark.parametrize("mode", ["none", "fx"])
def test_without_a_target_the_newest_online_network_is_bootstrapped_from(mode):
    online, twin = small_cohort(), small_cohort()
    optimizer, twins = MemberAdam(online.parameters(), 0.1), MemberAdam(twin.parameters(), 0.1)
    update = Update(loss_of(online), online, online, NoTarget(), optimizer, {}, Compiler(mode))
    copied = twin.frozen_copy()
    update_twin = Update(loss_of(twin), twin, copied, HardTarget(1), twins, {}, Compiler("none"))
    for step in range(3):
        result = update(small_batch(step))
        update_twin.copy_target()
        torch.testing.assert_close(result.td_error, update_twin(small_batch(step)).td_error, rtol=1e-5, atol=1e-5)


FIVE = spaces.Box(-1, 1, (5,))
LONG = [
    *["greedy"] * 3,
    *("other", "greedy", "greedy"),
    *("terminated", "greedy", "greedy"),
    *("truncated", "greedy", "greedy", "greedy"),
]
"""What follows what: greedy actions, one that is not, and greedy ones that end an episode."""


def sparse_cohort(seeds):
    return CohortNetwork(lambda: SparseMLP(FIVE, 3, 1, hidden=(7, 6), sparsity=0.5), seeds)


def obgd(online, rates, **options):
    optimizer = ObGD(online.parameters(), torch.tensor(rates), **options)
    td_loss = TDLoss(online.member_forward, Greedy(), Expected("squared"))
    return optimizer, partial(Update, td_loss, online, online, NoTarget(), optimizer, {})


class SlowMember:
    """One member's network in float64, `ref.ObGD`, and a stream of its own, which begins somewhere in `LONG`."""

    def __init__(self, seed, rate, gamma, trace_decay, kappa):
        start = [one[0].double().numpy() for one in sparse_cohort([seed]).parameters_by_name().values()]
        self.optimizer = ref.ObGD(start, rate, gamma, trace_decay, kappa)
        self.gamma, self._generator, self._time = gamma, np.random.default_rng(seed), seed % 4
        self.steps = set()

    def values(self, observation, parameters):
        value = torch.from_numpy(observation)
        for weight, bias in (parameters[:2], parameters[2:4]):
            value = weight @ value + bias
            value = nn.functional.leaky_relu(nn.functional.layer_norm(value, value.shape), 0.01)
        return parameters[4] @ value + parameters[5]

    def step(self):
        """The transition that the update is given, and the TD error."""
        kind = LONG[self._time % len(LONG)]
        self._time += 1
        observation, following = self._generator.normal(size=(2, 5))
        tensors = [torch.from_numpy(one).requires_grad_() for one in self.optimizer.parameters]
        values = self.values(observation, tensors)
        best = int(values.argmax())
        action = (best + 1) % 3 if kind == "other" else best
        reward = float(self._generator.normal() * self._generator.choice([0.1, 5.0]))
        slopes = [one.numpy() for one in torch.autograd.grad(values[action], tensors)]
        taken, later = float(values[action].detach()), self.values(following, tensors).detach().numpy()
        error = ref.stream_q_error(reward, self.gamma, kind == "terminated", later, taken)
        size = self.optimizer.step(error, slopes, reset=kind != "greedy")
        self.steps.add((size < self.optimizer.lr, abs(error) > 1))
        return {
            "observation": torch.from_numpy(observation).float(),
            "action": torch.tensor(action),
            "reward": torch.tensor(reward),
            "discount": torch.tensor(0.0 if kind == "terminated" else self.gamma),
            "ended": torch.tensor(kind in ("terminated", "truncated")),
            "next_observation": torch.from_numpy(following).float(),
            "expected": torch.tensor(error),
        }


def stacked(transitions):
    """One transition a member as a batch of one, `[M, 1, ...]`."""
    return {key: torch.stack([one[key] for one in transitions]).unsqueeze(1) for key in transitions[0]}


MEMBERS = {2: (1.0, 0.99), 3: (1e-3, 0.9), 8: (0.05, 0.5)}
"""Learning rate and discount factor of the member of each seed: a bounded step, an unbounded one, either."""


@pytest.mark.parametrize(
    ("mode", "seeds"),
    [
        ("none", [3]),
        ("none", [2, 3, 8]),
        ("fx", [3]),
        ("fx", [2, 3, 8]),
        pytest.param("inductor", [2, 3, 8], marks=MARKS),
    ],
)
def test_updates_with_obgd_equal_the_reference_across_episodes_and_exploration(mode, seeds, capsys):
    online = sparse_cohort(seeds)
    optimizer, build = obgd(online, [MEMBERS[seed][0] for seed in seeds], trace_decay=0.7, kappa=3.0)
    update = build(Compiler(mode))
    slow = [SlowMember(seed, *MEMBERS[seed], trace_decay=0.7, kappa=3.0) for seed in seeds]
    start = {name: one.clone() for name, one in online.parameters_by_name().items()}
    for _ in range(2 * len(LONG)):
        batch = stacked([one.step() for one in slow])
        expected = batch.pop("expected")
        results = []
        optimizer.step(closure=lambda batch=batch, results=results: results.append(update(batch)))
        torch.testing.assert_close(results[0].td_error, expected.float(), rtol=1e-4, atol=1e-4)
        for place, (name, parameter) in enumerate(online.network.named_parameters()):
            for m, member in enumerate(slow):
                reference, decay = member.optimizer, member.gamma * 0.7
                moved = reference.parameters[place] - start[name][m].double().numpy()
                seen = (parameter[m].detach() - start[name][m]).numpy()
                np.testing.assert_allclose(seen, moved, rtol=1e-3, atol=2e-5)
                trace = optimizer.state[parameter]["trace"][m].numpy()
                np.testing.assert_allclose(trace, decay * reference.traces[place], rtol=1e-3, atol=2e-4)
    assert optimizer.param_groups[0]["step"] == 2 * len(LONG)
    assert capsys.readouterr().err == ""  # inductor says so where it leaves the update to TorchScript
    # Some steps are bounded and some are not, at TD errors below 1 and above.
    seen = {one for member in slow for one in member.steps}
    assert {(False, False), (False, True)} <= seen
    assert len(seeds) == 1 or {(True, False), (True, True)} <= seen


def test_a_step_of_obgd_by_hand():
    """As in `test_obgd_by_hand` of the reference: the bound is α κ max(|δ|, 1) ‖z‖₁ = 8 each time it is one."""
    optimizer = ObGD([nn.Parameter(torch.zeros(1, 1))], lr=1.0, trace_decay=0.5, kappa=2.0)
    state = {"a": torch.tensor([1.0]), "b": torch.tensor([0.0])}, {name: torch.zeros(1) for name in "ab"}

    def step(error, slopes, discount=0.5, greedy=True, ended=False):
        nonlocal state
        batch = {"rate": torch.tensor(1.0), "discount": torch.tensor([discount]), "ended": torch.tensor([ended])}
        terms = LossTerms(torch.tensor(0.0), torch.tensor([error]), torch.tensor(0.0), torch.tensor([greedy]))
        gradients = {name: torch.tensor([slope]) for name, slope in zip("ab", slopes, strict=True)}
        new, kept = optimizer.apply(state[0], gradients, {"trace": state[1]}, terms, batch)
        state = new, kept["trace"]
        return [float(value) for part in state for value in part.values()]

    assert step(0.5, [2.0, -2.0]) == [1.125, -0.125, 0.5, -0.5]
    assert step(-4.0, [0.5, 0.5]) == [0.625, -0.125, 0.25, 0.0]
    before = state
    assert step(1.0, [-0.25, 0.25], discount=0.0, ended=True) == [0.625, 0.125, 0.0, 0.0]
    for ending in ({"ended": True}, {"greedy": False}):  # a truncation leaves the discount as it is
        state = before
        assert step(1.0, [-0.25, 0.25], **ending) == [0.625, 0.125, 0.0, 0.0]
    state = before
    assert step(1.0, [-0.25, 0.25]) == [0.625, 0.125, 0.0, 0.0625]


@pytest.mark.parametrize("mode", ["none", "fx"])
def test_a_member_of_obgd_is_the_same_to_the_bit_alone_and_goes_on_exactly_from_its_state(mode):
    seeds = list(MEMBERS)
    rates = [rate for rate, _ in MEMBERS.values()]
    slow = [SlowMember(seed, *MEMBERS[seed], trace_decay=0.8, kappa=2.0) for seed in seeds]
    batches = [stacked([one.step() for one in slow]) for _ in range(9)]
    for batch in batches:
        del batch["expected"]

    def run(chosen, stop=None):
        """Train on the members of these places; `stop` updates with one optimiser, the rest with another."""
        online = sparse_cohort([seeds[m] for m in chosen])
        optimizer, build = obgd(online, [rates[m] for m in chosen])
        update = build(Compiler(mode))
        for number, batch in enumerate(batches):
            if number == stop:
                state = optimizer.state_dict()
                optimizer, build = obgd(online, [0.3] * len(chosen))
                optimizer.load_state_dict(state)
                update = build(Compiler(mode))
            update({key: one[list(chosen)] for key, one in batch.items()})
        return online.parameters_by_name(), optimizer

    (together, whole), (halves, second) = run((0, 1, 2)), run((0, 1, 2), stop=4)
    assert whole.param_groups[0]["step"] == second.param_groups[0]["step"] == 9
    assert torch.equal(second.param_groups[0]["lr"], torch.tensor(rates))
    for m in range(3):
        alone, _ = run((m,))
        for name, parameter in together.items():
            assert torch.equal(alone[name][0], parameter[m])
            assert torch.equal(halves[name][m], parameter[m])


def config_of(*overrides):
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        return compose("train", ["agent=stream_q", *overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["replay=uniform"], "optimizer=obgd learns from each transition once: use replay=none"),
        (["head=quantile"], "optimizer=obgd needs the TD error of one value per action: use head=squared"),
        (
            ["env.num_envs=2", "train_every=2"],
            "env.num_envs=2 does not go with the traces of optimizer=obgd: use env.num_envs=1",
        ),
        (["train_every=4"], "train_every=4 does not go with the traces of optimizer=obgd: use train_every=1"),
        (["gradient_steps=3"], "gradient_steps=3 does not go with the traces of optimizer=obgd: use gradient_steps=1"),
        (
            ["network=mlp", "network.noisy=true"],
            "network.noisy=true does not go with the traces of optimizer=obgd: use network.noisy=false",
        ),
        (["max_grad_norm=1"], "max_grad_norm=1.0: optimizer=obgd bounds its steps itself, use max_grad_norm=null"),
    ],
)
def test_obgd_says_what_it_cannot_work_with(overrides, message):
    with pytest.raises(ConfigError) as told:
        check_config(config_of(*overrides))
    assert str(told.value) == message


def test_obgd_fits_its_agent_and_adam_fits_anything():
    (config, *_) = check_config(config_of())
    assert ObGD.incompatibility(config) is None
    assert ObGD.incompatibility(check_config(config_of("head=huber"))[0]) is None
    other = check_config(config_of("optimizer=adam", "env.num_envs=2", "train_every=2", "head=quantile"))[0]
    assert MemberAdam.incompatibility(other) is None
    assert ObGD.incompatibility(other) is not None


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("options", [{}, {"lr": 1e-2, "alpha": 0.95, "eps": 0.01, "centered": True}])
def test_member_rmsprop_equals_torchs_rmsprop(members, options):
    ours, theirs, start = parameters(members), parameters(members), parameters(members)
    steps(MemberRMSprop(ours, **options), ours, 50)
    steps(torch.optim.RMSprop(theirs, **{"lr": 2.5e-4, **options}), theirs, 50)
    for a, b, before in zip(ours, theirs, start, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        assert (a - b).norm() < 1e-4 * (a - before).norm()


def test_rmsprops_epsilon_may_be_inside_the_root():
    """Nature's: v = 0.05 g², m = 0.05 g, and a step of lr g / √(v - m² + ε)."""
    for inside, denominator in ((True, (0.05 * 4 - 0.1**2 + 0.01) ** 0.5), (False, (0.05 * 4 - 0.1**2) ** 0.5 + 0.01)):
        parameter = nn.Parameter(torch.zeros(1, 1))
        optimizer = MemberRMSprop([parameter], 0.5, alpha=0.95, eps=0.01, centered=True, eps_inside_root=inside)
        apply_rule(optimizer, [parameter], [torch.full((1, 1), 2.0)])
        torch.testing.assert_close(parameter.detach(), torch.full((1, 1), -0.5 * 2.0 / denominator))


def test_rmsprop_has_a_learning_rate_for_each_member():
    parameter = nn.Parameter(torch.zeros(2, 3))
    optimizer = MemberRMSprop([parameter], torch.tensor([0.1, 0.02]), alpha=0.0)
    apply_rule(optimizer, [parameter], [torch.full((2, 3), -7.0)])
    torch.testing.assert_close(parameter.detach(), torch.tensor([[0.1] * 3, [0.02] * 3]))

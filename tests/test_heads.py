"""Every bootstrap with every head: against the slow reference, numbers by hand, and other libraries' lines."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad_and_value
from torch.nn import functional as F

import reference as ref
from qohort.agent.bootstrap import Double, ExpectedSarsa, Greedy, Policy, Soft
from qohort.agent.heads import Atoms, Categorical, Expected, FractionEmbedding, ImplicitQuantile, Quantile
from qohort.agent.td_loss import TDLoss
from qohort.networks.vectors import MLP

B, A = 6, 3
BOOTSTRAPS = {
    "greedy": Greedy(),
    "double": Double(),
    "soft": Soft(alpha=0.9, temperature=0.3, clip=-0.7),
    "expected_sarsa": ExpectedSarsa(epsilon=0.2),
}
HEADS = {
    "squared": Expected(),
    "huber": Expected("huber", huber_delta=0.4),
    "categorical": Categorical(v_min=-2.0, v_max=3.0, atoms=7),
    "quantile": Quantile(quantiles=5, kappa=0.6),
    "quantile, not smoothed": Quantile(quantiles=4, kappa=0.0),
    "implicit quantile": ImplicitQuantile(online_samples=4, target_samples=6, policy_samples=5, kappa=0.8),
}


def look_up(parameters, observation, normal, fractions):
    """Outputs `[B, A, atoms]` from a table; at fractions, a quantile function that depends on them, `[B, A, N]`."""
    rows = parameters["values"][observation]
    return rows if fractions is None else rows[..., :1] + rows[..., 1:2] * (fractions.unsqueeze(1) * 2).sin()


def problem(head, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    atoms = 2 if head.fractions else head.atoms
    online, target = {"values": normal(4, A, atoms)}, {"values": normal(4, A, atoms)}
    batch = {
        "observation": torch.randint(4, (B,), generator=generator),
        "action": torch.randint(A, (B,), generator=generator),
        "reward": normal(B),
        "discount": torch.tensor([0.9, 0.0, 0.9, 0.729, 0.0, 1.0], dtype=torch.float64),
        "next_observation": torch.randint(4, (B,), generator=generator),
    }
    for use, count in (head.fractions or {}).items():
        batch[f"fractions_{use}"] = uniform(B, count)
    return online, target, batch


def distribution(head, parameters, batch, observation, use):
    out = look_up(parameters, batch[observation], None, batch.get(f"fractions_{use}"))
    return out.numpy()


def values(head, distribution):
    """The action values of outputs, as the reference sees them."""
    if isinstance(head, Categorical):
        support = np.linspace(head.v_min, head.v_max, head.atoms)
        p = np.exp(distribution) / np.exp(distribution).sum(-1, keepdims=True)
        return (p * support).sum(-1)
    return distribution.mean(-1)


def slow_loss(bootstrap, head, online, target, batch):
    """The losses of the batch by `reference.py`, a sample at a time."""
    implicit = isinstance(head, ImplicitQuantile)
    judge = "policy" if implicit else "target"
    q_target = values(head, distribution(head, target, batch, "next_observation", judge))
    q_online = values(head, distribution(head, online, batch, "next_observation", "policy" if implicit else "online"))
    reward, discount, action = (batch[key].numpy() for key in ("reward", "discount", "action"))
    shift = None
    if isinstance(bootstrap, Soft):
        policy = ref.soft(q_target, bootstrap.temperature)
        shift = ref.entropy_shift(q_target, bootstrap.temperature)
        now = values(head, distribution(head, target, batch, "observation", judge))
        settings_ = bootstrap.alpha, bootstrap.temperature, bootstrap.clip
        reward = reward + ref.munchausen_bonus(now, action, *settings_)
    else:
        policy = {
            "Greedy": lambda: ref.greedy(q_target),
            "Double": lambda: ref.double(q_online, q_target),
            "ExpectedSarsa": lambda: ref.expected_sarsa(q_target, 0.2),
        }[type(bootstrap).__name__]()
    next_target = distribution(head, target, batch, "next_observation", "target")
    chosen = distribution(head, online, batch, "observation", "online")[np.arange(B), action]
    if isinstance(head, Expected):
        backed_up = next_target[..., 0] + (0 if shift is None else shift)
        error = ref.expected_target(reward, discount, backed_up, policy) - chosen[:, 0]
        return [e**2 if head.loss == "squared" else ref.huber(e, head.huber_delta) for e in error]
    if isinstance(head, Categorical):
        p = np.exp(next_target) / np.exp(next_target).sum(-1, keepdims=True)
        support = np.linspace(head.v_min, head.v_max, head.atoms)
        goal = ref.categorical_projection(support, reward, discount, p, policy, shift)
        return list(np.atleast_1d(ref.categorical_loss(chosen, goal)))
    atoms, weights = ref.quantile_targets(reward, discount, next_target, policy, shift)
    taus = batch["fractions_online"].numpy() if implicit else np.tile(ref.quantile_midpoints(head.quantiles), (B, 1))
    return [ref.quantile_huber_loss(chosen[b], taus[b], atoms[b], weights[b], head.kappa) for b in range(B)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("bootstrap", BOOTSTRAPS.values(), ids=BOOTSTRAPS)
def test_every_bootstrap_with_every_head_equals_the_reference(bootstrap, head, seed):
    online, target, batch = problem(head, seed)
    loss, terms = TDLoss(look_up, bootstrap, head)(online, target, batch)
    np.testing.assert_allclose(loss, np.mean(slow_loss(bootstrap, head, online, target, batch)), rtol=1e-9)
    assert terms.td_error.shape == (B,)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("bootstrap", BOOTSTRAPS.values(), ids=BOOTSTRAPS)
def test_gradients_of_every_bootstrap_with_every_head(bootstrap, head):
    online, target, batch = problem(head)
    td_loss = TDLoss(look_up, bootstrap, head)
    table = online["values"].requires_grad_()

    # The target is a constant to the gradient, and so must it be to the finite differences.
    goal = TDLoss._target(td_loss, {"values": table.detach().clone()}, target, batch)
    fixed = TDLoss(look_up, _Fixed(), _WithTarget(head, goal))
    assert torch.autograd.gradcheck(lambda one: fixed({"values": one}, target, batch)[0], table)
    td_loss({"values": table}, target, batch)[0].backward()
    (expected,) = torch.autograd.grad(fixed({"values": table}, target, batch)[0], table)
    torch.testing.assert_close(table.grad, expected)


class _Fixed(Greedy):
    pass


class _WithTarget:
    """A head whose target is given."""

    def __init__(self, head, goal):
        self._head, self._goal = head, goal
        self.fractions = head.fractions

    def __getattr__(self, name):
        return getattr(self._head, name)

    def backup(self, reward, discount, next_target, policy):
        return self._goal


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_importance_weights_are_applied_once(head):
    online, target, batch = problem(head)
    td_loss = TDLoss(look_up, Greedy(), head)
    weight = torch.tensor([1.0, 0.5, 0.0, 0.25, 1.0, 0.1], dtype=torch.float64)
    each = torch.tensor(slow_loss(Greedy(), head, online, target, batch), dtype=torch.float64)
    loss, terms = td_loss(online, target, {**batch, "weight": weight})
    torch.testing.assert_close(loss, (weight * each).mean())
    assert torch.equal(terms.td_error, td_loss(online, target, batch)[1].td_error)


def test_a_target_that_the_replay_has_made_is_taken_as_it_is():
    online, target, batch = problem(Expected())
    goal = torch.arange(B, dtype=torch.float64)
    given_batch = {"observation": batch["observation"], "action": batch["action"], "target": goal}
    _, terms = TDLoss(look_up, Greedy(), Expected())(online, target, given_batch)
    chosen = online["values"][batch["observation"], batch["action"], 0]
    torch.testing.assert_close(terms.td_error, goal - chosen)


def test_projection_by_hand():
    """Atoms 0, 1, 2. Next mass .5 at 0 and .5 at 2 under d = .5, r = .25: values .25 and 1.25."""
    head = Categorical(0.0, 2.0, 3)
    logits = torch.tensor([[[0.5, 1e-38, 0.5]]]).log()
    got = head.backup(torch.tensor([0.25]), torch.tensor([0.5]), logits, Policy(torch.ones(1, 1)))
    torch.testing.assert_close(got, torch.tensor([[0.375, 0.5, 0.125]]))


@pytest.mark.parametrize(("reward", "atom"), [(-9.0, 0), (0.0, 0), (1.0, 1), (2.0, 2), (77.0, 2)])
def test_a_terminated_return_is_one_atom_and_the_supports_edges_catch_what_is_beyond(reward, atom):
    head = Categorical(0.0, 2.0, 3)
    got = head.backup(torch.tensor([reward]), torch.zeros(1), torch.randn(1, 2, 3), Policy(torch.eye(2)[:1]))
    torch.testing.assert_close(got, torch.eye(3)[atom : atom + 1])


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_a_projection_keeps_mass_and_within_the_support_the_mean(data):
    head = Categorical(-3.0, 4.0, data.draw(st.integers(2, 9)))
    logits = torch.tensor(data.draw(st.lists(st.floats(-5, 5), min_size=2 * head.atoms, max_size=2 * head.atoms)))
    logits = logits.double().view(1, 2, head.atoms)
    discount = data.draw(st.floats(0, 1))
    reward = data.draw(st.floats(-3 * (1 - discount), 4 * (1 - discount)))
    probability = data.draw(st.floats(0, 1))
    policy = Policy(torch.tensor([[probability, 1 - probability]], dtype=torch.float64))
    got = head.backup(*torch.tensor([[reward], [discount]], dtype=torch.float64), logits, policy)
    assert (got >= 0).all()
    torch.testing.assert_close(got.sum(-1), torch.ones(1).double())
    wanted = reward + discount * (policy.probabilities * head.mean(logits)).sum()
    support = torch.linspace(-3, 4, head.atoms, dtype=torch.float64)
    torch.testing.assert_close((got * support).sum(), wanted, rtol=1e-9, atol=1e-9)


def test_categorical_td_error_is_the_divergence_and_is_0_at_the_target():
    head = Categorical(0.0, 2.0, 3)
    target = torch.tensor([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]])
    loss, td_error = head.divergence(target.clamp(min=1e-30).log(), target)
    torch.testing.assert_close(td_error, torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(loss[0], -(target[0] * target[0].log()).sum())
    with pytest.raises(ValueError, match=r"v_min=1.0 must be below v_max=1.0"):
        Categorical(1.0, 1.0)


@pytest.mark.parametrize("kappa", [0.0, 1e-3])
@pytest.mark.parametrize("implicit", [False, True])
def test_learned_quantiles_are_those_of_a_known_distribution(implicit, kappa):
    """Gradient descent on the loss against samples of an exponential distribution."""
    rng = np.random.default_rng(0)
    samples = torch.from_numpy(rng.exponential(size=2000)).double()
    fractions = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    head = ImplicitQuantile(kappa=kappa) if implicit else Quantile(5, kappa)
    learned = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([learned], lr=0.02)
    for step in range(1500):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 1500)
        optimizer.zero_grad()
        loss, _ = head.divergence(learned, Atoms(samples.unsqueeze(0), None), fractions.unsqueeze(0))
        loss.sum().backward()
        optimizer.step()
    np.testing.assert_allclose(learned.detach()[0], np.quantile(samples, fractions), atol=0.02)


def test_loss_and_gradients_equal_sb3_contribs_qr_dqn():
    """Against the lines of `sb3_contrib.common.utils.quantile_huber_loss` and `QRDQN.train`."""
    torch.manual_seed(0)
    actions, count, rows = 3, 7, 17
    online, target = nn.Linear(4, actions * count), nn.Linear(4, actions * count)
    batch = {
        "observation": torch.randn(rows, 4),
        "action": torch.randint(actions, (rows,)),
        "reward": torch.randn(rows),
        "discount": 0.99 * (torch.rand(rows) < 0.8).float(),
        "next_observation": torch.randn(rows, 4),
    }
    with torch.no_grad():
        next_quantiles = target(batch["next_observation"]).view(rows, count, actions)
        greedy = next_quantiles.mean(dim=1, keepdim=True).argmax(dim=2, keepdim=True).expand(rows, count, 1)
        next_quantiles = next_quantiles.gather(dim=2, index=greedy).squeeze(dim=2)
        target_quantiles = batch["reward"].unsqueeze(1) + batch["discount"].unsqueeze(1) * next_quantiles
    taken = batch["action"][..., None, None].expand(rows, count, 1)
    current = torch.gather(online(batch["observation"]).view(rows, count, actions), dim=2, index=taken).squeeze(2)
    tau = ((torch.arange(count) + 0.5) / count).view(1, -1, 1)
    pairwise = target_quantiles.unsqueeze(-2) - current.unsqueeze(-1)
    size = pairwise.abs()
    huber = torch.where(size > 1, size - 0.5, pairwise**2 * 0.5)
    theirs = ((tau - (pairwise.detach() < 0).float()).abs() * huber).sum(dim=-2).mean()
    theirs.backward()

    def forward(parameters, observation, normal, fractions):
        return functional_call(online, dict(parameters), (observation,)).view(-1, count, actions).transpose(1, 2)

    weights = {name: parameter.detach() for name, parameter in online.named_parameters()}
    frozen = {name: parameter.detach() for name, parameter in target.named_parameters()}
    gradients, (ours, _) = grad_and_value(TDLoss(forward, Greedy(), Quantile(count)), has_aux=True)(
        weights, frozen, batch
    )
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-6)
    for name, parameter in online.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-6, atol=1e-6)


def test_munchausens_policy_by_hand():
    """Q = (ln 3, 0) τ gives π = (3/4, 1/4)."""
    bootstrap = Soft(alpha=0.5, temperature=2.0, clip=-1.5)
    values = torch.tensor([[2 * np.log(3.0), 0.0]])
    policy = bootstrap(None, values)
    torch.testing.assert_close(policy.probabilities, torch.tensor([[0.75, 0.25]], dtype=torch.float64))
    torch.testing.assert_close(policy.bonus, -2 * torch.tensor([[0.75, 0.25]], dtype=torch.float64).log())
    assert not policy.one_hot
    # τ log π = -0.575 for the first action, -2.77 for the second, which is clipped
    bonus = bootstrap.reward_bonus(values.expand(2, 2), torch.tensor([0, 1]))
    torch.testing.assert_close(bonus, torch.tensor([np.log(0.75), -0.75], dtype=torch.float64))


def test_double_takes_the_online_networks_choice_and_the_targets_value():
    online, target = torch.tensor([[0.0, 5.0, 5.0]]), torch.tensor([[9.0, 1.0, 7.0]])
    policy = Double()(online, target)
    assert policy.probabilities.tolist() == [[0, 1, 0]]
    assert Expected().backup(torch.ones(1), torch.tensor([0.5]), target, policy).tolist() == [1.5]


def test_expected_sarsa_by_hand():
    policy = ExpectedSarsa(0.3)(None, torch.tensor([[1.0, 4.0, 4.0]]))
    torch.testing.assert_close(policy.probabilities, torch.tensor([[0.1, 0.8, 0.1]]))


def test_an_embedded_fraction_by_hand():
    from gymnasium import spaces

    network = MLP(spaces.Box(-1, 1, (4,)), 2, 1, hidden=(3,))
    implicit = FractionEmbedding(network, 2)
    x, tau = torch.randn(1, 4), torch.tensor([[0.0, 0.25]])
    out = implicit(x, tau)
    assert out.shape == (1, 2, 2)
    cosines = torch.tensor([[1.0, 1.0], [1.0, float(np.cos(np.pi / 4))]])
    phi = F.relu(F.linear(cosines, implicit.embedding.weight, implicit.embedding.bias))
    wanted = network.output(network.torso(x) * phi).squeeze(-1).T
    torch.testing.assert_close(out[0], wanted)
    with pytest.raises(ValueError, match=r"head=implicit_quantile needs a network with a torso and an output"):
        FractionEmbedding(nn.Linear(3, 2), 2)

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from torch.func import functional_call, grad, grad_and_value, vmap
from torch.nn import functional as F

from qohort.agent.bootstrap import Greedy, Policy
from qohort.agent.heads import Expected
from qohort.agent.td_loss import TDLoss


def look_up(parameters, observation, normal, fractions):
    """A tabular network: observations are the rows of a table of action values."""
    return parameters["values"][observation].unsqueeze(-1)


def table_loss(head=None):
    return TDLoss(look_up, Greedy(), head or Expected())


def forward_of(module):
    """An ordinary module of action values as one member's network."""
    return lambda p, o, normal, fractions: functional_call(module, dict(p), (o,)).unsqueeze(-1)


def hand_made(gamma=0.9):
    """Three transitions: one that goes on, one terminated, one truncated (which bootstraps)."""
    online = {"values": torch.tensor([[1.0, 2.0], [3.0, 0.5]])}
    target = {"values": torch.tensor([[10.0, 4.0], [0.5, -1.0]])}
    batch = {
        "observation": torch.tensor([0, 1, 1]),
        "action": torch.tensor([1, 0, 1]),
        "reward": torch.tensor([1.0, -2.0, 0.0]),
        "discount": torch.tensor([gamma, 0.0, gamma]),
        "next_observation": torch.tensor([1, 0, 0]),
    }
    return online, target, batch


def test_squared_loss_by_hand():
    online, target, batch = hand_made()
    loss, terms = table_loss()(online, target, batch)
    # y = 1 + 0.9 · 0.5, -2, 0.9 · 10; Q = 2, 3, 0.5
    torch.testing.assert_close(terms.td_error, torch.tensor([-0.55, -5.0, 8.5]))
    torch.testing.assert_close(loss, torch.tensor((0.3025 + 25.0 + 72.25) / 3))
    torch.testing.assert_close(terms.q_mean, torch.tensor(5.5 / 3))


def test_the_value_of_the_actions_taken_by_hand():
    online, target, batch = hand_made()
    value, terms = table_loss().value(online, target, batch)
    torch.testing.assert_close(value, torch.tensor((2.0 + 3.0 + 0.5) / 3))
    loss, same = table_loss()(online, target, batch)
    assert not torch.isclose(loss, value)
    for one, other in zip(terms, same, strict=True):
        assert torch.equal(one, other)
    # One batch of one: its gradient is 1 at what was looked up, whatever the target is.
    single = {key: one[:1] for key, one in batch.items()}
    gradients, _ = grad(table_loss().value, has_aux=True)(online, target, single)
    assert gradients["values"].tolist() == [[0.0, 1.0], [0.0, 0.0]]


def test_an_action_is_greedy_where_none_has_a_greater_value():
    online, target, batch = hand_made()
    online["values"][0] = torch.tensor([2.0, 2.0])  # of equals each is greedy
    _, terms = table_loss()(online, target, {**batch, "action": torch.tensor([1, 0, 1])})
    assert terms.greedy.tolist() == [True, True, False]
    _, terms = table_loss()(online, target, {**batch, "action": torch.tensor([0, 1, 0])})
    assert terms.greedy.tolist() == [True, False, True]


def test_gamma_scales_only_the_bootstrapped_value():
    online, target, batch = hand_made(gamma=0.5)
    _, terms = table_loss()(online, target, batch)
    torch.testing.assert_close(terms.td_error, torch.tensor([-0.75, -5.0, 4.5]))


@pytest.mark.parametrize(
    ("delta", "each"),
    [(1.0, [0.5 * 0.3025, 4.5, 8.0]), (2.0, [0.5 * 0.3025, 8.0, 15.0]), (0.5, [0.15, 2.375, 4.125])],
)
def test_huber_loss_by_hand(delta, each):
    online, target, batch = hand_made()
    loss, terms = table_loss(Expected("huber", huber_delta=delta))(online, target, batch)
    torch.testing.assert_close(loss, torch.tensor(sum(each) / 3))
    torch.testing.assert_close(terms.td_error, torch.tensor([-0.55, -5.0, 8.5]))


def test_choice_and_value_are_the_targets_so_it_is_not_double_q_learning():
    online, target, batch = hand_made()
    assert online["values"][0].argmax() != target["values"][0].argmax()
    _, terms = table_loss()(online, target, batch)
    assert terms.td_error[2] == 0.9 * 10 - 0.5


def test_next_observation_is_ignored_where_terminated():
    online, target, batch = hand_made()
    target["values"] = torch.full((2, 2), 1e6)
    _, terms = table_loss()(online, target, batch)
    assert terms.td_error[1] == -5.0


def test_greedy_policy_is_one_hot_at_the_first_of_equal_actions():
    policy = Greedy()(None, torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [-1.0, -3.0, -2.0]]))
    assert policy.probabilities.tolist() == [[0, 1, 0], [1, 0, 0], [1, 0, 0]]


def test_backup_weighs_next_values_by_the_policy():
    policy, values = torch.tensor([[0.25, 0.75]]), torch.tensor([[4.0, 8.0]])
    y = Expected().backup(torch.tensor([1.0]), torch.tensor([0.5]), values, Policy(policy))
    assert y.tolist() == [1 + 0.5 * (0.25 * 4 + 0.75 * 8)]


def test_gradient_flows_only_through_the_online_value_of_the_action_taken():
    online, target, batch = hand_made()
    online["values"].requires_grad_()
    target["values"].requires_grad_()
    loss, terms = table_loss()(online, target, batch)
    loss.backward()
    td = [-0.55, -5.0, 8.5]
    expected = -2 / 3 * torch.tensor([[0.0, td[0]], [td[1], td[2]]])
    torch.testing.assert_close(online["values"].grad, expected)
    assert target["values"].grad is None
    assert not terms.td_error.requires_grad
    assert not terms.q_mean.requires_grad


def test_no_gradient_through_the_bootstrap_where_online_is_its_own_target():
    _, target, batch = hand_made()
    same = grad(lambda p: table_loss()(p, p, batch)[0])(target)
    apart = grad(lambda p: table_loss()(p, target, batch)[0])(target)
    assert torch.equal(same["values"], apart["values"])
    assert same["values"].abs().sum() > 0


@pytest.mark.parametrize("head", [Expected(), Expected("huber"), Expected("huber", huber_delta=0.3)])
def test_gradcheck(head):
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    names = [name for name, _ in network.named_parameters()]
    shapes = [parameter.shape for parameter in network.parameters()]
    online = [torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True) for shape in shapes]
    target = {name: torch.randn_like(one) for name, one in zip(names, online, strict=True)}
    batch = {
        "observation": torch.randn(6, 3, dtype=torch.float64, generator=generator),
        "action": torch.tensor([0, 1, 2, 3, 0, 2]),
        "reward": torch.randn(6, dtype=torch.float64, generator=generator),
        "discount": torch.tensor([0.9, 0.0, 0.9, 0.9, 0.0, 0.9], dtype=torch.float64),
        "next_observation": torch.randn(6, 3, dtype=torch.float64, generator=generator),
    }
    td_loss = TDLoss(forward_of(network), Greedy(), head)
    assert torch.autograd.gradcheck(
        lambda *leaves: td_loss(dict(zip(names, leaves, strict=True)), target, batch)[0], online
    )


def slow_loss(online, target, batch, delta):
    """The loss, the TD errors and the mean value, a sample at a time; squared where delta is None."""
    losses, errors, values = [], [], []
    for s, a, r, d, t in zip(*(batch[key] for key in batch), strict=True):
        best = max(target[t])
        error = r + d * best - online[s, a]
        if delta is None:
            losses.append(error**2)
        elif abs(error) <= delta:
            losses.append(0.5 * error**2)
        else:
            losses.append(delta * (abs(error) - 0.5 * delta))
        errors.append(error)
        values.append(online[s, a])
    return np.mean(losses), errors, np.mean(values)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), size=st.integers(1, 7), actions=st.integers(1, 4), delta=st.sampled_from([None, 0.5, 1.0, 3.0]))
def test_equals_a_slow_twin(data, size, actions, delta):
    states = 3
    values = hnp.arrays(np.float64, (states, actions), elements=st.floats(-10, 10, width=32))
    online, target = data.draw(values), data.draw(values)
    rows = hnp.arrays(np.int64, size, elements=st.integers(0, states - 1))
    batch = {
        "observation": data.draw(rows),
        "action": data.draw(hnp.arrays(np.int64, size, elements=st.integers(0, actions - 1))),
        "reward": data.draw(hnp.arrays(np.float64, size, elements=st.floats(-10, 10, width=32))),
        "discount": data.draw(hnp.arrays(np.float64, size, elements=st.sampled_from([0.0, 0.9, 0.99, 1.0]))),
        "next_observation": data.draw(rows),
    }
    head = Expected() if delta is None else Expected("huber", huber_delta=delta)
    tensors = {key: torch.from_numpy(value) for key, value in batch.items()}
    tables = [{"values": torch.from_numpy(value)} for value in (online, target)]
    loss, terms = table_loss(head)(*tables, tensors)
    expected_loss, errors, q_mean = slow_loss(online, target, batch, delta)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(terms.td_error, errors, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(terms.q_mean, q_mean, rtol=1e-12, atol=1e-12)


def random_batch(size, generator):
    return {
        "observation": torch.randn(size, 4, generator=generator),
        "action": torch.randint(3, (size,), generator=generator),
        "reward": torch.randn(size, generator=generator),
        "discount": 0.99 * (torch.rand(size, generator=generator) < 0.8).float(),
        "next_observation": torch.randn(size, 4, generator=generator),
    }


def network():
    return nn.Sequential(nn.Linear(4, 37), nn.ReLU(), nn.Linear(37, 21), nn.ReLU(), nn.Linear(21, 3))


def test_loss_and_gradients_equal_stable_baselines3s():
    """Against the lines of `stable_baselines3.DQN.train`, on ordinary modules and autograd."""
    online, target = network(), network()
    batch = random_batch(33, torch.Generator().manual_seed(1))
    dones = (batch["discount"] == 0).float().unsqueeze(1)

    with torch.no_grad():
        next_q_values, _ = target(batch["next_observation"]).max(dim=1)
        target_q_values = batch["reward"].unsqueeze(1) + (1 - dones) * 0.99 * next_q_values.reshape(-1, 1)
    current = torch.gather(online(batch["observation"]), dim=1, index=batch["action"].unsqueeze(1))
    theirs = F.smooth_l1_loss(current, target_q_values)
    theirs.backward()

    td_loss = TDLoss(forward_of(online), Greedy(), Expected("huber"))
    weights = {name: parameter.detach() for name, parameter in online.named_parameters()}
    frozen = {name: parameter.detach() for name, parameter in target.named_parameters()}
    gradients, (ours, _) = grad_and_value(td_loss, has_aux=True)(weights, frozen, batch)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-6)
    for name, parameter in online.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-6, atol=1e-6)


def test_lifted_over_members_equals_one_by_one():
    generator = torch.Generator().manual_seed(2)
    module = network()
    td_loss = TDLoss(forward_of(module), Greedy(), Expected())
    online, target = (
        {
            name: torch.randn(3, *parameter.shape, generator=generator) * 0.3
            for name, parameter in module.named_parameters()
        }
        for _ in range(2)
    )
    batches = [random_batch(5, generator) for _ in range(3)]
    stacked = {key: torch.stack([batch[key] for batch in batches]) for key in batches[0]}
    loss, terms = vmap(td_loss)(online, target, stacked)
    for m, batch in enumerate(batches):
        alone, terms_alone = td_loss({n: t[m] for n, t in online.items()}, {n: t[m] for n, t in target.items()}, batch)
        torch.testing.assert_close(loss[m], alone, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(terms.td_error[m], terms_alone.td_error, rtol=1e-5, atol=1e-5)

"""Actions of several numbers: the TD loss of branches by hand, acting, storing and evaluating."""

import copy
import pickle

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.func import grad_and_value, vmap

import locks
from qohort.agent.bootstrap import Bootstrap, Double, ExpectedSarsa, Greedy, Soft
from qohort.agent.branches import BranchedTDLoss
from qohort.agent.evaluation import random_actions
from qohort.agent.exploration import Boltzmann, EpsilonGreedy, act_in_branches, draws_of
from qohort.agent.heads import Categorical, Expected, ImplicitQuantile, Quantile
from qohort.agent.td_loss import TDLoss
from qohort.cohort.schedules import ConstantSchedule
from qohort.environments.actions import actions_of, as_counted, from_record, supported
from qohort.networks.branches import BranchedActions, branches_of, greedy_actions
from qohort.networks.layers import ActionValues
from qohort.replay.lambda_returns import is_greedy, state_values

BRANCHES = BranchedActions((2, 3))


def test_branches_are_a_number_of_actions_with_parts():
    assert BRANCHES == 5
    assert BRANCHES.parts == (slice(0, 2), slice(2, 5))
    assert branches_of(BRANCHES) is BRANCHES
    assert branches_of(5) is None
    for again in (copy.deepcopy(BRANCHES), pickle.loads(pickle.dumps(BRANCHES))):
        assert (again, again.sizes, again.parts) == (5, (2, 3), BRANCHES.parts)


def look_up(parameters, observation, normal, fractions):
    """Outputs `[B, A, atoms]` from a table; at fractions, a quantile function that depends on them, `[B, A, N]`."""
    rows = parameters["values"][observation]
    return rows if fractions is None else rows[..., :1] + rows[..., 1:2] * (fractions.unsqueeze(1) * 2).sin()


def hand_made():
    """Two transitions, one of which terminated."""
    online = {"values": torch.tensor([[1.0, 2.0, 0.0, 3.0, 4.0], [0.0, 1.0, 5.0, 3.0, 4.0]]).unsqueeze(-1)}
    target = {"values": torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0], [6.0, 2.0, -1.0, 4.0, 0.0]]).unsqueeze(-1)}
    batch = {
        "observation": torch.tensor([0, 0]),
        "action": torch.tensor([[1, 2], [0, 0]]),
        "reward": torch.tensor([1.0, -2.0]),
        "discount": torch.tensor([0.5, 0.0]),
        "next_observation": torch.tensor([1, 1]),
    }
    return online, target, batch


@pytest.mark.parametrize(
    ("bootstrap", "next_value"),
    [
        (Greedy(), (6.0 + 4.0) / 2),
        (Double(), (2.0 - 1.0) / 2),  # the online network chooses 1 and 0
        (ExpectedSarsa(0.3), (0.7 * 6 + 0.3 * 4 + 0.7 * 4 + 0.3 * 1) / 2),
    ],
)
def test_the_target_is_the_mean_over_branches_by_hand(bootstrap, next_value):
    online, target, batch = hand_made()
    loss, terms = BranchedTDLoss(look_up, bootstrap, Expected(), branches=BRANCHES)(online, target, batch)
    # Q of the actions taken: 2 and 4, 1 and 0; the targets are y and -2
    y = 1 + 0.5 * next_value
    torch.testing.assert_close(loss, torch.tensor((((y - 2) ** 2 + (y - 4) ** 2) / 2 + (9 + 4) / 2) / 2))
    torch.testing.assert_close(terms.td_error, torch.tensor([abs(y - 2) + abs(y - 4), 5.0]))
    torch.testing.assert_close(terms.q_mean, torch.tensor((2 + 4 + 1 + 0) / 4))
    assert terms.greedy.tolist() == [True, False]


def test_an_action_is_greedy_if_all_branches_are():
    online, target, batch = hand_made()
    loss = BranchedTDLoss(look_up, Greedy(), Expected(), branches=BRANCHES)
    for action, greedy in (([1, 2], True), ([1, 1], False), ([0, 2], False)):
        _, terms = loss(online, target, {**batch, "action": torch.tensor([action, action])})
        assert terms.greedy.tolist() == [greedy, greedy]


def test_the_gradient_of_each_branch_is_half_its_own_by_hand():
    online, target, batch = hand_made()
    single = {name: one[1:] for name, one in batch.items()}
    differentiated = grad_and_value(BranchedTDLoss(look_up, Greedy(), Expected(), branches=BRANCHES), has_aux=True)
    gradients, _ = differentiated(online, target, single)
    # ½ ((-2 - 1)² + (-2 - 0)²) at the values 1 and 0
    assert gradients["values"][0, :, 0].tolist() == [3.0, 0.0, 2.0, 0.0, 0.0]
    assert not gradients["values"][1].any()


def test_importance_weights_apply_to_the_mean_of_the_branches():
    online, target, batch = hand_made()
    loss = BranchedTDLoss(look_up, Greedy(), Expected(), branches=BRANCHES)
    each = [loss(online, target, {name: one[i : i + 1] for name, one in batch.items()})[0] for i in (0, 1)]
    weighted, terms = loss(online, target, {**batch, "weight": torch.tensor([0.25, 1.0])})
    torch.testing.assert_close(weighted, (0.25 * each[0] + each[1]) / 2)
    assert torch.equal(terms.td_error, loss(online, target, batch)[1].td_error)


def test_a_soft_target_is_the_mean_of_those_of_the_branches_by_hand():
    online, target, batch = hand_made()
    target["values"][0, :, 0] = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0])
    single = {name: one[:1] for name, one in batch.items()} | {"reward": torch.tensor([5.0])}
    soft = Soft(alpha=0.8, temperature=0.5, clip=-0.7)
    _, terms = BranchedTDLoss(look_up, soft, Expected(), branches=BRANCHES)(online, target, single)

    def state(values):
        return 0.5 * np.log(np.exp(np.array(values) / 0.5).sum())  # τ log Σ exp(Q / τ)

    bonus = [max(-0.7, 0.0 - state([1.0, 0.0])), max(-0.7, 1.0 - state([0.0, 0.0, 1.0]))]
    assert bonus[0] == -0.7 < bonus[1] < 0
    y = 5 + 0.8 * np.mean(bonus) + 0.5 * np.mean([state([6.0, 2.0]), state([-1.0, 4.0, 0.0])])
    torch.testing.assert_close(terms.td_error, torch.tensor([(y - 2) + (y - 4)], dtype=torch.float32))


BOOTSTRAPS = {
    "greedy": Greedy(),
    "double": Double(),
    "soft": Soft(alpha=0.9, temperature=0.3, clip=-0.7),
    "expected_sarsa": ExpectedSarsa(epsilon=0.2),
}
HEADS = {
    "huber": Expected("huber", huber_delta=0.4),
    "categorical": Categorical(v_min=-2.0, v_max=3.0, atoms=7),
    "quantile": Quantile(quantiles=5, kappa=0.6),
    "implicit quantile": ImplicitQuantile(online_samples=4, target_samples=6, policy_samples=5, kappa=0.8),
}


def problem(head, sizes, size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    atoms = 2 if head.fractions else head.atoms
    online, target = {"values": normal(4, sum(sizes), atoms)}, {"values": normal(4, sum(sizes), atoms)}
    batch = {
        "observation": torch.randint(4, (size,), generator=generator),
        "action": torch.stack([torch.randint(n, (size,), generator=generator) for n in sizes], -1),
        "reward": normal(size),
        "discount": torch.tensor([0.9, 0.0, 0.9, 0.729, 0.0, 1.0], dtype=torch.float64)[:size],
        "next_observation": torch.randint(4, (size,), generator=generator),
    }
    for use, count in (head.fractions or {}).items():
        batch[f"fractions_{use}"] = torch.rand(size, count, generator=generator, dtype=torch.float64)
    return online, target, batch


@pytest.mark.parametrize("bootstrap", BOOTSTRAPS.values(), ids=BOOTSTRAPS)
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_one_branch_is_an_ordinary_action(bootstrap, head):
    online, target, batch = problem(head, (3,))
    loss, terms = BranchedTDLoss(look_up, bootstrap, head, branches=BranchedActions((3,)))(online, target, batch)
    plain, plain_terms = TDLoss(look_up, bootstrap, head)(online, target, {**batch, "action": batch["action"][:, 0]})
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(terms.td_error, plain_terms.td_error.abs())
    assert torch.equal(terms.greedy, plain_terms.greedy)


def alone(parameters, part):
    return {"values": parameters["values"][:, part]}


@pytest.mark.parametrize("bootstrap", BOOTSTRAPS.values(), ids=BOOTSTRAPS)
@pytest.mark.parametrize("head", [HEADS["categorical"], HEADS["quantile"]], ids=["categorical", "quantile"])
def test_the_target_distribution_is_the_mixture_of_those_of_the_branches(bootstrap, head):
    """A loss that is linear in the target distribution is the mean of the losses with the targets of each branch."""
    sizes = (3, 2, 4)
    branches = BranchedActions(sizes)
    online, target, batch = problem(head, sizes)
    batch["reward"] = batch["reward"] * 0.1  # so that no bonus is at its clip in one branch only
    if bootstrap.adds_to_reward:
        bootstrap = Soft(alpha=0.0, temperature=0.3)
    loss, _ = BranchedTDLoss(look_up, bootstrap, head, branches=branches)(online, target, batch)
    each = []
    for source in branches.parts:  # the branch whose target all others get
        plain = TDLoss(look_up, bootstrap, head)
        with torch.no_grad():
            y = plain._target(alone(online, source), alone(target, source), {**batch, "action": batch["action"][:, 0]})
        for k, part in enumerate(branches.parts):
            taken = alone(online, part)["values"][batch["observation"], batch["action"][:, k]]
            each.append(head.divergence(taken, y)[0].mean())
    torch.testing.assert_close(loss, torch.stack(each).mean())


@pytest.mark.parametrize("bootstrap", BOOTSTRAPS.values(), ids=BOOTSTRAPS)
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_lifted_over_members_equals_one_by_one(bootstrap, head):
    sizes = (3, 2)
    problems = [problem(head, sizes, seed=seed) for seed in range(3)]
    differentiated = grad_and_value(
        BranchedTDLoss(look_up, bootstrap, head, branches=BranchedActions(sizes)), has_aux=True
    )
    stacked = [{name: torch.stack([one[i][name] for one in problems]) for name in problems[0][i]} for i in range(3)]
    gradients, (loss, terms) = vmap(differentiated)(*stacked)
    for m, one in enumerate(problems):
        own_gradients, (own_loss, own_terms) = differentiated(*one)
        torch.testing.assert_close(gradients["values"][m], own_gradients["values"])
        torch.testing.assert_close(loss[m], own_loss)
        torch.testing.assert_close(terms.td_error[m], own_terms.td_error)


def test_a_greedy_policy_with_a_bonus_keeps_it():
    class Paid(Bootstrap):
        def __call__(self, next_online, next_target):
            return Greedy()(next_online, next_target)._replace(bonus=torch.full_like(next_target, 10.0))

    online, target, batch = hand_made()
    _, terms = BranchedTDLoss(look_up, Paid(), Expected(), branches=BRANCHES)(online, target, batch)
    y = 1 + 0.5 * (5 + 10)
    torch.testing.assert_close(terms.td_error[0], torch.tensor(abs(y - 2) + abs(y - 4)))


def test_dueling_branches_share_the_value_and_have_advantages_of_their_own_by_hand():
    values = ActionValues(1, BRANCHES, 1, dueling=True)
    with torch.no_grad():
        for parameter in values.parameters():
            parameter.zero_()
        values.value.bias.fill_(7.0)
        values.advantage.bias.copy_(torch.tensor([1.0, 3.0, 0.0, 3.0, 6.0]))
    assert values(torch.zeros(1, 1))[0, :, 0].tolist() == [6.0, 8.0, 4.0, 7.0, 10.0]


def never():
    raise AssertionError("no value is needed")


def test_each_branch_explores_by_itself_by_hand():
    exploration = EpsilonGreedy(ConstantSchedule(0.5))
    assert draws_of(exploration, BRANCHES) == 4
    values = np.array([[[1.0, 0.0, 0.0, 0.0, 1.0]] * 4])
    uniforms = np.array([[[0.9, 0.9, 0.9, 0.0], [0.1, 0.9, 0.9, 0.0], [0.9, 0.9, 0.1, 0.4], [0.1, 0.1, 0.1, 0.1]]])
    calls = []
    actions = act_in_branches(exploration, lambda: calls.append(1) or values, np.array([0.5]), uniforms, BRANCHES)
    assert actions.tolist() == [[[0, 2], [1, 2], [0, 1], [0, 0]]]
    assert actions.dtype == np.int64
    assert calls == [1]
    act_in_branches(exploration, never, np.array([1.0]), uniforms, BRANCHES)


def test_boltzmann_has_a_number_for_each_action_of_each_branch():
    exploration = Boltzmann(ConstantSchedule(1.0))
    branches = BranchedActions((3, 2))
    assert draws_of(exploration, branches) == 5
    uniforms = np.full((2, 3, 5), 0.5)
    uniforms[0, 0, 2] = uniforms[0, 0, 4] = 0.999
    actions = act_in_branches(exploration, lambda: np.zeros((2, 3, 5)), np.ones(2), uniforms, branches)
    assert actions.shape == (2, 3, 2)
    assert actions[0, 0].tolist() == [2, 1]


def test_evaluation_replaces_the_numbers_of_an_action_one_by_one():
    greedy = torch.tensor([[[0, 2], [1, 1]]])
    uniforms = torch.tensor([[[[0.05, 0.9], [0.5, 0.0]], [[0.5, 0.0], [0.05, 0.4]]]], dtype=torch.float64)
    mixed = random_actions(greedy, torch.tensor(BRANCHES.sizes), uniforms, 0.1)
    assert mixed.tolist() == [[[1, 2], [1, 1]]]


def test_greedy_actions_by_hand():
    values = torch.tensor([[1.0, 2.0, 0.0, 0.0, -1.0]])
    assert greedy_actions(values, BRANCHES).tolist() == [[1, 0]]
    assert greedy_actions(values, 5).tolist() == [1]


def test_lambda_returns_use_the_mean_over_branches_by_hand():
    q = np.array([[1.0, 2.0, 6.0, 3.0, 4.0], [5.0, 0.0, 0.0, 1.0, 0.0]])
    assert state_values(q, BRANCHES).tolist() == [4.0, 3.0]
    assert state_values(q, None).tolist() == [6.0, 5.0]
    assert is_greedy(q, np.array([[1, 0], [0, 0]]), BRANCHES).tolist() == [True, False]
    assert is_greedy(q, np.array([2, 1]), None).tolist() == [True, False]


def test_spaces_of_several_numbers():
    assert actions_of(spaces.MultiDiscrete([3, 2])).sizes == (3, 2)
    assert actions_of(spaces.MultiBinary(3)).sizes == (2, 2, 2)
    assert branches_of(actions_of(spaces.Discrete(4, start=2))) is None
    for space in (spaces.MultiDiscrete([[2, 3], [2, 2]]), spaces.MultiBinary((2, 2)), spaces.Box(-1, 1, (2,))):
        assert not supported(space)


def test_actions_are_counted_as_the_environment_does():
    space = spaces.MultiDiscrete(np.array(locks.SIZES), dtype=np.int32, start=np.array(locks.START))
    actions = np.array([[0, 0], [1, 2]])
    counted = as_counted(space, actions)
    assert counted.tolist() == [[1, -1], [2, 1]]
    assert counted.dtype == np.int32
    assert all(space.contains(one) for one in counted)
    again = from_record(space, counted[1].tolist())
    assert again.dtype == np.int32
    assert again.tolist() == [2, 1]
    switches = as_counted(spaces.MultiBinary(2), actions % 2)
    assert all(spaces.MultiBinary(2).contains(one) for one in switches)
    plain = np.array([0, 1])
    assert as_counted(spaces.Discrete(2), plain) is plain
    assert as_counted(spaces.Discrete(2, start=5), plain).tolist() == [5, 6]
    assert isinstance(from_record(spaces.Discrete(2), 1), np.int64)

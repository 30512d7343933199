"""λ-returns against the recursive definition; the blocks and rollouts that they are made of against plain lists."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

import reference as ref
from qohort.cohort.program import Compiler
from qohort.cohort.schedules import Progress
from qohort.cohort.state import merge_states, split_state
from qohort.replay.base import ReplaySpec
from qohort.replay.lambda_returns import LambdaReplay, Rollout, in_rows, lambda_returns, traces
from qohort.replay.transition import Transition

BOX = spaces.Box(-np.inf, np.inf, (2,), np.float32)
NOW = Progress(100, np.zeros(2, dtype=np.int64))
A = 3


def spec(num_envs=1, batch_size=4, train_every=12, seeds=(0, 1)):
    gammas = torch.tensor([0.9, 0.5])[: len(seeds)]
    return ReplaySpec(
        BOX, num_envs, batch_size, train_every, gammas, seeds, 10_000, torch.device("cpu"), Compiler("none")
    )


def q_of(observation):
    """Action values of an observation (episode, time), some of them equal."""
    episode, time = observation
    return [np.sin(episode + 2 * time + a * (episode % 3)) for a in range(A)]


def values(observation):
    rows = [[q_of(one) for one in member.tolist()] for member in observation]
    return torch.tensor(rows, dtype=torch.float64)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), length=st.integers(1, 9), q_lambda=st.sampled_from([0.0, 0.3, 0.9, 1.0]), watkins=st.booleans())
def test_returns_equal_the_recursive_definition(data, length, q_lambda, watkins):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    reward, q = rng.normal(size=length), rng.normal(size=(length + 1, A))  # q[t]: of what step t began with
    terminated, truncated = rng.random(length) < 0.2, rng.random(length) < 0.2
    ended, action = terminated | truncated, rng.integers(0, A, length)
    discount, value = np.where(terminated, 0.0, 0.9), q[1:].max(-1)
    greedy = q[np.arange(length), action] == q[:-1].max(-1)
    lambdas = ref.watkins_lambdas(q_lambda, ended, q[:-1], action) if watkins else ref.peng_lambdas(q_lambda, ended)
    expected = ref.lambda_returns(reward, discount, value, lambdas)
    got = lambda_returns(reward, discount, value, traces(q_lambda, ended, greedy if watkins else None))
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_returns_by_hand():
    """Three steps of reward 1, γ = ½, λ = ½, values 4, 2 and 8; then with the second step terminating."""
    ones, value = np.ones(3), np.array([4.0, 2.0, 8.0])
    # G3 = 1 + 4 = 5; G2 = 1 + ½ (½ 2 + ½ 5) = 2.75; G1 = 1 + ½ (½ 4 + ½ 2.75) = 2.6875
    got = lambda_returns(ones, ones / 2, value, traces(0.5, np.zeros(3, dtype=bool), None))
    assert got.tolist() == [2.6875, 2.75, 5.0]
    ended = np.array([False, True, False])
    got = lambda_returns(ones, np.where(ended, 0, 0.5), value, traces(0.5, ended, None))
    assert got.tolist() == [1 + 0.5 * (2 + 0.5), 1.0, 5.0]


class Episodes:
    """Environments of one member that observe (episode, time) and end at random."""

    def __init__(self, num_envs, seed):
        self.rng = np.random.default_rng(seed)
        self.at, self.begun, self.history = [[e, 0] for e in range(num_envs)], num_envs, [[] for _ in range(num_envs)]

    def step(self):
        rows = []
        for e, (episode, time) in enumerate(self.at):
            kind = self.rng.choice(["goes on", "terminated", "truncated"], p=[0.8, 0.1, 0.1])
            step = ref.Step(
                (episode, time),
                int(self.rng.integers(A)),
                float(self.rng.integers(-3, 4)),
                kind == "terminated",
                kind == "truncated",
                (episode, time + 1),
            )
            self.at[e] = [episode, time + 1] if kind == "goes on" else [self.begun, 0]
            self.begun += kind != "goes on"
            self.history[e].append(step)
            rows.append(step)
        return rows

    def returns(self, steps, gamma, q_lambda, watkins):
        """The λ-return of each of some consecutive steps of one environment, by observation."""
        ended = np.array([one.terminated or one.truncated for one in steps])
        q = np.array([q_of(one.observation) for one in steps])
        action = np.array([one.action for one in steps])
        lambdas = ref.watkins_lambdas(q_lambda, ended, q, action) if watkins else ref.peng_lambdas(q_lambda, ended)
        reward = np.array([one.reward for one in steps])
        discount = np.array([0.0 if one.terminated else gamma for one in steps])
        value = np.array([max(q_of(one.next_observation)) for one in steps])
        found = ref.lambda_returns(reward, discount, value, lambdas)
        return {one.observation: (one.action, g) for one, g in zip(steps, found, strict=True)}


def add(replay, members):
    columns = list(zip(*[zip(*member.step(), strict=True) for member in members], strict=True))
    observation, action, reward, terminated, truncated, after = (np.array(column) for column in columns)
    replay.add(
        Transition(observation.astype(np.float32), action, reward, terminated, truncated, after.astype(np.float32))
    )


def restored(replay, make):
    state = replay.state_dict()
    again = make()
    again.load_state_dict(merge_states([split_state(state, m) for m in range(2)]))
    return again


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("saved", [False, True])
def test_a_rollout_is_gone_through_without_replacement_with_its_returns(num_envs, saved):
    def make():
        return Rollout(spec(num_envs), q_lambda=0.7)

    replay, members = make(), [Episodes(num_envs, seed) for seed in range(2)]
    for round in range(3):
        for _ in range(12 // num_envs):
            add(replay, members)
            replay = restored(replay, make) if saved else replay
        replay.refresh(values)
        for _ in range(2):  # epochs
            seen = [[], []]
            for _ in range(3):
                batch = replay.sample(NOW)
                replay = restored(replay, make) if saved else replay
                for m in range(2):
                    columns = (batch[key][m].tolist() for key in ("observation", "action", "target"))
                    seen[m] += [(tuple(o), a, g) for o, a, g in zip(*columns, strict=True)]
            for m, member in enumerate(members):
                steps = [one[-12 // num_envs :] for one in member.history]
                assert all(len(one) == 12 // num_envs for one in steps)
                expected = {}
                for one in steps:
                    expected |= member.returns(one, [0.9, 0.5][m], 0.7, watkins=False)
                assert sorted(o for o, _, _ in seen[m]) == sorted(expected)
                for o, a, g in seen[m]:
                    assert (a, pytest.approx(expected[o][1], rel=1e-5, abs=1e-5)) == (expected[o][0], g), round


@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize("watkins", [False, True])
@pytest.mark.parametrize("capacity", [14, 1000])
def test_blocks_of_a_replay_have_their_returns(num_envs, watkins, capacity):
    def make():
        return LambdaReplay(spec(num_envs), capacity, 0.8, block=5, blocks=4, refresh_every=6, watkins=watkins)

    replay, members = make(), [Episodes(num_envs, seed) for seed in range(2)]
    kept = None
    for row in range(40):
        add(replay, members)
        replay = restored(replay, make) if row % 5 == 0 else replay
        if row < 12:
            continue
        looked = []
        replay.refresh(lambda o, looked=looked: looked.append(1) or values(o))
        assert bool(looked) == ((row + 1) * num_envs // 6 != row * num_envs // 6 or row == 12)
        slots, before = replay._targets.held["observation"], kept
        kept = slots.clone()
        assert before is None or looked or torch.equal(before, kept)
        if not looked:
            continue
        for m, member in enumerate(members):
            # Each block is some environment's consecutive steps, all of them still held.
            for block in range(4):
                part = slice(5 * block, 5 * block + 5)
                first = tuple(replay._targets.held["observation"][m, part][0].int().tolist())
                (steps,) = [
                    one[i : i + 5]
                    for one in member.history
                    for i in range(len(one))
                    if one[i].observation == first and i >= len(one) - capacity // num_envs
                ]
                expected = member.returns(steps, [0.9, 0.5][m], 0.8, watkins)
                held = {name: one[m, part] for name, one in replay._targets.held.items()}
                assert [tuple(o) for o in held["observation"].int().tolist()] == [one.observation for one in steps]
                assert held["action"].tolist() == [one.action for one in steps]
                wanted = torch.tensor([g for _, g in expected.values()])
                torch.testing.assert_close(held["target"].double(), wanted.double(), rtol=1e-5, atol=1e-5)
        drawn = torch.cat([replay.sample(NOW)["target"] for _ in range(5)], 1)
        assert torch.equal(drawn.sort(1).values, replay._targets.held["target"].sort(1).values)


def test_many_observations_are_looked_at_in_rows_of_one_shape():
    shapes = []

    def look(observation):
        shapes.append(observation.shape[1])
        return observation.double()

    observation = torch.rand(2, 1200, 3)
    assert np.array_equal(in_rows(look, observation), observation.double().numpy())
    assert set(shapes) == {512}
    assert np.array_equal(in_rows(look, observation[:, :7]), observation[:, :7].double().numpy())

"""Sum trees against lists, and n-step and prioritised replay against oracles, through saving and restoring."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch.func import vmap

import reference as ref
from matrix import MARKS
from qohort.agent.update import Update
from qohort.cohort.program import Compiler
from qohort.cohort.schedules import ConstantSchedule, LinearSchedule, Progress
from qohort.cohort.state import merge_states, split_state
from qohort.cohort.streams import member_seed
from qohort.replay.base import ReplaySpec
from qohort.replay.prioritized import PrioritizedReplay
from qohort.replay.ring import UniformReplay
from qohort.replay.sum_tree import FAN, SumTree
from qohort.replay.transition import Transition
from test_exactness import run

BOX = spaces.Box(-np.inf, np.inf, (2,), np.float32)


def now(members=1, env_steps=50):
    return Progress(100, np.zeros(members, dtype=np.int64), env_steps)


def spec(seeds=(0,), num_envs=1, batch_size=4, gamma=(0.9,), mode="none"):
    gammas = torch.tensor(gamma if len(gamma) == len(seeds) else gamma * len(seeds))
    return ReplaySpec(BOX, num_envs, batch_size, 1, gammas, seeds, 10_000, torch.device("cpu"), Compiler(mode))


@pytest.mark.parametrize(("new_priority", "expected"), [("current", [0.5, 0.5, 0.5]), ("ever", [0.5, 0.5, 3.0])])
def test_new_transitions_get_the_largest_priority(new_priority, expected):
    """Of those in the replay, or of all that there have been; 1 before there is any."""

    def made():
        return PrioritizedReplay(spec(batch_size=2), ConstantSchedule(1.0), 10, 1, 1.0, 1e-9, new_priority)

    def add(replay):
        zeros = np.zeros((1, 1))
        flags = zeros.astype(bool)
        replay.add(Transition(np.zeros((1, 1, 2), np.float32), zeros.astype(np.int64), zeros, flags, flags, flags))

    replay = made()
    for error in ([3.0, 3.0], [0.5, 0.5]):
        add(replay), add(replay)
        replay.sample(now())
        replay._index = np.array([[0, 1]])
        replay.update_priorities(torch.tensor([error]))
    np.testing.assert_allclose(replay._tree.values[0, 2:4], 3.0)  # both times, 3 was the largest when they came
    replay._index = np.array([[2, 3]])
    replay.update_priorities(torch.tensor([[0.5, 0.5]]))
    resumed = made()
    resumed.load_state_dict(replay.state_dict())
    for one in (replay, resumed):
        add(one)
        one.sample(now())
        np.testing.assert_allclose(one._tree.values[0, 2:5], expected)


NUMBERS = st.floats(0, 1e6, width=32).filter(lambda one: one == 0 or one > 1e-3)


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_trees_equal_lists(data):
    members, size = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5 * FAN) | st.integers(1, 3 * FAN**3))
    tree, lists = SumTree(members, size), np.zeros((members, size))
    for _ in range(data.draw(st.integers(1, 6))):
        if data.draw(st.booleans(), "fill"):
            start = data.draw(st.integers(0, size - 1))
            stop = data.draw(st.integers(start + 1, size))
            value = np.array(data.draw(st.lists(NUMBERS, min_size=members, max_size=members)))[:, None]
            tree.fill(start, stop, value)
            lists[:, start:stop] = value
        else:
            count = data.draw(st.integers(1, 5))
            draws = st.lists(st.integers(0, size - 1), min_size=count, max_size=count)
            index = np.array([data.draw(draws) for _ in range(members)])
            value = np.array([data.draw(st.lists(NUMBERS, min_size=count, max_size=count)) for _ in range(members)])
            tree.put(index, value)
            for m in range(members):
                for i, v in zip(index[m], value[m], strict=True):
                    lists[m, i] = v
        np.testing.assert_array_equal(tree.values[:, :size], lists)
        np.testing.assert_allclose(tree.total, lists.sum(1), rtol=1e-12)
        np.testing.assert_array_equal(tree.maximum, lists.max(1))
        if (lists.sum(1) > 0).all():
            fractions = np.array(
                [data.draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=3, max_size=3))] * members
            )
            mass = fractions * tree.total[:, None]
            index, value = tree.find(mass)
            sums = np.cumsum(lists, axis=1)
            for m in range(members):
                for k in range(3):
                    i = index[m, k]
                    assert lists[m, i] == value[m, k] > 0
                    slack = 1e-9 * tree.total[m]
                    assert sums[m, i] - lists[m, i] - slack <= mass[m, k] <= sums[m, i] + slack


def test_no_number_that_is_0_is_found_at_the_very_end():
    tree = SumTree(1, 3 * FAN)
    tree.fill(0, 7, np.array([[0.1]]))
    index, _ = tree.find(np.nextafter(tree.total, 0)[:, None])
    assert index == 6
    index, _ = tree.find(tree.total[:, None] * (1 + 1e-12))  # beyond the total, as rounding may have it
    assert index == 6


@pytest.mark.parametrize("diverged", [np.nan, np.inf])
def test_a_member_that_has_diverged_finds_places_that_are_there_and_leaves_its_neighbours_alone(diverged):
    tree, sound = SumTree(2, 3 * FAN), SumTree(1, 3 * FAN)
    for one in (tree, sound):
        one.fill(1, 20, np.ones((1, 1)))  # place 0 holds 0
    tree.put(np.array([[2], [5]]), np.array([[diverged], [4.0]]))
    sound.put(np.array([[5]]), np.array([[4.0]]))
    fractions = np.linspace(0, 1, 16, endpoint=False)
    with np.errstate(invalid="ignore"):
        index, _ = tree.find(fractions * tree.total[:, None])
    assert ((index >= 0) & (index < 3 * FAN)).all()
    assert np.array_equal(index[1:], sound.find(fractions * sound.total[:, None])[0])


def test_a_tree_of_many_numbers_does_not_drift():
    tree, numbers, rng = SumTree(2, 1000), np.zeros((2, 1000)), np.random.default_rng(0)
    for _ in range(3000):
        index, value = rng.integers(0, 1000, (2, 32)), rng.random((2, 32)) ** 8
        tree.put(index, value)
        for m in range(2):
            numbers[m, index[m]] = value[m]
    np.testing.assert_allclose(tree.total, numbers.sum(1), rtol=1e-13)


def test_a_members_tree_has_the_same_bits_alone_and_among_others():
    rng = np.random.default_rng(1)
    index, value, mass = rng.integers(0, 100, (5, 20, 16)), rng.random((5, 20, 16)), rng.random((5, 20, 16))
    together, alone = SumTree(5, 100), SumTree(1, 100)
    for step in range(20):
        together.put(index[:, step], value[:, step])
        alone.put(index[3:4, step], value[3:4, step])
        found = together.find(mass[:, step] * together.total[:, None])
        found_alone = alone.find(mass[3:4, step] * alone.total[:, None])
        for a, b in zip(found, found_alone, strict=True):
            assert np.array_equal(a[3:4], b)


class Walk:
    """Environments of one member that count their steps; an observation is (episode, time)."""

    def __init__(self, num_envs, n_step, gamma, capacity):
        self.oracle = ref.NStepOracle(n_step, gamma, num_envs)
        self.capacity = capacity // num_envs * num_envs
        self.num_envs, self.n_step = num_envs, n_step
        self.at = [(float(e), 0.0) for e in range(num_envs)]
        self.begun, self.rows = num_envs, 0

    def step(self, events, action, reward):
        steps = []
        for e, event in enumerate(events):
            episode, time = self.at[e]
            after = (episode, time + 1)
            steps.append(
                ref.Step(self.at[e], action + e, reward + e, event == "terminated", event == "truncated", after)
            )
            self.at[e] = after
            if event != "goes on":
                self.at[e], self.begun = (float(self.begun), 0.0), self.begun + 1
        self.oracle.add(steps)
        self.rows += 1
        return steps

    def available(self):
        """By slot, the transitions that may be drawn: those held whose next n - 1 steps are there."""
        rows = self.capacity // self.num_envs
        starts = range(max(0, self.rows - rows), self.rows - self.n_step + 1)
        return {
            (start % rows) * self.num_envs + e: self.oracle.transition(e, start)
            for start in starts
            for e in range(self.num_envs)
        }


def as_arrays(table):
    """The rows of `Walk.step` of every member as the environment loop has them."""
    columns = list(zip(*[zip(*rows, strict=True) for rows in table], strict=True))
    observation, action, reward, terminated, truncated, after = (np.array(column) for column in columns)
    return observation.astype(np.float32), action, reward.astype(float), terminated, truncated, after.astype(np.float32)


def rows_of(batch, m):
    """A batch as (observation, action, reward, discount, next observation)."""
    keys = ("action", "reward", "discount")
    columns = [batch["observation"][m], *(batch[key][m].unsqueeze(-1) for key in keys), batch["next_observation"][m]]
    return torch.cat(columns, -1).double()


def wanted(transition):
    return [
        *transition.observation,
        transition.action,
        transition.reward,
        transition.discount,
        *transition.next_observation,
    ]


EVENTS = st.sampled_from(["goes on", "goes on", "goes on", "terminated", "truncated"])


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_n_step_and_prioritised_replay_equal_oracles_through_saving_and_restoring(data):
    members, num_envs = data.draw(st.integers(1, 2), "members"), data.draw(st.integers(1, 3), "num_envs")
    n_step = data.draw(st.integers(1, 4), "n_step")
    capacity = data.draw(st.integers(n_step * num_envs, 12), "capacity")
    prioritized = data.draw(st.booleans(), "prioritized")
    gammas = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=members, max_size=members), "gammas")
    the_spec = spec(tuple(range(members)), num_envs, 4, tuple(gammas))
    alpha, epsilon, beta = 0.7, 1e-2, 0.6

    def make():
        if prioritized:
            return PrioritizedReplay(the_spec, ConstantSchedule(beta), capacity, n_step, alpha, epsilon)
        return UniformReplay(the_spec, capacity, n_step)

    replay = make()
    walks = [Walk(num_envs, n_step, gamma, capacity) for gamma in gammas]
    streams = [np.random.Generator(np.random.PCG64(member_seed(m, "replay"))) for m in range(members)]
    priorities = [{} for _ in range(members)]
    known = [set() for _ in range(members)]  # (slot, start) of what has a priority
    for _ in range(data.draw(st.integers(1, 14), "adds")):
        events = [data.draw(st.lists(EVENTS, min_size=num_envs, max_size=num_envs)) for _ in range(members)]
        action, reward = data.draw(st.integers(0, 3)), data.draw(st.integers(-2, 2))
        table = [walk.step(one, action, reward) for walk, one in zip(walks, events, strict=True)]
        replay.add(Transition(*as_arrays(table)))
        if data.draw(st.booleans(), "save and restore"):
            state = replay.state_dict()
            replay = make()
            replay.load_state_dict(merge_states([split_state(state, m) for m in range(members)]))
        if replay.complete < 1:  # no window is complete
            continue
        for _ in range(data.draw(st.sampled_from([0, 1, 1, 2]), "samples")):
            batch = replay.sample(now(members))
            uniforms = [stream.random(4) for stream in streams]
            for m, walk in enumerate(walks):
                available = walk.available()
                if not prioritized:
                    oldest_first = sorted(available.items(), key=lambda item: (item[1].start, item[1].environment))
                    if n_step == 1:  # counted from the first slot, not from the oldest
                        oldest_first = sorted(available.items())
                    chosen = [oldest_first[int(u * len(oldest_first))][1] for u in uniforms[m]]
                else:
                    largest = max(priorities[m].values(), default=1.0)
                    new = {slot for slot, one in available.items() if (slot, one.start) not in known[m]}
                    priorities[m] = {s: largest if s in new else priorities[m][s] for s in sorted(available)}
                    known[m] = {(slot, one.start) for slot, one in available.items()}
                    slots, listed = list(priorities[m]), ref.PriorityList(len(available), alpha, epsilon)
                    listed.priorities = list(priorities[m].values())
                    places = listed.sample(uniforms[m])
                    chosen = [available[slots[place]] for place in places]
                    np.testing.assert_allclose(batch["weight"][m], listed.weights(places, beta), rtol=1e-5)
                expected = torch.tensor([wanted(one) for one in chosen], dtype=torch.float64)
                torch.testing.assert_close(rows_of(batch, m), expected)
                if prioritized:
                    errors = [0.5 * k + m for k in range(4)]
                    for place, error in zip(places, errors, strict=True):
                        priorities[m][slots[place]] = (error + epsilon) ** alpha
            replay.update_priorities(torch.tensor([[0.5 * k + m for k in range(4)] for m in range(members)]))


def fill(replay, rows, members=1, num_envs=1):
    for number in range(rows):
        observation = np.full((members, num_envs, 2), number, dtype=np.float32)
        zeros = np.zeros((members, num_envs))
        replay.add(Transition(observation, zeros.astype(int), zeros, zeros > 0, zeros > 0, observation + 1))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_samples_come_in_proportion_to_the_priorities(alpha):
    replay = PrioritizedReplay(spec(batch_size=32), ConstantSchedule(1.0), 10, 1, alpha, 1e-6)
    fill(replay, 10)
    errors = np.array([0.1, 2.0, 0.5, 1.0, 3.0, 0.2, 0.7, 1.5, 0.05, 4.0])
    replay.sample(now())
    replay._index = np.arange(10)[None]
    replay.update_priorities(torch.tensor(errors).unsqueeze(0))
    counts = np.zeros(10)
    for _ in range(300):
        batch = replay.sample(now())
        drawn = batch["observation"][0, :, 0].long()
        counts += np.bincount(drawn, minlength=10)
        # With β = 1 the weights take all of the bias away.
        p = (errors**alpha / (errors**alpha).sum())[drawn]
        np.testing.assert_allclose(batch["weight"][0], (1 / p) / (1 / p).max(), rtol=1e-4)
    expected = errors**alpha / (errors**alpha).sum() * counts.sum()
    assert chisquare(counts, expected).pvalue > 0.01


def test_beta_follows_its_schedule():
    replay = PrioritizedReplay(spec(), LinearSchedule(0.0, 1.0, fraction=1.0), 10, 1, 1.0, 1e-6)
    fill(replay, 4)
    replay.sample(now())
    replay.update_priorities(torch.tensor([[1.0, 1.0, 1.0, 9.0]]))

    def spread(env_steps):
        return float(replay.sample(now(env_steps=env_steps))["weight"].min())

    assert spread(0) == 1.0
    assert spread(100) < spread(50) < 1.0


@pytest.mark.parametrize("mode", ["fx", pytest.param("inductor", marks=MARKS)])
@pytest.mark.parametrize("n_step", [1, 3])
def test_compiled_replays_draw_the_same(mode, n_step):
    def make(mode):
        return PrioritizedReplay(spec((3, 4), 2, 5, (0.9, 0.5), mode), ConstantSchedule(0.5), 16, n_step)

    plain, compiled, rng = make("none"), make(mode), np.random.default_rng(0)
    for step in range(30):
        observation = rng.random((2, 2, 2), dtype=np.float32)
        ended = rng.random((2, 2, 2)) < 0.2
        row = (observation, rng.integers(0, 3, (2, 2)), rng.random((2, 2)), ended[0], ended[1], observation + 1)
        plain.add(Transition(*row)), compiled.add(Transition(*row))
        if step > 4:
            a, b = plain.sample(now(2)), compiled.sample(now(2))
            for key in a:
                torch.testing.assert_close(a[key], b[key], rtol=1e-6, atol=1e-6)
            error = torch.from_numpy(rng.random((2, 5)))
            plain.update_priorities(error), compiled.update_priorities(error)


def test_the_learner_feeds_back_the_td_errors_as_they_are(tmp_path, monkeypatch):
    """Neither weighted nor squared nor clipped, whatever the loss makes of them."""
    expected, weights, fed = [], [], []
    update, update_priorities = Update.__call__, PrioritizedReplay.update_priorities

    def look_before(self, batch):
        weights.append(batch["weight"].clone())
        plain = {key: value for key, value in batch.items() if key != "weight"}
        expected.append(vmap(self._td_loss)(self._online, self._target, plain)[1].td_error.clone())
        return update(self, batch)

    def take(self, td_error):
        fed.append(td_error.clone())
        update_priorities(self, td_error)

    monkeypatch.setattr(Update, "__call__", look_before)
    monkeypatch.setattr(PrioritizedReplay, "update_priorities", take)
    run(tmp_path, [0, 3], "agent=prioritized", "head=huber", "budget=200", "compile=none", "batch_size=8")
    assert len(fed) == len(expected) > 10
    torch.testing.assert_close(torch.stack(fed), torch.stack(expected))
    assert (torch.stack(weights) < 0.9).any()

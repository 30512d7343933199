from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import hydra
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from matrix import MARKS
from qohort.agent.dataset import ReplayDataset
from qohort.agent.learner import QLearning
from qohort.agent.update_plan import UpdatePlan
from qohort.cohort.program import Compiler
from qohort.cohort.schedules import Progress
from qohort.cohort.state import merge_states, split_state
from qohort.cohort.streams import member_seed
from qohort.config.members import check_config
from qohort.replay.base import ReplaySpec
from qohort.replay.newest import NewestTransition
from qohort.replay.ring import UniformReplay
from qohort.replay.transition import Transition

BOX = spaces.Box(-np.inf, np.inf, (2,), np.float32)
NOW = Progress(100, np.zeros(1, dtype=np.int64))


def spec(seeds=(0,), num_envs=1, batch_size=5, gamma=(0.9,), budget=100_000, space=BOX, mode="none"):
    gammas = torch.tensor(gamma if len(gamma) == len(seeds) else gamma * len(seeds))
    return ReplaySpec(space, num_envs, batch_size, 1, gammas, seeds, budget, torch.device("cpu"), Compiler(mode))


def row(number, members, num_envs, terminated=False):
    """Row `number`: every field tells row, member and environment, and the next observation follows on."""
    m, e = np.meshgrid(np.arange(members), np.arange(num_envs), indexing="ij")
    observation = np.stack([np.full_like(m, number), 100 * m + e], axis=-1).astype(np.float32)
    return {
        "observation": observation,
        "action": number + 10 * m + e,
        "reward": number + m / 10.0,
        "terminated": np.broadcast_to(terminated, m.shape).copy(),
        "truncated": np.zeros(m.shape, dtype=bool),
        "next_observation": observation + np.float32([1, 0]),
    }


def make(kind, the_spec):
    """A replay of either kind; a ring of as much as its budget."""
    return kind(the_spec) if kind is NewestTransition else kind(the_spec, the_spec.budget)


def rows_of(batch):
    return batch["observation"][..., 0].long()


def held(replay, draws=40):
    """The distinct rows that member 0's samples come from."""
    return sorted(set(torch.cat([rows_of(replay.sample(NOW))[0] for _ in range(draws)]).tolist()))


def assert_equal_batches(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype
        assert torch.equal(a[key], b[key]), key


def test_ring_keeps_the_newest_and_no_transition_crosses_its_seam():
    replay = UniformReplay(spec(batch_size=50), capacity=4)
    for number in range(7):
        replay.add(Transition(**row(number, 1, 1)))
        assert len(replay) == min(number + 1, 4)
        assert held(replay) == list(range(max(0, number - 3), number + 1))
        batch = replay.sample(NOW)
        assert torch.equal(batch["next_observation"][..., 0], batch["observation"][..., 0] + 1)
        assert torch.equal(batch["action"], rows_of(batch))
        assert torch.equal(batch["reward"], rows_of(batch).float())


@pytest.mark.parametrize(("capacity", "rounded"), [(7, 6), (6, 6), (8, 6), (9, 9), (3, 3)])
def test_capacity_is_rounded_down_to_whole_rows_of_environments(capacity, rounded):
    replay = UniformReplay(spec(num_envs=3, batch_size=60), capacity)
    for number in range(5):
        replay.add(Transition(**row(number, 1, 3)))
    assert len(replay) == rounded
    batch = replay.sample(NOW)
    assert set(rows_of(batch)[0].tolist()) == set(range(5 - rounded // 3, 5))
    held_by_environment = {(int(n), int(e)) for n, e in batch["observation"][0]}
    assert held_by_environment == {(n, e) for n in range(5 - rounded // 3, 5) for e in range(3)}


def test_only_termination_zeroes_the_discount_and_gamma_is_each_members_own():
    replay = UniformReplay(spec(seeds=(0, 1), num_envs=2, batch_size=30, gamma=(0.9, 0.5)), capacity=10)
    replay.add(Transition(**row(0, 2, 2, terminated=[[False, True], [True, False]])))
    batch = replay.sample(NOW)
    environment = batch["observation"][..., 1].long() % 100
    expected = torch.where(environment == torch.tensor([[1], [0]]), 0.0, torch.tensor([[0.9], [0.5]]))
    assert torch.equal(batch["discount"], expected)
    assert set(environment.flatten().tolist()) == {0, 1}


def test_a_batch_is_a_copy():
    replay = UniformReplay(spec(), capacity=2)
    given_row = row(0, 1, 1)
    replay.add(Transition(**given_row))
    given_row["observation"][:] = 99  # environments overwrite their arrays
    batch = replay.sample(NOW)
    before = {key: value.clone() for key, value in batch.items()}
    for number in range(1, 4):
        replay.add(Transition(**row(number, 1, 1)))
    assert_equal_batches(batch, before)
    batch["reward"].fill_(-1)
    batch["discount"].fill_(-1)
    assert (replay.sample(NOW)["reward"] >= 0).all()
    assert (replay.sample(NOW)["discount"] == 0.9).all()


@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_capacity_beyond_the_budget_samples_as_if_it_were_allocated(num_envs):
    budget = 20
    small = UniformReplay(spec(num_envs=num_envs, budget=budget), capacity=1_000_000)
    large = UniformReplay(spec(num_envs=num_envs, budget=10**6), capacity=1_000_000)
    for number in range(budget // num_envs):
        for replay in (small, large):
            replay.add(Transition(**row(number, 1, num_envs)))
        assert_equal_batches(small.sample(NOW), large.sample(NOW))
    whole = small.state_dict()["transitions"]["observation"]
    assert whole.shape[1] == budget // num_envs * num_envs
    assert small.storage.slots <= budget + num_envs


def test_sampling_is_uniform():
    slots, draws, size = 10, 200, 32
    replay = UniformReplay(spec(batch_size=size), capacity=slots)
    for number in range(slots):
        replay.add(Transition(**row(number, 1, 1)))
    drawn = torch.stack([rows_of(replay.sample(NOW))[0] for _ in range(draws)])
    assert chisquare(torch.bincount(drawn.flatten(), minlength=slots)).pvalue > 0.01
    pairs = drawn[:, 0] * slots + drawn[:, 1]
    assert chisquare(torch.bincount(pairs, minlength=slots**2)).pvalue > 0.01


def test_a_member_draws_the_same_alone_and_among_others():
    cohort = (7, 3, 0, 11)
    alone, among = UniformReplay(spec(seeds=(3,)), capacity=6), UniformReplay(spec(seeds=cohort), capacity=6)
    others = []
    for number in range(150):  # more draws than the stream's block
        rows = row(number, 4, 1)
        among.add(Transition(**rows))
        alone.add(Transition(**{key: value[1:2] for key, value in rows.items()}))
        batch, batch_alone = among.sample(NOW), alone.sample(NOW)
        assert_equal_batches({key: value[1:2] for key, value in batch.items()}, batch_alone)
        others.append(batch["action"][0] - batch["action"][2] + 20)
    assert torch.stack(others).count_nonzero() > 0  # different members draw different indices


SPACES = {
    "uint8": (spaces.Box(0, 255, (2, 3), np.uint8), torch.uint8, 255),
    "int64": (spaces.Box(-(2**62), 2**62, (2,), np.int64), torch.int64, 2**53 + 1),
    "int8": (spaces.Box(-128, 127, (2,), np.int8), torch.int8, -128),
    "float32": (spaces.Box(-9, 9, (2,), np.float32), torch.float32, 0.1),
    "float64": (spaces.Box(-9, 9, (2,), np.float64), torch.float32, 0.1),
    "bool": (spaces.Box(0, 1, (3, 2), np.bool_), torch.bool, True),
    "discrete": (spaces.Discrete(5), torch.int64, 4),
    "multibinary": (spaces.MultiBinary((2, 2)), torch.int8, 1),
}


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("kind", [UniformReplay, NewestTransition])
def test_observations_are_stored_as_they_are(kind, name):
    space, dtype, value = SPACES[name]
    replay = make(kind, spec(seeds=(0, 1), space=space))
    observation = np.full((2, 1, *space.shape), value, dtype=space.dtype)
    rows = row(0, 2, 1)
    rows["observation"], rows["next_observation"] = observation, np.zeros_like(observation)
    replay.add(Transition(**rows))
    batch = replay.sample(NOW)
    assert batch["observation"].dtype == batch["next_observation"].dtype == dtype
    assert batch["observation"].shape[2:] == space.shape
    assert (batch["observation"] == torch.tensor(value, dtype=dtype)).all()
    assert not batch["next_observation"].any()
    assert (batch["action"].dtype, batch["reward"].dtype, batch["discount"].dtype) == (
        torch.int64,
        torch.float32,
        torch.float32,
    )


@pytest.mark.parametrize("mode", ["fx", pytest.param("inductor", marks=MARKS)])
def test_compiled_batches_are_the_same_and_new_each_time(mode):
    seeds, space = (3, 4, 8), spaces.Box(0, 255, (2, 3), np.uint8)
    options = {"seeds": seeds, "num_envs": 2, "gamma": (0.9, 0.5, 1.0), "space": space}
    plain, compiled = UniformReplay(spec(**options), 8), UniformReplay(spec(**options, mode=mode), 8)
    before, kept = {}, {}
    for number in range(7):
        rows = row(number, 3, 2, terminated=[number % 2 == 0, number % 3 == 0])
        for name in ("observation", "next_observation"):
            rows[name] = np.repeat(rows[name][..., None], 3, -1).astype(np.uint8)
        for replay in (plain, compiled):
            replay.add(Transition(**rows))
        assert_equal_batches(before, kept)  # drawn before the newest rows were written
        before = compiled.sample(NOW)
        kept = {key: value.clone() for key, value in before.items()}
        assert_equal_batches(before, plain.sample(NOW))
    again = UniformReplay(spec(**options, mode=mode), 8)
    again.load_state_dict(compiled.state_dict())
    assert_equal_batches(again.sample(NOW), compiled.sample(NOW))


Stored = namedtuple("Stored", "episode time action reward discount next_time")


class Oracle:
    """One member's replay as a plain list, fed by environments that count their steps.

    An observation is (episode, time). Any episode may terminate, or be truncated, at any step; the transition
    then holds the true final observation, and the next one starts a new episode.
    """

    def __init__(self, seed, num_envs, capacity, batch_size, gamma):
        self.slots, self.written = [], 0
        self.capacity = capacity - capacity % num_envs
        self.gamma, self.batch_size = gamma, batch_size
        self.random = np.random.Generator(np.random.PCG64(member_seed(seed, "replay")))
        self.episode, self.time = list(range(num_envs)), [0] * num_envs
        self.begun = num_envs

    def step(self, events, action, reward):
        """One step of each environment; its arrays as the environment loop has them."""
        rows = []
        for e, event in enumerate(events):
            discount = 0.0 if event == "terminated" else self.gamma
            stored = Stored(self.episode[e], self.time[e], action + e, reward + e, discount, self.time[e] + 1)
            if len(self.slots) < self.capacity:
                self.slots.append(stored)
            else:
                self.slots[self.written % self.capacity] = stored
            self.written += 1
            rows.append(stored)
            self.time[e] += 1
            if event != "goes on":
                self.episode[e], self.time[e], self.begun = self.begun, 0, self.begun + 1
        return rows

    def sample(self):
        return [self.slots[int(u * len(self.slots))] for u in self.random.random(self.batch_size)]


EVENTS = st.sampled_from(["goes on", "goes on", "terminated", "truncated"])


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_equals_a_list_based_oracle_through_saving_and_restoring(data):
    members, num_envs = data.draw(st.integers(1, 3), "members"), data.draw(st.integers(1, 3), "num_envs")
    seeds = data.draw(st.lists(st.integers(0, 2**40), min_size=members, max_size=members, unique=True), "seeds")
    gammas = data.draw(st.lists(st.sampled_from([0.0, 0.5, 0.75, 1.0]), min_size=members, max_size=members), "gammas")
    capacity, batch_size = data.draw(st.integers(num_envs, 10), "capacity"), data.draw(st.integers(1, 4), "batch_size")
    adds = data.draw(st.integers(1, 12), "adds")
    budget = adds * num_envs + data.draw(st.integers(0, 20), "budget beyond")
    the_spec = spec(seeds, num_envs, batch_size, tuple(gammas), budget)
    oracles = [Oracle(seed, num_envs, capacity, batch_size, gamma) for seed, gamma in zip(seeds, gammas, strict=True)]
    replay = UniformReplay(the_spec, capacity)
    for _ in range(adds):
        action, reward = data.draw(st.integers(0, 5), "action"), data.draw(st.integers(-3, 3), "reward")
        events = [data.draw(st.lists(EVENTS, min_size=num_envs, max_size=num_envs)) for _ in range(members)]
        table = [oracle.step(one, action, reward) for oracle, one in zip(oracles, events, strict=True)]
        replay.add(
            Transition(
                observation=np.array([[(s.episode, s.time) for s in rows] for rows in table], dtype=np.float32),
                action=np.array([[s.action for s in rows] for rows in table]),
                reward=np.array([[s.reward for s in rows] for rows in table], dtype=np.float64),
                terminated=np.array(events) == "terminated",
                truncated=np.array(events) == "truncated",
                next_observation=np.array(
                    [[(s.episode, s.next_time) for s in rows] for rows in table], dtype=np.float32
                ),
            )
        )
        assert len(replay) == len(oracles[0].slots)
        if data.draw(st.booleans(), "save and restore"):
            state = replay.state_dict()
            replay = UniformReplay(the_spec, capacity)
            replay.load_state_dict(merge_states([split_state(state, m) for m in range(members)]))
        for _ in range(data.draw(st.sampled_from([0, 1, 2, 33, 64]), "samples")):
            batch = replay.sample(NOW)
            expected = [oracle.sample() for oracle in oracles]
            seen = torch.cat(
                [
                    batch["observation"],
                    *(batch[key].unsqueeze(-1) for key in ("action", "reward", "discount")),
                    batch["next_observation"],
                ],
                dim=-1,
            )
            wanted = [[(s.episode, s.time, s.action, s.reward, s.discount, s.episode, s.next_time) for s in rows]
                      for rows in expected]  # fmt: skip
            assert torch.equal(seen, torch.tensor(wanted))


@pytest.mark.parametrize("kind", [UniformReplay, NewestTransition])
def test_restored_in_another_cohort_members_go_on_exactly(kind):
    def cohort(seeds):
        return make(kind, spec(seeds=seeds, num_envs=2))

    one, two = cohort((5, 6)), cohort((7, 8))
    for number in range(3):
        one.add(Transition(**row(number, 2, 2)))
        two.add(Transition(**row(number + 10, 2, 2)))
        one.sample(NOW), two.sample(NOW)
    mixed = cohort((8, 5))
    mixed.load_state_dict(merge_states([split_state(two.state_dict(), 1), split_state(one.state_dict(), 0)]))
    for _ in range(70):
        batch, from_one, from_two = mixed.sample(NOW), one.sample(NOW), two.sample(NOW)
        assert_equal_batches({key: value[1] for key, value in batch.items()}, {k: v[0] for k, v in from_one.items()})
        assert_equal_batches({key: value[0] for key, value in batch.items()}, {k: v[1] for k, v in from_two.items()})


def test_newest_transition_is_the_newest_of_each_environment():
    replay = NewestTransition(spec(seeds=(0, 1), num_envs=3, batch_size=50))
    for number in range(3):
        replay.add(Transition(**row(number, 2, 3, terminated=[True, False, False])))
        batch, wanted = replay.sample(NOW), row(number, 2, 3)
        assert torch.equal(batch["observation"], torch.from_numpy(wanted["observation"]))
        assert torch.equal(batch["next_observation"], torch.from_numpy(wanted["next_observation"]))
        assert torch.equal(batch["action"], torch.from_numpy(wanted["action"]))
        assert torch.equal(batch["reward"], torch.from_numpy(wanted["reward"]).float())
        assert torch.equal(batch["discount"], torch.tensor([[0.0, 0.9, 0.9]] * 2))


@pytest.mark.parametrize("mode", ["none", "inductor"])
def test_newest_transition_tells_where_episodes_ended_terminated_or_truncated(mode):
    replay = NewestTransition(spec(seeds=(0, 1), num_envs=3, mode=mode))
    for number in range(4):
        terminated, truncated = np.zeros((2, 3), dtype=bool), np.zeros((2, 3), dtype=bool)
        if number % 2:
            terminated[0, 1] = truncated[1, 2] = True
        replay.add(Transition(**{**row(number, 2, 3, terminated), "truncated": truncated}))
        batch = replay.sample(NOW)
        assert batch["ended"].dtype == torch.bool
        assert torch.equal(batch["ended"], torch.from_numpy(terminated | truncated))
        assert torch.equal(batch["discount"], torch.where(torch.from_numpy(terminated), 0.0, 0.9))
    restored = NewestTransition(spec(seeds=(0, 1), num_envs=3, mode=mode))
    restored.load_state_dict(replay.state_dict())
    assert_equal_batches(restored.sample(NOW), batch)


@pytest.mark.parametrize("kind", [UniformReplay, NewestTransition])
def test_an_empty_replay_can_be_saved(kind):
    state = make(kind, spec(seeds=(0, 1))).state_dict()
    assert state["transitions"]["observation"].shape == (2, 0, 2)
    fresh, restored = make(kind, spec(seeds=(0, 1))), make(kind, spec(seeds=(0, 1)))
    restored.load_state_dict(state)
    for replay in (fresh, restored):
        replay.add(Transition(**row(0, 2, 1)))
    assert_equal_batches(fresh.sample(NOW), restored.sample(NOW))


def test_a_batch_or_a_single_step_is_needed():
    config = SimpleNamespace(batch_size=33, env=SimpleNamespace(num_envs=2), replay={"n_step": 4})
    assert UniformReplay.min_env_steps(config) == 33 + 3 * 2
    assert NewestTransition.min_env_steps(config) == 1


def test_no_batch_is_drawn_ahead():
    class Loop:
        def __init__(self):
            self.happened, self.steps = [], 0

        def updates(self):
            return 4

        def budget_left(self):
            return self.steps < 3

        def between_steps(self):
            self.happened.append("between")

        def collect(self):
            self.happened.append("step")
            self.steps += 1
            return [0, 2, 1][self.steps - 1]

        def batches(self, count):
            for _ in range(count):
                self.happened.append("sample")
                yield {}

    loop = Loop()
    dataset = ReplayDataset(loop)
    assert len(dataset) == 4
    for _ in dataset:
        loop.happened.append("update")
    first, last = ["between", "step"], ["sample", "update"]
    assert loop.happened == [*first, *first, *last, *last, *first, *last]


class Counter(gym.Env):
    """Observes (episode seed, time); ends after 3 + seed % 5 steps: terminated if the seed is even, else truncated."""

    observation_space = spaces.Box(0, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.seed, self.time = seed % 1000, 0
        return np.array([self.seed, self.time], dtype=np.float64), {}

    def step(self, action):
        self.time += 1
        ended = self.time == 3 + self.seed % 5
        even = self.seed % 2 == 0
        return np.array([self.seed, self.time], np.float64), self.time / 2, ended and even, ended and not even, {}


@pytest.fixture
def counter_id():
    gym.register("QohortCounter-v0", Counter)
    yield "QohortCounter-v0"
    del gym.registry["QohortCounter-v0"]


@pytest.mark.parametrize("num_envs", [1, 3])
def test_the_environment_loop_stores_final_observations_and_bootstraps_truncations(counter_id, num_envs):
    """The run of each member's every environment, transition by transition, through `QLearning.collect`."""

    class Recorder:
        def row(self, member, progress, metrics):
            lengths.append(metrics["train/length"])

    lengths = []
    conf = str(Path(__file__).parents[1] / "conf")
    overrides = [f"env.id={counter_id}", f"env.num_envs={num_envs}", "seed=[3,4]", "gamma=0.5", "budget=300"]
    with hydra.initialize_config_dir(conf, version_base="1.3"):
        node = hydra.compose("train", [*overrides, "batch_size=16", "learning_starts=16"])
    module = QLearning(check_config(node), Recorder(), print)
    module.values = lambda observation, numbers: torch.zeros(*observation.shape[:2], 2)
    module.noise = SimpleNamespace(for_acting=dict)
    module.replay = UniformReplay(spec(seeds=(3, 4), num_envs=num_envs, gamma=(0.5,), budget=300, space=BOX), 300)
    module.plan = UpdatePlan(train_every=1, gradient_steps=1, first=16)
    for _ in range(90 // num_envs):
        module.collect()
    module.close()

    stored = module.replay.state_dict()["transitions"]
    seen = {"terminated": 0, "truncated": 0}
    for m in range(2):
        for e in range(num_envs):
            expected, episode, time = [], 0, 0
            for _ in range(90 // num_envs):
                seed = (member_seed([3, 4][m], "environments", e, episode) >> 31) % 1000
                ended = time + 1 == 3 + seed % 5
                terminated = ended and seed % 2 == 0
                expected.append([seed, time, (time + 1) / 2, 0.0 if terminated else 1.0, seed, time + 1])
                seen["terminated" if terminated else "truncated"] += ended
                episode, time = (episode + 1, 0) if ended else (episode, time + 1)
            fields = ("observation", "reward", "continues", "next_observation")
            columns = [stored[field][m, e::num_envs].reshape(90 // num_envs, -1) for field in fields]
            assert torch.equal(torch.cat(columns, 1), torch.tensor(expected))
    assert min(seen.values()) > 5
    assert len(lengths) == sum(seen.values())
    assert set(lengths) <= set(range(3, 8))


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("space", [spaces.Box(0, 1, (2, 4, 3), bool), spaces.Box(0, 255, (3, 3), np.uint8)])
def test_pictures_are_drawn_as_they_were_stored(space, n_step):
    """Rows of 24 bytes are drawn as 64-bit words, those of 9 bytes are not."""
    rng = np.random.default_rng(0)
    replay = UniformReplay(spec((3, 4), space=space, gamma=(0.9, 0.9)), capacity=20, n_step=n_step)
    assert (replay.storage.state["arrays"]["observation"].dtype == torch.int64) == (space.dtype == bool)
    stored = [rng.integers(0, int(space.high.max()) + 1, (2, 1, *space.shape)).astype(space.dtype) for _ in range(9)]
    ones, no = np.ones((2, 1)), np.zeros((2, 1), dtype=bool)
    for number in range(8):
        replay.add(Transition(stored[number], ones.astype(np.int64), ones, no, no, stored[number + 1]))
    index = np.array([[0, 4, 2], [5, 1, 3]])
    batch = replay.storage.batch(index)
    for m, slots in enumerate(index):
        for b, slot in enumerate(slots):
            for name, number in (("observation", slot), ("next_observation", slot + n_step)):
                assert batch[name].dtype == torch.from_numpy(stored[0]).dtype
                np.testing.assert_array_equal(batch[name][m, b].numpy(), stored[number][m, 0])

"""The tensor environments of MinAtar beside the package `minatar`, which is given the same random decisions."""

import itertools
import sys

import numpy as np
import pytest
import torch
from scipy import stats

pytest.importorskip("minatar")

from qohort.environments.minatar import Game
from qohort.environments.tensor.base import uniforms_of
from qohort.environments.tensor.minatar.base import choice
from qohort.environments.tensor.registry import GAMES

OPTIONS = list(itertools.product([True, False], [0.1, 0.0], [True, False]))


def options_of(minimal=True, sticky=0.1, ramping=True):
    return {"use_minimal_action_set": minimal, "sticky_action_prob": sticky, "difficulty_ramping": ramping}


class Decisions:
    """Stands in for MinAtar's generator, and decides as the tensor environment does with the same uniforms."""

    # The index of a function's first uniform; the others begin after that of the sticky actions.
    first = {"act": 0, "_spawn_diver": 4}  # noqa: RUF012

    def load(self, uniforms):
        self.uniforms, self.used = uniforms, {}

    def next(self, size):
        caller = sys._getframe(2).f_code.co_name
        start = self.first.get(caller, 1) + self.used.get(caller, 0)
        self.used[caller] = self.used.get(caller, 0) + (size or 1)
        assert start + (size or 1) <= len(self.uniforms)
        return self.uniforms[start : start + size] if size else self.uniforms[start]

    def rand(self, size=None):
        uniform = self.next(size)
        return float(uniform) if size is None else np.where(uniform < 0.5, 0.25, 0.75)

    def randint(self, low, high=None, size=None):
        low, high = (0, low) if high is None else (low, high)
        return low + np.floor(self.next(size) * np.float32(high - low)).astype(int)


class Pairs:
    """Several environments of a game, as tensors and as originals, whose steps are compared."""

    def __init__(self, game, count, seed, immortal=False, **options):
        self.ours = GAMES[game](**options)
        self.originals = [Game(game=game, **options) for _ in range(count)]
        self.random = np.random.default_rng(seed)
        self.immortal = immortal
        self.letters = self.ours.action_set
        for original in self.originals:
            original.game.random = original.game.env.random = Decisions()
        assert self.ours.observation_space == original.observation_space
        assert self.ours.action_space == original.action_space
        assert list(self.ours.channels) == list(original.game.env.channels)
        assert original.action_set == ["nlurdf".index(letter) for letter in self.letters]
        self.ended = np.zeros(count, dtype=bool)
        self.lengths, self.time, self.returns, self.totals = [], np.zeros(count), [], np.zeros(count)
        self.state = self.start(range(count))
        self.check(range(count))

    @property
    def games(self):
        return [original.game.env for original in self.originals]

    def uniforms(self, draws):
        """Numbers as of `uniforms_of`; one in 50 is one of the ends or the middle of their range."""
        shape = (len(self.originals), draws)
        numbers = self.random.integers(2**24, size=shape)
        ends = self.random.choice([0, 2**23, 2**24 - 1], size=shape)
        return (np.where(self.random.random(shape) < 0.02, ends, numbers) * 2.0**-24).astype(np.float32)

    def start(self, which):
        uniforms = self.uniforms(self.ours.reset_draws)
        for index in which:
            self.originals[index].game.random.load(np.concatenate([[0], uniforms[index]]).astype(np.float32))
            self.originals[index].reset()
        return self.ours.reset(torch.from_numpy(uniforms))

    def check(self, which):
        observations = self.ours.observe(self.state)
        assert observations.dtype == torch.bool
        expected = np.stack([original.game.state() for original in self.originals])
        np.testing.assert_array_equal(observations.numpy(), expected)

    def step(self, actions):
        uniforms = self.uniforms(self.ours.step_draws)
        before = {key: value.clone() for key, value in self.state.items()}
        state, reward, terminated = self.ours.step(self.state, torch.as_tensor(actions), torch.from_numpy(uniforms))
        assert all(torch.equal(before[key], self.state[key]) for key in before)
        self.state = state
        outcomes = []
        for original, action, numbers in zip(self.originals, actions, uniforms, strict=True):
            original.game.random.load(numbers)
            outcomes.append(original.step(action)[1:3])
        expected, ended = map(np.array, zip(*outcomes, strict=True))
        assert reward.dtype == torch.float32
        assert terminated.dtype == torch.bool
        np.testing.assert_array_equal(reward.numpy(), expected)
        np.testing.assert_array_equal(terminated.numpy(), ended)
        self.check(range(len(actions)))
        self.time += 1
        self.totals += expected
        self.end(ended)
        return expected

    def end(self, ended):
        """Start new episodes, or let immortal ones go on."""
        if self.immortal:
            for game in self.games:
                game.terminal = False
            return
        if not ended.any():
            return
        self.lengths += list(self.time[ended])
        self.returns += list(self.totals[ended])
        self.time[ended] = self.totals[ended] = 0
        fresh = self.start(np.flatnonzero(ended))
        ends = torch.as_tensor(ended)
        for key, value in fresh.items():
            assert value.dtype == self.state[key].dtype
            assert value.shape == self.state[key].shape
            self.state[key] = torch.where(ends.view(-1, *[1] * (value.dim() - 1)), value, self.state[key])
        self.check(range(len(ended)))

    def random_actions(self):
        return self.random.integers(self.ours.action_space.n, size=len(self.originals))

    def chosen_actions(self, policy, noise=0.0):
        actions = [self.letters.index(policy(game, self.random)) for game in self.games]
        return np.where(self.random.random(len(actions)) < noise, self.random_actions(), actions)


def nearest(moves, unsafe, target, random):
    """Of moves (letter: place), return the safe one that leads closest to the target, or "n"."""
    letters = [letter for letter in moves if moves[letter] not in unsafe] or ["n"]
    distance = {a: abs(moves[a][0] - target[0]) + abs(moves[a][1] - target[1]) for a in letters}
    best = [letter for letter in letters if distance[letter] == min(distance.values())]
    return best[random.integers(len(best))]


def moves_from(x, y, top, bottom=8):
    moves = {"n": (x, y), "l": (max(0, x - 1), y), "r": (min(9, x + 1), y)}
    return {**moves, "u": (x, max(top, y - 1)), "d": (x, min(bottom, y + 1))}


def ahead(x, to_right, cells):
    return [x + step if to_right else x - step for step in range(cells + 1)]


def play_asterix(game, random):
    """Go to the nearest gold and keep away from enemies."""
    entities = [entity for entity in game.entities if entity is not None]
    unsafe = {(x, y) for at, y, to_right, gold in entities if not gold for x in ahead(at, to_right, 1)}
    here = game.player_x, game.player_y
    gold = [entity[:2] for entity in entities if entity[3]]
    target = min(gold, key=lambda place: abs(place[0] - here[0]) + abs(place[1] - here[1]), default=(5, 5))
    return nearest(moves_from(*here, 1), unsafe, target, random)


def play_breakout(game, random):
    """Stay below the ball; now and then, return it with the paddle's corner."""
    toward = [-1, 1, 1, -1][game.ball_dir] * (random.random() < 0.3)
    return "nrl"[int(np.sign(min(9, max(0, game.ball_x + toward)) - game.pos))]


def play_freeway(game, random):
    return "u"


def play_space_invaders(game, random):
    """Dodge bullets, go below the nearest alien and fire."""
    columns = np.flatnonzero(game.alien_map.any(0))
    target = columns[np.argmin(abs(columns - game.pos))]
    unsafe = {(x, 9) for x in range(10) if game.e_bullet_map[7:9, x].any() or game.alien_map[8:, x].any()}
    moves = {letter: place for letter, place in moves_from(game.pos, 9, 9, 9).items() if letter in "nlr"}
    letter = nearest(moves, unsafe, (target, 9), random)
    return "f" if letter == "n" and game.shot_timer == 0 else letter


def play_seaquest(game, random):
    """Rescue divers, shoot at what is ahead, and surface with a full load or little oxygen."""
    here, count = (game.sub_x, game.sub_y), game.diver_count
    unsafe = {(x, y) for at, y, to_right, *_ in game.e_fish + game.e_subs for x in ahead(at, to_right, 1)}
    unsafe |= {(x, y) for at, y, to_right in game.e_bullets for x in ahead(at, to_right, 2)}
    rises = count in (-1, 6) or (game.oxygen < 60 and count != 0)
    divers = [(x + (1 if to_right else -1), y) for x, y, to_right, _ in game.divers]
    target = min(divers, key=lambda place: abs(place[0] - here[0]) + abs(place[1] - here[1]), default=(5, 5))
    letter = nearest(moves_from(*here, 0 if rises else 1), unsafe, (here[0], 0) if rises else target, random)
    preys = [x for x, y, *_ in game.e_fish + game.e_subs if y == here[1] and (x > here[0]) == game.sub_or]
    return "f" if preys and game.shot_timer == 0 and here not in unsafe and not rises else letter


POLICIES = {
    "asterix": play_asterix,
    "breakout": play_breakout,
    "freeway": play_freeway,
    "seaquest": play_seaquest,
    "space_invaders": play_space_invaders,
}


def gun_seaquest(game, random):
    """Fire whenever possible, follow the bullets, and change the row now and then."""
    if game.shot_timer == 0:
        return "f"
    letter = "r" if game.sub_or else "l"
    at_edge = game.sub_x == (9 if game.sub_or else 0)
    return {"r": "l", "l": "r"}[letter] if at_edge else letter if random.random() < 0.8 else "ud"[random.integers(2)]


def phases_of(game):
    """Return the names of what is going on in a game."""
    names = ("spawn_speed", "move_speed", "enemy_move_interval", "e_spawn_speed", "diver_count")
    phases = {f"{name} {getattr(game, name)}" for name in names if hasattr(game, name)}
    if hasattr(game, "brick_map"):
        phases |= {f"bricks {int(game.brick_map.sum())}"}
    if hasattr(game, "e_bullet_map") and game.e_bullet_map.any():
        phases |= {"enemy bullet"}
    if hasattr(game, "oxygen"):
        kinds = [[tuple(enemy[:2]) for enemy in enemies] for enemies in (game.e_fish, game.e_subs)]
        phases |= {"fish share a cell"} if len(set(kinds[0])) < len(kinds[0]) else set()
        phases |= {"subs share a cell"} if len(set(kinds[1])) < len(kinds[1]) else set()
        phases |= {"fish and sub share a cell"} if set(kinds[0]) & set(kinds[1]) else set()
        phases |= {"no oxygen"} if game.oxygen <= 0 else set()
        phases |= {"enemy bullet"} if game.e_bullets else set()
        phases |= {"two divers"} if len(game.divers) == 2 else set()
    return phases


def run(pairs, policy, steps, noise=0.02):
    """Take steps with a policy and a little noise; return all phases and the number of rewarded steps."""
    phases, rewarded = set(), 0
    for _ in range(steps):
        rewarded += int((pairs.step(pairs.chosen_actions(policy, noise)) > 0).sum())
        phases.update(*map(phases_of, pairs.games))
    return phases, rewarded


@pytest.mark.parametrize(("minimal", "sticky", "ramping"), OPTIONS)
@pytest.mark.parametrize("game", GAMES)
def test_equals_the_original_with_random_actions(game, minimal, sticky, ramping):
    pairs = Pairs(game, 24, 1, **options_of(minimal, sticky, ramping))
    for _ in range(45):
        pairs.step(pairs.random_actions())
    assert pairs.lengths or game in ("freeway", "space_invaders")


def change(pairs, key, **numbers):
    """Set numbers of all games of a kind: the index in the state's tensor by the name in the original."""
    for name, (index, value) in numbers.items():
        pairs.state[key][..., index] = value
        for game in pairs.games:
            assert hasattr(game, name)
            setattr(game, name, value)


def test_asterix_equals_the_original_while_difficulty_ramps():
    pairs = Pairs("asterix", 16, 2, **options_of())
    phases, rewarded = run(pairs, play_asterix, 350)
    assert phases >= {"spawn_speed 7", "move_speed 4"}
    assert pairs.lengths
    assert rewarded > 100
    pairs = Pairs("asterix", 8, 3, immortal=True, **options_of())
    change(pairs, "clocks", spawn_speed=(0, 4), move_speed=(2, 2), ramp_index=(5, 7))
    phases, rewarded = run(pairs, play_asterix, 450)
    assert phases >= {*(f"spawn_speed {speed}" for speed in range(1, 5)), "move_speed 1"}
    assert rewarded > 100
    phases, _ = run(Pairs("asterix", 4, 3, immortal=True, **options_of(ramping=False)), play_asterix, 250)
    assert phases == {"spawn_speed 10", "move_speed 5"}


def test_breakout_equals_the_original_when_all_bricks_are_broken():
    phases, rewarded = run(Pairs("breakout", 16, 2, **options_of(sticky=0.0)), play_breakout, 500, noise=0.0)
    assert phases >= {f"bricks {number}" for number in range(31)}
    assert rewarded > 500


def test_freeway_equals_the_original_until_time_is_up():
    pairs = Pairs("freeway", 8, 2, **options_of())
    change(pairs, "chicken", terminate_timer=(2, 400))
    _, rewarded = run(pairs, play_freeway, 450)
    assert pairs.lengths == [401] * 8
    assert rewarded > 20


def test_space_invaders_equals_the_original_in_later_waves():
    pairs = Pairs("space_invaders", 16, 2, **options_of(sticky=0.0))
    phases, rewarded = run(pairs, play_space_invaders, 300, noise=0.0)
    assert phases >= {"enemy_move_interval 11", "enemy bullet"}
    assert pairs.lengths
    assert rewarded > 500
    pairs = Pairs("space_invaders", 8, 3, immortal=True, **options_of())
    change(pairs, "numbers", enemy_move_interval=(5, 7))
    phases, _ = run(pairs, play_space_invaders, 500)
    assert "enemy_move_interval 6" in phases


def test_seaquest_equals_the_original_while_difficulty_ramps():
    pairs = Pairs("seaquest", 20, 2, **options_of())
    phases, rewarded = run(pairs, play_seaquest, 400)
    assert phases >= {
        "diver_count 6",
        "diver_count -1",
        "e_spawn_speed 17",
        "move_speed 4",
        "enemy bullet",
        "two divers",
    }
    assert pairs.lengths
    assert rewarded > 30
    pairs = Pairs("seaquest", 10, 3, immortal=True, **options_of())
    change(pairs, "numbers", ramp_index=(7, 3), move_speed=(8, 4), e_spawn_speed=(9, 17))
    phases, rewarded = run(pairs, play_seaquest, 350)
    assert phases >= {f"e_spawn_speed {speed}" for speed in range(13, 18)} | {
        f"move_speed {speed}" for speed in (2, 3, 4)
    }
    assert rewarded > 20


def test_seaquest_equals_the_original_when_crowded():
    pairs = Pairs("seaquest", 12, 4, immortal=True, **options_of(sticky=0.0))
    change(pairs, "numbers", ramp_index=(7, 19), move_speed=(8, 2), e_spawn_speed=(9, 1))
    phases, rewarded = run(pairs, gun_seaquest, 350)
    assert phases >= {"fish share a cell", "subs share a cell", "fish and sub share a cell", "no oxygen"}
    assert rewarded > 100


class Watched(list):
    """A list that counts the removals of an older element with the same values as the one that was meant."""

    older = 0

    def remove(self, element):
        self.older += next(other for other in self if other == element) is not element
        super().remove(element)


def test_seaquest_equals_the_original_when_it_removes_another_bullet():
    pairs = Pairs("seaquest", 2, 5, **options_of(sticky=0.0))
    for game in pairs.games:
        game.f_bullets = Watched()
    # The first enemy appears in step 21 at x = 9 and y = 4, where the first bullet still is and the second one arrives.
    pairs.uniforms = lambda draws: np.tile(np.float32([0.5, 0.9, 0.9, 0.4, 0.5, 0.5]), (2, 1))
    for letter in "ddddlllrrnnnnnnfrrrrf":
        rewards = pairs.step([pairs.letters.index(letter)] * 2)
    assert rewards.tolist() == [1, 1]
    assert [game.f_bullets.older for game in pairs.games] == [1, 1]


@pytest.mark.parametrize("game", GAMES)
def test_each_environment_is_as_if_it_were_alone(game):
    environment = GAMES[game]()
    seeds = torch.arange(6).view(2, 3)
    alone = [(slice(i, i + 1), slice(j, j + 1)) for i in range(2) for j in range(3)]
    state = environment.reset(uniforms_of(seeds, 0, environment.reset_draws))
    states = [environment.reset(uniforms_of(seeds[index], 0, environment.reset_draws)) for index in alone]
    torch.manual_seed(0)
    for time in range(1, 40):
        action = torch.randint(environment.action_space.n, (2, 3))
        state, *outcome = environment.step(state, action, uniforms_of(seeds, time, environment.step_draws))
        outcome.append(environment.observe(state))
        for number, index in enumerate(alone):
            uniforms = uniforms_of(seeds[index], time, environment.step_draws)
            states[number], *single = environment.step(states[number], action[index], uniforms)
            single.append(environment.observe(states[number]))
            for expected, found in zip([*outcome, *state.values()], [*single, *states[number].values()], strict=True):
                assert torch.equal(expected[index], found)


def random_policy(game, count, seed):
    """Actions of a random policy, which mostly goes up in Freeway: otherwise, it never gets to the other side."""
    random = np.random.default_rng(seed)
    number = GAMES[game]().action_space.n
    while True:
        actions = random.integers(number, size=count)
        yield np.where(random.random(count) < 0.8, 1, actions) if game == "freeway" else actions


def original_episodes(game, count):
    """Return the returns and lengths of episodes of the originals with their own generator."""
    original = Game(game=game, use_minimal_action_set=True)
    results, policy = [], random_policy(game, 1, 1)
    for seed in range(count):
        original.reset(seed=seed)
        total, length, ended = 0, 0, False
        while not ended:
            reward, ended = original.game.act(original.action_set[next(policy)[0]])
            total, length = total + reward, length + 1
        results.append((total, length))
    return np.array(results)


def tensor_episodes(game, count):
    """Return the returns and lengths of episodes of the tensor environment."""
    environment = GAMES[game]()
    seeds = torch.arange(count)
    state = environment.reset(uniforms_of(seeds, 0, environment.reset_draws))
    total, length, lives = torch.zeros(count), torch.zeros(count), torch.ones(count, dtype=torch.bool)
    for time, actions in enumerate(random_policy(game, count, 2), 1):
        uniforms = uniforms_of(seeds, time, environment.step_draws)
        state, reward, terminated = environment.step(state, torch.from_numpy(actions), uniforms)
        total, length = total + reward * lives, length + lives
        lives = lives & ~terminated
        if not lives.any():
            return torch.stack([total, length], -1).numpy()


@pytest.mark.parametrize("game", GAMES)
def test_random_policies_do_as_well_as_with_the_originals_generator(game):
    count = 8 if game == "freeway" else 250
    for ours, originals in zip(tensor_episodes(game, count).T, original_episodes(game, count).T, strict=True):
        assert np.array_equal(ours, originals) or stats.ttest_ind(ours, originals, equal_var=False).pvalue > 1e-3


def test_choice_stays_in_range():
    ends = torch.tensor([0.0, 1 - 2.0**-24])
    for number in range(1, 9):
        assert choice(ends, number).tolist() == [0, number - 1]


@pytest.mark.slow
@pytest.mark.parametrize("game", GAMES)
def test_compiled_steps_equal_eager_ones(game):
    environment = GAMES[game]()

    def step(state, action, uniforms):
        state, *outcome = environment.step(state, action, uniforms)
        return state, *outcome, environment.observe(state)

    seeds = torch.arange(6).view(3, 2)
    uniforms = uniforms_of(seeds, 0, environment.reset_draws)
    compiled_reset = torch.compile(environment.reset, fullgraph=True, dynamic=True)
    compiled_step = torch.compile(step, fullgraph=True, dynamic=True)
    eager, compiled = [environment.reset(uniforms)], [compiled_reset(uniforms)]
    for time in range(1, 100):
        action = torch.randint(environment.action_space.n, (3, 2))
        uniforms = uniforms_of(seeds, time, environment.step_draws)
        eager, compiled = step(eager[0], action, uniforms), compiled_step(compiled[0], action, uniforms)
        for expected, found in zip(
            [*eager[0].values(), *eager[1:]], [*compiled[0].values(), *compiled[1:]], strict=True
        ):
            assert expected.dtype == found.dtype
            assert torch.equal(expected, found)

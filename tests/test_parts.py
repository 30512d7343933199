"""Observations of several parts: Dict and Tuple, nested, from the environment to the network."""

import itertools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import masked
from qohort.agent.evaluation import Evaluator
from qohort.agent.heads import ImplicitQuantile
from qohort.config.errors import ConfigError, RunsFailed
from qohort.config.schema import EnvironmentConfig, EvaluationConfig
from qohort.environments.contract import check_contract
from qohort.environments.making import make_environment
from qohort.networks.packing import PackedSpace, Unpacked
from qohort.networks.parts import MultiInputNetwork
from qohort.networks.vectors import MLP, LinearNetwork
from qohort.runs.loading import load
from qohort.runs.policy import PolicyNetwork
from test_masks import resumed, run

SHORT = (
    "env.id=masked:Rooms-v0",
    "gamma=0.9",
    "compile=none",
    "logger=none",
    "trainer.progress_bar=false",
    "network=multi_input",
    "network.convolutions=[[3,3,2]]",
    "network.hidden=[16]",
    "budget=200",
    "batch_size=16",
    "learning_starts=50",
    "log_every=50",
    "evaluation.every=150",
    "evaluation.episodes=2",
)


def environment(**kwargs: Any) -> EnvironmentConfig:
    return EnvironmentConfig("masked:Rooms-v0", 1, kwargs, [])


def flat(tree: Any) -> list[Any]:
    """The leaves of a nest of dicts and tuples."""
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in flat(tree[key])]
    return [leaf for one in tree for leaf in flat(one)] if isinstance(tree, tuple) else [tree]


@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_what_the_network_gets_is_what_the_environment_returns(kind: str) -> None:
    env = make_environment(environment(kind=kind))
    space = env.observation_space
    assert isinstance(space, PackedSpace)
    assert space.unpacked == env.unwrapped.observation_space
    rows, seen = [env.reset(seed=2)[0]], []
    seen.append(env.unwrapped._seen())
    for _ in range(3):
        rows.append(env.step(env.unwrapped._room ^ env.unwrapped._lamp ^ 1)[0])
        seen.append(env.unwrapped._seen())
    batch = space.unpack(torch.from_numpy(np.stack(rows)))
    assert type(batch) is (dict if kind == "dict" else tuple)
    for leaf, originals in zip(flat(batch), zip(*map(flat, seen), strict=True), strict=True):
        original = np.stack(originals)
        assert leaf.shape == original.shape
        assert leaf.dtype == (torch.float32 if original.dtype.kind == "f" else torch.from_numpy(original).dtype)
        assert leaf.tolist() == original.tolist()


def test_every_part_keeps_its_dtype_and_place() -> None:
    space = spaces.Dict(
        {
            "a": spaces.Box(0, 255, (3,), np.uint8),
            "b": spaces.Box(-9, 9, (2,), np.float64),
            "c": spaces.Tuple([spaces.Discrete(4, start=-2), spaces.Box(-9, 9, (1,), np.int16)]),
            "d": spaces.MultiBinary(5),
        }
    )
    packed = PackedSpace(space, 3)
    sizes = {leaf.name: (str(leaf.dtype), leaf.stop - leaf.start) for leaf in packed.leaves}
    assert sizes == {
        "observation['a']": ("torch.uint8", 3),
        "observation['b']": ("torch.float32", 8),
        "observation['c'][0]": ("torch.int64", 8),
        "observation['c'][1]": ("torch.int16", 2),
        "observation['d']": ("torch.int8", 5),
    }
    assert packed.shape == (32,)  # 26 and 3 of the mask, in whole words of 8
    for leaf in packed.leaves:
        assert leaf.start % leaf.dtype.itemsize == 0
    places = sorted((leaf.start, leaf.stop) for leaf in packed.leaves)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(places))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("missing", r"step\(\) returned an observation without 'room', but the space is Dict\("),
        ("shape", r"step\(\) returned an observation\['camera'\] of shape \(8, 8\), but the space is Box"),
        ("nan", r"step\(\) returned an observation\['inner'\]\['lamp'\] with nan at \[0\], but its space is Box"),
        ("range", r"step\(\) returned an observation\['room'\] with the value 2, but its space is Discrete\(2\)"),
    ],
)
def test_a_wrong_part_is_one_line_that_names_it(wrong: str, told: str) -> None:
    evaluator = Evaluator(environment(wrong=wrong), EvaluationConfig(1, 4, 0.0, 20), [0], torch.device("cpu"))
    scores = evaluator(lambda rows: torch.zeros(*rows.shape[:2], 2), 1)
    evaluator.close()
    (failure,) = scores.failures.values()
    with pytest.raises(Exception, match=told):
        raise failure


class Faulty(masked.Rooms):
    """A lamp beyond the bounds of its space, from the start."""

    def _seen(self) -> Any:
        seen = super()._seen()
        seen["inner"]["lamp"] = np.array([5.0, 0.5])
        return seen


masked.gym.register("FaultyRooms-v0", Faulty)


def test_the_check_compares_each_part_with_its_bounds() -> None:
    check_contract(environment())
    told = r"env.id=test_parts:FaultyRooms-v0: reset\(\) returned an observation\['inner'\]\['lamp'\] with 5.0 at \[0\]"
    with pytest.raises(ConfigError, match=told):
        check_contract(replace(environment(), id="test_parts:FaultyRooms-v0"))


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (spaces.Text(5), r"Dict with Text at \['a'\]\['b'\]: its parts must be Box, Discrete or MultiBinary"),
        (spaces.Sequence(spaces.Discrete(2)), r"Dict with Sequence at \['a'\]\['b'\]"),
        (spaces.Graph(spaces.Discrete(2), None), r"Dict with Graph at"),
        (spaces.MultiDiscrete([2, 2]), r"Dict with MultiDiscrete at"),
        (spaces.Box(0, 1, (0,)), r"Dict with Box.* at \['a'\]\['b'\], which has no numbers"),
    ],
)
def test_parts_that_are_no_arrays_are_refused(part: Any, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    space = spaces.Dict({"a": spaces.Dict({"b": part})})
    original = masked.Rooms.__init__

    def with_part(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.observation_space = space

    monkeypatch.setattr(masked.Rooms, "__init__", with_part)
    with pytest.raises(ConfigError, match=rf"^env.id=masked:Rooms-v0 has the observation space {told}"):
        make_environment(environment())


def test_blackjack_is_played_as_it_is() -> None:
    check_contract(EnvironmentConfig("Blackjack-v1", 1, {}, []))


def test_frames_of_several_parts_are_not_stacked() -> None:
    with pytest.raises(
        ConfigError, match=r"env.frame_stack=2 with env.id=masked:Rooms-v0: frames are stacked of a Box"
    ):
        make_environment(replace(environment(), frame_stack=2))


def test_normalised_parts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"normalize_observations=true needs .* has Dict\("):
        run(tmp_path, [0], *SHORT, "normalize_observations=true")


# Networks


def batch_of(space: spaces.Space[Any], rows: int) -> Any:
    """Random observations as tensors."""
    if isinstance(space, spaces.Dict):
        return {key: batch_of(part, rows) for key, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(batch_of(part, rows) for part in space.spaces)
    space.seed(0)
    return torch.from_numpy(np.stack([space.sample() for _ in range(rows)]))


def test_vectors_of_all_parts_are_concatenated() -> None:
    space = masked.Rooms().observation_space
    batch = batch_of(space, 5)
    network = LinearNetwork(space, 2, 1, bias=False)
    by_hand = torch.cat(
        [
            batch["camera"].float().flatten(1) / 255,
            batch["inner"]["bits"].float(),
            batch["inner"]["lamp"].float(),
            nn.functional.one_hot(batch["room"], 2).float(),
        ],
        1,
    )
    torch.testing.assert_close(network.torso(batch), by_hand)
    assert MLP(space, 3, 4, hidden=[7])(batch).shape == (5, 3, 4)


def test_images_go_through_convolutions() -> None:
    space = masked.Rooms().observation_space
    batch = batch_of(space, 5)
    network = MultiInputNetwork(space, 3, 4, convolutions=[(2, 3, 2)], hidden=[7], dueling=True)
    assert network(batch).shape == (5, 3, 4)
    features = network.torso.layers[0]
    camera = features.encoders[features._keys.index("camera")]
    kernel, bias = camera.layers[0].weight, camera.layers[0].bias
    image = batch["camera"].float() / 255
    by_hand = nn.functional.conv2d(image, kernel.view(2, 1, 3, 3), bias, stride=2).relu().flatten(1)
    start = features._keys.index("camera")
    assert start == 0
    torch.testing.assert_close(features(batch)[:, : by_hand.shape[1]], by_hand)


def test_without_images_it_is_the_mlp() -> None:
    space = masked.Rooms(kind="tuple").observation_space
    batch = batch_of(space, 5)
    ours, theirs = MultiInputNetwork(space, 2, 1, [(2, 3, 2)], [7, 5]), MLP(space, 2, 1, [7, 5])
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(batch), theirs(batch))


class TakesTheDictionary(nn.Module):
    """A network of one's own, which gets the dictionary as it is."""

    def __init__(self, observation_space: Any, actions: int, atoms: int) -> None:
        super().__init__()
        assert isinstance(observation_space, spaces.Dict)
        self.hidden = nn.Linear(2 + 64, 8)
        self.output = nn.Linear(8, actions * atoms)
        self.shape = (actions, atoms)

    def forward(self, observation: Any) -> Tensor:
        room = (observation["room"].unsqueeze(-1) == torch.arange(2)).float()
        image = observation["camera"].float().flatten(1) / 255
        values: Tensor = self.output(self.hidden(torch.cat([room, image], 1)).relu())
        return values.unflatten(1, self.shape)


# Runs


VARIANTS = {
    "own network": ("~network", "+network={_target_:test_parts.TakesTheDictionary}"),
    "iqn, tuple, workers": ("agent=iqn", "+env.kwargs.kind=tuple", "env.workers=2", "env.num_envs=2"),
    "rainbow": ("agent=rainbow", "head.v_min=-1", "head.v_max=2"),
    "large, stored once": ("agent=nstep", "env.num_envs=2", "+env.kwargs.side=40"),
    "pqn": ("agent=pqn", "train_every=40", "batch_size=20", "gradient_steps=4"),
}
FAST = "own network"


@pytest.mark.parametrize(
    "name", [one if one == FAST else pytest.param(one, marks=pytest.mark.slow) for one in VARIANTS]
)
def test_a_member_is_the_same_alone_in_a_cohort_and_resumed(tmp_path: Path, name: str, monkeypatch: Any) -> None:
    dropped = "network" if name == "own network" else "learning_starts" if name == "pqn" else "?"
    overrides = (*(one for one in SHORT if not one.startswith(dropped)), *VARIANTS[name])
    alone = run(tmp_path / "alone", [3], *overrides)
    pair = run(tmp_path / "pair", [3, 0], *overrides)
    assert alone[3] == pair[3] != pair[0]
    resumed(monkeypatch, tmp_path / "resumed", 3, overrides, alone[3])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fx", "inductor"])
def test_compiled_members_are_the_same_alone_and_in_a_cohort(tmp_path: Path, mode: str, capfd: Any) -> None:
    overrides = (*(one for one in SHORT if not one.startswith("compile")), f"compile={mode}")
    assert run(tmp_path / "alone", [3], *overrides)[3] == run(tmp_path / "pair", [3, 0], *overrides)[3]
    assert "cannot do" not in capfd.readouterr().err


def test_a_policy_takes_what_the_environment_returns(tmp_path: Path) -> None:
    run(tmp_path, [0], *SHORT)
    policy = load(next(tmp_path.glob("*/*/seed-0")))
    env = masked.Rooms()
    assert policy.observation_space == env.observation_space
    observations = [env.reset(seed=seed)[0] for seed in range(3)]
    one_by_one = [policy.values(one) for one in observations]
    several = {
        "camera": np.stack([one["camera"] for one in observations]),
        "room": np.array([one["room"] for one in observations]),
        "inner": {key: np.stack([one["inner"][key] for one in observations]) for key in ("lamp", "bits")},
    }
    np.testing.assert_allclose(policy.values(several), np.stack(one_by_one), rtol=1e-5, atol=1e-6)
    assert policy.act(several).tolist() == [policy.act(one) for one in observations]
    assert not isinstance(policy.network.network, Unpacked)


def test_the_network_of_a_policy_takes_parts_with_fractions() -> None:
    head, space = ImplicitQuantile(), masked.Rooms().observation_space
    network = PolicyNetwork(head.network(MultiInputNetwork(space, 2, 1, [(3, 3, 2)], [8])), head)
    assert network(batch_of(space, 3)).shape == (3, 2)


def test_a_failing_environment_of_parts_is_one_line(tmp_path: Path) -> None:
    with pytest.raises((ConfigError, RunsFailed), match=r"env.id=masked:Rooms-v0: step\(\) returned an observation"):
        run(tmp_path, [0], *SHORT, "+env.kwargs.wrong=missing")

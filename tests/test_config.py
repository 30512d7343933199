from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from qohort.agent.bootstrap import Greedy
from qohort.cohort.schedules import Schedule
from qohort.config.annotations import Node, Range, Role, Sized
from qohort.config.checks import build_config, resolve
from qohort.config.errors import ConfigError
from qohort.config.folding import foldable_keys
from qohort.config.identity import (
    NOT_HASHED,
    _without_added,
    _without_modules,
    config_difference,
    config_hash,
    config_tree,
    experiment_tree,
)
from qohort.config.members import check_config
from qohort.config.messages import nearest
from qohort.config.schema import TrainConfig, evaluation_interval

Component = Annotated[Node, Role("builtins.object")]
CONF = Path(__file__).parents[1] / "conf"


@cache
def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


def configured(*overrides: str) -> TrainConfig:
    return check_config(composed(*overrides))[0]


def built(hint: Any, value: Any) -> Any:
    """What a dataclass with a single field of this annotation makes of a value."""

    @dataclass(frozen=True)
    class Single:
        key: Any

    Single.__annotations__["key"] = hint
    return build_config(Single, {"key": value}).key


@dataclass(frozen=True)
class Knot:
    """A component with a nested one."""

    size: Annotated[int, Range(1)]
    rate: Annotated[float, Range(0, 1, below=True)] = 0.5
    inner: Schedule | None = None

    def __post_init__(self) -> None:
        if self.size == 13:
            raise ValueError("thirteen is refused")


class Tensor:
    """Something that cannot stand in a configuration."""


KNOT = {"_target_": f"{__name__}.Knot", "size": 2}
KNOT_WHOLE = {**KNOT, "rate": 0.5, "inner": None}
CONSTANT = {"_target_": "qohort.cohort.schedules.ConstantSchedule", "value": 1}


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "words"),
    [
        (Range(1), (1, 7), (0, -3), "at least 1"),
        (Range(0, 1), (0, 0.5, 1), (-0.1, 1.1), "at least 0 and at most 1"),
        (Range(0, above=True), (1e-9, 5), (0, -1), "above 0"),
        (Range(0, 1, below=True), (0, 0.999), (1, -1), "at least 0 and below 1"),
        (Range(high=3), (-9, 3), (4,), "at most 3"),
        (Range(), (-9, 3), (), "finite"),
    ],
)
def test_range(bounds: Range, inside: Sequence[float], outside: Sequence[float], words: str) -> None:
    assert all(value in bounds for value in inside)
    assert not any(value in bounds for value in (*outside, float("nan"), float("inf"), -float("inf")))
    assert str(bounds) == words


Rates = tuple[Annotated[float, Range(0, 1)], Annotated[float, Range(0, 1)]]


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (int, 3, 3),
        (float, 3, 3.0),
        (bool, False, False),
        (str, "a", "a"),
        (Any, {"a": [1]}, {"a": [1]}),
        (Annotated[int, Range(1)], 1, 1),
        (Annotated[float, Range(0, 1)] | None, None, None),
        (Annotated[float, Range(0, 1)] | None, 1, 1.0),
        (Annotated[float, Range(0)] | Tensor, 2, 2.0),
        (int | str, "a", "a"),
        (Literal["a", "b"], "b", "b"),
        (Sequence[int], [1, 2], [1, 2]),
        (Annotated[Sequence[Annotated[int, Range(1)]], Sized(1)], [1], [1]),
        (tuple[int, ...], [1, 2, 3], [1, 2, 3]),
        (Rates, [0, 1], [0.0, 1.0]),
        (list, [1, "a"], [1, "a"]),
        (Mapping[str, int], {"a": 1}, {"a": 1}),
        (Component, CONSTANT, {**CONSTANT, "value": 1.0}),
        (Schedule, CONSTANT, {**CONSTANT, "value": 1.0}),
        (Schedule | None, None, None),
        (Component, KNOT, KNOT_WHOLE),  # with the defaults of what is left out
        (Sequence[Component], [KNOT], [KNOT_WHOLE]),
    ],
)
def test_what_fits_is_taken(hint: Any, value: Any, expected: Any) -> None:
    result = built(hint, value)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (int, "x", "key=x is not an integer"),
        (int, 1.5, "key=1.5 is not an integer"),
        (int, 1e3, "key=1000.0 is not an integer, as 1000"),
        (int, True, "key=true is not an integer"),
        (float, True, "key=true is not a number"),
        (float, "1", "key=1 is not a number"),
        (bool, 1, "key=1 is not true or false"),
        (str, 3, "key=3 is not text"),
        (str, "", "key='' is empty: it must be some text"),
        (Annotated[int, Range(1)], 0, "key=0 is out of range: it must be at least 1"),
        (Annotated[int, Range(1)], "x", "key=x is not an integer of at least 1"),
        (Annotated[float, Range(0, above=True)], float("nan"), "key=nan is out of range: it must be above 0"),
        (Annotated[float, Range(0, above=True)] | None, 0, "key=0 is out of range: it must be above 0, or null"),
        (Annotated[float, Range(0, above=True)] | Tensor, -1, "key=-1 is out of range: it must be above 0"),
        (Annotated[float, Range(0, above=True)] | Tensor, "x", "key=x is not a number above 0"),
        (int | bool, "x", "key=x is not an integer or true or false"),
        (float, None, "key=null is not a number"),
        (Literal["huber", "squared"], "hubre", "key=hubre is not one of the choices: did you mean huber?"),
        (Literal["huber", "squared"], "x", "it must be one of huber, squared"),
        (Sequence[int], 3, "key=3 is not a list, each an integer, as [A,B]"),
        (Sequence[int], "ab", "key=ab is not a list"),
        (Sequence[int], [1, "b"], "key[1]=b is not an integer"),
        (Annotated[Sequence[int], Sized(2)], [1], "key=[1] is too short: it must have at least 2 elements"),
        (Rates, [0.5], "key=[0.5] does not fit: it must have 2 elements"),
        (Rates, [0.5, 2], "key[1]=2 is out of range: it must be at least 0 and at most 1"),
        (Mapping[str, int], 3, "key=3 is not a group of keys"),
        (Mapping[str, int], {"a": "b"}, "key.a=b is not an integer"),
        (Component, 3, "key=3 is not a group of keys with a _target_"),
        (Component, {"a": 1}, "key={a:1} is not a group of keys with a _target_"),
        (Component, {"_target_": None}, "key._target_=null does not fit: it must be a class or function"),
        (Component, {"_target_": "no.Where"}, "key._target_=no.Where does not exist"),
        (Component, {"_target_": "no.Where"}, "the package no cannot be imported from here: run this in the project's"),
        (Component, {"_target_": "no.Where"}, "or install the project with pip install -e"),
        (Component, {"_target_": "qohrt.networks.X"}, "no package qohrt: did you mean qohort.networks.X?"),
        (Component, {"_target_": "qohort.netwroks.X"}, "qohort has no netwroks: did you mean qohort.networks.X?"),
        (
            Component,
            {"_target_": "qohort.networks.vectors.MLPP"},
            "vectors has no MLPP: did you mean qohort",
        ),
        (
            Component,
            {"_target_": "qohort.agent.heads.Head"},
            "Head cannot be made: it must define backup, divergence",
        ),
        (Component, {"_target_": "math.pi"}, "key._target_=math.pi cannot be called"),
        (Component, {**KNOT, "size": 0}, "key.size=0 is out of range: it must be at least 1"),
        (Component, {**KNOT, "rate": 1}, "key.rate=1 is out of range: it must be at least 0 and below 1"),
        (Component, {**KNOT, "sise": 1}, "unknown key key.sise=1: did you mean key.size?"),
        (Component, {"_target_": KNOT["_target_"]}, "key.size has no value: it must be an integer of at least 1"),
        (Component, {**KNOT, "size": 13}, "key={size:13}: thirteen is refused"),
        (Component, {**KNOT, "_partial_": True}, "unknown key key._partial_=true"),
        (Component, {**KNOT, "inner": 3}, "key.inner=3 is not a group of keys with a _target_, or null"),
        (Component, {**KNOT, "inner": {**CONSTANT, "value": -1}}, "key.inner.value=-1 is out of range"),
        (Component, {**KNOT, "inner": KNOT}, "it must make a qohort.cohort.schedules.Schedule, but it has no __call__"),
        (Sequence[Component], [KNOT, {**KNOT, "size": 0}], "key[1].size=0 is out of range"),
        (Knot, {"size": 0, "rate": 0.5, "inner": None}, "key.size=0 is out of range: it must be at least 1"),
        (Knot, 3, "key=3 is not a group of keys"),
    ],
)
def test_what_does_not_fit_is_told_with_key_and_value(hint: Any, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        built(hint, value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_and_missing_keys_of_a_dataclass() -> None:
    with pytest.raises(ConfigError, match=r"unknown key sise=1: did you mean size\?"):
        build_config(Knot, {"sise": 1})
    with pytest.raises(ConfigError, match="size has no value: it must be an integer"):
        build_config(Knot, {"rate": 0.5})
    assert build_config(Knot, {"size": 1}) == Knot(1)


def test_nearest() -> None:
    assert nearest("sed", ["seed", "gamma"]) == "did you mean seed? (it must be one of gamma, seed)"
    assert nearest("x", ["seed", "gamma"]) == "it must be one of gamma, seed"
    assert nearest("sed", ["seed"], "a.").startswith("did you mean a.seed?")
    assert nearest("item3", [f"item{i}" for i in range(40)]).endswith("?")
    assert nearest("x", []) == "there are none here"


def test_every_reference_is_resolved_and_told_where_it_leads_nowhere() -> None:
    assert configured("gamma=${exploration.epsilon.start}").gamma == 1.0
    with pytest.raises(ConfigError, match=r"gamma=\$\{nope\} cannot be resolved"):
        configured("gamma=${nope}")
    with pytest.raises(ConfigError, match=r"network.hidden\[1\]=\$\{nope\} cannot be resolved"):
        configured("network.hidden=[1,${nope}]")
    with pytest.raises(ConfigError, match="gamma has no value"):
        configured("gamma=???")


def test_a_member_for_each_seed_in_order() -> None:
    assert [one.seed for one in check_config(composed("seed=[3,1,2]"))] == [3, 1, 2]
    assert [one.seed for one in check_config(composed("seed=3"))] == [3]


def test_the_tree_is_plain_and_makes_the_same_configuration() -> None:
    config = configured("seed=3")
    tree = config_tree(config)
    assert OmegaConf.to_container(OmegaConf.create(tree)) == tree
    assert check_config(OmegaConf.create(tree)) == [config]


@pytest.mark.parametrize(
    ("budget", "interval"),
    [(150_000, 7_500), (2_000, 100), (20, 1), (7, 1), (21, 2), (1_010, 51)],  # 1,010: at 51, 102, ..., 969 and 1,010
)
def test_evaluations_follow_the_budget(budget: int, interval: int) -> None:
    assert evaluation_interval(budget) == interval
    assert len({*range(interval, budget, interval), budget}) <= 20
    default, given, null = (
        configured(f"budget={budget}", "learning_starts=0", "batch_size=1", "train_every=1", *more)
        for more in ((), (f"evaluation.every={interval}",), ("evaluation.every=null",))
    )
    assert default == given == null
    assert default.evaluation.every == interval
    assert config_hash(default) == config_hash(given)


def test_an_interval_that_follows_the_budget_is_not_a_difference() -> None:
    short, long = configured("budget=20_000"), configured("budget=40_000")
    assert config_difference(short, long) == {"budget": (20_000, 40_000)}
    other = configured("budget=40_000", "evaluation.every=1_000")
    assert config_difference(long, other) == {"evaluation.every": (2_000, 1_000)}
    assert config_difference(short, other) == {"budget": (20_000, 40_000)}


def test_numbers_are_the_same_however_they_are_typed() -> None:
    assert config_hash(configured("optimizer.lr=1")) == config_hash(configured("optimizer.lr=1.0"))
    assert config_hash(configured("gamma=1")) == config_hash(configured("gamma=1.0"))


@pytest.mark.parametrize(
    "overrides",
    [
        ("seed=3",),
        ("seed=[7,8]",),
        ("output_dir=elsewhere",),
        ("overwrite=true",),
        ("logger=none",),
        ("logger=[wandb,csv]",),
        ("logger.wandb.project=mine",),
        ("checkpoint.every=77",),
        ("trainer.progress_bar=false",),
    ],
)
def test_the_hash_ignores_seed_paths_logging_and_progress(overrides: tuple[str, ...]) -> None:
    assert config_hash(configured(*overrides)) == config_hash(configured())


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    if not tree or not isinstance(tree, dict | list):
        yield path
    for key, one in items:
        yield from leaves(one, (*path, key))


def changed(value: Any) -> Any:
    """Another value: the hash is of what stands there, whether it makes sense or not."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return {"more": 1} if isinstance(value, dict) else ["more"] if isinstance(value, list) else f"{value}x"


def test_the_hash_changes_with_everything_else() -> None:
    config = configured()
    hashes = {config_hash(config)}
    paths = [path for path in leaves(config_tree(config)) if path[0] not in NOT_HASHED]
    paths.remove(("env", "deterministic"))
    paths.remove(("env", "workers"))
    paths.remove(("env", "frame_padding"))  # of frames that are not stacked
    paths.remove(("evaluation", "video_at"))
    for path in paths:
        tree = copy.deepcopy(getattr(config, path[0])) if path[1:] else None
        if not path[1:]:
            other: Any = changed(getattr(config, path[0]))
        elif isinstance(tree, dict):
            node: Any = tree
            for key in path[1:-1]:
                node = node[key]
            node[path[-1]] = changed(node[path[-1]])
            other = tree
        else:
            other = replace(tree, **{path[1]: changed(getattr(tree, path[1]))})
        hashes.add(config_hash(replace(config, **{path[0]: other})))
    assert len(paths) > 30
    assert len(hashes) == len(paths) + 1


def test_the_hash_is_eight_digits_whatever_the_order_of_keys_and_members() -> None:
    def backwards(tree: Any) -> Any:
        return {key: backwards(tree[key]) for key in reversed(tree)} if isinstance(tree, dict) else tree

    config = composed("seed=[0,3]")
    turned = OmegaConf.create(backwards(OmegaConf.to_container(config)))
    first, second = check_config(config)
    assert len(config_hash(first)) == 8
    assert int(config_hash(first), 16) >= 0
    assert config_hash(first) == config_hash(second) == config_hash(configured("seed=3"))
    assert config_hash(first) == config_hash(check_config(turned)[0])


MNIH_2015 = {
    "bootstrap": {"_target_": "qohort.agent.bootstrap.Greedy"},
    "head": {"_target_": "qohort.agent.heads.Expected", "loss": "squared", "huber_delta": 1.0},
    "replay": {"_target_": "qohort.replay.ring.UniformReplay", "capacity": 20_000, "n_step": 1},
    "target_network": {"_target_": "qohort.agent.target_networks.HardTarget", "every": 150, "per": "env_steps"},
    "lr_schedule": {"_target_": "qohort.cohort.schedules.ConstantSchedule", "value": 1.0},
    "network": {
        "_target_": "qohort.networks.vectors.MLP",
        "hidden": [120, 84],
        "layer_norm": False,
        "spectral_norm": False,
        "dueling": False,
        "dueling_gradient": 1.0,
        "noisy": False,
        "noisy_sigma": 0.5,
        "initialization": "torch",
    },
    "exploration": {
        "_target_": "qohort.agent.exploration.EpsilonGreedy",
        "epsilon": {
            "_target_": "qohort.cohort.schedules.LinearSchedule",
            "start": 1.0,
            "end": 0.1,
            "fraction": 0.2,
            "duration": None,
            "per": "env_steps",
            "delay": 0,
        },
        "spread": 0.0,
    },
    "max_grad_norm": None,
    "normalize_observations": False,
    "normalize_rewards": False,
    "reward_scale": 1.0,
    "reward_clip": None,
    "reset_every": None,
    "callbacks": {},
}


@pytest.mark.parametrize("overrides", [(), ("agent=dqn",)])
def test_dqn_is_that_of_mnih_et_al_and_nothing_hidden(overrides: tuple[str, ...]) -> None:
    """Replay, a network copied at intervals, its own maximum, a linear epsilon; no later component is on."""
    config = configured(*overrides)
    assert {key: getattr(config, key) for key in MNIH_2015} == MNIH_2015
    assert config.agent == "dqn"


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        (("agent=rainbow",), "rainbow"),
        (("bootstrap=double",), "dqn+double"),
        (("agent=rainbow", "bootstrap=greedy"), "rainbow+greedy"),
        (("head=huber", "replay.n_step=3", "network.dueling=true"), "dqn+huber+3-step+dueling"),
        (("agent=noisy", "network.noisy=false", "exploration=linear"), "noisy+no_noisy"),
        (("target_network=polyak", "optimizer=sgd", "replay=none"), "dqn+newest_transition+polyak_target+sgd"),
        (("network=table", "env=frozenlake", "gamma=0.5"), "dqn"),
        (("experiment=article/dqn",), "article_dqn"),
        (("arm=mine", "bootstrap=double"), "mine"),
    ],
)
def test_a_label_says_where_a_run_departs_from_its_preset(overrides: tuple[str, ...], label: str) -> None:
    assert configured(*overrides).agent == label


def test_what_is_left_out_counts_as_its_default_and_our_classes_by_their_names() -> None:
    whole = copy.deepcopy(composed("agent=rainbow"))
    brief = copy.deepcopy(whole)
    for group, key in (("replay", "alpha"), ("network", "noisy_sigma"), ("exploration", "spread")):
        OmegaConf.set_struct(brief, False)
        default = OmegaConf.to_container(whole)[group][key]
        assert configured_from(whole)[group][key] == default
        whole[group][key] = {"alpha": 0.6, "noisy_sigma": 0.5, "spread": 0.0}[key]  # the defaults of the classes
        del brief[group][key]
    (first, *_), (second, *_) = check_config(whole), check_config(brief)
    assert first == second
    assert config_hash(first) == config_hash(second)
    moved = replace(first, bootstrap={"_target_": "qohort.elsewhere.Double"})
    other = replace(first, bootstrap={"_target_": "mylab.elsewhere.Double"})
    assert config_hash(moved) == config_hash(first) != config_hash(other)


def test_a_key_that_was_added_since_does_not_rename_a_run() -> None:
    for overrides in ((), ("env=minatar",), ("network=impala", "env=atari"), ("replay=prioritized",)):
        config = configured(*overrides)
        assert "delay" in repr(config)
        found = json.dumps(_without_added(_without_modules(experiment_tree(config))), default=str)
        for key in ("delay", "dueling_gradient", "initialization", "new_priority", "still_steps", "pool"):
            assert f'"{key}": ' not in found or (key == "still_steps" and overrides[-1:] == ("env=atari",))
    assert config_hash(configured("experiment=cartpole", "budget=2000")) == "9817f200"  # as in version 0.2


def configured_from(config: DictConfig) -> dict[str, Any]:
    return config_tree(check_config(config)[0])


@dataclass(frozen=True)
class OwnBootstrap(Greedy):
    """A bootstrap of a user's own, with a number that a member may hold."""

    foldable = ("margin",)

    margin: float = 0.5


def test_members_may_differ_in_what_components_declare_a_users_own_too() -> None:
    assert foldable_keys(configured_from(composed())) == [
        *("gamma", "max_grad_norm", "optimizer.lr", "lr_schedule.value"),
        *("exploration.epsilon.start", "exploration.epsilon.end"),
    ]
    keys = foldable_keys(configured_from(composed("optimizer=sgd", "bootstrap=soft", "target_network=polyak")))
    assert {"bootstrap.alpha", "bootstrap.temperature", "target_network.tau"} <= set(keys)
    assert not {"optimizer.lr", "lr_schedule.value"} & set(keys)
    config = copy.deepcopy(composed("seed=[0,1]", "fold=[{bootstrap.margin:0.1},{bootstrap.margin:0.2}]"))
    config.bootstrap = {"_target_": f"{__name__}.OwnBootstrap", "margin": 0.5}
    assert [member.bootstrap["margin"] for member in check_config(config)] == [0.1, 0.2]


@pytest.mark.parametrize("key", ["max_epochs", "strategy", "precision"])
def test_what_of_lightnings_trainer_a_cohort_does_not_admit_is_said(key: str) -> None:
    with pytest.raises(ConfigError, match=f"^trainer.{key} does not go with a cohort: "):
        configured(f"+trainer.{key}=1")


EXPERIMENTS = sorted((CONF / "experiment").rglob("*.yaml"))


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: str(file.relative_to(CONF / "experiment")))
def test_every_experiment_is_right_and_opens_with_its_command(file: Path) -> None:
    name = file.relative_to(CONF / "experiment").with_suffix("")
    assert f"\n# python scripts/train.py experiment={name}\n" in file.read_text()
    assert configured(f"experiment={name}").budget > 0


def test_every_agent_has_its_settings_for_cartpole() -> None:
    agents = {file.stem for file in (CONF / "agent").glob("*.yaml")}
    kept = {file.stem for file in EXPERIMENTS if file.parent.name == "cartpole_50k"}
    assert kept == agents
    for agent in sorted(agents):
        config = configured(f"experiment=cartpole_50k/{agent}")
        assert (config.agent, config.budget, config.env.id) == (agent, 50_000, "CartPole-v1")


def test_a_reference_to_nothing_is_told_also_of_a_key_with_a_dot():
    with pytest.raises(ConfigError, match=r"^a.b cannot be resolved .*seed.5"):
        resolve(OmegaConf.create({"seed": [0], "a.b": "${seed.5}"}))
    with pytest.raises(ConfigError, match=r"^a.b=\$\{seed.5\} cannot be resolved"):
        resolve(OmegaConf.create({"seed": [0], "a": {"b": "${seed.5}"}}))
    with pytest.raises(ConfigError, match=r"^a.b cannot be resolved"):
        resolve(OmegaConf.create({"seed": [0], "a": 1, "a.b": "${seed.5}"}))

"""What a manifest declares, what becomes of it, and which arms are refused."""

import sys

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from matrix import MARKS, matrix
from qohort.config.composition import CONFIG_DIRECTORY, without_hydra
from qohort.config.errors import ConfigError
from qohort.config.identity import config_hash
from qohort.config.members import check_config
from qohort.experiments.ablation import ablations_in, cells, read_ablation
from qohort.experiments.sweep import fold, fold_ablation
from qohort.runs.members import members_of

MANIFEST = """
# @package ablation
title: A small one
baseline: dqn
seeds: range(0,3)
budget: 5_000
environments:
  cartpole: {low: 0, high: 500}
  acrobot: {low: -500, high: -70, overrides: [target_network.every=300]}
settings: [batch_size=32, compile=none]
arms:
  dqn: []
  both: {title: Both, overrides: [head=huber, gamma=0.9]}
add_one:
  dqn:
    huber: [head=huber]
leave_one_out:
  both:
    huber: [head=squared]
"""


@pytest.fixture
def composes(tmp_path):
    """Writes a manifest and reads it: the ablation; `fold` makes its cohorts."""
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("train", [], run_mode=RunMode.MULTIRUN)
        search = [f"hydra.searchpath=[file://{tmp_path}]"]

        class Composes:
            def read(self, text, *extra, name="small"):
                file = tmp_path / "ablation" / f"{name}.yaml"
                file.parent.mkdir(exist_ok=True, parents=True)
                file.write_text(text)
                return read_ablation(name, extra, loader, search)

            def fold(self, text, *extra, max_members=32):
                return fold_ablation(self.read(text, *extra), loader, master, ("gamma",), max_members)

            def cohorts(self, *texts):
                return fold(texts, loader, master, (), 32)

            def ablations_in(self, *texts):
                return ablations_in(texts, loader, search)

        yield Composes()


def test_arms_and_what_each_is_compared_with(composes):
    arms = composes.read(MANIFEST).arms
    assert [(arm.label, arm.title, arm.overrides, arm.against) for arm in arms] == [
        ("dqn", "dqn", (), "dqn"),
        ("both", "Both", ("head=huber", "gamma=0.9"), "dqn"),
        ("dqn_plus_huber", "+ huber", ("head=huber",), "dqn"),
        ("both_minus_huber", "− huber", ("head=huber", "gamma=0.9", "head=squared"), "both"),
    ]
    assert arms[3].declared == ("head",)


@pytest.mark.slow
@pytest.mark.matrix
def test_the_sweep_is_of_ordinary_cohorts(composes):
    planned = composes.fold(MANIFEST, max_members=2)
    assert [(cell.arm.label, cell.environment) for cell, _ in planned] == [
        (label, environment)
        for environment in ("cartpole", "acrobot")
        for label in ("dqn", "both", "dqn_plus_huber", "both_minus_huber")
    ]
    assert all([cohort.seeds for cohort in cohorts] == [(0,), (1, 2)] for _, cohorts in planned)
    _, (first, _) = planned[1]
    expected = ("env=cartpole", "budget=5000", "batch_size=32", "compile=none", "head=huber", "gamma=0.9", "arm=both")
    assert sorted(first.overrides) == sorted(expected)
    every = [cohorts[0].config.target_network.every for _, cohorts in planned]
    assert every[4:] == [300] * 4
    assert 300 not in every[:4]


def test_an_arms_runs_are_those_of_the_same_overrides_without_an_ablation(composes):
    _, (cohort,) = composes.fold(MANIFEST)[1]
    (alone,) = composes.cohorts(*MANIFEST_ALONE, "arm=both")
    one, other = (check_config(without_hydra(each.config)) for each in (cohort, alone))
    assert one == other
    assert config_hash(one[0]) == config_hash(other[0])
    (directory,) = {member.directory.path.parent for member in members_of(one)}
    assert directory.as_posix() == f"outputs/CartPole-v1/both-{config_hash(one[0])}"


MANIFEST_ALONE = (
    "env=cartpole",
    "budget=5000",
    "seed=0,1,2",
    "batch_size=32",
    "compile=none",
    "head=huber",
    "gamma=0.9",
)


@pytest.mark.slow
@pytest.mark.matrix
def test_what_is_given_besides_comes_last(composes):
    planned = composes.fold(MANIFEST, "seed=7,8", "budget=2000", "target_network.every=50")
    assert {cohort.seeds for _, cohorts in planned for cohort in cohorts} == {(7, 8)}
    configs = [cohort.config for _, cohorts in planned for cohort in cohorts]
    assert {(config.budget, config.target_network.every) for config in configs} == {(2000, 50)}


def test_a_tilde_takes_an_earlier_override_back(composes):
    text = MANIFEST.replace("huber: [head=squared]", "huber: [head=squared, gamma=0.99, ~batch_size]")
    (cell,) = [one for one in cells(composes.read(text)) if one.arm.label == "both_minus_huber"][:1]
    assert "batch_size" not in " ".join(cell.overrides)
    assert "gamma=0.99" in cell.overrides
    assert "gamma=0.9" not in cell.overrides


def test_a_manifest_may_inherit(composes):
    composes.read(MANIFEST)
    text = "defaults: [small]\nenvironments: {acrobot: null}\narms: {both: {overrides: [gamma=0.8]}}\n"
    ablation = composes.read(f"# @package ablation\n{text}", name="inner/other")
    assert ablation.name == "inner/other"
    assert list(ablation.manifest.environments) == ["cartpole"]
    assert ablation.arms[1].overrides == ("gamma=0.8",)
    assert ablation.arms[1].title == "Both"


def test_several_ablations_may_be_asked_for(composes):
    composes.read(MANIFEST)
    composes.read(MANIFEST, name="two")
    assert [one.name for one in composes.ablations_in("ablation=small,two", "seed=1")] == ["small", "two"]
    assert composes.ablations_in("ablation=small", "seed=1")[0].extra == ("seed=1",)
    assert composes.ablations_in("env=cartpole") == []


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        # An arm whose resolved configuration says more than its overrides do.
        (
            "settings: [",
            "settings: ['max_grad_norm=${gamma}', ",
            r"arm both differs from dqn in max_grad_norm=0.9 \(there ",
        ),
        ("    huber: [head=huber]", "    huber: [agent=dqn]", "arms dqn and dqn_plus_huber are the same experiment"),
        pytest.param(
            "    huber: [head=squared]",
            "    huber: [head=huber]",
            "arms both and both_minus_huber are the same",
            marks=MARKS,
        ),
        ("[head=huber, gamma=0.9]", "[head=huber, budget=6000]", r"in budget=6000 \(there 5000\): arms may not differ"),
        pytest.param(
            "    huber: [head=huber]",
            "    huber: [evaluation.episodes=99]",
            "evaluation.episodes=99 .*may not differ in",
            marks=MARKS,
        ),
        pytest.param(
            "    huber: [head=huber]",
            "    huber: [+env.kwargs.max_episode_steps=50]",
            "env.kwargs.*may not differ",
            marks=MARKS,
        ),
    ],
)
def test_arms_that_differ_in_what_they_may_not_are_refused(composes, before, after, message):
    text = MANIFEST.replace(before, after)
    assert text != MANIFEST
    with pytest.raises(ConfigError, match=f"^ablation=small: .*{message}"):
        composes.fold(text)


@pytest.mark.slow
@pytest.mark.matrix
def test_a_preset_must_say_what_it_changes(composes, tmp_path):
    (tmp_path / "agent").mkdir()
    preset = "# @package _global_\ndefaults:\n  - override /head: huber\nagent: mine\ngamma: 0.5\n"
    (tmp_path / "agent" / "mine.yaml").write_text(preset)
    search = f"hydra.searchpath=[file://{tmp_path}]"
    text = MANIFEST.replace("    huber: [head=huber]", "    mine: {overrides: [agent=mine], differs: [head]}")
    with pytest.raises(ConfigError, match=r"dqn_plus_mine differs from dqn in gamma=0.5 .*, which it does not declare"):
        composes.fold(text, search)
    planned = composes.fold(text.replace("differs: [head]", "differs: [head, gamma]"), search)
    assert planned[2][1][0].config.gamma == 0.5


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("baseline: dqn", "baseline: dqm", "baseline=dqm is not an arm: did you mean dqn"),
        ("baseline: dqn\n", "", "baseline has no value"),
        ("budget: 5_000", "budget: 0", "budget=0 is out of range"),
        ("title:", "titel:", "unknown key titel"),
        ("low: 0, high: 500", "low: 500, high: 0", "low=500 must be less than high=0"),
        ("low: 0, high: 500", "low: 0", "environments.cartpole.high has no value"),
        ("  dqn: []", "  dqn: head", "arms.dqn=head is not a group of keys"),
        ("[head=huber, gamma=0.9]", "['gamma=0.9,0.8']", "gamma=0.9,0.8 is a sweep: an arm has one value"),
        ("[head=huber, gamma=0.9]", "[seed=3]", "seed=3 may not be set here"),
        ("[head=huber, gamma=0.9]", "['head huber']", "cannot be read"),
        ("settings: [", "settings: [env=acrobot, ", "env=acrobot may not be set here"),
        ("add_one:\n  dqn:", "add_one:\n  dqm:", "add_one.dqm: there is no such arm: did you mean dqn"),
        ("  dqn: []", "  dqn: []\n  dqn_plus_huber: [head=huber]", "two arms dqn_plus_huber"),
        ("budget: 5_000", "budget: [5_000", "cannot be read"),
    ],
)
def test_wrong_manifests(composes, before, after, message):
    assert before in MANIFEST
    with pytest.raises(ConfigError, match=f"^ablation=small: .*{message}"):
        composes.read(MANIFEST.replace(before, after, 1))


@pytest.mark.parametrize("text", ["", MANIFEST.replace("@package ablation", "@package ablatoin")])
def test_a_manifest_whose_keys_are_elsewhere(composes, text):
    message = "^ablation=small has no keys of a manifest: begin the file with the line # @package ablation$"
    with pytest.raises(ConfigError, match=message):
        composes.read(text)


@pytest.mark.parametrize("given", ["env=acrobot", "agent=dqn", "arm=x", "gamma=0.1,0.2"])
def test_what_does_not_go_with_an_ablation(composes, given):
    with pytest.raises(ConfigError, match="does not go with ablation="):
        composes.read(MANIFEST, given)


def test_a_manifest_that_is_not_there(composes):
    composes.read(MANIFEST)
    with pytest.raises(ConfigError, match="ablation=smal is not one of the choices"):
        composes.ablations_in("ablation=smal")


def test_defaults_that_are_not_there(composes):
    with pytest.raises(ConfigError, match=r"^ablation=small: its defaults name smal, which does not exist$"):
        composes.read(MANIFEST.replace("title: A small one", "defaults: [smal]\ntitle: A small one"))


def test_without_m_an_ablation_is_refused(composes):
    with pytest.raises(ConfigError, match="ablation is a sweep: add -m"):
        check_config(OmegaConf.create({"ablation": {"title": "x"}, "seed": 1}))


@pytest.mark.parametrize("arm", ["a/b", "", "..", 3, "a b"])
def test_an_arm_must_be_a_name(arm):
    with pytest.raises(ConfigError, match="is not a name"):
        check_config(OmegaConf.create({"arm": arm, "seed": 1}))


MANIFESTS = sorted(
    path.relative_to(CONFIG_DIRECTORY / "ablation") for path in (CONFIG_DIRECTORY / "ablation").rglob("*.yaml")
)


@pytest.mark.parametrize(
    "name", matrix([path.with_suffix("").as_posix() for path in MANIFESTS], ["cartpole_components"])
)
def test_every_manifest_composes_and_its_arms_are_as_they_say(name):
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("train", [], run_mode=RunMode.MULTIRUN)
        planned = fold_ablation(read_ablation(name, (), loader), loader, master, (), sys.maxsize)
    assert len(planned) >= 6

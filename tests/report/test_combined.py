"""Several ablations as one: which arms are one arm, and what does not fit together."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from qohort.config.errors import ConfigError
from qohort.experiments.ablation import Ablation, Arm, EnvironmentChoice, ManifestConfig
from qohort.experiments.presentation import Show
from qohort.experiments.stopping import SequentialConfig
from qohort.report.combined import combine
from qohort.report.scores import PlannedRun

SHOW = Show("final", "eval/return", 5, ())
SEQUENTIAL = SequentialConfig(None, 5, None, 0.05)


def part(name, arms, environments, hashes=None, high=500.0):
    """An ablation with one run, of seed 0, of each arm in each environment; the first arm is the baseline."""
    chosen = {one: EnvironmentChoice(0.0, high, ()) for one in environments}
    manifest = ManifestConfig(f"On {name}", arms[0], "0", 10, (), chosen, {}, {}, {}, SHOW, None, SEQUENTIAL)
    made = tuple(Arm(label, label.upper(), (), arms[0], ()) for label in arms)
    runs = [
        PlannedRun(
            arm,
            environment,
            SimpleNamespace(seed=0),
            Path(f"outputs/{environment}/{arm.label}-{(hashes or {}).get(arm.label, 'same')}/seed-0"),
        )
        for environment in environments
        for arm in made
    ]
    return Ablation(name, manifest, made, ()), runs


def test_arms_and_environments_of_all_are_in_one_report():
    ablation, runs = combine([part("a", ["dqn", "c51"], ["x"]), part("b/c", ["dqn", "qr"], ["x", "y"])], None)
    assert (ablation.name, ablation.selector, ablation.sweep) == ("a+b_c", "ablation=[a,b/c]", "ablation=a,b/c")
    assert [arm.label for arm in ablation.arms] == ["dqn", "c51", "qr"]
    assert list(ablation.manifest.environments) == ["x", "y"]
    assert ablation.manifest.title == "On a · On b/c"
    # dqn on x is the same run in both.
    found = [(run.environment, run.arm.label) for run in runs]
    assert found == [("x", "dqn"), ("x", "c51"), ("x", "qr"), ("y", "dqn"), ("y", "qr")]


def test_another_experiment_of_the_same_label_is_another_arm_with_its_own_comparisons():
    first, second = part("a", ["dqn", "c51"], ["x"]), part("b", ["dqn", "qr"], ["x"], {"dqn": "other"})
    ablation, runs = combine([first, second], "mine")
    assert ablation.name == "mine"
    arms = {arm.label: arm for arm in ablation.arms}
    assert list(arms) == ["dqn", "c51", "dqn@b", "qr"]
    assert arms["dqn@b"].title == "DQN (On b)"
    assert [arm.against for arm in ablation.arms] == ["dqn", "dqn", "dqn@b", "dqn@b"]
    assert [run.arm.label for run in runs] == ["dqn", "c51", "dqn@b", "qr"]
    assert all(run.arm is arms[run.arm.label] or run.arm == arms[run.arm.label] for run in runs)
    # In an environment of its own it would be the same arm.
    elsewhere = part("b", ["dqn", "qr"], ["y"], {"dqn": "other"})
    assert [arm.label for arm in combine([first, elsewhere], None)[0].arms] == ["dqn", "c51", "qr"]


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ConfigError, match="names a twice: name each once"):
        combine([part("a", ["dqn"], ["x"]), part("a", ["dqn"], ["x"])], None)
    with pytest.raises(ConfigError, match="ablation=b has low=0, high=200 for x, and the one before it low=0, high=5"):
        combine([part("a", ["dqn"], ["x"]), part("b", ["dqn"], ["x"], high=200.0)], None)


def test_three_ablations_keep_the_first_title():
    one, two = part("a", ["dqn"], ["x"]), part("b", ["dqn"], ["y"])
    renamed = replace(two[0], arms=(replace(two[0].arms[0], title="Other"),))
    ablation, _ = combine([one, (renamed, two[1]), part("c", ["dqn"], ["z"])], None)
    assert [arm.title for arm in ablation.arms] == ["DQN"]

"""Ablations with until=decided: which arms go on, what resumes, what is kept, and what is refused."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from qohort.config.composition import CONFIG_DIRECTORY
from qohort.config.errors import ConfigError, Interrupted
from qohort.experiments.ablation import cells, read_ablation
from qohort.experiments.sequential import Comparison, SequentialAblation, as_begun, describe, record_of
from qohort.runs.directory import RESULT_NUMBERS, RunDirectory

MANIFEST = """
# @package ablation
title: A small one
baseline: dqn
seeds: range(0,12)
budget: 5_000
environments: {cartpole: {low: 0, high: 500}}
arms:
  dqn: []
  both: [head=huber, gamma=0.9]
add_one: {dqn: {huber: [head=huber]}}
leave_one_out: {both: {huber: [head=squared]}}
sequential: {seeds_per_group: 4, margin: 0.02, alpha: 0.2}
"""
SEEDS = range(12)
BOTH, HUBER, MINUS = (
    Comparison("both", "dqn", "cartpole"),
    Comparison("dqn_plus_huber", "dqn", "cartpole"),
    Comparison("both_minus_huber", "both", "cartpole"),
)


@pytest.fixture(scope="module")
def reads(tmp_path_factory):
    """Reads a manifest with overrides of the command line."""
    conf = tmp_path_factory.mktemp("conf")
    (conf / "ablation").mkdir()

    @functools.cache
    def read(*extra, text=MANIFEST):
        (conf / "ablation" / "small.yaml").write_text(text)
        return read_ablation(
            "small", extra, GlobalHydra.instance().config_loader(), [f"hydra.searchpath=[file://{conf}]"]
        )

    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        yield read


class Runs:
    """Directories of runs, with training that writes a chosen score and remembers what it trained."""

    def __init__(self, folder, ablation, score, seeds=SEEDS):
        self.directories = {
            (arm.label, "cartpole"): {
                seed: RunDirectory(folder / "CartPole-v1" / f"{arm.label}-01234567" / f"seed-{seed}") for seed in seeds
            }
            for arm in ablation.arms
        }
        self.score, self.trained, self.asked = score, [], []

    def train(self, number, going_on, seeds):
        self.asked.append((number, [arm for arm, _ in going_on], tuple(seeds)))
        for cell in going_on:
            for seed in seeds:
                directory, score = self.directories[cell][seed], self.score(cell[0], seed)
                if directory.result() is None and score is not None:
                    directory.path.mkdir(parents=True)
                    content = {**dict.fromkeys(RESULT_NUMBERS, score), "auc": score / 2, "fingerprint": ""}
                    (directory.path / "result.json").write_text(json.dumps(content))
                    rows = [{"env_steps": 100, "eval/return": 0.0}, {"env_steps": 200, "eval/return": score}]
                    directory.metrics.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
                    self.trained.append((cell[0], seed))


def better(arm, seed):
    """`both` and its relative are better; adding huber changes scores by little, in either direction."""
    return 100.0 + 7 * seed % 5 + (300 if arm.startswith("both") else 0) + (-1) ** seed * (arm == "dqn_plus_huber")


def test_arms_go_on_while_they_or_those_compared_with_them_are_open(reads, tmp_path):
    ablation = reads("until=decided", "sequential.margin=0.004")  # a margin of 2
    runs = Runs(tmp_path, ablation, better)
    progress = SequentialAblation.of(ablation, runs.directories).follow(runs.train)
    # With 4 pairs the smallest p of two sides is 1/8, of one side 1/16: the level of three comparisons is 0.2 / 3.
    every = ["dqn", "both", "dqn_plus_huber", "both_minus_huber"]
    assert runs.asked == [(0, every, (0, 1, 2, 3)), (1, every, (4, 5, 6, 7))]
    decided = {one: (decision.verdict, decision.seeds) for one, decision in progress.decisions.items()}
    assert decided == {BOTH: ("higher", 8), HUBER: ("equivalent", 8), MINUS: ("equivalent", 8)}
    assert progress.decisions[BOTH].difference == 300

    def late(arm, seed):
        return better(arm, seed) + (-1) ** seed * 50 * (arm == "both_minus_huber")

    runs = Runs(tmp_path / "late", ablation, late)
    progress = SequentialAblation.of(ablation, runs.directories).follow(runs.train)
    assert runs.asked[2:] == [(2, ["both", "both_minus_huber"], (8, 9, 10, 11))]
    assert {label: len(seeds) for (label, _), seeds in progress.seeds.items()} == {
        **dict.fromkeys(("dqn", "dqn_plus_huber"), 8),
        **dict.fromkeys(("both", "both_minus_huber"), 12),
    }
    assert progress.decisions[BOTH].seeds == 8  # decided before its last group
    assert progress.decisions[MINUS].verdict == "not told apart"


def test_an_interrupted_ablation_resumes_with_the_same_decisions(reads, tmp_path):
    ablation = reads("until=decided", "sequential.max_seeds=10")
    whole = Runs(tmp_path / "whole", ablation, better)
    wanted = SequentialAblation.of(ablation, whole.directories).follow(whole.train)
    parts = Runs(tmp_path / "parts", ablation, better)

    def interrupted(number, going_on, seeds):
        if number == 1:
            parts.train(number, going_on[:2], seeds[:3])
            raise Interrupted("interrupted by SIGINT")
        parts.train(number, going_on, seeds)

    with pytest.raises(Interrupted):
        SequentialAblation.of(ablation, parts.directories).follow(interrupted)
    assert SequentialAblation.of(ablation, parts.directories).follow(parts.train) == wanted
    assert sorted(parts.trained) == sorted(whole.trained)
    again = len(parts.trained)
    assert SequentialAblation.of(ablation, parts.directories).follow(parts.train) == wanted
    assert len(parts.trained) == again
    assert SequentialAblation.of(ablation, parts.directories).follow() == wanted  # as a report does


def test_an_arm_whose_run_fails_stops_and_the_others_go_on(reads, tmp_path):
    ablation = reads("until=decided")
    runs = Runs(
        tmp_path, ablation, lambda arm, seed: None if (arm, seed) == ("dqn_plus_huber", 5) else better(arm, seed)
    )
    sequential = SequentialAblation.of(ablation, runs.directories)
    told = []
    progress = sequential.follow(runs.train, told.append)
    assert progress.missing == {HUBER: (5,)}
    assert (progress.decisions[HUBER].verdict, progress.decisions[HUBER].seeds) == ("open", 4)
    assert progress.decisions[BOTH].verdict == "higher"
    assert told[-1] == progress
    assert describe(HUBER, progress, 10) == (
        "dqn_plus_huber on cartpole: not decided against dqn after 4 seeds, mean difference +0; stopped: seed 5 has no "
        "result"
    )
    assert describe(BOTH, progress, 10) == "both on cartpole: higher than dqn after 8 seeds, mean difference +300"
    assert describe(MINUS, progress, 10).startswith("both_minus_huber on cartpole: within 10 of both after ")
    # Its other seeds are not taken before the failed one has a result.
    runs.score = better
    assert sequential.follow(runs.train).decisions[HUBER].verdict == "equivalent"


def test_scores_are_those_of_the_manifest(reads, tmp_path):
    ablation = reads("until=decided", text=MANIFEST + "show: {score: auc}\n")
    runs = Runs(tmp_path, ablation, better)
    assert SequentialAblation.of(ablation, runs.directories).follow(runs.train).decisions[BOTH].difference == 150


def test_settings_are_kept_and_may_not_change_after_the_first_result(reads, tmp_path):
    ablation = reads("until=decided")
    runs = Runs(tmp_path, ablation, better)
    sequential = SequentialAblation.of(ablation, runs.directories)
    sequential.begin(overwrite=False)
    record = record_of(ablation, runs.directories)
    assert record.parent == tmp_path / "sequential"
    assert re.fullmatch(r"small-[0-9a-f]{8}\.json", record.name)
    assert json.loads(record.read_text()) == {
        "sequential.max_seeds": 12,
        "sequential.seeds_per_group": 4,
        "sequential.margin": 0.02,
        "sequential.alpha": 0.2,
        "seed": [*SEEDS],
    }
    other = SequentialAblation.of(reads("until=decided", "sequential.alpha=0.1"), runs.directories)
    other.begin(overwrite=False)  # nothing was seen yet
    sequential.begin(overwrite=False)
    sequential.follow(runs.train)
    sequential.begin(overwrite=False)
    with pytest.raises(ConfigError, match=r"was begun with sequential.alpha=0.2, not 0.1: .*overwrite=true"):
        other.begin(overwrite=False)
    with pytest.raises(ConfigError, match=r"was begun with sequential.alpha=0.2, not 0.1"):
        as_begun(other.ablation, runs.directories)
    other.begin(overwrite=True)
    assert json.loads(record.read_text())["sequential.alpha"] == 0.1


def test_a_report_takes_the_settings_that_were_kept(reads, tmp_path):
    runs = Runs(tmp_path, reads(), better)
    assert as_begun(reads(), runs.directories) is None
    begun = SequentialAblation.of(reads("until=decided", "sequential.alpha=0.1"), runs.directories)
    assert as_begun(begun.ablation, runs.directories) == begun
    begun.begin(overwrite=False)
    assert as_begun(reads(), runs.directories).design == begun.design
    assert as_begun(reads("until=seeds"), runs.directories) is None
    assert as_begun(reads(text=MANIFEST + "show: {score: auc}\n"), runs.directories) is None  # another question
    record_of(reads(), runs.directories).write_text("{")
    with pytest.raises(ConfigError, match=r"small-.*json is damaged: remove it"):
        as_begun(reads(), runs.directories)


def test_the_keys_are_of_the_manifest_and_of_the_command_line_but_not_of_runs(reads):
    assert reads().manifest.until is None
    assert reads(text=MANIFEST + "until: decided\n").manifest.until == "decided"
    ablation = reads("until=decided", "sequential.margin=null", "seed=0,1", "sequential.max_seeds=2")
    settings = ablation.manifest.sequential
    assert (settings.max_seeds, settings.seeds_per_group, settings.margin, settings.alpha) == (2, 4, None, 0.2)
    assert not any("until" in text or "sequential" in text for cell in cells(ablation) for text in cell.overrides)
    assert any("seed=0,1" in text for text in cells(ablation)[0].overrides)
    plain = reads(text=re.sub("sequential:.*", "", MANIFEST)).manifest.sequential
    assert (plain.max_seeds, plain.seeds_per_group, plain.margin, plain.alpha) == (None, 5, None, 0.05)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("until=decide", "until=decide .*decided"),
        ("sequential.alpha=1", "sequential.alpha=1 is out of range"),
        ("sequential.margin=0", "sequential.margin=0 is out of range"),
        ("sequential.seeds_per_group=0", "sequential.seeds_per_group=0 is out of range"),
        ("sequential.max_seeds=many", "sequential.max_seeds=many"),
        ("sequential.max_seed=3", "unknown key sequential.max_seed.*did you mean sequential.max_seeds"),
        ("sequential={alpha:0.1}", r"write until=decided, until=seeds or sequential.KEY=VALUE"),
        ("~until", "~until has not the right form"),
        ("until=decided,seeds", "has not the right form"),
    ],
)
def test_mistakes(reads, given, message):
    with pytest.raises(ConfigError, match=message):
        reads(given)


def test_designs_that_cannot_decide(reads, tmp_path):
    def of(*extra, text=MANIFEST):
        ablation = reads("until=decided", *extra, text=text)
        return SequentialAblation.of(ablation, Runs(tmp_path, ablation, better).directories)

    assert of("sequential.max_seeds=8").seeds == tuple(range(8))
    with pytest.raises(ConfigError, match=r"sequential.max_seeds=13 is more than the 12 seeds"):
        of("sequential.max_seeds=13")
    with pytest.raises(
        ConfigError, match=r"max_seeds=4 can decide nothing: 3 comparisons at .*alpha=0.2 need at least 5"
    ):
        of("sequential.max_seeds=4")
    alone = re.sub(r"  both:.*|add_one.*|leave.*", "", MANIFEST)
    with pytest.raises(ConfigError, match="only one arm: there is nothing to decide"):
        of(text=alone)


def test_margins_are_of_normalised_scores(reads, tmp_path):
    ablation = reads("until=decided")
    margins = SequentialAblation.of(ablation, Runs(tmp_path, ablation, better).directories).margins
    assert margins == dict.fromkeys((BOTH, HUBER, MINUS), 10.0)
    none = replace(ablation.manifest.sequential, margin=None)
    ablation = replace(ablation, manifest=replace(ablation.manifest, sequential=none))
    margins = SequentialAblation.of(ablation, Runs(tmp_path, ablation, better).directories).margins
    assert margins == dict.fromkeys((BOTH, HUBER, MINUS))


TINY = """# @package ablation
title: A tiny ablation
baseline: dqn
seeds: range(0,9)
budget: 500
settings:
  - learning_starts=100
  - batch_size=16
  - evaluation.every=250
  - evaluation.episodes=2
  - compile=none
  - network.hidden=[16]
  - checkpoint.every=100
environments: {cartpole: {low: 0, high: 500}}
arms:
  dqn: []
  huber: [head=huber]
  fast: [optimizer.lr=0.03]
sequential: {seeds_per_group: 3, alpha: 0.3, margin: 0.004}
"""
SCRIPT = Path(__file__).parents[1] / "scripts" / "train.py"


def started(folder, *overrides):
    """The command in a process group of its own, so that its workers end with it."""
    given = ["-m", "ablation=tiny", "until=decided", "logger=none", "trainer.progress_bar=false", *overrides]
    command = [sys.executable, str(SCRIPT), "--config-dir", str(folder / "conf"), *given]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def ended(folder, *overrides):
    """Its decisions and the fingerprints of its runs, after it has ended without an error."""
    process = started(folder, *overrides)
    out, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, out
    fingerprints = {
        file.parent.relative_to(folder / "outputs"): json.loads(file.read_text())["fingerprint"]
        for file in (folder / "outputs").rglob("result.json")
    }
    return re.findall(r"^(?:  \w+ on cartpole: |until=decided: |group ).*", out, re.MULTILINE), fingerprints


@pytest.mark.slow
def test_killed_and_started_again_it_decides_the_same_with_any_launcher(tmp_path):
    folders = [tmp_path / name for name in ("whole", "killed", "joblib")]
    for folder in folders:
        (folder / "conf" / "ablation").mkdir(parents=True)
        (folder / "conf" / "ablation" / "tiny.yaml").write_text(TINY)
    whole, killed, joblib = folders
    wanted = ended(whole)
    assert wanted[0][-1].startswith("until=decided: ")
    process = started(killed)
    while process.poll() is None and not list(killed.glob("outputs/CartPole-v1/huber-*/seed-3/checkpoints/*")):
        time.sleep(0.1)  # in the middle of group 2
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert ended(killed) == wanted
    assert ended(joblib, "hydra/launcher=joblib") == wanted

"""Receipts: what verification says of runs that hold, that do not, and that were made elsewhere."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qohort.config.errors import RunsFailed
from qohort.report.ledger import made_differences, made_of
from qohort.report.verdicts import Again, judge, rank
from qohort.report.verification import draw_rows
from qohort.statistics import compare, interquartile_mean

SCRIPTS = Path(__file__).parents[2] / "scripts"
MANIFEST = """# @package ablation
title: A tiny ablation
baseline: dqn
seeds: range(0,2)
budget: 300
settings: [learning_starts=60, batch_size=16, log_every=50, evaluation.every=150, evaluation.episodes=2, compile=none]
environments:
  cartpole: {low: 0, high: 50}
arms:
  dqn: []
  huber: [head=huber]
show: {figures: [scores]}
"""


def script(name, *arguments):
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "WANDB_MODE": "offline"}, timeout=300
    )


def train(directory, *overrides):
    quiet = (f"output_dir={directory}/outputs", "trainer.progress_bar=false", "logger=none")
    return script("train.py", "--config-dir", directory / "conf", "-m", "ablation=tiny", *quiet, *overrides)


def report(directory, *overrides):
    places = (f"output_dir={directory}/outputs", f"reports_dir={directory}/reports", "resamples=200")
    return script("report.py", "--config-dir", directory / "conf", "ablation=tiny", *places, *overrides)


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A real ablation, trained and reported."""
    directory = tmp_path_factory.mktemp("ablation")
    (directory / "conf" / "ablation").mkdir(parents=True)
    (directory / "conf" / "ablation" / "tiny.yaml").write_text(MANIFEST)
    done = train(directory)
    assert done.returncode == 0, done.stderr
    assert "sweep: 2 cohorts, 4 members, 1,200 env_steps in all; 0 of 4 finished already" in done.stdout
    done = report(directory)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture
def verify(reported, monkeypatch, capfd):
    """Calls the script in this process: exit code, stdout, stderr."""

    def call(*arguments):
        given = [str(SCRIPTS / "verify.py"), f"report={reported}/reports/tiny", *arguments]
        monkeypatch.setattr(sys, "argv", given)
        code = 0
        try:
            runpy.run_path(given[0], run_name="__main__")
        except SystemExit as error:
            code = int(error.code or 0)
        return code, *capfd.readouterr()

    return call


@pytest.mark.slow
@pytest.mark.matrix
def test_the_same_ablation_again_trains_nothing_and_reports_the_same(reported):
    before = {path: path.stat().st_mtime_ns for path in (reported / "outputs").rglob("*") if path.is_file()}
    files = {path: path.read_bytes() for path in (reported / "reports").rglob("*") if path.is_file()}
    done = train(reported)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 finished already" in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (reported / "outputs").rglob("*") if path.is_file()}
    assert report(reported).returncode == 0
    assert files == {path: path.read_bytes() for path in (reported / "reports").rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.matrix
def test_arms_are_in_the_names_of_directories(reported):
    names = {path.name.rpartition("-")[0] for path in (reported / "outputs" / "CartPole-v1").iterdir()}
    assert names == {"dqn", "huber"}


@pytest.mark.slow
@pytest.mark.matrix
def test_runs_that_hold_are_verified(verify, reported):
    code, out, err = verify("sample=2")
    assert code == 0, err
    assert out.startswith("2 of 4 runs, trained again:")
    assert out.count("equal to the bit, fingerprint") == 2
    assert out.endswith("equal to the bit: 2 of 2 runs ended with their fingerprints\n")


@pytest.fixture
def forged(reported):
    """The ablation with other fingerprints, and its files as they were afterwards."""
    kept = reported.parent / "kept"
    shutil.copytree(reported, kept)
    (reported / "reports" / "tiny" / "scores.csv").write_text(
        re.sub(r"[0-9a-f]{64}", "0" * 64, (kept / "reports" / "tiny" / "scores.csv").read_text())
    )
    for file in (reported / "outputs").rglob("result.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "fingerprint": "0" * 64}))
    yield reported
    shutil.rmtree(reported)
    kept.rename(reported)


@pytest.mark.slow
@pytest.mark.matrix
def test_another_fingerprint_where_nothing_changed_fails(verify, forged):
    code, out, err = verify("sample=1")
    assert code == 1
    assert "DIFFERENT FINGERPRINT" in out
    assert "; nothing else changed" in out
    assert "not compatible: 1 of 1 runs have another fingerprint on the same machine type with the same versions" in err


@pytest.mark.slow
@pytest.mark.matrix
def test_where_versions_changed_it_says_so_and_compares_scores(verify, forged):
    for file in (forged / "outputs").rglob("manifest.json"):
        tree = json.loads(file.read_text())
        file.write_text(json.dumps({**tree, "cpu": "another", "packages": {**tree["packages"], "torch": "2.8.0"}}))
    code, out, err = verify("sample=2")
    assert code == 0, err
    assert "torch 2.8.0 then, 2.13.0" in out
    assert "cpu another then" in out
    assert "statistically compatible, which is weaker than equal to the bit: 0 of 2 runs" in out


@pytest.mark.slow
@pytest.mark.matrix
def test_a_run_that_is_gone_or_changed_is_told_before_anything_is_trained(verify, forged):
    for file in (forged / "outputs").rglob("result.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "fingerprint": "1" * 64}))
    code, out, err = verify()
    assert (code, out) == (2, "")
    assert "result.json that is not the one in the report" in err
    shutil.rmtree(forged / "outputs")
    code, out, err = verify()
    assert (code, out) == (2, "")
    assert "is in the report but cannot be read" in err


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("report=/nowhere", "report=/nowhere is not a report, it has no scores.csv"),
        ("sample=0", "sample=0 is out of range"),
        ("level=1", "level=1 is out of range"),
        ("samples=3", "did you mean sample?"),
    ],
)
def test_mistakes_are_one_line(verify, given, message):
    code, _, err = verify(given)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert message in err


ROWS = [{"environment": "e", "arm": arm, "seed": str(seed)} for arm in "ab" for seed in range(20)]


def test_the_draw_hangs_on_the_seed_alone():
    mixed = [ROWS[index] for index in np.random.default_rng(0).permutation(len(ROWS))]
    assert draw_rows(ROWS, 3, 0) == draw_rows(mixed, 3, 0)
    assert draw_rows(ROWS, 3, 0) != draw_rows(ROWS, 3, 1)
    assert len(draw_rows(ROWS, 99, 0)) == 40


def test_changes_by_hand():
    then = made_of({"command": ["a"], "cpu": "x", "git_commit": "1", "packages": {"torch": "1", "wandb": None}}, False)
    now = made_of({"command": ["b"], "cpu": "x", "git_commit": "2", "packages": {"torch": "3"}}, True)
    assert made_differences(then, now) == ("torch 1 then, 3 now",)  # another commit of the same code explains nothing
    assert made_differences(then, then) == ()
    threads = made_of({"environments": "tensor", "threads": 1}, False), made_of({"threads": 2}, False)
    assert made_differences(threads[0], {**threads[0], "threads": 2}) == ()  # which share the members out
    assert "threads 1 then, 2 now" in made_differences(*threads)


def test_the_kernel_explains_nothing_and_the_c_library_does():
    then, now, other = (
        made_of({"platform": f"Linux-{name}"}, False)
        for name in (
            "6.18.44-fc-v657-x86_64-with-glibc2.36",
            "6.1.0-x86_64-with-glibc2.36",
            "6.1.0-x86_64-with-glibc2.31",
        )
    )
    assert made_differences(then, now) == ()
    assert made_differences(then, other) == (
        "platform Linux-x86_64-with-glibc2.36 then, Linux-x86_64-with-glibc2.31 now",
    )


def test_ranks_are_uniform_where_nothing_but_chance_differs():
    generator = np.random.default_rng(1)
    ranks = [rank(*(lambda drawn: (drawn[0], drawn[1:]))(generator.normal(size=11))) for _ in range(4000)]
    assert np.mean(ranks) == pytest.approx(0.5, abs=0.02)
    assert np.std(ranks) == pytest.approx(np.sqrt(1 / 12), abs=0.02)
    assert rank(500.0, [500.0] * 9) == 0.5


CHANGED = ("cpu x then, y now",)


def again(scores, equal=False, changes=CHANGED, row="a on e"):
    new = ("f" if equal else "g") * 64
    return [Again(row, seed, "f" * 64, 1.0, new, float(one), changes) for seed, one in enumerate(scores)]


def recorded(scores, row="a on e"):
    return {row: dict(enumerate(map(float, scores)))}


def verdict(capsys, runs, of, level=0.01):
    judge(runs, of, level, "the report")
    return capsys.readouterr().out


def test_equal_fingerprints_are_equal_to_the_bit(capsys):
    assert verdict(capsys, again([1, 2, 3], equal=True), recorded([1, 2, 3])).startswith("equal to the bit: 3 of 3")


def test_another_fingerprint_without_a_change_is_not_compatible():
    runs = [*again([1], equal=True), *again([2], changes=())]
    with pytest.raises(RunsFailed, match="not compatible: 1 of 2 runs have another fingerprint on the same machine"):
        judge(runs, recorded([1, 2, 3]), 0.01, "the report")


def test_few_runs_are_compared_by_their_ranks(capsys):
    scores = np.arange(20)
    out = verdict(capsys, again([5.5, 14.5, 9.5]), recorded(scores))
    assert "ranks of 3 runs among the recorded ones" in out
    assert "statistically compatible" in out
    with pytest.raises(RunsFailed, match="not compatible: 0 of 3 runs are equal to the bit"):
        judge(again([-1, -2, -3]), recorded(scores), 0.01, "the report")


def test_five_runs_are_compared_as_arms_of_a_report_are(capsys):
    scores = np.random.default_rng(0).normal(100, 10, size=10)
    moved = scores + np.random.default_rng(1).normal(0, 1, size=10)
    out = verdict(capsys, again(moved), recorded(scores))
    assert "10 pairs of runs" in out
    difference = compare(interquartile_mean, [moved], [scores], [True])
    assert f"p = {difference.p:.3f}" in out
    with pytest.raises(RunsFailed, match="not compatible"):
        judge(again(moved + 20), recorded(scores), 0.01, "the report")
    assert "6 new and 10 recorded runs" in verdict(capsys, again(moved[:6]), recorded(scores))


def test_several_rows_are_corrected_for_many_tests(capsys):
    """A row that contradicts at 1% by itself does not among three: Holm's correction takes its p-value three times."""
    scores, jitter = np.random.default_rng(0).normal(100, 10, size=10), np.tile((-3.0, 3.0), 5)
    shifts = [scores + shift + jitter for shift in np.arange(0, 10, 0.1)]
    alone = next(one for one in shifts if 0.004 < compare(interquartile_mean, [one], [scores], [True]).p < 0.009)
    with pytest.raises(RunsFailed, match="not compatible"):
        judge(again(alone), recorded(scores), 0.01, "the report")
    rows = {**recorded(scores), **recorded(scores, "b on e"), **recorded(scores, "c on e")}
    same = scores + jitter
    runs = [*again(alone), *again(same, row="b on e"), *again(same, row="c on e")]
    assert "statistically compatible" in verdict(capsys, runs, rows)


@pytest.mark.parametrize("new", [2, 4])
def test_the_test_of_ranks_keeps_its_level(new, capsys):
    """New runs of one row have the same recorded runs, so their ranks are correlated, which the test counts."""
    generator, wrong = np.random.default_rng(0), 0
    for _ in range(2000):
        drawn = generator.normal(size=10 + new)
        try:
            judge(again(drawn[:new]), recorded(drawn[new:]), 0.05, "the report")
        except RunsFailed:
            wrong += 1
    assert wrong / 2000 <= 0.05  # without the correlation it is 0.06 for four runs

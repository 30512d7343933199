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
from qohort.report.verification import Verdict, changes, draw_rows, judge, rank

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
    assert out.count("the same fingerprint") == 2
    assert out.endswith("verified: 2 of 2 runs ended with their fingerprints\n")


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
    assert "and nothing else changed" in out
    assert "1 of 1 runs have a different result on the same machine with the same versions: the report does not" in err


@pytest.mark.slow
@pytest.mark.matrix
def test_where_versions_changed_it_says_so_and_compares_scores(verify, forged):
    for file in (forged / "outputs").rglob("manifest.json"):
        tree = json.loads(file.read_text())
        file.write_text(json.dumps({**tree, "cpu": "another", "packages": {**tree["packages"], "torch": "2.8.0"}}))
    code, out, err = verify("sample=2")
    assert code == 0, err
    assert "what changed: torch 2.8.0 then, 2.13.0" in out
    assert "cpu another then" in out
    assert "not contradicted, which is weaker than verified: machine, versions or code changed" in out


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
    then = {"command": ["a"], "cpu": "x", "packages": {"torch": "1", "numpy": "2"}}
    now = {"command": ["b"], "cpu": "x", "packages": {"torch": "3", "numpy": "2"}}
    assert changes(then, now) == ["torch 1 then, 3 now"]


def test_ranks_are_uniform_where_nothing_but_chance_differs():
    generator = np.random.default_rng(1)
    ranks = [rank(*(lambda drawn: (drawn[0], drawn[1:]))(generator.normal(size=11))) for _ in range(4000)]
    assert np.mean(ranks) == pytest.approx(0.5, abs=0.02)
    assert np.std(ranks) == pytest.approx(np.sqrt(1 / 12), abs=0.02)
    assert rank(500.0, [500.0] * 9) == 0.5


def verdicts(ranks, equal=False, changed=("cpu x then, y now",)):
    row = {"arm": "a", "environment": "e", "seed": "0", "final": "1", "fingerprint": "f"}
    return [Verdict(row, equal, changed, 1.0, one) for one in ranks]


def test_scores_that_are_far_off_contradict_the_report(capsys):
    judge(verdicts([0.3, 0.8, 0.5]), 0.01)
    assert "not contradicted" in capsys.readouterr().out
    with pytest.raises(RunsFailed, match="does not hold here"):
        judge(verdicts([0.02, 0.03, 0.02]), 0.01)
    judge(verdicts([0.02, 0.03, 0.02], equal=True), 0.01)
    assert "verified: 3 of 3" in capsys.readouterr().out

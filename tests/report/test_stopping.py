"""The report of an ablation whose arms stopped when they were decided."""

import re
from dataclasses import replace

import numpy as np
import pytest
import synthetic
from test_report import Report, rows_of

from qohort.experiments.ablation import read_ablation
from qohort.experiments.sequential import read_score
from qohort.report.scores import read_run
from qohort.report.stopping import stopping_of
from qohort.runs.directory import RunDirectory

SETTINGS = "sequential: {seeds_per_group: 4, alpha: 0.2, margin: 0.02}\n"


class Stopped(Report):
    """A report of three arms with at most 12 seeds."""

    def __init__(self, directory, monkeypatch, capfd):
        super().__init__(directory, monkeypatch, capfd)
        self.text = synthetic.manifest(["dqn", "better", "same"], {"cartpole": (0, 500)}, 12) + SETTINGS
        self.conf = self.shows("figures: [curves]")

    def train(self, *extra):
        """Begin the ablation with until=decided and write the runs that it asks for."""
        with synthetic.loader() as loader:
            search = [f"hydra.searchpath=[file://{self.conf}]"]
            ablation = read_ablation("synthetic", ("until=decided", *extra), loader, search)
        stopping = stopping_of(ablation, self.planned)
        stopping.sequential.begin(overwrite=False)

        def write(_, cells, seeds):
            wanted = [one for one in self.planned if (one.arm.label, one.environment) in cells]
            synthetic.write_runs([one for one in wanted if one.config.seed in seeds], known)

        return stopping.sequential.follow(write)


def known(run, generator):
    """One arm is better by 200 or so, the other one by at most 60 in either direction."""
    noise = (60 if run.arm.label == "same" else 1) * (-1) ** run.config.seed
    return 100.0 + 10 * (run.config.seed % 5) + noise + (200 if run.arm.label == "better" else 0)


@pytest.fixture
def stopped(tmp_path, monkeypatch, capfd):
    return Stopped(tmp_path, monkeypatch, capfd)


def test_a_report_says_how_many_seeds_each_arm_took_and_what_was_decided(stopped):
    stopped.train()
    code, out, err = stopped()
    assert code == 0, err
    assert "report of 32 runs" in out
    text = (stopped.path / "table.md").read_text()
    assert "**cartpole: decisions, made group by group, final evaluation**" in text
    assert "| better | dqn | 8, 12 | higher | 8 | +200.0 |" in text
    assert re.search(r"\| same \| dqn \| 12, 12 \| not told apart \| 12 \| −?[\d.]+ \|", text)
    assert re.search(
        r"\| better \| dqn \| 8, 12 \| \+200\.0 \[\+200\.0, \+200\.0\] \|", text
    )  # of pairs, without a word
    page = (stopped.path / "report.html").read_text()
    for words in (
        "sequential: arms stopped when",
        "groups of 4, at most 12",
        "is at most\n20%",
        "over all 2 comparisons",
    ):
        assert words in page
    assert "ablation=synthetic until=decided output_dir" in page
    assert len(rows_of(stopped.path)) == 32
    code, _, err = stopped('overrides=["until=seeds"]')
    assert code == 2
    assert "4 of 36 runs of ablation=synthetic cannot be counted" in err


@pytest.mark.slow
@pytest.mark.matrix
def test_settings_of_the_command_line_are_kept_and_in_the_commands(stopped):
    stopped.train("sequential.alpha=0.3", "sequential.margin=null")
    code, _, err = stopped()
    assert code == 0, err
    page = (stopped.path / "report.html").read_text()
    assert "ablation=synthetic until=decided sequential.margin=null sequential.alpha=0.3 output_dir" in page
    code, _, err = stopped('overrides=["until=decided"]')
    assert code == 2
    assert "was begun with sequential.margin=null, not 0.02" in err


def test_runs_that_are_missing_are_named_with_the_command_that_trains_them(stopped):
    stopped.train()
    (stopped.run("same", "cartpole", 9) / "result.json").unlink()
    code, _, err = stopped()
    assert code == 2
    assert "same on cartpole, seed 9: unfinished" in err
    assert "1 of 32 runs" in err
    assert "qohort train -m ablation=synthetic until=decided output_dir=" in err
    code, _, err = stopped("allow_missing=true")
    assert code == 0, err
    assert "| same | dqn | 12, 12 | not decided | 8 |" in (stopped.path / "table.md").read_text()


@pytest.mark.parametrize("score", ["final", "last", "auc"])
def test_decisions_are_made_on_the_scores_of_the_report(stopped, score):
    run = stopped.planned[0]
    synthetic.write_run(run, 123.0, np.random.default_rng(0))
    with synthetic.loader() as loader:
        search = [f"hydra.searchpath=[file://{stopped.conf}]"]
        ablation = read_ablation("synthetic", (), loader, search)
    show = replace(ablation.manifest.show, score=score, last=3)
    directory = RunDirectory(run.directory)
    assert read_score(directory, show) == read_run(run, show).scores[score]
    assert read_score(RunDirectory(stopped.planned[1].directory), show) is None

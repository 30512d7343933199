"""The report of an ablation from synthetic runs: what it says, what it refuses, and that it is always the same."""

import base64
import csv
import functools
import http.server
import json
import math
import re
import resource
import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import synthetic

from matrix import MARKS
from qohort.experiments.ablation import Arm
from qohort.report.analysis import ArmSummary, Place, with_verdicts
from qohort.report.cells import Cell, Table, latex, markdown, number
from qohort.report.tables import _comparison, comparisons_csv, p_text, seeds
from qohort.report.tables import family as tables_family
from qohort.statistics import Comparison, Estimate

SCRIPTS = Path(__file__).parents[2] / "scripts"
ENVIRONMENTS = {"cartpole": (0, 500), "mountaincar": (-200, -100)}
SEEDS = 6


class Report:
    """Calls the script in this process, which saves importing torch each time."""

    def __init__(self, directory, monkeypatch, capfd):
        self.directory, self._monkeypatch, self._capfd = directory, monkeypatch, capfd
        self.text = synthetic.manifest(["dqn", "better", "same"], ENVIRONMENTS, SEEDS)
        self.conf = self.shows("figures: [curves]")  # drawing takes seconds

    def shows(self, words):
        return synthetic.write_manifest(self.directory, self.text + f"show: {{{words}}}\n")

    @functools.cached_property
    def planned(self):
        return synthetic.plan(self.conf, self.directory / "outputs")

    @property
    def path(self):
        return self.directory / "reports" / "synthetic"

    def __call__(self, *overrides):
        """Exit code, stdout, stderr."""
        places = (f"output_dir={self.directory}/outputs", f"reports_dir={self.directory}/reports")
        arguments = ["--config-dir", str(self.conf), "ablation=synthetic", *places, *overrides]
        script = str(SCRIPTS / "report.py")
        self._monkeypatch.setattr(sys, "argv", [script, *arguments])
        code = 0
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as error:
            code = int(error.code or 0)
        return code, *self._capfd.readouterr()

    def run(self, arm, environment, seed):
        wanted = (arm, environment, seed)
        (found,) = [one for one in self.planned if (one.arm.label, one.environment, one.config.seed) == wanted]
        return found.directory

    def files(self):
        return {path.relative_to(self.path): path.read_bytes() for path in self.path.rglob("*") if path.is_file()}


@pytest.fixture
def report(tmp_path, monkeypatch, capfd):
    return Report(tmp_path, monkeypatch, capfd)


def known(run, generator):
    """The baseline and its twin end with 100 to 150 (or -150 to -145), the better arm with 200 more (or 40)."""
    more = 1.0 if run.arm.label == "better" else 0.0
    if run.environment == "cartpole":
        return 100.0 + 10 * run.config.seed + 200 * more
    return -150.0 + run.config.seed + 40 * more


def rows_of(path):
    with (path / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_report_has_the_known_answers(report):
    synthetic.write_runs(report.planned, known)
    code, out, err = report()
    assert code == 0, err
    assert f"report of 36 runs: {report.path / 'report.html'}" in out
    text = (report.path / "table.md").read_text()
    # Seeds end with 100, 110, ..., 150: the middle four.
    assert re.search(
        r"\| dqn \| 6 \| 125\.0 \[1\d\d\.\d, 1\d\d\.\d\] \| 125\.0 \[.*\] \| 125\.0 \[.*\] \| 0\.750 \[", text
    )
    assert re.search(r"\| better \| 6 \| 325\.0 \[", text)
    assert re.search(
        r"\| better \| dqn \| 6 \| \+200\.0 \[\+200\.0, \+200\.0\] \| 0\.031 \| 0\.16 \| not told apart \| "
        r"1\.00 \[0\.6\d, 1\.00\] \|",
        text,
    )
    same = r"\| same \| dqn \| 6 \| 0\.0 \[0\.0, 0\.0\] \| 1\.00 \| 1\.00 \| not told apart \| "
    assert re.search(same + r"0\.50 \[.*\] \| no difference seen \|", text)
    # Two arms in two environments and over both.
    assert text.count("| p, uncorrected | p, Holm (6 comparisons) | verdict (Holm) |") == 3
    assert "for all 6 comparisons of this report" in (report.path / "report.html").read_text()
    with (report.path / "comparisons.csv").open(newline="") as file:
        compared = list(csv.DictReader(file))
    # Six equal signs have p = 2 / 2⁶ by chance, too much for one of six comparisons; twelve have 2 / 2¹².
    assert [row["verdict"] for row in compared] == [*["not told apart"] * 4, "higher", "not told apart"]
    assert {row["comparisons"] for row in compared} == {"6"}
    assert all(float(row["p_holm"]) >= float(row["p_uncorrected"]) for row in compared)
    # By the other scores the same arms are told apart: their curves differ by as much at every evaluation.
    shown = ("final evaluation", "mean of the last 5 evaluations", "area under the curve")
    assert f"| arm | compared with | {' | '.join(shown)} |" in text
    overall = text.partition("**all environments: verdicts by each kind of score**")[2]
    better = re.search(r"\| better \| dqn \| higher \((.*?)\) \| (.*?) \| (.*?) \|", overall)
    assert [better[1]] == re.findall(r"\| ([^|]*) \| higher \|", text)
    assert better[2].startswith("higher (")
    assert better[3].startswith("higher (")
    assert re.search(r"\| same \| dqn \|( not told apart \([0-9.]+\) \|){3}", overall)
    assert text.count("best evaluation (with hindsight)") == 3  # not in these tables
    with (report.path / "curves.csv").open(newline="") as file:
        points = list(csv.DictReader(file))
    assert len(points) == 2 * 3 * 20
    assert {row["band"] for row in points} == {"interval"}
    last = next(
        row for row in points if (row["environment"], row["arm"], row["env_steps"]) == ("cartpole", "dqn", "20000")
    )
    assert f"| dqn | 6 | {float(last['value']):.1f} [{float(last['low']):.1f}, {float(last['high']):.1f}] |" in text
    # Normalised: 100 to 150 of 500 are .2 to .3, -150 to -145 are .5 to .55; of the twelve, the middle six.
    middle = np.mean([0.26, 0.28, 0.30, 0.50, 0.51, 0.52])
    assert f"| dqn | 12 | {middle:.3f} [" in text
    rows = rows_of(report.path)
    assert len(rows) == 36
    assert all(float(row["best"]) >= float(row["final"]) for row in rows)
    assert any(float(row["best"]) > float(row["final"]) for row in rows)
    for row in rows:
        directory = Path(row["directory"])
        result = json.loads((directory / "result.json").read_text())
        assert float(row["final"]) == result["final_return"]
        assert row["fingerprint"] == result["fingerprint"]
        assert directory.parent.name == f"{row['arm']}-{row['config_hash']}"
        evaluations = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        returns = [one["eval/return"] for one in evaluations if "eval/return" in one]
        assert float(row["last_5"]) == pytest.approx(np.mean(returns[-5:]))
    html = (report.path / "report.html").read_text()
    for phrase in ("gamma", "0.901", "qohort train -m ablation=synthetic", "qohort verify", "torch", "2.13.0"):
        assert phrase in html
    assert "http" not in re.sub(r"data:image/png;base64,[\w+/=]+", "", html).replace("http-equiv", "")


@pytest.mark.slow
@pytest.mark.matrix
def test_the_figures_are_png_and_pdf_and_all_in_the_page(report):
    report.shows("last: 5")
    synthetic.write_runs(report.planned, known)
    assert report()[0] == 0
    figures = report.path / "figures"
    names = {"scores", "differences", "improvement", "runs", "profiles"}
    names |= {f"{figure}_{name}" for figure in ("curves", "together") for name in ENVIRONMENTS}
    assert {path.name for path in figures.iterdir()} == {f"{name}.{kind}" for name in names for kind in ("png", "pdf")}
    html = (report.path / "report.html").read_text()
    for name in names:
        png = (figures / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        assert base64.b64encode(png).decode() in html
        assert (figures / f"{name}.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.slow
@pytest.mark.matrix
def test_the_manifest_says_what_is_shown(report):
    report.shows("score: auc, last: 2, figures: [scores]")
    synthetic.write_runs(report.planned, known)
    assert report()[0] == 0
    assert {path.name for path in (report.path / "figures").iterdir()} == {"scores.png", "scores.pdf"}
    assert "cartpole: area under the curve, returns" in (report.path / "table.md").read_text()
    assert "last_2" in rows_of(report.path)[0]
    report.shows("score: best")
    code, _, err = report()
    assert code == 2
    assert "show.score=best is not one of the choices" in err


def test_how_a_report_looks_is_chosen_when_reporting_and_changes_no_number(report):
    synthetic.write_runs(report.planned, known)
    assert report("show.figures=[]")[0] == 0
    before = report.files()
    titles = "show.titles={dqn: Deep Q, cartpole: Pole}"
    columns = "show.columns=[verdict,iqm]"
    code, _, err = report("show.figures=[]", "show.arms=[same,dqn]", titles, columns, "show.title=My report")
    assert code == 0, err
    after = report.files()
    for name in ("scores.csv", "comparisons.csv"):
        assert after[Path(name)] == before[Path(name)]
    text = (report.path / "table.md").read_text()
    assert "**Pole: final evaluation, returns**\n\n| arm | IQM |\n|---|---|\n| same | 125.0 [" in text
    assert re.search(r"\| same \| 125.*\n\| Deep Q \| 125", text)
    assert "**Pole: comparisons of arms, final evaluation**\n\n| arm | verdict (Holm) |" in text
    assert "better" not in text
    assert "IQM of each kind of score" not in text  # it has none of the columns
    page = (report.path / "report.html").read_text()
    assert "<h1>My report</h1>" in page
    assert "Not shown: better. It is still counted in the correction for many comparisons." in page
    assert "'show.arms=[same,dqn]' \"show.titles={dqn:'Deep Q',cartpole:'Pole'}\"" in unescape(page)
    # In bold: better is the best arm, and over all environments it is told apart, but it is not shown.
    assert "<b>" not in re.sub(r"<li>.*?</li>", "", page, flags=re.DOTALL)
    assert not any(name.parts[0] == "tables" and b"textbf" in content for name, content in after.items())
    assert b"textbf" in before[Path("tables/scores_all_environments.tex")]


def test_a_report_may_compare_by_the_best_evaluation_and_by_another_metric(report):
    synthetic.write_runs(report.planned, known)
    code, _, err = report("show.figures=[]", "show.score=best")
    assert code == 0, err
    text = (report.path / "table.md").read_text()
    assert "**cartpole: best evaluation (with hindsight), returns**" in text
    rows = [row for row in rows_of(report.path) if (row["arm"], row["environment"]) == ("dqn", "cartpole")]
    best = sorted(float(row["best"]) for row in rows)
    assert f"| dqn | 6 | {np.mean(best[1:-1]):.1f} [" in text
    assert "<b>This report compares arms by their best evaluation</b>" in (report.path / "report.html").read_text()
    for run in report.planned:
        file = run.directory / "metrics.jsonl"
        file.write_text(file.read_text().replace('"eval/return"', '"eval/length": 7.0, "eval/return"'))
    code, _, err = report("show.figures=[]", "show.metric=eval/length")
    assert code == 0, err
    text = (report.path / "table.md").read_text()
    assert "**cartpole: final evaluation, eval/length, as logged**" in text
    assert "| better | 6 | 7.000 [7.000, 7.000] |" in text
    assert "all environments" not in text  # low and high of the manifest are returns


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("show.arms=[dqnn]", "show.arms: there is no dqnn: did you mean dqn?"),
        ("show.colors={cartpole: red}", "show.colors: there is no cartpole: it must be one of"),
        ("show.figure=[runs]", "did you mean show.figures?"),
        ("style=nowhere.yaml", "style=nowhere.yaml cannot be read"),
    ],
)
def test_mistakes_in_what_is_shown_are_one_line(report, given, message):
    code, out, err = report(given)
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert message in err


@pytest.mark.slow
@pytest.mark.matrix
def test_several_ablations_are_one_report(report):
    other = synthetic.manifest(["dqn", "third"], {"cartpole": (0, 500), "acrobot": (-500, -70)}, SEEDS)
    synthetic.write_manifest(report.directory, other, "other")
    synthetic.write_runs(report.planned, known)
    more = synthetic.plan(report.conf, report.directory / "outputs", "other")
    synthetic.write_runs([run for run in more if not run.directory.exists()], synthetic.plausible_by_arm)
    places = (f"output_dir={report.directory}/outputs", f"reports_dir={report.directory}/reports")
    code, out, err = report("ablation=[synthetic,other]", *places, "show.figures=[]")
    assert code == 0, err
    path = report.directory / "reports" / "synthetic+other"
    assert f"report of 54 runs: {path / 'report.html'}" in out
    rows = rows_of(path)
    # 3 arms in two environments, and another arm in one of them and in a third, in which dqn is too.
    assert len(rows) == len({row["directory"] for row in rows}) == 6 * (3 * 2 + 1 + 2)
    text = (path / "table.md").read_text()
    assert text.count("| third | dqn | 6 |") == 2
    assert text.count("| better | dqn | 6 |") == 2
    assert "p, Holm (6 comparisons)" in text
    page = (path / "report.html").read_text()
    assert "qohort train -m ablation=synthetic,other" in page
    assert "qohort report &#39;ablation=[synthetic,other]&#39;" in page


@pytest.mark.slow
@pytest.mark.matrix
def test_the_same_runs_give_the_same_files_in_any_order_of_files(report):
    synthetic.write_runs(report.planned, synthetic.plausible_by_arm)
    assert report()[0] == 0
    before = report.files()
    assert report()[0] == 0
    assert report.files() == before
    kept = report.directory / "kept"
    (report.directory / "outputs").rename(kept)
    for run in reversed(report.planned):
        shutil.copytree(kept / run.directory.relative_to(report.directory / "outputs"), run.directory)
    assert report()[0] == 0
    assert report.files() == before


@pytest.mark.slow
@pytest.mark.matrix
def test_a_permutation_of_seeds_changes_nothing(report):
    synthetic.write_runs(report.planned, synthetic.plausible_by_arm)
    assert report()[0] == 0
    before = report.files()
    order = [3, 5, 0, 2, 1, 4]
    for directory in {run.directory.parent for run in report.planned}:
        for seed in range(SEEDS):
            (directory / f"seed-{seed}").rename(directory / f"was-{seed}")
        for seed, other in enumerate(order):
            moved = (directory / f"was-{other}").rename(directory / f"seed-{seed}")
            result = json.loads((moved / "result.json").read_text())
            (moved / "result.json").write_text(json.dumps({**result, "seed": seed}))
    assert report()[0] == 0
    after = report.files()
    assert after[Path("scores.csv")] != before[Path("scores.csv")]
    assert after[Path("table.md")] == before[Path("table.md")]
    assert after[Path("figures/curves_cartpole.png")] == before[Path("figures/curves_cartpole.png")]


def spoil(report):
    """A run of each kind that cannot be counted."""
    shutil.rmtree(report.run("dqn", "cartpole", 0))
    failed = report.run("better", "cartpole", 1)
    (failed / "result.json").unlink()
    (failed / "failed.json").write_text('{"env_steps": 1200, "reason": "diverged: loss nan"}')
    (report.run("better", "cartpole", 2) / "result.json").unlink()
    for name, change in (("same", {"budget": 10_000}), ("dqn", {"final_return": 499.0})):
        file = report.run(name, "mountaincar", 3) / "result.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    metrics = report.run("same", "mountaincar", 4) / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(line for line in lines if '"env_steps": 5000' not in line))


PROBLEMS = (
    "dqn on cartpole, seed 0: missing, not run",
    "better on cartpole, seed 1: failed, at 1,200 env_steps: diverged: loss nan",
    "better on cartpole, seed 2: unfinished, interrupted",
    "same on mountaincar, seed 3: unequal budget, budget 10,000, 20,000 env_steps, where 20,000 were asked for",
    "dqn on mountaincar, seed 3: damaged, result.json and metrics.jsonl do not agree",
    "same on mountaincar, seed 4: unequal budget, evaluated 19 times up to 20,000 env_steps, others 20 to 20,000",
)


@pytest.mark.slow
@pytest.mark.matrix
def test_runs_that_cannot_be_counted_are_named_and_stop_the_report(report):
    synthetic.write_runs(report.planned, known)
    spoil(report)
    code, out, err = report()
    assert code == 2
    assert out == ""
    for problem in PROBLEMS:
        assert f"  {problem}\n" in err
    assert err.splitlines()[-1].startswith("qohort: 6 of 36 runs of ablation=synthetic cannot be counted, listed above")
    assert f"run qohort train -m ablation=synthetic output_dir={report.directory}/outputs for what is left" in err
    assert "Traceback" not in err
    assert not (report.directory / "reports").exists()


@pytest.mark.slow
@pytest.mark.matrix
def test_with_allow_missing_every_table_and_figure_carries_the_count(report, monkeypatch):
    report.shows("last: 5")
    synthetic.write_runs(report.planned, known)
    spoil(report)
    drawn = []
    from qohort.report import figures

    real = figures.draw
    monkeypatch.setattr(figures, "draw", lambda chart, *rest: drawn.append(chart) or real(chart, *rest))
    code, _, err = report("allow_missing=true")
    assert code == 0, err
    for problem in PROBLEMS:
        assert problem in err
    text = (report.path / "table.md").read_text()
    titles = re.findall(r"^\*\*(.*)\*\*$", text, re.MULTILINE)
    assert len(titles) == 12
    assert all(re.search(r"\((15|15|30) of (18|36) runs: some are missing\)", title) for title in titles)
    assert "| better | 4 of 6 |" in text
    assert "| better | dqn | 4 of 6, 5 of 6 |" in text
    assert len({chart.key for chart in drawn}) == 9
    assert all(re.search(r"\d+ of (18|36) runs, SOME ARE MISSING", chart.note) for chart in drawn)
    html = (report.path / "report.html").read_text()
    assert "6 of 36 runs are missing from every table and figure" in html
    assert all(problem in html for problem in PROBLEMS)
    status = {(row["arm"], row["environment"], row["seed"]): row["status"] for row in rows_of(report.path)}
    assert len(status) == 36
    assert status["better", "cartpole", "1"] == "failed"
    assert status["dqn", "cartpole", "0"] == "missing"


@pytest.mark.slow
@pytest.mark.matrix
def test_few_runs_tell_nothing_apart(report):
    synthetic.write_runs([run for run in report.planned if run.config.seed < 4], known)
    code, _, err = report("allow_missing=true")
    assert code == 0, err
    text = (report.path / "table.md").read_text()
    # No interval of so few runs would hold what it says: the runs themselves are given.
    assert "| better | dqn | 4 of 6 | +200.0 | – | – | too few runs | 1.00 |" in text
    assert "p, Holm (0 comparisons)" in text
    assert re.search(r"\| better \| 4 of 6 \| [\d.]+ runs: [\d.]+, [\d.]+, [\d.]+, [\d.]+ \|", text)
    assert "<b>Here some arms have 4 runs</b>" in (report.path / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.matrix
def test_no_arm_drops_out_silently(report):
    synthetic.write_runs([run for run in report.planned if run.arm.label != "better"], known)
    code, _, err = report("allow_missing=true")
    assert code == 0, err
    text = (report.path / "table.md").read_text()
    assert "| better | 0 of 6 | – | – | – | – |" in text
    assert "| better | dqn | 0 of 6, 6 | – | – | – | – | – | – |" in text


def test_with_no_run_at_all_there_is_no_report(report):
    code, _, err = report("allow_missing=true")
    assert code == 2
    assert "36 of 36 runs" in err
    assert not (report.directory / "reports").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ablation=synthetik", "did you mean synthetic?"),
        ("ablation=null", "ablation"),
        ("resamples=3", "resamples=3 is out of range"),
        ('overrides=["env=acrobot"]', "does not go with ablation="),
        ('overrides=["gama=0.5"]', "gama"),
    ],
)
def test_mistakes_are_one_line(report, given, message):
    code, out, err = report(given)
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert message in err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "ablation has no value: give it one with ablation=NAME, a file in conf/ablation"),
        (["ablation=cartpole_component"], "did you mean cartpole_components or minatar_components?"),
        (["ablation=cartpole_components", "allow_mising=true"], "did you mean allow_missing?"),
    ],
)
def test_mistakes_with_the_manifests_that_are_there(monkeypatch, capfd, given, message):
    monkeypatch.setattr(sys, "argv", [str(SCRIPTS / "report.py"), *given])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS / "report.py"), run_name="__main__")
    assert ended.value.code == 2
    assert message in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.matrix
def test_wandb_has_the_tables_and_the_figures(report, monkeypatch):
    import wandb_file

    monkeypatch.delenv("WANDB_MODE", raising=False)
    synthetic.write_runs(report.planned, known)
    assert report("wandb=true")[0] == 0
    (file,) = (report.path / "wandb").glob("offline-run-*/*.wandb")
    until = time.monotonic() + 60
    while not wandb_file.history(file) and time.monotonic() < until:
        time.sleep(0.1)  # W&B's service closes the file soon after the run is finished
    (row,) = wandb_file.history(file)
    figures = {path.stem for path in (report.path / "figures").glob("*.png")}
    logged = {key.split(".")[0] for key in row}
    assert {f"figure/{name}" for name in figures} <= logged
    assert sum(key.startswith("table/") for key in logged) == 12
    artifacts = [one.artifact for one in wandb_file.records(file) if one.WhichOneof("record_type") == "artifact"]
    (artifact,) = [one for one in artifacts if one.type == "report"]
    held = {entry.path for entry in artifact.manifest.contents}
    assert {"report.html", "table.md", "table.tex", "scores.csv", "tables/scores_cartpole.tex"} <= held
    assert {f"figures/{name}.{suffix}" for name in figures for suffix in ("png", "pdf")} <= held
    assert wandb_file.exit_code(file) == 0


def test_tables_are_escaped():
    table = Table("key", "100% of a_b", ("arm", "x & y"), ((Cell("a|b_c"), Cell("−1.0", "[−2, ε]")),))
    assert markdown(table) == "**100% of a_b**\n\n| arm | x & y |\n|---|---|\n| a\\|b_c | −1.0 [−2, ε] |\n"
    text = latex(table)
    assert r"a|b\_c & $-$1.0 [$-$2, $\epsilon$] \\" in text
    assert r"100\% of a\_b" in text
    assert r"x \& y" in text


@pytest.mark.parametrize(
    ("sequential", "word", "p_values", "family"),
    [(False, "probably higher", "| 0.010 | 0.020 |", 2), (True, "see decisions", "| – | – |", 0)],
)
def test_verdicts_of_all_places_are_one_family_and_none_is_given_if_arms_stopped_early(
    sequential, word, p_values, family
):
    nothing = Estimate(1.0, math.nan, math.nan)
    arms = tuple(
        ArmSummary(
            Arm(label, label, (), "a", ()),
            (9, 9),
            {"mean": nothing},
            {},
            Comparison(Estimate(1.0, 0.5, 1.5), nothing, Estimate(9.0, 9.0, 9.0), 0.01) if label == "b" else None,
            None,
            (),
        )
        for label in "ab"
    )
    places = with_verdicts([Place("one", ("one",), arms), Place("two", ("two",), arms)], sequential)
    assert [place.of("b").verdict.word for place in places] == [word] * 2
    assert places[0].of("a").verdict is None
    assert tables_family(places) == family
    row = " | ".join(map(str, _comparison(places[1].of("b"), places[1])))
    assert p_values in f"| {row} |"
    assert [line.split(",")[2] for line in comparisons_csv(places).splitlines()] == ["environment", "one", "two"]


@pytest.mark.parametrize(
    ("needed", "words"),
    [
        ((56, 11.6, 1198), "12 to 1,200"),
        ((430, 30.2, math.inf), "30 or more"),
        ((5, 5, 5), "5 or fewer"),
        ((6, 5, 9), "5 to 9"),
        ((math.inf, math.inf, math.inf), "no difference seen"),
        ((5, math.nan, math.nan), "–"),
    ],
)
def test_seeds_needed_in_words(needed, words):
    assert seeds(Estimate(*needed)) == words


@pytest.mark.parametrize(
    ("p", "words"),
    [(0.0004, "< 0.001"), (0.00499, "0.0049"), (0.0491, "0.049"), (0.04999, "0.049"), (0.2468, "0.25"), (1.0, "1.00")],
)
def test_p_values_in_words_never_stand_for_a_larger_one(p, words):
    assert p_text(p) == words


def test_numbers():
    assert number(-0.04, 1) == "0.0"
    assert number(-1234.56, 1) == "−1,234.6"
    assert number(2.0, 0, sign=True) == "+2"
    assert number(0.0, 2, sign=True) == "0.00"


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here: the LaTeX tables are not compiled")
def test_the_latex_table_compiles(report):
    synthetic.write_runs(report.planned, known)
    assert report()[0] == 0
    document = (
        r"\documentclass{article}\usepackage[margin=2.5cm]{geometry}\usepackage{booktabs,graphicx}\begin{document}"
    )
    (report.path / "paper.tex").write_text(f"{document}\\input{{table.tex}}\\end{{document}}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=report.path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert "multiply defined" not in done.stdout
    files = sorted((report.path / "tables").glob("*.tex"))
    assert len(files) == 12
    assert "\n".join(sorted(file.read_text() for file in files)) == "\n".join(
        sorted(re.findall(r"\\begin\{table\}.*?\\end\{table\}\n", (report.path / "table.tex").read_text(), re.DOTALL))
    )
    assert all(f"\\label{{tab:{file.stem}}}" in file.read_text() for file in files)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ACT = (Path(__file__).parent / "page.js").read_text()
LOOK = """<!DOCTYPE html><body>
<iframe src="report.html" style="width:WIDTHpx;height:900px;border:0"></iframe><pre></pre>
<script>
ACT
const frame = document.querySelector("iframe");
frame.onload = () => {
  const page = frame.contentDocument, images = [...page.images];
  for (const fold of page.querySelectorAll("details")) fold.open = true;
  const wide = [...page.querySelectorAll("main > *, figure img")].filter(
    one => one.getBoundingClientRect().right > WIDTH + 1);
  document.querySelector("pre").textContent = "SEEN " + JSON.stringify({
    images: images.length, shown: images.filter(image => image.naturalWidth > 0).length,
    narrow: images.filter(image => image.currentSrc !== image.src).length,
    tables: page.querySelectorAll("table").length, overflow: page.documentElement.scrollWidth - WIDTH,
    wide: wide.map(one => one.outerHTML.slice(0, 80)), smallest: Math.min(...[...page.querySelectorAll(
      "td, th, p, li, figcaption, svg text")].map(one => parseFloat(getComputedStyle(one).fontSize))),
    ...act(frame.contentWindow)}) + " END";
};
</script>"""
SWITCHES = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage --enable-logging=stderr --virtual-time-budget=10000
--dump-dom"""


def look(address, width):
    """What a page writes between SEEN and END, and what the browser logs."""
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, *SWITCHES.split(), f"--user-data-dir={profile}", f"--window-size={width},1000", address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    found = re.search(r"SEEN (.*) END</pre>", done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(unescape(found[1])), done.stderr


def check_acts(seen):
    """What `page.js` did, and what the page showed then."""
    assert seen["errors"] == []
    assert seen["buttons"] == ["dqn (baseline)", "better", "same"]
    assert seen["hovered"] == "better, seed 5: 350 at 20,000 env_steps"
    assert seen["chosen"] == 1
    assert seen["hint"] == seen["away"]
    assert seen["hint"].startswith("Thick: the IQM of each arm. Point at a curve")
    assert seen["focused"] is True
    assert seen["first"].startswith("dqn, seed 0: 100 at")
    assert seen["second"].startswith("dqn, seed 1: 110 at")
    assert seen["last"].startswith("same, seed 5: 150 at")
    assert seen["runs"] == [18, 12, 18]
    assert seen["pressed"] == "false"
    rows = ["dqn", "better", "same"]
    assert seen["orders"] == [
        ["none", *rows],
        ["descending", "better", "dqn", "same"],
        ["ascending", "dqn", "same", "better"],
        ["none", *rows],
    ]
    assert seen["byP"] == ["1.00", "< 0.001"]
    assert seen["unreachable"] == 0
    assert seen["outside"] == 0


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page is not looked at")
@pytest.mark.parametrize("width", [1280, pytest.param(400, marks=MARKS)])
def test_the_page_in_a_browser_shows_every_figure_and_no_error(report, width):
    report.shows("last: 5")
    synthetic.write_runs(report.planned, known)
    assert report()[0] == 0
    (report.path / "look.html").write_text(LOOK.replace("WIDTH", str(width)).replace("ACT", ACT))
    handler = functools.partial(Quiet, directory=report.path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        seen, log = look(f"http://127.0.0.1:{server.server_address[1]}/look.html", width + 40)
        server.shutdown()
    assert seen["images"] == seen["shown"] == 9
    assert seen["narrow"] == (9 if width == 400 else 0)
    assert seen["tables"] == 15
    assert seen["overflow"] <= 0
    assert seen["wide"] == []
    assert seen["smallest"] >= 12
    if width == 1280:
        assert seen["clipped"] == []
    check_acts(seen)
    assert "CONSOLE" not in log


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page is not looked at")
def test_the_page_works_as_a_file(report):
    synthetic.write_runs(report.planned, known)
    assert report()[0] == 0
    acting = f'<pre id="acted"></pre><script>{ACT}\ndocument.getElementById("acted").textContent = '
    acting += '"SEEN " + JSON.stringify(act(window)) + " END";</script></body>'
    page = report.path / "acting.html"
    page.write_text((report.path / "report.html").read_text().replace("</body>", acting))
    seen, log = look(page.as_uri(), 1280)
    check_acts(seen)
    assert "CONSOLE" not in log


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a directory and says nothing."""

    def log_message(self, format, *args):
        pass


@pytest.mark.slow
def test_1200_runs_in_a_minute_and_two_gigabytes(tmp_path):
    synthetic.main(str(tmp_path))
    command = [sys.executable, str(SCRIPTS / "report.py"), "--config-dir", str(tmp_path / "conf"), "ablation=synthetic"]
    command += [f"output_dir={tmp_path}/outputs", f"reports_dir={tmp_path}/reports"]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    assert "report of 1200 runs" in done.stdout
    assert seconds < 60
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2 * 1024**2  # kilobytes

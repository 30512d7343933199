"""Reports of the runs that are found, without a manifest: arms and their names, what is refused, published results."""

import csv
import json
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic
import yaml

from qohort.config.errors import ConfigError
from qohort.config.identity import config_tree
from qohort.experiments.presentation import Show
from qohort.experiments.sequential import read_score
from qohort.report import figures
from qohort.report.found import _name, _shortened, find_runs, setting
from qohort.report.verification import final_return
from qohort.runs.directory import RunDirectory

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = {"cartpole": (0, 500), "mountaincar": (-200, -100)}
SEEDS = 5


class Found:
    """Runs that are all of the agent dqn, with three discount factors, and the script that reports them."""

    def __init__(self, directory, monkeypatch, capfd):
        self.directory, self._monkeypatch, self._capfd = directory, monkeypatch, capfd
        conf = synthetic.write_manifest(directory, synthetic.manifest(["a", "b", "c"], ENVIRONMENTS, SEEDS))
        self.planned = [self.placed(run) for run in synthetic.plan(conf, directory / "outputs")]
        monkeypatch.chdir(directory)

    def placed(self, run, output="outputs", **changes):
        """The run with other keys, where such a run belongs."""
        config = replace(run.config, **{"agent": "dqn", "output_dir": output, **changes})
        return replace(run, config=config, directory=RunDirectory.of(config).path)

    def write(self, runs=None, score=None):
        for run in self.planned if runs is None else runs:
            synthetic.write_run(run, (score or known)(run), synthetic.np.random.default_rng(run.config.seed))
            (run.directory / "config.yaml").write_text(yaml.safe_dump(config_tree(run.config)))

    def __call__(self, *overrides, draws=False):
        """Exit code, stdout, stderr."""
        if not draws:  # which takes seconds
            self._monkeypatch.setattr(figures, "draw", lambda chart, formats, size: dict.fromkeys(formats, b""))
        script = str(ROOT / "scripts" / "report.py")
        self._monkeypatch.setattr(sys, "argv", [script, "resamples=200", *overrides])
        code = 0
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as error:
            code = int(error.code or 0)
        return code, *self._capfd.readouterr()


def known(run):
    """With discount factor 0.901 all runs end 200 (or 40) higher."""
    more = float(run.config.gamma == 0.901)
    if run.environment == "cartpole":
        return 100.0 + 10 * run.config.seed + 200 * more
    return -150.0 + run.config.seed + 40 * more


@pytest.fixture
def found(tmp_path, monkeypatch, capfd):
    return Found(tmp_path, monkeypatch, capfd)


def test_runs_that_are_found_are_compared_with_the_baseline(found):
    found.write()
    baseline = next(run.directory.parent for run in found.planned if run.config.gamma == 0.9)
    code, out, err = found("runs=outputs/*/dqn-*", f"baseline={baseline}", "name=mine")
    assert code == 0, err
    assert "report of 30 runs: reports/mine/report.html" in out
    text = Path("reports/mine/table.md").read_text()
    assert re.findall(r"\*\*(.*?)\*\*", text) == [
        f"{place}: {words}"
        for place in ("CartPole-v1", "MountainCar-v0")
        for words in (
            "final evaluation, returns",
            "comparisons of arms, final evaluation",
            "IQM of each kind of score, returns",
            "verdicts by each kind of score",
        )
    ]
    # Seeds end with 100, ..., 140: their IQM is 120, and 320 with the higher discount factor.
    assert re.search(r"\| dqn, gamma=0\.9 \| 5 \| 120\.0 \[", text)
    assert re.search(r"\| dqn, gamma=0\.901 \| 5 \| 320\.0 \[", text)
    assert re.search(r"\| dqn, gamma=0\.901 \| dqn, gamma=0\.9 \| 5 \| \+200\.0 \[\+200\.0, \+200\.0\] \|", text)
    assert re.search(r"\| dqn, gamma=0\.902 \| dqn, gamma=0\.9 \| 5 \| 0\.0 \[.*\| not told apart \|", text)
    assert "p, Holm (4 comparisons)" in text
    assert "optimality gap" not in text
    with Path("reports/mine/scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    for row in rows:
        assert row["fingerprint"] == json.loads((Path(row["directory"]) / "result.json").read_text())["fingerprint"]
        assert Path(row["directory"]).parent.name == f"dqn-{row['config_hash']}"
    html = Path("reports/mine/report.html").read_text()
    for phrase in ("runs=outputs/*/dqn-*", "baseline dqn, gamma=0.9", "<td>gamma</td><td>0.9</td><td>0.901</td>"):
        assert phrase in html
    assert f"qohort report &#39;runs=outputs/*/dqn-*&#39; baseline={baseline} name=mine\n" in html
    assert "Normalised scores" not in html
    assert "nan" not in re.sub(r"base64,[\w+/=]+", "", html)


def test_without_a_baseline_there_are_only_scores(found):
    found.write([run for run in found.planned if run.environment == "cartpole"])
    code, out, err = found("runs=[outputs/CartPole-v1,outputs/CartPole-v1/dqn-*/seed-0]", draws=True)
    assert code == 0, err
    assert "report of 15 runs: reports/outputs-CartPole-v1-outputs-CartPole-v1-dqn-seed-0/" in out
    (directory,) = Path("reports").iterdir()
    assert "comparisons of arms" not in (directory / "table.md").read_text()
    drawn = {path.name for path in (directory / "figures").glob("*.png") if path.stat().st_size > 1000}
    assert drawn == {"scores.png", "curves_CartPole-v1.png", "together_CartPole-v1.png", "runs.png"}
    html = (directory / "report.html").read_text()
    assert "no baseline" in html
    assert "Holm" not in re.sub(r"<img[^>]*>", "", html)


def test_arms_are_the_same_in_every_environment_if_only_the_environments_differ(found):
    runs = [
        found.placed(run, budget=run.config.budget * (2 if run.environment == "cartpole" else 1))
        for run in found.planned
    ]
    found.write(runs)
    ablation, planned = find_runs(["outputs"], None, None)
    assert [arm.title for arm in ablation.arms] == ["dqn, gamma=0.9", "dqn, gamma=0.901", "dqn, gamma=0.902"]
    assert {arm.against == arm.label for arm in ablation.arms} == {True}
    assert list(ablation.manifest.environments) == ["CartPole-v1", "MountainCar-v0"]
    assert len(planned) == 30
    assert ablation.selector == "runs=outputs"


def test_an_arm_need_not_be_in_every_environment(found):
    """Not even the baseline: there is nothing to compare with then, and no run is missing."""
    found.write([run for run in found.planned if run.environment == "cartpole" or run.config.gamma == 0.901])
    code, _, err = found("runs=outputs", "baseline='dqn, gamma=0.9'")
    assert code == 0, err
    text = Path("reports/outputs/table.md").read_text()
    mountaincar = text.partition("**MountainCar-v0: final")[2]
    assert "p, Holm (2 comparisons)" in text
    assert "| dqn, gamma=0.9 | 0 | – | – | – |" in mountaincar
    assert re.search(r"\| dqn, gamma=0\.901 \| 5 \| -?−108\.0 \[", mountaincar)
    assert "| dqn, gamma=0.901 | dqn, gamma=0.9 | 5, 0 | – | – | – | – | – | – |" in mountaincar
    assert "missing" not in text
    html = Path("reports/outputs/report.html").read_text()
    assert "5 runs per arm" in html
    assert "0 or 5" not in html


def test_the_same_experiment_in_two_output_directories_is_two_arms(found):
    first = [run for run in found.planned if run.environment == "cartpole" and run.config.gamma == 0.9]
    earlier = [found.placed(run, "earlier") for run in first]
    found.write(first + earlier)
    ablation, planned = find_runs(["outputs", "earlier"], "dqn, output_dir=earlier", "mine")
    assert [arm.title for arm in ablation.arms] == ["dqn, output_dir=earlier", "dqn, output_dir=outputs"]
    assert {arm.against for arm in ablation.arms} == {"dqn, output_dir=earlier"}
    assert {run.directory.parts[0] for run in planned} == {"outputs", "earlier"}
    assert ablation.selector == "runs=[outputs,earlier]"


def test_an_agent_of_its_own_is_named_by_the_agent(found):
    cartpole = [run for run in found.planned if run.environment == "cartpole"]
    runs = [run for run in cartpole if run.config.gamma == 0.9]
    runs += [found.placed(run, agent="longer") for run in cartpole if run.config.gamma == 0.901]
    found.write(runs)
    assert [arm.title for arm in find_runs(["outputs"], "longer", None)[0].arms] == ["longer", "dqn"]
    with pytest.raises(ConfigError, match="baseline=longr is not an arm or its directory: did you mean longer"):
        find_runs(["outputs"], "longr", None)


def test_missing_seeds_other_budgets_and_mixed_code_are_told(found):
    runs = [run for run in found.planned if run.environment == "cartpole"]
    lacking = next(run for run in runs if run.config.gamma == 0.901 and run.config.seed == 3)
    runs.remove(lacking)
    short = [found.placed(run, budget=10_000) for run in runs if run.config.gamma == 0.902]
    runs = [run for run in runs if run.config.gamma != 0.902] + short
    found.write(runs)
    code, _, err = found("runs=outputs")
    assert code == 2
    lines = [
        f"  dqn, budget=20000, gamma=0.901 ({lacking.directory.parent.name}) on CartPole-v1, seed 3: missing, not run",
        f"  dqn, budget=10000, gamma=0.902 ({short[0].directory.parent.name}) on CartPole-v1, seeds 0, 1, 2, 3, 4: "
        "unequal budget, evaluated 10 times up to 10,000 env_steps, others 20 to 20,000",
        "qohort: 6 of 15 runs of runs=outputs cannot be counted, listed above: train what is left, or give other runs, "
        "or report the others with allow_missing=true",
    ]
    assert sorted(err.splitlines()) == sorted(lines)
    assert not Path("reports").exists()
    manifest = runs[0].directory / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "code": "0" * 16}))
    code, _, err = found("runs=outputs", "allow_missing=true")
    assert code == 2
    assert "runs of runs=outputs were made with different code, listed above: report them all the same with" in err
    code, _, err = found("runs=outputs", "allow_missing=true", "other_code=allow")
    assert code == 0, err
    html = Path("reports/outputs/report.html").read_text()
    assert "6 of 15 runs are missing from every table and figure" in html
    assert "different code: dqn, budget=20000, gamma=0.9:" in html


def test_a_component_of_another_class_is_named_by_its_class_alone(found):
    """Its own keys, and those of the others' class, would make every label long."""
    runs = [run for run in found.planned if run.environment == "cartpole" and run.config.gamma != 0.902]
    linear = {"_target_": "qohort.networks.vectors.LinearNetwork", "bias": False}
    found.write([*runs, found.placed(runs[0], network=linear)])
    assert [arm.title for arm in find_runs(["outputs"], None, None)[0].arms] == [
        "dqn, gamma=0.9, network=LinearNetwork",
        "dqn, gamma=0.9, network=MLP",
        "dqn, gamma=0.901, network=MLP",
    ]


def test_an_experiment_without_a_finished_run_is_named_by_its_directory(found):
    runs = [run for run in found.planned if run.environment == "cartpole" and run.config.gamma == 0.9]
    unfinished = found.placed(runs[0], batch_size=99)
    found.write([*runs, unfinished])
    (unfinished.directory / "result.json").unlink()
    name = unfinished.directory.parent.name
    assert [arm.title for arm in find_runs(["outputs"], None, None)[0].arms] == ["dqn", name]
    code, _, err = found("runs=outputs")
    assert code == 2
    assert f"  {name} on CartPole-v1, seed" in err


def test_a_baseline_that_is_several_arms_is_told_with_the_directory_of_each(found):
    found.write([run for run in found.planned if run.environment == "cartpole" and run.config.gamma != 0.902])
    names = {run.config.gamma: run.directory.parent.name for run in found.planned if run.environment == "cartpole"}
    told = f"2 arms are dqn: write baseline={names[0.9]} (gamma=0.9) or {names[0.901]} (gamma=0.901)"
    with pytest.raises(ConfigError, match=re.escape(told)):
        find_runs(["outputs"], "dqn", None)
    with pytest.raises(ConfigError, match=f"did you mean {names[0.9]}"):
        find_runs(["outputs"], f"{names[0.9]}0", None)


def test_another_evaluation_is_told(found):
    runs = [run for run in found.planned if run.environment == "cartpole" and run.config.gamma == 0.9]
    other = replace(runs[0].config.evaluation, episodes=3)
    found.write(runs + [found.placed(run, evaluation=other) for run in runs])
    code, _, err = found("runs=outputs/CartPole-v1")
    assert code == 0, err
    episodes = runs[0].config.evaluation.episodes
    first, second = sorted((3, episodes))
    assert (
        f"not the same task: dqn, evaluation.episodes={second} on CartPole-v1 differs from "
        f"dqn, evaluation.episodes={first} in evaluation.episodes={second} (there {first})\n"
    ) in err


def test_a_record_of_arms_that_stopped_is_told_beside_p_values(found):
    found.write([run for run in found.planned if run.environment == "cartpole"])
    Path("outputs/sequential").mkdir()
    Path("outputs/sequential/cartpole-1a2b3c4d.json").write_text("{}")
    told = "p-values may not hold: outputs/sequential/cartpole-1a2b3c4d.json says that arms of an ablation stopped"
    assert told not in found("runs=outputs")[2]
    code, _, err = found("runs=outputs", "baseline='dqn, gamma=0.9'")
    assert code == 0, err
    assert told in err
    assert told in Path("reports/outputs/report.html").read_text()


def test_a_run_that_cannot_be_read_is_named(found):
    found.write(found.planned[:3])
    file = found.planned[1].directory / "config.yaml"
    file.write_text(file.read_text().replace("gamma: ", "gama: "))
    code, _, err = found("runs=outputs/*")
    assert code == 2
    assert err.startswith(f"qohort: {file} cannot be read: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["runs=nowhere/*"], "runs=nowhere/* has no runs: give run, experiment or output directories"),
        (["runs=outputs", "ablation=cartpole_components"], "are both given: give one of them"),
        (["runs=outputs", 'overrides=["seed=0"]'], "does not go with runs=..."),
        (["ablation=cartpole_components", "baseline=dqn"], "baseline=dqn does not go with ablation=..."),
        (["ablation=cartpole_components", "name=mine"], "name=mine does not go with ablation=..."),
        (["ablation=cartpole_components", "metric=eval/length"], "metric=eval/length does not go with ablation=..."),
        (["runs=outputs", "metric=is_success"], "metric=is_success is not a metric of evaluations: give eval/return"),
        (["runs=outputs", "name=../mine"], "name=../mine is not a name of a report"),
        (["runs=outputs", "external=rows.txt"], "rows.txt is not a .csv or .yaml file"),
    ],
)
def test_mistakes_are_one_line(found, given, message):
    code, out, err = found(*given)
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert message in err


def add_metric(run, last):
    """Give the evaluations of a run a metric `eval/is_success` that rises from 0 to `last` in equal steps."""
    rows = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    evaluations = [row for row in rows if "eval/return" in row]
    for number, row in enumerate(evaluations):
        row["eval/is_success"] = last * number / (len(evaluations) - 1)
    (run.directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_another_metric_of_evaluations_is_reported(found):
    runs = [run for run in found.planned if run.environment == "cartpole" and run.config.gamma < 0.9015]
    found.write(runs)
    for run in runs:  # the arm with the higher returns has the lower metric
        add_metric(run, 0.5 if run.config.gamma == 0.901 else 0.75)
    baseline = f"baseline={runs[0].directory.parent.name}"
    given = ("runs=outputs/*/dqn-*", "metric=eval/is_success", baseline, "name=other")
    code, _, err = found(*given)
    assert code == 0, err
    table = (found.directory / "reports/other/table.md").read_text()
    assert "**CartPole-v1: final evaluation, eval/is_success, as logged**" in table
    assert "**CartPole-v1: comparisons of arms, final evaluation, eval/is_success**" in table
    assert "| −0.250 [−0.250, −0.250] |" in table
    with (found.directory / "reports/other/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["final"]) for row in rows] == [0.75] * SEEDS + [0.5] * SEEDS
    assert [float(row["auc"]) for row in rows] == pytest.approx([0.375] * SEEDS + [0.25] * SEEDS)
    # Of 20 evaluations the last five are 15/19, ..., 19/19 of the last.
    assert float(rows[0]["last_5"]) == pytest.approx(0.75 * 17 / 19)
    assert [final_return(row) for row in rows] == pytest.approx([known(run) for run in runs])
    page = (found.directory / "reports/other/report.html").read_text()
    assert "metric=eval/is_success" in page
    assert "Evaluation eval/is_success on CartPole-v1" in page
    code, _, err = found(*given, f"external={ROOT / 'results/published.csv'}")
    assert (code, err.count("\n")) == (2, 1)
    assert "has returns, but the report is of eval/is_success: leave it out" in err


def test_runs_without_the_metric_are_named_with_what_there_is(found):
    runs = [run for run in found.planned if run.environment == "cartpole" and run.config.gamma == 0.9]
    found.write(runs)
    for run in runs[1:]:
        add_metric(run, 1.0)
    code, _, err = found("runs=outputs", "metric=eval/is_success")
    assert code == 2
    assert "seed 0: no score, 20 of 20 evaluations have no eval/is_success; their metrics are eval/return" in err
    assert "1 of 5 runs" in err
    show = Show("final", "eval/is_success", 5, ())
    assert [read_score(RunDirectory(run.directory), show) for run in runs] == [None, 1.0, 1.0, 1.0, 1.0]


def test_names():
    assert _name(["outputs/*/dqn-*"]) == "outputs-dqn"
    assert _name(["/data/outputs/CartPole-v1/dqn-1a2b3c4d/"]) == "data-outputs-CartPole-v1-dqn-1a2b3c4d"
    assert _name(["../*"]) == "runs"
    assert setting("runs", "outputs/*/dqn-*") == "runs=outputs/*/dqn-*"
    assert setting("baseline", "dqn, gamma=0.9") == "baseline='dqn, gamma=0.9'"
    assert setting("runs", ["a/[bc]", "d"]) == "runs=['a/[bc]','d']"
    long = ", ".join(["dqn", *(f"some_group.key_{n}=0.123" for n in range(5))])
    assert _shortened("dqn", long) == "dqn, some_group.key_0=0.123, some_group.key_1=0.123 and 3 more"


def test_published_results_are_shown_and_change_no_number(found):
    found.write()
    arguments = ("runs=outputs", "baseline='dqn, gamma=0.9'")
    assert found(*arguments)[0] == 0
    before = Path("reports/outputs/table.md").read_text()
    compared = Path("reports/outputs/comparisons.csv").read_bytes()
    Path("rows.csv").write_text(
        "name,environment,mean,std,low,high,n,env_steps,source\n"
        "Other DQN,CartPole-v1,488.69,16.11,,,3,500000,their page\n"
        "Other C51,cartpole,481.2,,460,499.5,3,500000,their page\n"
        "Other DQN,MountainCar-v0,-195,8,,,3,500000,their page\n"
        "Other DQN,Pong,20,1,,,3,500000,their page\n"
    )
    code, _, err = found(*arguments, "external=rows.csv")
    assert code == 0, err
    after = Path("reports/outputs/table.md").read_text()
    added = [line for line in after.splitlines() if "ublished" in line]
    assert added == [
        "| Other DQN (published) | 3 | – | – | 488.7 ± 16.1 |",
        "Other DQN: published, n=3, 500,000 env_steps, from their page. Not tested.",
        "| Other DQN (published) | 3 | – | – | −195.0 ± 8.0 |",
        "Other DQN: published, n=3, 500,000 env_steps, from their page. Not tested.",
    ]
    rest = [line for line in after.splitlines() if "ublished" not in line and line]
    assert rest == [line for line in before.splitlines() if line]
    assert Path("reports/outputs/comparisons.csv").read_bytes() == compared
    html = Path("reports/outputs/report.html").read_text()
    assert "They are in no statistic, no test and no correction of this report." in html
    assert html.count("Not tested.") == 2
    assert "external=" in html
    Path("rows.csv").write_text("name,environment,mean,std,n,env_steps,source\nDQN,Pong,20,1,3,500000,their page\n")
    code, _, err = found(*arguments, "external=rows.csv")
    assert code == 2
    assert "has no row of an environment of this report: its rows are of Pong" in err

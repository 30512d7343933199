"""Tuning: which cohorts trials fold into, how they are pruned, that a killed study goes on as if nothing had happened,
what the winner's file means, and what is refused.
"""

import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import hydra
import optuna
import pytest
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

import qohort.experiments.tuning
import qohort.experiments.tuning_config
import qohort.runs.training
from matrix import MARKS
from qohort.config.composition import CONFIG_DIRECTORY, override
from qohort.config.errors import ConfigError, Interrupted, RunsFailed
from qohort.config.members import check_config
from qohort.experiments.experiment_file import experiment_text
from qohort.experiments.search_space import Interval, read_space
from qohort.experiments.tuning import tune
from qohort.experiments.tuning_config import check_settings, check_space
from qohort.runs.directory import RunDirectory
from qohort.runs.members import members_of
from qohort.runs.training import train
from qohort.statistics import iqm

ROOT = Path(__file__).parents[1]
TRAIN = (
    "train={env:cartpole,learning_starts:60,batch_size:16,log_every:50,evaluation.every:100,evaluation.episodes:2,"
    "evaluation.max_episode_steps:50,compile:none,logger:none,trainer.progress_bar:false}"
)
SPACE = "space={optimizer.lr:{low:1e-4,high:1e-2,log:true},gamma:{choices:[0.9,0.99]}}"
BASE = (
    "name=tuned/small",
    TRAIN,
    "trials=4",
    "parallel=4",
    "rungs=[120,240]",
    "reduction=2",
    "tuning_seeds=[5,6]",
    "reporting_seeds=[1,2,3]",
)


@pytest.fixture(autouse=True)
def experiments(tmp_path, monkeypatch):
    """Where experiment files go."""
    monkeypatch.setattr(qohort.experiments.tuning, "own_directory", lambda: tmp_path)
    return tmp_path / "experiment"


@pytest.fixture
def cohorts(monkeypatch):
    """What is trained: of each cohort its budget, and seed, learning rate and γ of its members."""
    seen = []
    really = qohort.runs.training.train_cohort

    def listen(members, step):
        configs = [member.config for member in members]
        seen.append((configs[0].budget, [(one.seed, one.optimizer["lr"], one.gamma) for one in configs]))
        really(members, step)

    monkeypatch.setattr(qohort.runs.training, "train_cohort", listen)
    return seen


def compose(name, *overrides):
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        return hydra.compose(name, list(overrides))


def go(directory, *overrides, space=SPACE):
    """A study in this process."""
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        return tune(hydra.compose("tune", [*BASE, space, f"output_dir={directory}", *overrides]))


def trials_of(directory, name="tuned/small"):
    """All that a study holds of its trials, but times."""
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{directory}/tuning/{name}/study.db")
    return [
        (one.number, one.state.name, one.params, one.value, one.intermediate_values, one.user_attrs)
        for one in study.trials
    ]


def settings_of(directory):
    return [attributes["settings"] for *_, attributes in trials_of(directory)]


def results(directory):
    files = sorted(directory.glob("*/*/seed-*/result.json"))
    return {file.parent.relative_to(directory).as_posix(): json.loads(file.read_text()) for file in files}


def fingerprints(directory):
    return {name: result["fingerprint"] for name, result in results(directory).items()}


def alone(settings, budget, seed, directory):
    """The overrides of one of a trial's runs, as a user would give them."""
    own = [f"{key}={value}" for key, value in settings.items()]
    base = [one.replace(":", "=", 1) for one in TRAIN.removeprefix("train={").removesuffix("}").split(",")]
    return [*base, *own, f"budget={budget}", f"seed={seed}", f"output_dir={directory}"]


def test_a_study_from_its_trials_to_its_experiment_file(tmp_path, experiments, cohorts, capsys):
    winner = go(tmp_path / "a")
    settings = settings_of(tmp_path / "a")
    values = [(one["optimizer.lr"], one["gamma"]) for one in settings]
    assert len(set(values)) == 4

    # All trials of a rung are one cohort; the better half goes on; the winner is trained on the reporting seeds.
    (low, first), (high, second), (last, reported) = cohorts
    assert (low, high, last) == (120, 240, 240)
    assert first == [(seed, *one) for one in values for seed in (5, 6)]
    assert reported == [(seed, *values[winner.trial]) for seed in (1, 2, 3)]
    scores = []
    for one in settings:
        runs = members_of(check_config(compose("train", *alone(one, 120, [5, 6], tmp_path / "a"))))
        scores.append(iqm([run.directory.result()["final_return"] for run in runs]))
    survivors = sorted(sorted(range(4), key=lambda number: -scores[number])[:2])
    assert second == [(seed, *values[number]) for number in survivors for seed in (5, 6)]

    # The study says the same.
    for number, state, _, value, notes, _ in trials_of(tmp_path / "a"):
        assert notes[120] == scores[number]
        assert state == ("COMPLETE" if number in survivors else "PRUNED")
        assert value == notes[max(notes)]
        assert set(notes) == ({120, 240} if number in survivors else {120})
    assert winner.settings == settings[winner.trial]
    assert f"best: trial {winner.trial}" in capsys.readouterr().out

    # A run is the one that it is alone.
    train(compose("train", *alone(settings[3], 120, 6, tmp_path / "b")))
    ((name, fingerprint),) = fingerprints(tmp_path / "b").items()
    assert fingerprints(tmp_path / "a")[name] == fingerprint

    # The file opens with its command, and means the very runs that were reported.
    text = (experiments / "tuned" / "small.yaml").read_text()
    assert "# qohort train experiment=tuned/small\n" in text
    place = f"hydra.searchpath=[file://{tmp_path}]"
    config = compose("train", "experiment=tuned/small", place, f"output_dir={tmp_path / 'a'}")
    members = members_of(check_config(config))
    assert [member.directory.result()["final_return"] for member in members] == winner.returns
    assert [member.config.seed for member in members] == [1, 2, 3]

    # The same command trains nothing and changes nothing.
    before = trials_of(tmp_path / "a")
    cohorts.clear()
    assert go(tmp_path / "a") == winner
    assert cohorts == []
    assert trials_of(tmp_path / "a") == before
    assert (experiments / "tuned" / "small.yaml").read_text() == text


@pytest.mark.slow
@pytest.mark.matrix
def test_what_no_member_can_hold_parts_trials_into_cohorts(tmp_path, cohorts, experiments):
    space = "space={network.hidden:{choices:[[8],[6,5]]},optimizer:{choices:[adam,rmsprop]},gamma:{low:0.9,high:0.99}}"
    winner = go(tmp_path, "rungs=[120]", "trials=6", "parallel=6", space=space)
    kinds = [(tuple(one["network.hidden"]), one["optimizer"]) for one in settings_of(tmp_path)]
    assert 1 < len(set(kinds)) < 6
    assert len(cohorts) == len(set(kinds)) + 1
    assert sorted(len(members) for _, members in cohorts[:-1]) == sorted(2 * kinds.count(one) for one in set(kinds))
    text = (experiments / "tuned" / "small.yaml").read_text()
    assert f"  - override /optimizer: {winner.settings['optimizer']}\n" in text
    assert f"  hidden: {winner.settings['network.hidden']}\n" in text


def in_a_process(prepare, *arguments):
    """Tune in a process of its own, after `prepare` has been called in it."""

    def target():
        os.setsid()
        prepare()
        go(*arguments)

    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    process.join()
    return process.exitcode


def kill_before(place, name, count):
    """Let the `count`-th call of a function end the process."""
    really = getattr(place, name)
    seen = 0

    def killing(*arguments, **keywords):
        nonlocal seen
        seen += 1
        if seen == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return really(*arguments, **keywords)

    setattr(place, name, killing)


TWICE = ("trials=4", "parallel=2")  # two batches


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qohort.experiments.tuning, "own_directory", lambda: directory)
        go(directory, *TWICE)
    return trials_of(directory), fingerprints(directory)


POINTS = [
    pytest.param(RunDirectory, "write_result", 8, marks=MARKS),
    pytest.param(optuna.Study, "tell", 2, marks=pytest.mark.slow),
    pytest.param(optuna.Study, "add_trial", 4, marks=pytest.mark.slow),
    pytest.param(optuna.Trial, "report", 2, marks=pytest.mark.slow),
    pytest.param(qohort.experiments.tuning, "write_atomically", 1, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("place", "name", "count"), POINTS)
def test_a_killed_study_goes_on(place, name, count, tmp_path, undisturbed):
    assert in_a_process(lambda: kill_before(place, name, count), tmp_path, *TWICE) == -signal.SIGKILL
    finished = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/*/seed-*/result.json")}
    go(tmp_path, *TWICE)
    assert (trials_of(tmp_path), fingerprints(tmp_path)) == undisturbed
    assert {file: file.stat().st_mtime_ns for file in finished} == finished


@pytest.mark.slow
def test_sigterm_ends_with_75_and_the_same_command_goes_on(tmp_path, cohorts):
    overrides = [
        *BASE,
        SPACE,
        f"output_dir={tmp_path}",
        "rungs=[4000]",
        "++train={train_every:20}",
        "trials=2",
        "parallel=2",
    ]
    process = subprocess.Popen(
        [sys.executable, "scripts/tune.py", *overrides],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while not list(tmp_path.glob("*/*/seed-*/metrics.jsonl")) and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "the same command resumes the run" in errors
    before = [params for _, state, params, *_ in trials_of(tmp_path) if state == "RUNNING"]
    assert len(before) == 2
    go(tmp_path, "rungs=[4000]", "++train={train_every:20}", "trials=2", "parallel=2")
    assert [params for _, state, params, *_ in trials_of(tmp_path) if state == "COMPLETE"] == before
    assert [len(members) for _, members in cohorts] == [4, 3]


@pytest.fixture
def pretended(monkeypatch):
    """Nothing is trained: the score of a trial is what this makes of its settings and the budget."""

    def pretend(score):
        def members(tuning, trials, budget, where, seeds=()):
            result = [{"final_return": score(trial, budget)} for trial in trials]
            directories = [SimpleNamespace(result=lambda one=one: one, failure=lambda: None) for one in result]
            config = SimpleNamespace(seed=0)
            return [[SimpleNamespace(directory=one, config=config)] * 2 for one in directories]

        monkeypatch.setattr(qohort.experiments.tuning.Tuning, "train", members)
        monkeypatch.setattr(qohort.experiments.tuning.Tuning, "refuse", lambda *_: False)

    return pretend


def test_halving_over_three_rungs(tmp_path, pretended, capsys):
    pretended(lambda trial, budget: budget * trial["gamma"])
    space = "space={gamma:{low:0.5,high:0.9}}"
    winner = go(tmp_path, "rungs=[100,200,300]", "reduction=3", "trials=7", "parallel=7", space=space)
    gammas = [one["gamma"] for one in settings_of(tmp_path)]
    best = sorted(range(7), key=lambda number: -gammas[number])
    rungs = {number: len(notes) for number, _, _, _, notes, _ in trials_of(tmp_path)}
    assert rungs == {number: 3 if number in best[:1] else 2 if number in best[:3] else 1 for number in range(7)}
    assert winner.trial == best[0]
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [row[1] for row in rows if "best" in row] == [str(best[0])]


@pytest.mark.parametrize("sampler", [pytest.param("tpe", marks=MARKS), pytest.param("random", marks=pytest.mark.slow)])
def test_proposals_do_not_depend_on_when_a_process_began(sampler, tmp_path, pretended):
    pretended(lambda trial, budget: -abs(trial["gamma"] - 0.7) * budget)
    space = "space={gamma:{low:0.5,high:0.9},batch_size:{low:8,high:32,log:true}}"
    settings = ("parallel=4", f"sampler={sampler}")
    go(tmp_path / "a", "trials=16", *settings, space=space)
    for count in (8, 16):
        go(tmp_path / "b", f"trials={count}", *settings, "overwrite=true", space=space)
    assert trials_of(tmp_path / "a") == trials_of(tmp_path / "b")
    assert all(isinstance(one["batch_size"], int) for one in settings_of(tmp_path / "a"))
    go(tmp_path / "c", "trials=4", *settings, "sampler_seed=1", "overwrite=true", space=space)
    assert settings_of(tmp_path / "c") != settings_of(tmp_path / "a")[:4]


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "learns"), [("tpe", True), ("random", False)])
def test_only_tpe_learns_from_scores(sampler, learns, tmp_path, pretended):
    space = "space={gamma:{low:0.5,high:0.9}}"
    for name, sign in (("a", 1), ("b", -1)):
        pretended(lambda trial, budget, sign=sign: sign * trial["gamma"])
        go(tmp_path / name, "trials=24", "parallel=4", f"sampler={sampler}", "overwrite=true", space=space)
    upwards, downwards = ([one["gamma"] for one in settings_of(tmp_path / name)] for name in ("a", "b"))
    assert upwards[:10] == downwards[:10]
    assert (sum(upwards[12:]) > sum(downwards[12:]) + 1) == learns


@pytest.mark.slow
@pytest.mark.matrix
def test_a_trial_that_fails_is_the_worst_and_the_study_goes_on(tmp_path, capsys):
    space = "space={optimizer.lr:{choices:[1e-3,1e37]}}"
    winner = go(tmp_path, "trials=6", "parallel=6", space=space)
    rates = [one["optimizer.lr"] for one in settings_of(tmp_path)]
    assert set(rates) == {1e-3, 1e37}
    assert winner.settings == {"optimizer.lr": 1e-3}
    for number, state, _, _, notes, attributes in trials_of(tmp_path):
        if rates[number] == 1e37:
            assert (state, notes) == ("PRUNED", {})
            assert attributes["failed"].startswith("at 120, seed 5: diverged")
    assert "failed at 120" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_values_that_do_not_go_together_fail_alone(tmp_path):
    space = "space={replay.capacity:{choices:[1000,20]},batch_size:{choices:[16,32]}}"
    go(tmp_path, "rungs=[120]", "trials=8", "parallel=8", space=space)
    for *_, attributes in trials_of(tmp_path):
        impossible = attributes["settings"] == {"replay.capacity": 20, "batch_size": 32}
        assert ("replay.capacity=20" in attributes.get("failed", "")) == impossible
    assert any("failed" in attributes for *_, attributes in trials_of(tmp_path))


def test_no_winner_where_all_fail(tmp_path, experiments):
    with pytest.raises(RunsFailed, match="all 4 trials failed"):
        go(tmp_path, space="space={optimizer.lr:{low:1e36,high:1e37}}")
    assert not experiments.exists()


@pytest.mark.slow
@pytest.mark.matrix
def test_no_number_where_a_reporting_run_fails(tmp_path, experiments, capsys, monkeypatch):
    really = qohort.experiments.tuning.reasons
    failing = {3: ["seed 1: diverged"]}
    monkeypatch.setattr(
        qohort.experiments.tuning, "reasons", lambda members: failing.get(len(members)) or really(members)
    )
    with pytest.raises(RunsFailed, match="1 of 3 runs of the winner failed: seed 1: diverged"):
        go(tmp_path, "rungs=[120]", "trials=2")
    assert "best" not in capsys.readouterr().out
    assert not experiments.exists()


def test_another_file_is_not_overwritten(tmp_path, experiments, pretended):
    pretended(lambda trial, budget: trial["gamma"])
    target = experiments / "tuned" / "small.yaml"
    target.parent.mkdir(parents=True)
    target.write_text("gamma: 0.5\n")
    with pytest.raises(ConfigError, match="exists and was not written by this study"):
        go(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    assert target.read_text() == "gamma: 0.5\n"
    go(tmp_path / "a", "overwrite=true")
    assert "experiment=tuned/small" in target.read_text()
    go(tmp_path / "a", "trials=8")  # its own
    assert "The best of 8 trials" in target.read_text()
    target.write_text(target.read_text() + "# by hand\n")
    with pytest.raises(ConfigError, match="exists and was not written"):
        go(tmp_path / "a", "trials=8")


@pytest.mark.slow
@pytest.mark.matrix
def test_a_study_keeps_its_settings(tmp_path, pretended):
    pretended(lambda trial, budget: trial["gamma"])
    go(tmp_path)
    with pytest.raises(ConfigError, match=r"name=tuned/small is a study with another rungs, reduction: choose another"):
        go(tmp_path, "rungs=[120,300]", "reduction=3")
    with pytest.raises(ConfigError, match="another space"):
        go(tmp_path, space=SPACE.replace("0.99", "0.98"))
    go(tmp_path, "reporting_seeds=[9]", "max_members=2", "trials=5")
    assert len(trials_of(tmp_path)) == 5


def test_one_process_a_study(tmp_path):
    other = RunDirectory(tmp_path / "tuning" / "tuned" / "small")
    assert other.lock()
    with pytest.raises(Interrupted, match="is being tuned by process"):
        go(tmp_path)
    other.unlock()


def test_a_run_that_another_process_has(tmp_path):
    (member,) = members_of(
        check_config(compose("train", *alone({"optimizer.lr": 1e-3, "gamma": 0.9}, 120, 6, tmp_path)))
    )
    assert member.directory.lock()
    with pytest.raises(Interrupted, match="is being trained elsewhere"):
        go(tmp_path, "trials=1", space="space={optimizer.lr:{choices:[1e-3]},gamma:{choices:[0.9]}}")
    member.directory.unlock()


BAD = [
    ("reporting_seeds=[6,1]", "tuning_seeds and reporting_seeds share 6"),
    ("tuning_seeds=[6,6]", "tuning_seeds=[6,6] has a seed twice"),
    ("tuning_seeds=[]", "tuning_seeds=[] is too short"),
    ("rungs=[240,120]", "rungs=[240,120] must increase"),
    ("rungs=[50,120]", "rungs: budget=50 ends before the first update"),
    ("reduction=1", "reduction=1 is out of range"),
    ("trials=0", "trials=0 is out of range"),
    ("sampler=grid", "sampler=grid is not one of the choices"),
    ("name=../x", "name=../x is not a file name"),
    ("++space={optimizer.lrr:{low:1,high:2}}", "space: unknown key optimizer.lrr=1: did you mean optimizer.lr?"),
    ("++space={gamma:{low:0.5,high:2}}", "unknown key space.gamma.low=0.5"),
    ("++space={batch_size:{low:0.5,high:2}}", "space: batch_size=0.5 is not an integer"),
    ("++space={batch_size:{low:8,high:32,step:0.5}}", "step:0.5}: step must be an integer of at least 1"),
    ("++space={batch_size:{low:8,high:32,step:0}}", "step:0}: step must be an integer of at least 1"),
    ("++space={optimizer.eps:{low:0.5,high:-2}}", "space.optimizer.eps={low:0.5,high:-2}: "),
    ("++space={optimizer.eps:{low:0,high:1,log:true}}", "space.optimizer.eps="),
    ("++space={optimizer.eps:{low:0,high:1,lg:true}}", "unknown key space.optimizer.eps.lg=true: did you mean"),
    ("++space={optimizer.eps:{low:0}}", "space.optimizer.eps.high has no value"),
    ("++space={optimizer.eps:0.5}", "space.optimizer.eps=0.5 is not a search space"),
    ("++space={optimizer.eps:{choices:[]}}", "space.optimizer.eps.choices=[] is too short"),
    ("++space={gamma:null,optimizer.lr:null}", "searches nothing"),
    (
        "++space={optimizer:{choices:[adam,adamm]}}",
        "space: optimizer=adamm is not one of the choices: did you mean",
    ),
    ("++space={train_every:{choices:[1,0]}}", "space: train_every=0 is out of range"),
    ("++space={budget:{choices:[100]}}", "space: budget cannot be set here: it is set by rungs"),
    ("++space={checkpoint.every:{choices:[100,200]}}", "space: checkpoint.every does not affect results"),
    ("++train={seed:3}", "train: seed cannot be set here: the seeds are tuning_seeds and reporting_seeds"),
    ("++train={env.idd:3}", "train: unknown key env.idd=3: did you mean env.id?"),
    ("++train={env.id:Pendulum-v1}", "env.id=Pendulum-v1"),
    ("output_dir=/etc/passwd/x", "output_dir=/etc/passwd/x cannot be made"),
]


@pytest.mark.parametrize(("text", "told"), BAD)
def test_bad_input(text, told, tmp_path, monkeypatch):
    def refuse(*_):
        pytest.fail("training began")

    monkeypatch.setattr(qohort.runs.training, "train_cohort", refuse)
    with pytest.raises(ConfigError) as raised:
        go(tmp_path / "outputs", text)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["name=x"], "space has no value"),
        ([SPACE], "name has no value"),
        ([*BASE, SPACE, "reporting_seeds=[6,1]"], "share 6"),
        (["study=sensitivity/classic_control"], "this study is for qohort sensitivity study=NAME"),
        (["study=nope"], "study=nope is not one of the choices: it must be one of cartpole"),
        (["study=cartpole", "train={batch_size:3}"], "train has no batch_size; write +train={batch_size:VALUE}"),
        (["study=cartpole", "trails=3"], "unknown key trails=3: did you mean trials"),
    ],
)
def test_bad_input_of_the_script(line, told, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tune.py", *line])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / "tune.py"), run_name="__main__")
    out, err = capfd.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1), err
    assert told in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("study", sorted(path.stem for path in (CONFIG_DIRECTORY / "study").glob("*.yaml")))
def test_kept_studies(study):
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        settings = check_settings(hydra.compose("tune", [f"study={study}"]))
        check_space(settings, read_space(settings.space))


def test_a_missing_optuna_is_told(monkeypatch):
    monkeypatch.setattr(qohort.experiments.tuning_config.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'qohort\[tune\]'"):
        check_settings(compose("tune", *BASE, SPACE))


@pytest.mark.parametrize(
    "value",
    [1, 0.1, 1e-5, 1e37, True, False, None, "a", "1", "null", "it's", "a\\", "a'\\'", "x=1,2", [], [1, [2, "b c"]]],
)
def test_an_override_is_read_as_it_was_meant(value):
    read = OverridesParser.create().parse_overrides([override("key", value)])[0].value()
    assert read == value
    assert type(read) is type(value)


def test_an_experiment_on_top_of_another():
    settings = {"experiment": "cleanrl/cartpole", "env": "acrobot", "optimizer.lr": 0.5, "+env.kwargs.a": "b"}
    assert experiment_text(settings, ("experiment", "env"), ["a"]) == (
        "# @package _global_\n# a\n"
        "defaults:\n  - /experiment/cleanrl/cartpole\n  - override /env: acrobot\n\n"
        "optimizer:\n  lr: 0.5\nenv:\n  kwargs:\n    a: b\n"
    )


@pytest.mark.parametrize(
    ("interval", "proposed", "tried"),
    [
        (Interval(1e-4, 1e-2, True, None), 0.0012345678, 0.001235),
        (Interval(1e-4, 1e-2, True, None), 0.00999999, 0.01),
        (Interval(0.12345, 0.2, True, None), 0.12346, 0.1235),
        (Interval(0.12344, 0.2, True, None), 0.12344, 0.12344),
        (Interval(0.99, 0.9999, False, None), 0.99512345, 0.995123),
        (Interval(0.0, 200.0, False, None), 123.456, 123.5),
        (Interval(0.0, 1.0, False, 0.1), 0.30000000000000004, 0.3),
        (Interval(1, 9, False, None), 7, 7),
    ],
)
def test_no_more_digits_than_anyone_would_type(interval, proposed, tried):
    assert interval.value(proposed) == tried

"""What a sweep folds into cohorts, that it ends as if nothing had been folded, and what it tells of failures."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib import util
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

import qohort.cli.entry_point
import qohort.config.overrides
import qohort.experiments.sweep
from matrix import MARKS
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.config.errors import ConfigError, Interrupted, SweepFailed
from qohort.config.members import check_config
from qohort.experiments.sweep import fold, launch
from qohort.runs.interruption import StopRequest
from qohort.runs.summary import _classes_of_agents

ROOT = Path(__file__).parents[1]
SHORT = (
    "budget=300",
    "learning_starts=60",
    "batch_size=16",
    "log_every=50",
    "evaluation.every=150",
    "evaluation.episodes=2",
    "evaluation.max_episode_steps=50",
    "compile=none",
    "trainer.progress_bar=false",
    "logger=none",
)


@pytest.fixture
def folded():
    """The cohorts of a sweep, each as what its members share, their seeds and their own numbers."""
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("train", [], run_mode=RunMode.MULTIRUN)

        def cohorts(*texts, max_members=32, only=None):
            return fold(texts, loader, master, only, max_members)

        yield cohorts


def shape(cohorts):
    return [(cohort.overrides, cohort.seeds, cohort.folds) for cohort in cohorts]


def test_seeds_fold_and_the_rest_are_jobs(folded):
    got = shape(folded("env=cartpole,acrobot", "seed=range(0,3)", "budget=5000"))
    assert got == [
        (("env=cartpole", "budget=5000"), (0, 1, 2), ({}, {}, {})),
        (("env=acrobot", "budget=5000"), (0, 1, 2), ({}, {}, {})),
    ]


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("seed=5", (5,)),
        ("seed=[5,6]", (5, 6)),
        ("seed=[5,6],[6,9]", (5, 6, 9)),
        ("seed=range(0,10,4)", (0, 4, 8)),
        ("seed=3,1,3", (3, 1)),
        ("seed=sort(3,1,2)", (1, 2, 3)),
        ("budget=5000", (0, 1, 2, 3, 4)),
    ],
)
def test_what_seeds_may_be(folded, text, seeds):
    (cohort,) = folded(text)
    assert cohort.seeds == seeds


def test_at_most_max_members_split_evenly(folded):
    cohorts = folded("seed=range(0,10)", max_members=4)
    assert [cohort.seeds for cohort in cohorts] == [(0, 1, 2), (3, 4, 5), (6, 7, 8, 9)]


def test_numbers_that_a_member_can_hold_fold(folded):
    got = shape(folded("gamma=0.9,0.95", "optimizer.lr=1e-3", "seed=7,8", "batch_size=16,32"))
    own = ({"gamma": 0.9}, {"gamma": 0.9}, {"gamma": 0.95}, {"gamma": 0.95})
    assert got == [
        (("batch_size=16", "optimizer.lr=0.001"), (7, 8, 7, 8), own),
        (("batch_size=32", "optimizer.lr=0.001"), (7, 8, 7, 8), own),
    ]


def test_what_is_no_number_stays_a_job(folded):
    got = shape(folded("max_grad_norm=null,1,10", "seed=0"))
    assert got == [
        (("max_grad_norm=null",), (0,), ({},)),
        ((), (0, 0), ({"max_grad_norm": 1}, {"max_grad_norm": 10})),
    ]


def test_a_learning_rate_folds_only_where_each_member_has_its_own(folded):
    assert [len(cohort.seeds) for cohort in folded("optimizer.lr=0.1,0.2", "seed=0,1")] == [4]
    cohorts = folded("optimizer=sgd", "optimizer.lr=0.1,0.2", "seed=0,1")
    assert [(cohort.overrides[-1], cohort.seeds) for cohort in cohorts] == [
        ("optimizer.lr=0.1", (0, 1)),
        ("optimizer.lr=0.2", (0, 1)),
    ]


def test_foldable_says_which(folded):
    assert len(folded("gamma=0.9,0.95", "seed=0,1", only=())) == 2
    with pytest.raises(ConfigError, match=r"hydra.sweeper.foldable: batch_size cannot be held by a member here"):
        folded("seed=0,1", only=("batch_size",))


def test_a_folded_members_config_is_the_one_it_has_alone(folded):
    (cohort,) = folded("gamma=0.9,0.95", "exploration.epsilon.end=0.1,0.2", "seed=3", "output_dir=x")
    plain = OmegaConf.masked_copy(cohort.config, [key for key in cohort.config if key != "hydra"])
    together = check_config(plain)
    alone = [
        check_config(OmegaConf.masked_copy(one.config, [key for key in one.config if key != "hydra"]))[0]
        for gamma in (0.9, 0.95)
        for end in (0.1, 0.2)
        for one in folded(f"gamma={gamma}", f"exploration.epsilon.end={end}", "seed=3", "output_dir=x")
    ]
    assert together == alone


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[{gamma:0.9}]", "one {key: number} for each seed"),
        ("[{gamma:0.9},3]", "write {key: number}"),
        ("[{gamma:0.9},{gamma:high}]", "gamma=high must be a number"),
        ("[{gamma:0.9},{gama:0.8}]", "may not differ in gama here: did you mean gamma"),
        ("[{gamma:0.9},{batch_size:8}]", "may not differ in batch_size"),
        ("[{gamma:0.9},{target_network.tau:0.1}]", "may not differ in target_network.tau here"),
        ("[{gamma:0.9},{gamma:1.5}]", "gamma=1.5 is out of range"),
        ("gamma", "must be a list"),
    ],
)
def test_wrong_folds(folded, given, message):
    import hydra

    with pytest.raises(ConfigError, match=message):
        check_config(hydra.compose("train", ["seed=[0,1]", f"fold={given}"]))


def test_the_same_run_twice_is_refused(folded):
    import hydra

    with pytest.raises(ConfigError, match="twice"):
        check_config(hydra.compose("train", ["seed=[0,0]", "fold=[{gamma:0.9},{gamma:0.9}]"]))


def command(directory, *overrides):
    return [sys.executable, "scripts/train.py", "-m", *SHORT, f"output_dir={directory}", *overrides]


def sweep(directory, *overrides):
    return subprocess.run(command(directory, *overrides), cwd=ROOT, capture_output=True, text=True)


def fingerprints(directory):
    found = {}
    for file in directory.glob("*/*/seed-*/result.json"):
        found[file.parent.relative_to(directory).as_posix()] = json.loads(file.read_text())["fingerprint"]
    return found


def need(package):
    """Skip a test where the plugin of its launcher is not installed."""
    if util.find_spec(f"hydra_plugins.hydra_{package}_launcher") is None:
        pytest.skip(f"hydra-{package}-launcher is not installed: see the README's section on sweeps")


GRID = ("env=cartpole,mountaincar", "gamma=0.9,0.99", "exploration.epsilon.end=0.1,0.2", "seed=0,1")


@pytest.mark.slow
@pytest.mark.matrix
def test_however_a_sweep_is_run_it_ends_in_the_same_bits(tmp_path):
    cohorts = sweep(tmp_path / "cohorts", *GRID)
    assert cohorts.returncode == 0, cohorts.stderr
    assert "2 cohorts, 16 members, 4,800 env_steps in all; 0 of 16 finished already" in cohorts.stdout
    expected = fingerprints(tmp_path / "cohorts")
    assert len(expected) == 16
    small = sweep(tmp_path / "small", *GRID, "hydra.sweeper.max_members=3", "hydra/launcher=joblib")
    assert small.returncode == 0, small.stderr
    assert fingerprints(tmp_path / "small") == expected
    alone = ("env=mountaincar", "gamma=0.9,0.99", "exploration.epsilon.end=0.2", "seed=1", "hydra/sweeper=basic")
    some = sweep(tmp_path / "basic", *alone)
    assert some.returncode == 0, some.stderr
    basic = fingerprints(tmp_path / "basic")
    assert len(basic) == 2
    assert basic.items() <= expected.items()
    again = sweep(tmp_path / "cohorts", *GRID)
    assert again.returncode == 0
    assert "16 of 16 finished already" in again.stdout
    assert fingerprints(tmp_path / "cohorts") == expected


AGENTS = "agent=dqn,double"
FORTY = ("env=cartpole,acrobot", AGENTS, "seed=range(0,10)")


@pytest.fixture(scope="module")
def forty(tmp_path_factory):
    """The fingerprints of a sweep of 40 members by Hydra's basic launcher."""
    directory = tmp_path_factory.mktemp("basic")
    done = sweep(directory, *FORTY)
    assert done.returncode == 0, done.stderr
    assert "4 cohorts, 40 members" in done.stdout
    found = fingerprints(directory)
    assert len(found) == 40
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "package"),
    [
        ("hydra/sweeper=basic", None),
        ("hydra/launcher=joblib", "joblib"),
        ("hydra/launcher=submitit_local", "submitit"),
        ("hydra/launcher=ray", "ray"),
    ],
)
def test_every_launcher_ends_in_the_same_bits(way, package, tmp_path, forty):
    if package is not None:
        need(package)
    done = sweep(tmp_path, *FORTY, way)
    assert done.returncode == 0, done.stderr
    assert fingerprints(tmp_path) == forty
    for manifest in tmp_path.glob("*/*/*/manifest.json"):
        command = json.loads(manifest.read_text())["command"]
        assert command[0] == "train.py"
        assert f"output_dir={tmp_path}" in command


@pytest.mark.slow
@pytest.mark.matrix
def test_a_member_that_diverges_fails_alone_and_is_told(tmp_path):
    overrides = ("env=cartpole", "seed=0,1", "max_grad_norm=null")
    done = sweep(tmp_path / "a", *overrides, "optimizer.lr=1e-3,1e37")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "1 of 1 jobs did not finish" in done.stderr
    failures = sorted((tmp_path / "a").glob("*/*/*/failed.json"))
    assert [file.parent.name for file in failures] == ["seed-0", "seed-1"]
    for file in failures:
        failure = json.loads(file.read_text())
        assert failure["env_steps"] <= 300
        assert failure["reason"].startswith("diverged: loss ")
        assert str(file.parent) in done.stderr
        rows = [json.loads(line) for line in (file.parent / "metrics.jsonl").read_text().splitlines()]
        assert max(row["env_steps"] for row in rows) <= failure["env_steps"]
    sound = sweep(tmp_path / "b", *overrides, "optimizer.lr=1e-3")
    assert sound.returncode == 0, sound.stderr
    assert fingerprints(tmp_path / "a") == fingerprints(tmp_path / "b") != {}
    again = sweep(tmp_path / "a", *overrides, "optimizer.lr=1e37")
    assert again.returncode == 1
    assert again.stdout.count("has failed") == 2
    before = failures[0].stat().st_mtime_ns
    assert sweep(tmp_path / "a", *overrides, "optimizer.lr=1e37", "retry_failed=true").returncode == 1
    assert failures[0].stat().st_mtime_ns > before


@pytest.mark.slow
@pytest.mark.matrix
def test_a_member_that_diverges_after_its_last_row_is_no_result(tmp_path):
    done = sweep(tmp_path, "seed=0,1", "optimizer.lr=1e-3,1e37", "log_every=100000", "max_grad_norm=null")
    assert done.returncode == 1
    assert "diverged: its weights are not finite" in done.stderr
    assert len(list(tmp_path.glob("*/*/*/failed.json"))) == len(fingerprints(tmp_path)) == 2


@pytest.mark.parametrize(
    ("launcher", "package", "number"),
    [
        pytest.param("joblib", "joblib", signal.SIGTERM, marks=MARKS),
        pytest.param("submitit_local", "submitit", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("ray", "ray", signal.SIGINT, marks=pytest.mark.slow),  # on SIGTERM Ray ends its workers itself
    ],
)
def test_a_signal_to_a_sweep_then_the_same_command(launcher, package, number, tmp_path):
    need(package)
    way = f"hydra/launcher={launcher}"
    overrides = ("env=cartpole,acrobot", "seed=0,1", "budget=6000", way, "checkpoint.every=100000")
    process = subprocess.Popen(
        command(tmp_path / "a", *overrides), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while len(list((tmp_path / "a").glob("*/*/seed-*/metrics.jsonl"))) < 4 and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "saved: the same command resumes the run" in errors
    assert fingerprints(tmp_path / "a") == {}
    assert list((tmp_path / "a").glob("*/*/seed-*/checkpoints/step-*.ckpt"))
    done = sweep(tmp_path / "a", *overrides)
    assert done.returncode == 0, done.stderr
    whole = sweep(tmp_path / "b", *overrides[:-2])
    assert whole.returncode == 0, whole.stderr
    assert fingerprints(tmp_path / "a") == fingerprints(tmp_path / "b")


def test_a_signal_ends_the_wait_for_jobs_that_it_cannot_reach():
    with pytest.raises(Interrupted, match="interrupted by SIGTERM"), StopRequest().waiting():
        os.kill(os.getpid(), signal.SIGTERM)
    seen = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: seen.append(number))
    stop = StopRequest()
    try:
        with stop.waiting(), stop:  # a job that trains here ends by itself
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(0.1)
            assert stop.signal == "SIGUSR2"
        assert seen == []
        stop.hand_on()  # as to submitit's own handler
        assert seen == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.parametrize(("asked", "expected"), [(None, SweepFailed), ("SIGTERM", Interrupted)])
def test_a_launcher_that_fails(folded, tmp_path, asked, expected, monkeypatch):
    class Launcher:
        def launch(self, jobs, initial_job_idx):
            monkeypatch.setattr(qohort.experiments.sweep.STOP, "signal", asked)
            raise RuntimeError("a worker was killed")

    with pytest.raises(expected, match="a worker was killed" if asked is None else "interrupted by SIGTERM"):
        launch(folded("seed=0,1", f"output_dir={tmp_path}"), Launcher(), None)


@pytest.mark.parametrize(
    ("returncode", "expected"),
    [
        (None, SystemExit),
        (-signal.SIGTERM, SystemExit),  # scontrol, ended by the requeueing that it asked for
        (1, subprocess.CalledProcessError),
    ],
)
def test_a_job_on_slurm_ends_without_a_result(returncode, expected, monkeypatch):
    def requeue():
        if returncode is not None:
            raise subprocess.CalledProcessError(returncode, "scontrol")

    monkeypatch.setattr(qohort.cli.entry_point.STOP, "hand_on", requeue)
    qohort.cli.entry_point._leave_to_slurm()  # elsewhere, nothing
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    with pytest.raises(expected):
        qohort.cli.entry_point._leave_to_slurm()


@pytest.mark.parametrize(("name", "extra"), [("submitit_slurm", "slurm"), ("ray", "ray"), ("joblib", "joblib")])
def test_a_launcher_that_is_not_installed(name, extra, monkeypatch, capsys):
    monkeypatch.setattr(qohort.config.overrides, "find_spec", lambda plugin: None)
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", f"hydra/launcher={name}", "seed=0,1"])
    with pytest.raises(SystemExit) as ended:
        qohort.cli.entry_point.entry_point("train")(lambda config: None)()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert (
        error == f"qohort: hydra/launcher={name} needs a plugin that is not installed: pip install 'qohort[{extra}]'\n"
    )


def test_a_class_that_the_agents_name_says_is_not_a_difference():
    def experiments(*pairs):
        agents = {Path(str(i)): SimpleNamespace(agent=agent) for i, (agent, _) in enumerate(pairs)}
        trees = {Path(str(i)): tree for i, (_, tree) in enumerate(pairs)}
        return _classes_of_agents(agents, trees)

    greedy, double = {"bootstrap._target_": "Greedy"}, {"bootstrap._target_": "Double"}
    assert "bootstrap._target_" in experiments(("dqn", greedy), ("dqn+double", double))
    assert "bootstrap._target_" in experiments(("dqn", greedy), ("dqn", greedy), ("double", double))
    assert "bootstrap._target_" not in experiments(("dqn", greedy), ("dqn", double))
    assert "network._target_" not in experiments(("dqn", {"network._target_": "A"}), ("iqn", {"network._target_": "B"}))

"""The command `qohort`: in a project of one's own, with the lists of runs, and from Python."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

import qohort
from qohort.cli.main import COMMANDS, main
from qohort.config.errors import ConfigError
from qohort.runs.directory import RunDirectory
from qohort.runs.evaluating import load_config, load_member
from qohort.runs.listing import age, in_words, size

SHORT = (
    *("budget=300", "learning_starts=60", "compile=none", "logger=none", "evaluation.every=150"),
    *("evaluation.episodes=1", "evaluation.max_episode_steps=50", "trainer.progress_bar=false"),
)
LOSS = '''
from dataclasses import dataclass

from qohort.agent.heads import Expected


@dataclass(frozen=True)
class Absolute(Expected):
    """A head of one's own."""
'''


def command(*arguments, cwd, **options):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-m", "qohort", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        **options,
    )


@pytest.fixture
def qohort_command(monkeypatch, capsys, project):
    """Runs a command in the project and in this process."""

    def run(*arguments):
        monkeypatch.chdir(project)
        monkeypatch.setattr(sys, "argv", ["qohort", *arguments])
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setenv("PYTHONPATH", "")
        code = 0
        try:
            main()
        except SystemExit as error:
            code = error.code or 0
        printed = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=printed.out, stderr=printed.err)

    return run


@pytest.fixture
def listed(qohort_command):
    """Returns what `qohort runs --json` lists in the project."""

    def runs(*arguments):
        done = qohort_command("runs", *arguments, "--json")
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return runs


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with a head, a replacement of a file of Qohort's and two trained cohorts."""
    directory = tmp_path_factory.mktemp("lab")
    (directory / "mine").mkdir()
    (directory / "mine" / "__init__.py").write_text("")
    (directory / "mine" / "heads.py").write_text(LOSS)
    for group, name, text in (
        ("head", "absolute", "_target_: mine.heads.Absolute\n"),
        ("experiment", "mine", "# @package _global_\ndefaults:\n  - override /head: absolute\ngamma: 0.5\n"),
        ("experiment", "curious", "# @package _global_\ndefaults:\n  - override /exploration: greedy\n"),
        ("exploration", "greedy", "defaults:\n  - constant\n\nepsilon:\n  value: 0.125\n"),
    ):
        (directory / "conf" / group).mkdir(parents=True, exist_ok=True)
        (directory / "conf" / group / f"{name}.yaml").write_text(text)
    done = command("train", "-m", "experiment=mine,curious", "seed=0,1", *SHORT, cwd=directory)
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("the whole sweep")[2]
    assert table.count("2 of 2") == table.count("gamma=") == 2
    return directory


def test_a_projects_own_files_are_found_first(project, listed):
    runs = listed()
    assert [(run["seed"], run["state"]) for run in runs] == [(0, "finished"), (1, "finished")] * 2
    assert runs[0]["differs"]["gamma"] == 0.5
    assert runs[0]["differs"]["head._target_"] == "mine.heads.Absolute"
    assert runs[2]["differs"]["exploration.epsilon.value"] == 0.125
    assert (project / "outputs").is_dir()


def test_runs_are_filtered_and_printed(listed, qohort_command):
    assert [run["seed"] for run in listed("outputs", "agent=*absolute*")] == [0, 1]
    assert listed("state=failed") == []
    done = qohort_command("runs", "env=CartPole*")
    assert "2 finished" in done.stdout
    assert "0-1" in done.stdout
    assert "gamma=0.5" in done.stdout


def test_the_states_of_runs(project, listed):
    some = listed()[2]
    directory = RunDirectory(project / some["directory"])
    result = directory.path / "result.json"
    kept = result.read_text()
    try:
        result.unlink()
        assert listed()[2]["detail"] == "before its first checkpoint"
        assert directory.lock()
        assert (listed()[2]["state"], listed()[2]["detail"][:11]) == ("running", "by process ")
        directory.unlock()
        directory.write_failure(70, "it broke", {})
        assert (listed()[2]["state"], listed()[2]["detail"]) == ("failed", "at 70: it broke")
        result.write_text("{")
        assert listed()[2]["state"] == "damaged"
    finally:
        directory.unlock()
        (directory.path / "failed.json").unlink(missing_ok=True)
        result.write_text(kept)


def test_the_difference_of_two_runs(listed, qohort_command):
    one, _, _, other = (run["directory"] for run in listed())
    done = qohort_command("diff", one, other)
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert rows["gamma"] == ["0.5", "0.99"]
    assert rows["seed"] == ["0", "1"]
    assert "batch_size" not in rows
    assert "same configuration" in qohort_command("diff", one, one).stdout
    of_experiment = qohort_command("diff", str(Path(one).parent), other)
    assert of_experiment.stdout.splitlines()[1:] == done.stdout.splitlines()[1:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trian", "seed=3"), "trian is not a command: did you mean train?"),
        (("seed=3",), "seed=3 is not a command: write the command first, as in qohort train"),
        (("runs", "nowhere"), "nowhere is not a directory: give an output directory"),
        (("runs", "stat=failed"), "stat=failed is not a filter: did you mean state?"),
        (("runs", "state=broken"), "state=broken is not a state: it must be one of"),
        (("runs", "--jsn"), "--jsn is not an option: did you mean --json?"),
        (("diff", "outputs"), "diff needs two runs, got 1: qohort diff RUN RUN"),
        (("diff", "outputs", "outputs"), "outputs has those of 2 experiments: give a run's directory"),
        (("train", "experiment=nine"), "experiment=nine is not one of the choices"),
        (("benchmark", "nope=1"), "unknown key nope=1"),
    ],
)
def test_mistakes_are_told_in_one_line(project, qohort_command, arguments, message):
    done = command(*arguments, cwd=project) if "=n" in arguments[-1] else qohort_command(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"qohort: {message}")


def test_the_commands_are_listed(tmp_path, qohort_command):
    for arguments in ((), ("--help",)):
        done = qohort_command(*arguments)
        assert done.returncode == 0
        assert all(f"  {name}" in done.stdout for name in COMMANDS)
    assert qohort_command("--version").stdout == f"qohort {qohort.__version__}\n"
    assert "Override anything in the config" in command("train", "--help", cwd=tmp_path).stdout


def test_a_search_path_on_the_command_line(project, tmp_path):
    (tmp_path / "more" / "experiment").mkdir(parents=True)
    (tmp_path / "more" / "experiment" / "other.yaml").write_text("# @package _global_\ngamma: 0.25\n")
    option = f"hydra.searchpath=[file://{tmp_path}/more]"  # that of --config-dir has its own tests
    done = command("train", option, "experiment=other", "--cfg=job", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "gamma: 0.25" in done.stdout


def test_a_policy_in_three_lines(project, listed):
    one = project / listed()[0]["directory"]
    policy, directory = qohort.load(one), RunDirectory(one)
    member = load_member(directory, load_config(directory), torch.device("cpu"))
    observations = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
    values = member.values(torch.from_numpy(observations)[None])[0]
    torch.testing.assert_close(torch.from_numpy(policy.values(observations)), values)
    actions = policy.act(observations)
    assert actions.shape == (1000,)
    assert policy.act(observations[7]) == actions[7]
    assert type(policy.act(observations[7].tolist())) is int
    assert len({*actions.tolist()}) == 2
    with pytest.raises(ValueError, match=r"an observation has the shape \(4,\)"):
        policy.act(np.zeros(3))
    with pytest.raises(ConfigError, match="is not a run directory"):
        qohort.load(project)


def test_qohort_from_python(tmp_path):
    settings = ("agent=iqn", "network.noisy=true", "normalize_observations=true", "seed=[5]", f"output_dir={tmp_path}")
    assert qohort.compose("agent=rainbow").replay.n_step == 3
    (result,) = qohort.train(*settings, *SHORT)
    assert (result["seed"], result["env_steps"]) == (5, 300)
    (file,) = tmp_path.rglob("result.json")
    policy, directory = qohort.load(file.parent), RunDirectory(file.parent)
    member = load_member(directory, load_config(directory), torch.device("cpu"))
    observations = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    values = member.values(torch.from_numpy(observations)[None])[0]
    torch.testing.assert_close(torch.from_numpy(policy.values(observations)), values)
    with pytest.raises(ConfigError, match=r"unknown key gama=0\.5: did you mean gamma\?"):
        qohort.compose("gama=0.5")
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        qohort.lode  # noqa: B018


def test_runs_are_deleted_but_not_those_that_are_running(tmp_path, project, qohort_command, listed):
    shutil.copytree(project / "outputs", tmp_path / "outputs")
    one, two, other, _ = (str(tmp_path / run["directory"]) for run in listed())
    busy = RunDirectory(Path(two))
    assert busy.lock()
    try:
        done = qohort_command("rm", str(Path(two).parent), "--yes")
        assert (done.returncode, Path(one).is_dir()) == (2, True)
        assert f"{two} is in use by process" in done.stderr
    finally:
        busy.unlock()
    done = qohort_command("rm", one)
    assert (done.returncode, Path(one).is_dir(), done.stderr) == (1, True, "qohort: add --yes to delete them\n")
    assert qohort_command("rm", one, "--yes").stdout.endswith("deleted 1 run\n")
    assert not Path(one).exists()
    assert Path(two).is_dir()
    assert qohort_command("rm", str(Path(other).parent), "--yes").stdout.endswith("deleted 2 runs\n")
    assert not Path(other).parent.exists()
    for wrong in (str(tmp_path / "outputs"), str(tmp_path)):
        assert "is not the directory of a run or of an experiment" in qohort_command("rm", wrong, "--yes").stderr
    assert Path(two).is_dir()


@pytest.fixture
def lab(tmp_path, monkeypatch, capsys):
    """A new project."""
    lab = tmp_path / "My-lab"
    monkeypatch.setattr(sys, "argv", ["qohort", "new", str(lab)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    main()
    assert capsys.readouterr().out.endswith(f"cd {lab} && qohort train experiment=mine\n")
    return lab


def test_a_new_project_has_its_files_and_is_in_style(lab, tmp_path, monkeypatch, capsys):
    assert (lab / "my_lab" / "heads.py").is_file()
    assert not list(lab.rglob("*.j2"))
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F,I,UP,B", "--line-length", "120", "."]
    assert subprocess.run(ruff, cwd=lab, capture_output=True, text=True).returncode == 0
    for name, message in (
        (str(lab), "exists and is not an empty directory"),
        (str(tmp_path / "3d"), "cannot be the name"),
    ):
        monkeypatch.setattr(sys, "argv", ["qohort", "new", name])
        with pytest.raises(SystemExit):
            main()
        assert message in capsys.readouterr().err


def test_the_sweep_of_a_new_project_has_keys_that_are_there(lab, monkeypatch):
    sweep = yaml.safe_load((lab / "sweeps" / "mine.yaml").read_text())
    given = {key: one.get("value", one.get("values", [one.get("min")])) for key, one in sweep["parameters"].items()}
    monkeypatch.chdir(lab)
    config = qohort.compose(*(f"{key}={one if isinstance(one, str) else one[0]}" for key, one in given.items()))
    assert (config.seed, config.network.width, config.optimizer.lr) == ([0, 1, 2], 16, 1e-4)


@pytest.mark.slow
@pytest.mark.matrix
def test_a_new_project_trains_and_its_tests_pass(lab):
    done = subprocess.run([sys.executable, "-m", "pytest", "-q"], cwd=lab, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_seeds_ages_and_sizes_in_words():
    assert in_words([4, 0, 1, 2, 9, 8]) == "0-2, 4, 8-9"
    assert [size(count) for count in (7, 1500, 2_500_000, 7_100_000_000)] == ["7 B", "1.5 kB", "2.5 MB", "7.1 GB"]
    now = time.time()
    assert [age(now - seconds) for seconds in (5.1, 125, 7205, 200_000)] == ["5 s", "2 min", "2 h", "2 d"]

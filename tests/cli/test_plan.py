"""What would be trained: --dry-run, and -m --cfg job. Nothing is trained and nothing is written."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra

from qohort.cli import completion
from qohort.cli.train import main
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.config.identity import config_tree
from qohort.config.members import check_config
from qohort.config.paths import PATH_KEYS
from qohort.runs.code import code_hash
from qohort.runs.directory import RESULT_NUMBERS
from qohort.runs.members import members_of

SMALL = ("compile=none", "logger=none", "budget=1200", "learning_starts=100")


@pytest.fixture
def train(tmp_path, monkeypatch, capfd):
    """Runs the command in this process and in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr("qohort.runs.training.train_cohort", lambda *_: pytest.fail("training began"))

    def run(*arguments):
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        printed = capfd.readouterr()
        return SimpleNamespace(code=code, out=printed.out, err=printed.err)

    return run


def runs_of(*overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        return members_of(check_config(compose("train", [*SMALL, *overrides])))


def write(member, *, code=None, finished=False, failed=None, checkpoint=None):
    """Write what a run leaves."""
    path = member.directory.path
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config_tree(member.config)))
    (path / "manifest.json").write_text(json.dumps({"code": code or code_hash(config_tree(member.config))}))
    if finished:
        (path / "result.json").write_text(json.dumps({**dict.fromkeys(RESULT_NUMBERS, 9.0), "fingerprint": ""}))
    if failed is not None:
        (path / "failed.json").write_text(json.dumps({"env_steps": 40, "reason": failed}))
    if checkpoint is not None:
        torch.save({}, path / "checkpoints" / f"step-{checkpoint:012d}.ckpt")


def everything(directory):
    return sorted((str(path), path.stat().st_mtime_ns) for path in directory.rglob("*"))


def test_the_plan_says_what_becomes_of_each_run_and_writes_nothing(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    members = runs_of("seed=[0,1,2,3,4,5,6,9,8]")
    write(members[0], finished=True)
    write(members[1], finished=True, code="0ld")
    write(members[2], checkpoint=800)
    write(members[3], checkpoint=800, code="0ld")
    write(members[4], failed="it broke")
    write(members[5])
    locked = members[8]
    write(locked)
    assert locked.directory.lock()
    before = everything(tmp_path)
    planned = train("--dry-run", *SMALL, "seed=[0,1,2,3,4,5,6,9,8]", "hydra.output_subdir=.hydra")
    locked.directory.unlock()
    assert (planned.code, planned.err) == (0, "")
    here = members[0].directory.path.parent
    now = code_hash(config_tree(members[0].config))
    said = f"made with other code (0ld then, {now} now)"
    for words in (
        "plan: 1 cohort, 9 runs, 10,800 env_steps in all",
        "0: dqn on CartPole-v1, 9 runs of 1,200 env_steps",
        f"{here}/seed-0: finished: skipped",
        f"{here}/seed-1: finished, {said}: skipped",
        f"{here}/seed-2: interrupted at 800 env_steps: resumed there",
        f"{here}/seed-3: interrupted at 800 env_steps, {said}: refused unless other_code=allow",
        f"{here}/seed-4: failed at 40: it broke: skipped (retry_failed=true starts it over)",
        f"{here}/seed-5: interrupted before its first checkpoint: starts over",
        f"{here}/seed-{{6,9}}: new",
        f"{here}/seed-8: running by process {os.getpid()} on {os.uname().nodename}: skipped",
    ):
        assert f"{words}\n" in planned.out
    # Four runs are trained: seeds 2, 5, 6 and 9, with 1,200 transitions of 48 bytes each.
    assert "\n   replay: 230.4 kB of memory; checkpoints: up to 691.2 kB more than the networks\n" in planned.out
    assert everything(tmp_path) == before
    again = train("--dry-run", *SMALL, "seed=[0,4]", "overwrite=true")
    assert f"{here}/seed-0: finished: starts over (overwrite=true)\n" in again.out


def test_the_plan_of_a_sweep_has_its_cohorts(train, tmp_path):
    planned = train(
        "-m", *SMALL, "agent=dqn,double", "gamma=0.9,0.99", "seed=0,1", "hydra/launcher=joblib", "--dry-run"
    )
    assert (planned.code, planned.err) == (0, "")
    assert planned.out.startswith("plan: 2 cohorts, 8 runs, 9,600 env_steps in all\n")
    assert planned.out.count("/seed-{0-1}: new\n") == 4
    assert "1: double on CartPole-v1, 4 runs of 1,200 env_steps\n" in planned.out
    assert not list(tmp_path.iterdir())
    refused = train("-m", *SMALL, "agent=dqn,double", "hydra/sweeper=basic", "--dry-run")
    assert (refused.code, refused.err) == (2, "qohort: --dry-run and -m need hydra/sweeper=cohort\n")


@pytest.mark.slow
@pytest.mark.matrix
def test_the_plan_of_an_ablation_has_its_arms(train, tmp_path):
    planned = train("-m", "ablation=cartpole_components", "--dry-run")
    assert (planned.code, planned.err) == (0, "")
    assert "0: dqn on CartPole-v1, 30 runs of 30,000 env_steps\n" in planned.out
    assert not list(tmp_path.iterdir())


def test_a_sweep_prints_the_configuration_of_each_job(train, tmp_path):
    printed = train("-m", *SMALL, "agent=dqn,double", "seed=0,1", "--cfg", "job")
    assert (printed.code, printed.err) == (0, "")
    configs = list(yaml.safe_load_all(printed.out))
    assert [(config["agent"], config["seed"]) for config in configs] == [("dqn", [0, 1]), ("double", [0, 1])]
    assert [line for line in printed.out.splitlines() if line.startswith("#")][1].startswith(
        "# 1: outputs/CartPole-v1/do"
    )
    assert not list(tmp_path.iterdir())
    assert "--cfg" in train("-m", *SMALL, "agent=dqn,double", "--cfg", "hydra").err


def test_bad_input_is_refused_as_ever(train, tmp_path):
    assert train("--dry-run", "gama=0.9").err == "qohort: unknown key gama=0.9: did you mean gamma?\n"
    together = train("--dry-run", "--cfg", "job")
    assert together.code == 2
    assert together.err.startswith("qohort: --cfg and --dry-run cannot be used together")
    assert not list(tmp_path.iterdir())


def test_a_key_that_only_the_jobs_of_a_sweep_have_can_be_set(train):
    planned = train("-m", *SMALL, "agent=iqn,m_iqn", "head.online_samples=5", "--dry-run")
    assert (planned.code, planned.err) == (0, "")
    assert planned.out.startswith("plan: 2 cohorts, 10 runs")


def test_a_mistake_in_some_jobs_of_a_sweep_names_the_job(train):
    said = "qohort: unknown key head.online_samples=5: it must be one of huber_delta, loss"
    assert train("-m", *SMALL, "agent=iqn,dqn", "head.online_samples=5").err == f"{said} (in the job agent=dqn)\n"
    assert train("-m", *SMALL, "agent=dqn,double", "head.online_samples=5").err == f"{said}\n"


def test_an_invalid_choice_of_instructions_is_one_line(train, monkeypatch):
    monkeypatch.setenv("QOHORT_BITS", "all")
    refused = train("--dry-run")
    said = "the environment variable QOHORT_BITS=all is not a choice: set it to portable or native"
    assert (refused.code, refused.err) == (2, f"qohort: {said}\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("qohort ev", {"evaluate"}),
        ("qohort train env=acr", {"env=acrobot"}),
        ("qohort train agent=dqn gam", {"gamma="}),
        ("qohort export run=x for", {"format="}),
    ],
)
@pytest.mark.slow
def test_words_are_completed_in_bash(line, expected, tmp_path):
    assert completed(line, tmp_path) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("qohort train --dr", {"--dry-run"}),
        ("qohort evaluate --dr", set()),
        ("qohort runs --", {"--help", "--json"}),
        ("qohort rm --y", {"--yes"}),
        ("qohort evaluate run=outputs/Corr", {"run=outputs/Corridor-v0/"}),
        ("qohort evaluate run=[outputs/CartPole-v1,outputs/Corr", {"run=[outputs/CartPole-v1,outputs/Corridor-v0/"}),
        ("qohort report baseline=x runs=outputs/Corr", {"runs=outputs/Corridor-v0/"}),
        ("qohort report external=pub", {"external=published.csv"}),
        ("qohort verify report=reports/ta", {"report=reports/table/"}),
        ("qohort train output_dir=nowhere/", set()),
    ],
)
def test_options_and_paths_are_completed_in_bash(line, expected, tmp_path):
    for place in ("outputs/Corridor-v0", "outputs/CartPole-v1", "reports/table"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "published.csv").touch()
    assert completed(line, tmp_path) == expected


def test_the_options_of_hydra_are_all_completed():
    known = {one for one in get_args_parser()._option_string_actions if one.startswith("--")}
    assert known - {*completion.HYDRA_OPTIONS} == {"--shell-completion"}
    assert {*PATH_KEYS} <= {*completion.PATHS}


def completed(line, tmp_path):
    """What bash completes the last word of a line to."""
    words = line.split(" ")
    (tmp_path / "qohort").write_text(f'#!/bin/sh\nexec {sys.executable} -m qohort "$@"\n')
    (tmp_path / "qohort").chmod(0o755)
    script = (
        f"{completion.script()}"
        f"COMP_WORDS=({line}) COMP_CWORD={len(words) - 1} COMP_LINE='{line}' COMP_POINT={len(line)}\n"
        '_qohort; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert not done.stderr
    return {*done.stdout.split()}

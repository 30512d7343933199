"""The ledger: written from finished runs, refused where a run could not be trained again, reproduced to the bit."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from qohort.cli.main import main
from qohort.config.errors import ConfigError
from qohort.experiments.sensitivity import SensitivityStudy
from qohort.report.ledger import Ledger, LedgerRow, LedgerRun, ledger_text, made_of, read_ledger
from qohort.report.sensitivity import write_sensitivity
from qohort.report.sensitivity_ledger import read_found

TINY = (
    *("budget=300", "learning_starts=60", "batch_size=16", "log_every=50", "evaluation.every=150", "compile=none"),
    *("evaluation.episodes=1", "evaluation.max_episode_steps=50", "logger=none", "trainer.progress_bar=false"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project with a sweep of two numbers and two seeds, trained as one cohort of four."""
    directory = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        done = run(patch, directory, "train", "-m", "gamma=0.9,0.95", "seed=[0,1]", *TINY)
    assert done == 0
    return directory


def run(patch, directory, *arguments):
    """Run a command in a directory and in this process; its exit code."""
    patch.chdir(directory)
    patch.setattr(sys, "argv", ["qohort", *map(str, arguments)])
    patch.setattr(sys, "path", list(sys.path))
    patch.setenv("PYTHONPATH", "")
    try:
        main()
    except SystemExit as error:
        return int(error.code or 0)
    return 0


@pytest.fixture
def project(trained, tmp_path):
    """A copy of the trained project."""
    return Path(shutil.copytree(trained, tmp_path / "project"))


@pytest.fixture
def qohort(project, monkeypatch, capfd):
    def command(*arguments):
        capfd.readouterr()
        code = run(monkeypatch, project, *arguments)
        printed = capfd.readouterr()
        return SimpleNamespace(code=code, out=printed.out, err=printed.err)

    return command


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def files(project, name, gamma):
    """The files of this name in the runs with a value of gamma, by seed."""
    found = sorted(project.glob(f"outputs/*/*/seed-*/{name}"))
    return [one for one in found if yaml.safe_load((one.parent / "config.yaml").read_text())["gamma"] == gamma]


def test_a_folded_sweep_is_recorded_and_reproduced_to_the_bit(qohort, project):
    done = qohort("ledger", "name=study", "runs=outputs", "title=Two numbers")
    assert done.code == 0, done.err
    assert done.out == "ledger of 2 rows, 4 runs: results/ledger/study.yaml\n"
    ledger = read_ledger(project / "results" / "ledger", "study")
    assert [row.arm for row in ledger.rows] == ["dqn, gamma=0.9", "dqn, gamma=0.95"]
    for row, gamma in zip(ledger.rows, (0.9, 0.95), strict=True):
        results = [json.loads(file.read_text()) for file in files(project, "result.json", gamma)]
        assert [(run.seed, run.final, run.auc, run.fingerprint) for run in row.runs] == [
            (one["seed"], one["final_return"], one["auc"], one["fingerprint"]) for one in results
        ]
        assert row.overrides == [*(one for one in TINY if not one.startswith(("logger", "trainer"))), f"gamma={gamma}"]
    assert len(ledger.made) == 1

    done = qohort("reproduce", "study", "arm='dqn, gamma=0.95'")  # alone, where it was trained in a cohort of four
    assert done.code == 0, done.err
    assert done.out.startswith("2 of 4 runs of study, trained again:\n")
    assert done.out.endswith("equal to the bit: 2 of 2 runs ended with their fingerprints\n")
    assert not list(project.glob("outputs/**/.tmp*"))


@pytest.mark.slow
def test_what_is_forged_is_not_compatible_unless_something_explains_it(qohort, project):
    assert qohort("ledger", "name=study", "runs=outputs").code == 0
    ledger = read_ledger(project / "results" / "ledger", "study")
    file = project / "results" / "ledger" / "study.yaml"
    text = file.read_text()
    fingerprint = ledger.rows[0].runs[0].fingerprint
    file.write_text(text.replace(fingerprint, "f" * 64))
    done = qohort("reproduce", "study", "arm='dqn, gamma=0.9'", "seeds=[0]", "output_dir=again")
    assert done.code == 1
    assert "DIFFERENT FINGERPRINT" in done.out
    assert "not compatible: 1 of 1 runs have another fingerprint on the same machine type" in done.err
    assert len(list(project.glob("again/*/*/seed-0/result.json"))) == 1

    file.write_text(text.replace(fingerprint, "f" * 64).replace("torch: ", "torch: 1.").replace("code: ", "code: f"))
    done = qohort("reproduce", "study", "arm='dqn, gamma=0.9'", "seeds=[0]")
    assert done.code == 0
    assert "made with other code (f" in done.err
    assert "torch 1." in done.out
    assert "statistically compatible, which is weaker than equal to the bit: 0 of 1 runs" in done.out

    done = qohort("reproduce", "study", "arm='dqn, gamma=0.9'", "output_dir=again")  # the run there would be skipped
    assert done.code == 2
    assert "output_dir=again has the finished run again/" in done.err


def test_an_experiment_is_recorded_by_its_name(qohort, project):
    texts = ",".join(f'"{one}"' for one in TINY)
    settings = f"overrides=[{texts}]"
    done = qohort("ledger", "name=nested/one", "experiments=debug*", settings, "seeds=[0,1]")
    assert done.code == 2  # it was not run
    assert "2 of 2 runs cannot be counted (debug on CartPole-v1, seeds 0, 1: missing, not run)" in done.err
    assert not (project / "results").exists()


STUDY = """# @package _global_
name: tiny
train: {learning_starts: 60, batch_size: 16, log_every: 50, evaluation.every: 300, evaluation.episodes: 1,
  compile: none, evaluation.max_episode_steps: 50, budget: 600, logger: none, trainer.progress_bar: false}
arms: {dqn: {agent: dqn}, pqn: {agent: pqn}}
environments: {cartpole: {env: cartpole}}
grid: {optimizer.lr: {values: [1e-4, 1e-3], default: 1e-3}, target_network.every: {values: [10, 20], default: 10}}
without: {pqn: [target_network.every]}
seeds: [0, 1]
new_seeds: [2, 3]
"""


@pytest.mark.slow
def test_a_study_of_sensitivity_is_recorded_reproduced_and_read_again(tmp_path, monkeypatch, capfd):
    (tmp_path / "conf" / "study").mkdir(parents=True)
    (tmp_path / "conf" / "study" / "tiny.yaml").write_text(STUDY)
    assert run(monkeypatch, tmp_path, "ledger", "name=tiny", "study=tiny") == 2
    error = capfd.readouterr().err
    assert "12 of 12 runs cannot be counted" in error
    assert error.endswith("seeds 0, 1: missing, not run; and 1 more like these): train what is left\n")
    assert run(monkeypatch, tmp_path, "sensitivity", "study=tiny") == 0
    assert run(monkeypatch, tmp_path, "ledger", "name=tiny", "study=tiny") == 0
    ledger = read_ledger(tmp_path / "results" / "ledger", "tiny")
    assert (ledger.title, ledger.command) == (
        "Sensitivity to hyperparameters: tiny",
        "qohort sensitivity study=tiny",
    )
    arms = [row.arm for row in ledger.rows]
    assert arms[0] == "dqn, optimizer.lr=0.0001, target_network.every=10"
    assert arms[4:] == ["pqn, optimizer.lr=0.0001", "pqn, optimizer.lr=0.001"], (
        "values of a hyperparameter that it lacks are not rows"
    )
    assert ledger.rows[0].overrides[-2:] == ["optimizer.lr=0.0001", "target_network.every=10"]
    study, found = read_found(ledger)
    assert set(found.confirmed) == set(study.chosen(found))
    again, _ = write_sensitivity(SensitivityStudy(replace(study.settings, reports_dir=str(tmp_path / "again"))), found)
    for file in (tmp_path / "reports" / "tiny").rglob("*.*"):
        assert (again / file.relative_to(tmp_path / "reports" / "tiny")).read_bytes() == file.read_bytes(), file
    assert run(monkeypatch, tmp_path, "reproduce", "tiny", "arm='pqn, optimizer.lr=0.001'") == 0
    assert "equal to the bit: " in capfd.readouterr().out

    lost = next(tmp_path.glob("outputs/CartPole-v1/pqn*/seed-1/result.json"))
    lost.with_name("failed.json").write_text('{"env_steps": 400, "reason": "diverged"}')
    lost.unlink()
    assert run(monkeypatch, tmp_path, "sensitivity", "study=tiny") == 0  # another setting may have been chosen
    capfd.readouterr()
    assert run(monkeypatch, tmp_path, "ledger", "name=tiny", "study=tiny") == 0
    assert "runs and 1 that failed: " in capfd.readouterr().out
    ledger = read_ledger(tmp_path / "results" / "ledger", "tiny")
    (failures,) = ledger.failed
    assert (failures.arm in arms[4:], failures.environment, failures.seeds) == (True, "cartpole", [1])
    assert not any(row.arm == failures.arm and 1 in row.seeds for row in ledger.rows)
    study, found = read_found(ledger)
    assert found.failed.tolist() == [[0], [1]]
    again, _ = write_sensitivity(SensitivityStudy(replace(study.settings, reports_dir=str(tmp_path / "failed"))), found)
    for file in (tmp_path / "reports" / "tiny").rglob("*.*"):
        assert (again / file.relative_to(tmp_path / "reports" / "tiny")).read_bytes() == file.read_bytes(), file


MANIFEST = """# @package ablation
title: Tiny
baseline: dqn
seeds: [0, 1]
budget: 300
settings: [learning_starts=60, batch_size=16, log_every=50, evaluation.every=150, evaluation.episodes=1, compile=none]
environments: {cartpole: {low: 0, high: 50}}
arms: {dqn: [], rainbow: [head=huber]}
"""


@pytest.mark.slow
def test_experiments_and_ablations_are_recorded_and_reproduced(tmp_path, monkeypatch, capfd):
    """The arm rainbow has the name of a preset that it is not: it is trained again as what it is."""
    (tmp_path / "conf" / "ablation").mkdir(parents=True)
    (tmp_path / "conf" / "ablation" / "tiny.yaml").write_text(MANIFEST)
    quiet = ("logger=none", "trainer.progress_bar=false")
    assert run(monkeypatch, tmp_path, "train", "-m", "ablation=tiny", *quiet) == 0
    assert run(monkeypatch, tmp_path, "ledger", "name=tiny", "ablation=tiny") == 0
    ledger = read_ledger(tmp_path / "results" / "ledger", "tiny")
    assert [(row.arm, row.environment, row.env, row.against) for row in ledger.rows] == [
        ("dqn", "cartpole", "CartPole-v1", "dqn"),
        ("rainbow", "cartpole", "CartPole-v1", "dqn"),
    ]
    assert ledger.command == "qohort train -m ablation=tiny"
    assert run(monkeypatch, tmp_path, "reproduce", "tiny", "sample=4") == 0
    assert "equal to the bit: 4 of 4 runs" in capfd.readouterr().out

    assert run(monkeypatch, tmp_path, "train", "experiment=debug", "seed=[3,5]", *TINY) == 0
    texts = ",".join(f'"{one}"' for one in TINY)
    given = ("experiments=debug", "seeds=[3,5]", f"overrides=[{texts}]")
    assert run(monkeypatch, tmp_path, "ledger", "name=nested/one", *given) == 0
    (row,) = read_ledger(tmp_path / "results" / "ledger", "nested/one").rows
    assert (row.arm, row.title, row.seeds, row.overrides[0]) == ("debug", "debug", [3, 5], "experiment=debug")
    assert run(monkeypatch, tmp_path, "reproduce", "nested/one") == 0
    assert "equal to the bit: 2 of 2 runs" in capfd.readouterr().out


def forget(project):
    files(project, "result.json", 0.9)[0].unlink()


def other_code(project):
    change(files(project, "manifest.json", 0.9)[0], code="00000000")


def not_repeatable(project):
    for file in project.glob("outputs/*/*/seed-*/manifest.json"):
        change(file, deterministic=False)


def resumed_elsewhere(project):
    file = files(project, "manifest.json", 0.9)[0]
    before = {**json.loads(file.read_text()), "cpu": "another"}
    change(file, resumed=[{"env_steps": 150, "before": before}])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (forget, "1 of 4 runs cannot be counted (dqn, gamma=0.9 (dqn-"),
        (other_code, "the runs were made with different code (dqn, gamma=0.9: 1 run of code 00000000, 1 run of code"),
        (not_repeatable, "some runs are not deterministic (not deterministic: runs of CartPole-v1 cannot be repeated"),
        (resumed_elsewhere, "at 150 env_steps: cpu another then,"),
    ],
)
def test_a_run_without_a_receipt_is_refused(qohort, project, damage, message):
    damage(project)
    done = qohort("ledger", "name=study", "runs=outputs")
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert message in done.err
    assert not (project / "results").exists()


def test_runs_of_other_code_are_marked_if_they_are_allowed(qohort, project):
    other_code(project)
    assert qohort("ledger", "name=study", "runs=outputs", "other_code=allow").code == 0
    ledger = read_ledger(project / "results" / "ledger", "study")
    letters = {
        run.made or row.made: ledger.made[run.made or row.made]["code"] for row in ledger.rows for run in row.runs
    }
    assert letters["a"] == "00000000"
    assert len({*letters.values()}) == 2


def run_of(seed, **values):
    return LedgerRun(seed, 1.5, 2.0, 1.25, f"{seed:064x}", **values)


def row_of(**values):
    usual = {"arm": "a", "title": "A", "environment": "e", "env": "E-v0", "against": "a", "hash8": "0" * 8}
    runs = [run_of(0), run_of(1, made="b")]
    more = {"budget": 300, "date": "2026-01-02", "made": "a", "overrides": ["agent=dqn", "x=[1,2]"], "runs": runs}
    return LedgerRow(**{**usual, **more, **values})


LEDGER = Ledger(
    "A title", "qohort train", {"a": made_of({"cpu": "x"}, False), "b": made_of({"cpu": "y"}, True)}, [row_of()]
)


def test_a_ledger_is_read_as_it_was_written_and_has_a_line_a_run(tmp_path):
    text = ledger_text("study", LEDGER)
    (tmp_path / "study.yaml").write_text(text)
    assert read_ledger(tmp_path, "study") == LEDGER
    assert ledger_text("study", read_ledger(tmp_path, "study")) == text
    assert f"  - {{seed: 1, final: 1.5, best: 2.0, auc: 1.25, fingerprint: {1:064x}, made: b}}\n" in text.replace(
        "'", ""
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: A title", "title: [", "is damaged: "),
        ("made: b", "made: c", "a on e was made as in c, which is not in made"),
        ("budget: 300", "budgt: 300", "unknown key rows[0].budgt=300"),
        ("seed: 1", "seed: one", "rows[0].runs[1].seed=one is not an integer"),
    ],
)
def test_a_damaged_ledger_is_told_in_one_line(tmp_path, old, new, message):
    text = ledger_text("study", LEDGER)
    assert old in text
    (tmp_path / "study.yaml").write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=r"study.yaml is damaged") as raised:
        read_ledger(tmp_path, "study")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param("reproduce", "name has no value: give it one with name=VALUE", marks=pytest.mark.slow),
        ("reproduce stdy", "name=stdy is not in the ledger: did you mean study?"),
        pytest.param(
            "reproduce study arm=b", "arm=b is not in the ledger study: it must be one of a", marks=pytest.mark.slow
        ),
        pytest.param(
            "reproduce study environment=f",
            "environment=f is not in the ledger study: it must be one of e",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "reproduce study seeds=[0,7]", "seeds=[7] are not in the ledger: it has 0-1", marks=pytest.mark.slow
        ),
        pytest.param("reproduce study sample=0", "sample=0 is out of range", marks=pytest.mark.slow),
        pytest.param("reproduce study level=1", "level=1 is out of range", marks=pytest.mark.slow),
        pytest.param("reproduce study sampl=1", "did you mean sample?", marks=pytest.mark.slow),
        ("reproduce study", "a on e: its command does not fit any more: "),
        pytest.param(
            "reproduce study ledger_dir=nowhere",
            "ledger_dir=nowhere has no ledgers: write one with qohort ledger",
            marks=pytest.mark.slow,
        ),
        ("ledger name=x", "nothing is given: give one of ablation=NAME, study=NAME, experiments=NAME and runs=PATTERN"),
        ("ledger name=x study=sensitivity/clasic_control", "did you mean sensitivity/classic_control"),
        (
            "ledger name=x study=sensitivity/classic_control study.name=y",
            'study.name=y cannot be set here: what the study was trained with is overrides=["name=y"]',
        ),
        ("ledger name=x study=cartpole", "this study is for qohort tune study=NAME"),
        pytest.param(
            "ledger name=x runs=outputs experiments=debug",
            "experiments=debug and runs=outputs is given: give one of",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "ledger name=x experiments=debg",
            "experiments=debg is not an experiment: did you mean debug",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "ledger name=x experiments=debug baseline=dqn",
            "baseline=dqn goes with runs=... only",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "ledger name=x runs=outputs seeds=[1]", "seeds=[1] goes with experiments=... only", marks=pytest.mark.slow
        ),
        pytest.param("ledger name=../x runs=outputs", "name=../x is not a name of a ledger", marks=pytest.mark.slow),
        ("ledger name=x runs=nowhere", "runs=nowhere has no runs"),
        pytest.param(
            "ledger name=x ablation=cartpole_component", "did you mean cartpole_components", marks=pytest.mark.slow
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capfd, arguments, message):
    directory = tmp_path / "results" / "ledger"
    directory.mkdir(parents=True)
    (directory / "study.yaml").write_text(ledger_text("study", LEDGER))
    assert run(monkeypatch, tmp_path, *arguments.split()) == 2
    error = capfd.readouterr().err
    assert len(error.splitlines()) == 1
    assert message in error


def test_a_command_that_gives_another_configuration_today_is_refused(tmp_path, monkeypatch, capfd):
    directory = tmp_path / "results" / "ledger"
    directory.mkdir(parents=True)
    changed = Ledger(LEDGER.title, LEDGER.command, LEDGER.made, [row_of(overrides=["agent=dqn", *TINY])])
    (directory / "study.yaml").write_text(ledger_text("study", changed))
    assert run(monkeypatch, tmp_path, "reproduce", "study") == 2
    error = capfd.readouterr().err
    assert "a on e: its command gives the configuration " in error
    assert "today, not the recorded 00000000: check out the commit of the ledger" in error

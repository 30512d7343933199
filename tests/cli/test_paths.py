"""Where files are found and written: `~`, links, Hydra's change of directory, and names that Hydra's grammar reads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from matrix import matrix
from qohort.config.errors import ConfigError
from qohort.config.paths import check_place

ROOT = Path(__file__).parents[2]
SETTINGS = (
    *("budget=100", "learning_starts=20", "batch_size=8", "evaluation.every=50", "evaluation.episodes=1"),
    *("network.hidden=[8]", "compile=none", "logger=none", "trainer.progress_bar=false"),
)


def train(*overrides, cwd, **environment):
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *overrides, *SETTINGS]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done


def test_what_is_in_the_place_of_a_directory(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link").symlink_to(tmp_path)
    for right in ("new/deep", "link/new"):
        assert check_place(tmp_path / right, "x").resolve() == tmp_path
    for wrong, why in (
        ("file", f"{tmp_path}/file is not a directory"),
        ("file/deep", f"{tmp_path}/file is not a directory"),
        ("gone/deep", f"{tmp_path}/gone is a link to nowhere"),
        ("a" * 300, "File name too long"),
    ):
        with pytest.raises(ConfigError, match=f"^x cannot be made: {why}$"):
            check_place(tmp_path / wrong, "x")


@pytest.mark.slow
@pytest.mark.matrix
def test_a_tilde_in_a_file_is_the_home_directory(tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\noutput_dir: ~/runs\n")
    train("--config-dir", "conf", "experiment=mine", "seed=0", cwd=tmp_path, HOME=str(tmp_path / "home"))
    assert list((tmp_path / "home" / "runs").glob("*/*/seed-0/result.json"))
    assert not (tmp_path / "~").exists()


@pytest.mark.slow
@pytest.mark.matrix
def test_with_chdir_a_path_is_meant_from_where_the_command_was_typed(tmp_path):
    train("-m", "hydra.job.chdir=true", "seed=0,1", "output_dir=out", cwd=tmp_path)
    assert len(list((tmp_path / "out").glob("*/*/seed-*/result.json"))) == 2


@pytest.mark.slow
@pytest.mark.matrix
def test_a_run_directory_may_be_a_link_to_another_disk(tmp_path):
    train("seed=0", "output_dir=out", cwd=tmp_path)
    (run,) = (tmp_path / "out").glob("*/*/seed-0")
    elsewhere = tmp_path / "disk2" / "seed-0"
    elsewhere.parent.mkdir()
    run.rename(elsewhere)
    run.symlink_to(elsewhere)
    before = json.loads((run / "result.json").read_text())
    (elsewhere / "mark").touch()
    done = train("seed=0", "output_dir=out", "overwrite=true", cwd=tmp_path)
    assert "final return" in done.stdout
    assert run.is_symlink()
    assert not (elsewhere / "mark").exists()
    assert json.loads((elsewhere / "result.json").read_text())["fingerprint"] == before["fingerprint"]
    assert [path.name for path in elsewhere.parent.iterdir()] == ["seed-0"]


NAMES = ("ü", "a b", "a=b", "a,b", "(a", "[a", "{a", "#a", "a'b", 'a"b', "a$b", r"a\b")


@pytest.mark.parametrize("name", matrix(NAMES, [], in_ci=["a=b", "ü", "{a", 'a"b']))
def test_a_directory_of_configurations_may_have_any_name(name, tmp_path):
    conf = tmp_path / name
    (conf / "experiment").mkdir(parents=True)
    (conf / "experiment" / "mine.yaml").write_text("# @package _global_\ngamma: 0.5\n")
    train("-m", "--config-dir", str(conf), "experiment=mine", "seed=0,1", "output_dir=out", cwd=tmp_path)
    found = list((tmp_path / "out").glob("*/*/seed-*/config.yaml"))
    assert len(found) == 2
    assert all("gamma: 0.5" in file.read_text() for file in found)


@pytest.mark.slow
@pytest.mark.matrix
def test_a_sweep_that_a_file_asks_for_is_checked_as_one_with_m(tmp_path):
    """With `hydra.mode: MULTIRUN` in a file, all jobs are checked before the first one trains."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {env.id: 'CartPole-v1,Nope-v0'}}}\n"
    (tmp_path / "conf" / "experiment" / "both.yaml").write_text(text)
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--config-dir", "conf", "experiment=both", "seed=0"]
    done = subprocess.run([*command, *SETTINGS, "output_dir=out"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "env.id=Nope-v0" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()

"""A result made with other code is never passed off as this code's."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from qohort.config.errors import ConfigError
from qohort.runs import code
from qohort.runs.training import train as run

ROOT = Path(__file__).parents[1]
SHORT = (
    *("budget=300", "learning_starts=60", "batch_size=16", "evaluation.every=150", "evaluation.episodes=2", "seed=3"),
    *("compile=none", "logger=none", "trainer.progress_bar=false", "network.hidden=[8]", "checkpoint.every=100"),
)
CONFIG = {"head": {"_target_": "qohort.agent.heads.Expected"}, "env": {"id": "CartPole-v1"}}


def digest(tmp_path, text):
    file = tmp_path / "some.py"
    file.write_text(text)
    return code._digest(file)


def test_comments_docstrings_and_layout_do_not_count(tmp_path):
    plain = "X = 1\n\n\ndef f(a):\n    return a + X\n"
    dressed = '"""A module."""\nX = 1  # one\n"""What X is."""\n\ndef f(a):\n    """Add."""\n\n    return a+X\n'
    assert digest(tmp_path, plain) == digest(tmp_path, dressed)
    assert digest(tmp_path, plain) != digest(tmp_path, plain.replace("a + X", "a - X"))
    assert digest(tmp_path, "not python (") != digest(tmp_path, "nor this (")


def test_the_packages_of_components_and_environments_count(tmp_path, monkeypatch):
    (tmp_path / "ownlab").mkdir()
    for name in ("__init__", "losses"):
        (tmp_path / "ownlab" / f"{name}.py").write_text("A = 1\n")
    (tmp_path / "ownenv.py").write_text("B = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {"head": {"_target_": "ownlab.losses.Own"}, "env": {"id": "ownenv:Own-v0", "wrappers": []}}
    assert code.component_packages(CONFIG) == ()
    assert code.component_packages(own) == ("ownenv", "ownlab")
    assert code.component_packages({"optimizer": {"_target_": "torch.optim.SGD"}}) == ()
    hashes = {code.code_hash(CONFIG), code.code_hash(own)}
    for changed in ("ownlab/losses.py", "ownenv.py"):
        (tmp_path / changed).write_text("A = 2\n")
        code._hash_of.cache_clear()
        hashes.add(code.code_hash(own))
    assert len(hashes) == 4
    code._hash_of.cache_clear()


def in_this_process(directory, *overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return run(compose("train", [*SHORT, f"output_dir={directory}", *overrides]))


def test_what_other_code_made_is_skipped_with_a_line_and_resumed_only_when_asked(tmp_path, capsys, monkeypatch):
    (before,) = in_this_process(tmp_path)
    monkeypatch.setattr(code, "_hash_of", lambda packages: "0ther0ne")
    assert in_this_process(tmp_path) == [before]
    made = only(tmp_path, "manifest.json")["code"]
    assert (
        f"seed 3 is finished already, but made with other code ({made} then, 0ther0ne now): " in capsys.readouterr().out
    )
    (directory,) = tmp_path.glob("*/*/seed-3")
    (directory / "result.json").unlink()
    (directory / "checkpoints" / "final.ckpt").rename(directory / "checkpoints" / "step-000000000100.ckpt")
    with pytest.raises(ConfigError, match=r"made with other code .* other_code=allow, .* overwrite=true"):
        in_this_process(tmp_path)
    (again,) = in_this_process(tmp_path, "overwrite=true")
    assert again["fingerprint"] == before["fingerprint"]
    assert only(tmp_path, "manifest.json")["code"] == "0ther0ne"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A clone of the project, to edit."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("src", "conf", "scripts"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], cwd=copy, check=True)
    return copy


def train(copy, directory, *overrides):
    environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
    command = [sys.executable, "scripts/train.py", *SHORT, f"output_dir={directory}", *overrides]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=300)


def only(directory, name):
    (file,) = directory.glob(f"*/*/seed-3/{name}")
    return json.loads(file.read_text())


@pytest.mark.slow
@pytest.mark.matrix
def test_a_loss_is_edited_and_the_same_command_run_again(copy, tmp_path):
    """The finished run is not offered as the new code's; an interrupted one is not resumed half old, half new."""
    assert train(copy, tmp_path / "a").returncode == 0
    before = only(tmp_path / "a", "manifest.json")
    assert before["git_dirty"] is False
    assert not list((tmp_path / "a").rglob("code.patch"))
    again = train(copy, tmp_path / "a")
    assert "seed 3 is finished already: " in again.stdout

    heads = copy / "src" / "qohort" / "agent" / "heads.py"
    original = heads.read_text()
    heads.write_text(original.replace("return error.square() if", "return 2 * error.square() if"))
    assert heads.read_text() != original
    try:
        told = train(copy, tmp_path / "a")
        assert told.returncode == 0
        assert "seed 3 is finished already, but made with other code (" in told.stdout
        assert f"({before['code']} then, " in told.stdout
        assert only(tmp_path / "a", "manifest.json") == before
        fresh = train(copy, tmp_path / "a", "overwrite=true")
        assert fresh.returncode == 0
        after = only(tmp_path / "a", "manifest.json")
        assert after["code"] != before["code"]
        assert after["git_dirty"] is True
        (patch,) = (tmp_path / "a").rglob("code.patch")
        assert "+        return 2 * error.square() if" in patch.read_text()
    finally:
        heads.write_text(original)

    # Interrupted with the edited code's checkpoint: refused, and allowed when asked for.
    (run,) = (tmp_path / "a").glob("*/*/seed-3")
    (run / "result.json").unlink()
    (run / "checkpoints" / "final.ckpt").rename(run / "checkpoints" / "step-000000000100.ckpt")
    refused = train(copy, tmp_path / "a")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "is interrupted and was made with other code" in line
    assert "other_code=allow" in line
    assert "overwrite=true" in line
    sweep = train(copy, tmp_path / "a", "--multirun")
    assert sweep.returncode == 2
    assert "was made with other code" in sweep.stderr


def test_the_class_of_an_environment_counts_wherever_it_is_registered(tmp_path, monkeypatch):
    """A module that only registers, and the class in another one, which is edited."""
    (tmp_path / "registers_only.py").write_text(
        'import gymnasium\ngymnasium.register("Split-v0", "implements:Split")\n'
    )
    (tmp_path / "implements.py").write_text("class Split:\n    goal = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    for id in ("registers_only:Split-v0", "Split-v0"):
        assert "implements" in code.component_packages({"env": {"id": id}})
    assert code.component_packages({"env": {"id": "CartPole-v1"}}) == ()

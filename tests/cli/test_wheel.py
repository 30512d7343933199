"""A wheel has all that the command needs, in a project of one's own."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.matrix
def test_a_wheel_trains_in_a_project_of_ones_own(tmp_path):
    sources = tmp_path / "sources"
    for folder in ("src", "conf"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / folder, sources / folder, symlinks=True, ignore=ignored)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, sources)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "."]
    subprocess.run([*command, "--wheel-dir", str(tmp_path)], cwd=sources, check=True)
    (wheel,) = tmp_path.glob("qohort-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    installed = {
        str(one.relative_to(tmp_path / "installed/qohort/conf")) for one in (tmp_path / "installed").rglob("*.yaml")
    }
    assert installed == {str(one.relative_to(ROOT / "conf")) for one in (ROOT / "conf").rglob("*.yaml")}
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}

    def run(*arguments, cwd):
        done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(tmp_path) in run("-c", "import qohort; print(qohort.__file__)", cwd=tmp_path)
    run("-m", "qohort", "new", "lab", cwd=tmp_path)
    settings = (
        "budget=300",
        "learning_starts=100",
        "compile=none",
        "logger=none",
        "evaluation.every=150",
        "seed=[0,1]",
    )
    run("-m", "qohort", "train", "experiment=mine", *settings, cwd=tmp_path / "lab")
    assert len(list(tmp_path.glob("lab/outputs/Corridor-v0/*/seed-*/result.json"))) == 2
    assert "2 finished" in run("-m", "qohort", "runs", cwd=tmp_path / "lab")

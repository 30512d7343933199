"""From nothing: a wheel, an empty environment, and a project of one's own that trains and exports."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPARE = """
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import qohort
from qohort.runs.exporting import observations_of

policy, network = qohort.load(sys.argv[1]), onnxruntime.InferenceSession(Path(sys.argv[1], "export/policy.onnx"))
observations = observations_of(policy, 1000)
(values,) = network.run(None, {"observation": observations})
actions = values.argmax(1) + policy.action_space.start
print(len(observations), (actions == policy.act(observations)).sum(), Path(qohort.__file__).parents[1])
"""


def wheel_of(folder):
    """Build the wheel as `make wheel` does, from a copy of the sources."""
    sources = folder / "sources"
    for name in ("src", "conf"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, sources / name, symlinks=True, ignore=ignored)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, sources)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "."]
    subprocess.run([*command, "--wheel-dir", str(folder)], cwd=sources, check=True)
    (wheel,) = folder.glob("qohort-*.whl")
    return wheel


def environment_with(wheel, folder):
    """Make an empty virtual environment and install a wheel in it; its dependencies are those of this environment.

    A path in a .pth file does not lead to further .pth files, so an editable Qohort of this environment is not seen.
    """
    venv.create(folder, with_pip=False)
    packages = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [sys.executable, "-m", "pip", "--quiet", "--python", str(folder / "bin/python"), "install", "--no-deps"]
    subprocess.run([*command, "--force-reinstall", str(wheel)], check=True)
    return folder / "bin"


@pytest.mark.slow
@pytest.mark.matrix
def test_from_nothing_to_a_policy_as_onnx(tmp_path):
    wheel = wheel_of(tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name) for name in archive.namelist()}
    shipped = {one.relative_to("qohort/conf") for one in names if one.is_relative_to("qohort/conf")}
    assert shipped == {one.relative_to(ROOT / "conf") for one in (ROOT / "conf").rglob("*.yaml")}
    programs = environment_with(wheel, tmp_path / "empty")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(program, *arguments, cwd):
        command = [str(programs / program), *arguments]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    lab = tmp_path / "lab"
    run("qohort", "new", "lab", cwd=tmp_path)
    settings = ("budget=300", "learning_starts=100", "compile=none", "logger=none", "evaluation.every=150")
    run("qohort", "train", "experiment=mine", "-m", "seed=0,1,2", *settings, cwd=lab)
    finished = sorted(one.parent for one in lab.glob("outputs/Corridor-v0/*/seed-*/result.json"))
    assert [one.name for one in finished] == ["seed-0", "seed-1", "seed-2"]
    assert "3 finished" in run("qohort", "runs", cwd=lab)
    assert "policy.onnx" in run("qohort", "export", f"run={finished[1]}", cwd=lab)
    assert "| packages of its own | `lab` |" in (finished[1] / "export/README.md").read_text()
    seen, same, installed = run("python", "-c", COMPARE, str(finished[1]), cwd=lab).split()
    assert (seen, same) == ("1000", "1000")
    assert Path(installed).is_relative_to(tmp_path / "empty")

"""Wrong command lines, files and projects: each is told in one line, with exit code 2, and leaves nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from forked import Ended, change, fault, make_project, run_wrong, snapshot
from wrong import Wrong, filled, paths
from wrong_inputs import inputs

ALL = list(inputs())
PARTS = 40
IN_PLAIN_SUITE = {"command": 14, "own lab/heads.py": 23, "own lab/networks.py": 36, "manifest": 40}
"""Kinds that need no runs, and of how many inputs one is not slow."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with runs and a report."""
    return make_project(tmp_path_factory.mktemp("wrong"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project without runs."""
    return make_project(tmp_path_factory.mktemp("bare"), runs=False)


def test_there_are_at_least_500_that_cannot_be_right() -> None:
    assert sum(not one.may_be_right for one in ALL) >= 500
    assert max(Counter(one.name for one in ALL).values()) == 1


def few() -> list[Wrong]:
    """Some inputs that need no runs."""
    by_kind = {
        kind: [one for one in ALL if one.kind == kind and not any("{" in word for word in one.line)]
        for kind in IN_PLAIN_SUITE
    }
    return [one for kind, every in IN_PLAIN_SUITE.items() for one in by_kind[kind][every // 2 :: every]]


@pytest.mark.parametrize("one", few(), ids=lambda one: one.kind)
def test_a_few(one: Wrong, bare: Path, tmp_path: Path) -> None:
    assert not fault(one, run_wrong(one, bare, tmp_path / "case", {}), {})


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_each_is_told_in_one_line(part: int, project: Path, tmp_path: Path) -> None:
    names = paths(project)
    some = ALL[part::PARTS]
    faults = [fault(one, run_wrong(one, project, tmp_path / "case"), names) for one in some]
    assert not "\n".join(filter(None, faults))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(0, len(ALL), len(ALL) // 20))
def test_some_by_a_process_of_their_own(number: int, project: Path, tmp_path: Path) -> None:
    """What differs from a fork: the imports are new, and `python -m qohort` may be typed."""
    one, names = ALL[number], paths(project)
    copy = tmp_path / "project"
    shutil.copytree(project, copy, symlinks=True)
    change(copy, one.files, names)
    before = snapshot(copy)
    command = [sys.executable, "-B", "-m", "qohort", *(filled(word, names) for word in one.line)]
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=300)
    changed = [path for path, state in snapshot(copy).items() if before.get(path) != state]
    assert not fault(one, Ended(done.returncode, done.stdout, done.stderr, changed, 0, 0.0), names)

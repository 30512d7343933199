"""Command lines and configurations with mistakes drawn at random: each trains, or is told in one line and nothing else.

A process that has imported everything forks for each of them, which saves the imports.
"""

from __future__ import annotations

import logging
import os
import runpy
import shutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot
import pytest
from hydra import compose, initialize_config_dir
from mutations import BASE, CONF, Case, case

import qohort.runs.training
from matrix import matrix

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
TELLS_ONLY = ("--cfg", "--help", "--hydra-help", "--info", "--version", "-h", "-c", "--shell-completion", "-sc")
"""Options with which nothing is trained."""
PATIENCE = 100.0
"""Seconds after which a run is asked to stop: it may have a large budget."""


@dataclass
class Ended:
    """How a command line ended.

    Attributes:
        arguments: It.
        code: The exit code.
        out: What it wrote to stdout.
        err: What it wrote to stderr.
        left: The files that it left, and directories, by their paths.
    """

    arguments: list[str]
    code: int
    out: str
    err: str
    left: list[str]


def warm_up() -> None:
    """What every command line would import or make, made once."""
    assert matplotlib.pyplot
    assert qohort.runs.training
    with initialize_config_dir(str(CONF), version_base="1.3"):
        compose("train", BASE)


def run_case(one: Case, directory: Path) -> Ended:
    """Run a command line in a process of its own and in an empty directory."""
    work = directory / "work"
    work.mkdir()
    if one.conf:
        shutil.copytree(CONF, work / "conf")
    for name, content in one.files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(content)
    before = set(work.rglob("*"))
    arguments = [argument.replace("{cwd}", str(work)) for argument in one.arguments]
    child = os.fork()
    if child == 0:
        _become(arguments, work, directory)
    code = _wait(child)
    left = sorted(str(path.relative_to(work)) for path in set(work.rglob("*")) - before)
    out, err = ((directory / name).read_text(errors="replace") for name in ("out", "err"))
    return Ended(arguments, code, out, err, left)


def _become(arguments: list[str], work: Path, directory: Path) -> None:
    """Become the command line's process."""
    code = 1
    try:
        os.chdir(work)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(directory / name, os.O_WRONLY | os.O_CREAT), number)
        sys.stdin, sys.stdout, sys.stderr = open(os.devnull), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
        logging.root.handlers.clear()  # of tests before, whose streams are closed
        sys.argv = [str(SCRIPT), *arguments]
        runpy.run_path(str(SCRIPT), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int) -> int:
    """The exit code of a process, which is asked to stop after a while, and killed if it does not."""
    began, asked = time.monotonic(), False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        taken = time.monotonic() - began
        if taken > PATIENCE and not asked:
            os.kill(child, signal.SIGTERM)
            asked = True
        if taken > 2 * PATIENCE:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)


def judge(ended: Ended) -> str:
    """What a command line came to: `trained`, `told`, ... or, with the word `wrong` first, what is wrong with it."""
    names = [Path(one).name for one in ended.left]
    if "Traceback" in ended.err:
        return "wrong: a traceback"
    if ended.code == 0:
        if names.count("result.json"):
            return "trained"
        if any(argument.split("=")[0] in TELLS_ONLY for argument in ended.arguments) and not ended.left:
            return "listed"
        return "wrong: nothing trained"
    if ended.code == 1 and "failed.json" in names:
        return "diverged"
    if ended.code == 75 and "manifest.json" in names:
        return "interrupted"
    if ended.code != 2:
        return f"wrong: exit code {ended.code}"
    if not ended.err.startswith("qohort: ") or ended.err.count("\n") != 1 or not ended.err.endswith("\n"):
        return "wrong: not one line"
    if ended.out:
        return "wrong: something on stdout"
    if ended.left:
        return "wrong: something left behind"
    return "told"


def check(number: int, directory: Path) -> str:
    """Run the case of a number; what is wrong with it, empty for nothing."""
    directory.mkdir()
    one = case(number)
    ended = run_case(one, directory)
    came_to = judge(ended)
    shutil.rmtree(directory)
    if not came_to.startswith("wrong"):
        return ""
    return f"{number}: {came_to}\n{ended.arguments}\n{one.files}\nleft: {ended.left}\n{ended.out}\n{ended.err}"


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    warm_up()


@pytest.mark.parametrize("number", matrix(range(100), range(8), in_ci=range(40)))
def test_trains_or_is_told_in_one_line(number: int, tmp_path: Path) -> None:
    assert not check(number, tmp_path / "case")


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 3000, 100))
def test_more_of_them(first: int, tmp_path: Path) -> None:
    wrong = [check(number, tmp_path / "case") for number in range(first, first + 100)]
    assert not "\n\n".join(filter(None, wrong))


def test_all_outcomes_occur(tmp_path: Path) -> None:
    """The judge tells apart what it must: a good run, a mistake, and a command line that only lists something."""
    assert judge(run_case(Case(BASE), _made(tmp_path / "good"))) == "trained"
    assert judge(run_case(Case([*BASE, "gamma=2"]), _made(tmp_path / "mistake"))) == "told"
    assert judge(run_case(Case([*BASE, "--cfg=job"]), _made(tmp_path / "listing"))) == "listed"
    diverging = Case([*BASE, "optimizer=sgd", "optimizer.lr=1e30"])
    assert judge(run_case(diverging, _made(tmp_path / "diverging"))) == "diverged"


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory

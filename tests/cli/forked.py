"""Runs commands in forks of this process, which has imported everything: that saves the imports of each."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import signal
import struct
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import matplotlib.pyplot
import optuna
import wandb
from wrong import FILES, MAKES, Wrong, change, filled, paths

import qohort.cli.main
import qohort.experiments.tuning
import qohort.report.report
import qohort.report.verification
import qohort.runs.evaluations
import qohort.runs.exporting
import qohort.runs.training
from qohort.environments.tensor.vector import TensorVectorEnv

assert matplotlib.pyplot
assert optuna
assert wandb
PATIENCE = 120.0
"""Seconds after which a command is killed."""
PR_SET_SECUREBITS, SECBIT_NOROOT = 28, 1
JARGON = ("struct", "full_key", "object_type", "Error executing", "HYDRA_FULL_ERROR", "search path:", "InstantiationE")


@dataclass
class Ended:
    """How a command ended.

    Attributes:
        code: The exit code.
        out: What it wrote to stdout.
        err: What it wrote to stderr.
        changed: The files and directories that were made, changed or deleted.
        environments: How many environments were made.
        seconds: How long it took.
    """

    code: int
    out: str
    err: str
    changed: list[str]
    environments: int
    seconds: float


def snapshot(directory: Path) -> dict[str, tuple[object, ...]]:
    """Every file and directory below a directory, with what it holds."""
    seen: dict[str, tuple[object, ...]] = {}
    for path in sorted(directory.rglob("*")):
        state = path.lstat()
        content = os.readlink(path) if path.is_symlink() else ""
        if path.is_file() and not path.is_symlink():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        seen[str(path.relative_to(directory))] = (state.st_mode, state.st_uid, content)
    return seen


def run(arguments: Sequence[str], place: Path, user: bool = False) -> Ended:
    """Run a command in `place/project`, with `place/home` and `place/tmp` as a user's other directories."""
    for name in ("project", "home", "tmp"):
        (place / name).mkdir(exist_ok=True)
    out, err, made = place / "out", place / "err", place / "environments"
    for file in (out, err, made):
        file.write_bytes(b"")
        file.chmod(0o666)
    if user:
        for path in (place / "project", *(place / "project").rglob("*")):
            path.chmod(path.stat().st_mode & ~0o222)
    before = {name: snapshot(place / name) for name in ("project", "home", "tmp")}
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(list(arguments), place, user)
    code = _wait(child, began)
    seconds = time.monotonic() - began
    changed = []
    for name, earlier in before.items():
        now = snapshot(place / name)
        changed += [f"{name}/{path}" for path in {*earlier, *now} if earlier.get(path) != now.get(path)]
    texts = (file.read_text(errors="replace") for file in (out, err))
    return Ended(code, *texts, sorted(changed), len(made.read_bytes()), seconds)


def _become(arguments: list[str], place: Path, user: bool) -> None:
    """Become the command's process."""
    code = 1
    try:
        os.chdir(place / "project")
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(place / name, os.O_WRONLY), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
        logging.root.handlers.clear()  # of tests before, whose streams are closed
        sys.dont_write_bytecode = True
        os.environ |= {"HOME": str(place / "home"), "TMPDIR": str(place / "tmp"), "COLUMNS": "80"}
        os.environ.pop("HYDRA_FULL_ERROR", None)
        _count_environments(place / "environments")
        if user and os.getuid() == 0:
            _give_up_rights()
        sys.argv = ["qohort", *arguments]
        qohort.cli.main.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _give_up_rights() -> None:
    """Give up what root may do beside its permissions, for this process and what it starts. See capabilities(7)."""
    libc = ctypes.CDLL(None, use_errno=True)
    version_3, itself, none = 0x20080522, 0, bytes(24)
    assert libc.prctl(PR_SET_SECUREBITS, SECBIT_NOROOT, 0, 0, 0) == 0, os.strerror(ctypes.get_errno())
    assert libc.capset(struct.pack("Ii", version_3, itself), none) == 0, os.strerror(ctypes.get_errno())


def _count_environments(file: Path) -> None:
    """Write a byte to a file for each environment that is made."""
    handle = os.open(file, os.O_WRONLY | os.O_APPEND)
    make, begin = gym.make, TensorVectorEnv.__init__

    def counted(*arguments: object, **options: object) -> object:
        os.write(handle, b".")
        return make(*arguments, **options)  # type: ignore[arg-type, call-overload]

    def begun(self: TensorVectorEnv, *arguments: object, **options: object) -> None:
        os.write(handle, b".")
        begin(self, *arguments, **options)  # type: ignore[arg-type]

    gym.make = counted  # type: ignore[assignment]
    TensorVectorEnv.__init__ = begun  # type: ignore[method-assign]


def _wait(child: int, began: float) -> int:
    """The exit code of a process, which is killed if it takes too long."""
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() - began > PATIENCE:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)


def run_wrong(one: Wrong, project: Path, place: Path, names: Mapping[str, str] | None = None) -> Ended:
    """Run a wrong input in a copy of the project, which is deleted afterwards.

    Args:
        one: The wrong input.
        project: The project.
        place: Where the copy goes.
        names: The names that its line may use; None for those of the project's runs.
    """
    place.mkdir()
    shutil.copytree(project, place / "project", symlinks=True)
    names = paths(project) if names is None else names
    change(place / "project", one.files, names)
    ended = run([filled(word, names) for word in one.line], place, one.user)
    if one.user:
        for path in (place / "project", *(place / "project").rglob("*")):
            path.chmod(path.stat().st_mode | 0o200)
    shutil.rmtree(place)
    return ended


def make_project(place: Path, runs: bool = True) -> Path:
    """Make the project in which wrong inputs are typed.

    Args:
        place: An empty directory.
        runs: Whether it has runs and a report of them.
    """
    (place / "project").mkdir()
    for command in MAKES if runs else MAKES[:1]:
        ended = run(command.split(), place)
        assert ended.code == 0, ended.err
        if command == MAKES[0]:
            (place / "project" / "lab").rename(place / "lab")
            (place / "project").rmdir()
            (place / "lab").rename(place / "project")
            change(place / "project", FILES, {})
    return place / "project"


def fault(one: Wrong, ended: Ended, names: Mapping[str, str]) -> str:
    """What is wrong with how a wrong input ended; empty for nothing."""
    missing = [words for word in one.told if (words := filled(word, names)) not in ended.err]
    lines = ended.err.removesuffix("\n").split("\n")
    *listed, last = lines
    if ended.code == 0 and one.may_be_right:
        return ""
    faults = {
        "a traceback": "Traceback" in ended.err,
        f"exit code {ended.code}": ended.code != 2,
        "not one line": any(not line.startswith("  ") for line in listed) if one.lists else bool(listed),
        "not told by qohort": not last.startswith("qohort: ") or not ended.err.endswith("\n"),
        "something on stdout": bool(ended.out),
        "something left or changed": bool(ended.changed),
        "an environment was made": ended.environments > 0 and not one.looks,
        f"it does not say {missing}": bool(missing),
        "jargon": any(word in ended.err for word in JARGON),
    }
    found = [name for name, holds in faults.items() if holds]
    return "" if not found else f"{one.name}\n  {', '.join(found)}\n  {ended.err}{ended.out}  {ended.changed[:5]}\n"

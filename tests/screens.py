"""What the commands show in terminals of 80 × 24 and 120 × 40: re-makes docs/terminal.md.

python tests/screens.py              # re-make every screen; it trains, which takes minutes
python tests/screens.py runs diff    # re-make some of them; these two take seconds
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyte
import yaml
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "terminal.md"
SIZES = ((80, 24), (120, 40))
SMALL = ("experiment=debug", "budget=2000")
STORED = "experiment=cartpole"
HYDRA = threading.Lock()
"""Hydra composes one configuration at a time."""


@dataclass(frozen=True)
class Screen:
    """A command whose screen is recorded.

    Attributes:
        title: The title of its section.
        words: The command, after `qohort`. `{dqn}` stands for the first directory in `outputs` of this name.
        text: What the reader should know.
        until: A pattern on the screen; when it is first seen, the screen is recorded. None for the end only.
        ends: Whether the screen at the end is recorded as well.
    """

    title: str
    words: tuple[str, ...]
    text: str
    until: str | None = None
    ends: bool = True

    def moments(self) -> list[str]:
        """Return what the recorded screens are called."""
        while_it_runs = [] if self.until is None else ["while it runs"]
        return [*while_it_runs, *(["at the end"] if self.ends else [])]


SCREENS = {
    "train": Screen(
        "A cohort trains",
        ("train", *SMALL, "agent=double", "seed=[0,1,2]"),
        "The recent return is the mean of the cohort's newest training episodes, the evaluation is the newest one. A "
        "narrow terminal gets shorter words. Speed and time left count from after compiling.",
        until=r"eval\w* \d",
    ),
    "compiling": Screen(
        "A cohort is compiled",
        ("train", *SMALL, "compile=inductor", "seed=[0,1,2]"),
        "The bar says what is compiled, and a short run what is faster. Then it goes on as above.",
        until=r"so short[\s\S]*compiling the \w",
        ends=False,
    ),
    "sweep": Screen(
        "A sweep trains in two processes",
        ("train", "-m", *SMALL, "agent=dqn,nstep", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
        "One display for all cohorts; what they print scrolls above it. At the end a table takes its place.",
        until=r"2 running[\s\S]*eval \d[\s\S]*eval \d|1 done[\s\S]*eval \d",
    ),
    "runs": Screen(
        "What has been trained",
        ("runs",),
        "A terminal that is too narrow for all columns gets the keys in a table of their own. These runs were not "
        "trained: `tests/screens.py` writes their directories.",
    ),
    "diff": Screen("What differs", ("diff", "{dqn}", "{munchausen}"), "Of the same directories."),
    "evaluate": Screen("A cohort is evaluated", ("evaluate", "run={double}", "episodes=5"), ""),
    "plan": Screen("A dry run", ("train", "--dry-run", *SMALL, "agent=double", "seed=[0,1,2,3]"), ""),
    "report": Screen(
        "A report",
        ("report", "runs=outputs", "allow_missing=true"),
        "Of the cohorts above; its tables and figures are in the files.",
    ),
}
CHEAP = ("runs", "diff")
"""Screens of stored run directories, which need no training."""
APART = "compiling"
"""The screen whose runs no other screen shows."""
NEEDS = {"evaluate": ("train",), "plan": ("train",), "report": ("train", "sweep")}
"""The screens whose commands come before that of another one."""


def record(start: Callable[[], int], size: tuple[int, int], until: str | None = None) -> tuple[str, str]:
    """Record a command in a terminal of `columns × lines`.

    Args:
        start: Runs the command in a process of its own, whose terminal is recorded, and returns its exit code.
        size: Columns and lines.
        until: A pattern.

    Returns:
        The screen when `until` was first seen, empty if it was not, and the screen at the end.
    """
    columns, lines = size
    screen = pyte.Screen(columns, lines)
    stream = pyte.ByteStream(screen)
    screen.set_mode(pyte.modes.LNM)
    child, ours = pty.fork()
    if child == 0:
        try:
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
            for name in ("COLUMNS", "LINES", "CI", "NO_COLOR", "FORCE_COLOR"):
                os.environ.pop(name, None)
            os.environ["TERM"] = "xterm"
            os._exit(start())
        finally:
            os._exit(70)
    seen, end = "", time.monotonic() + 900
    while time.monotonic() < end:
        if not select.select([ours], [], [], 0.2)[0]:
            continue
        try:
            data = os.read(ours, 1 << 16)
        except OSError:  # the terminal is closed
            break
        for part in re.split(rb"(?<=[\r\n])", data):  # a bar is written over itself
            stream.feed(part)
            if until is not None and not seen and re.search(until, _text(screen)):
                seen = _text(screen)
    os.close(ours)
    os.waitpid(child, 0)
    return seen, _text(screen)


def _text(screen: pyte.Screen) -> str:
    return "\n".join(line.rstrip() for line in screen.display).rstrip()


def qohort(words: Sequence[str], cwd: Path) -> Callable[[], int]:
    """Return what starts a command."""

    def start() -> int:
        os.chdir(cwd)
        os.environ["PYTHONPATH"] = str(ROOT / "src")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cwd / "cache")  # else what was compiled once is there at once
        os.execv(sys.executable, [sys.executable, "-m", "qohort", *words])

    return start


def typed(name: str, cwd: Path) -> list[str]:
    """Return the words of a screen's command, with the directories that are there."""
    outputs = cwd / "outputs" / "CartPole-v1"
    agents = ("dqn", "double", "nstep", "munchausen")
    places = {agent: str(next(iter(sorted(outputs.glob(f"{agent}-*"))), outputs).relative_to(cwd)) for agent in agents}
    return [word.format(**places) for word in SCREENS[name].words]


def store(cwd: Path) -> None:
    """Write run directories as training leaves them: finished, failed and interrupted ones."""
    from qohort.config.members import check_config

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for agent, overrides, returns, age in (
            ("dqn", ["seed=[0,1,2,3,4]"], [487.1, 500.0, 462.5, 500.0, 491.0], 7_300),
            ("rainbow", ["seed=[0,1,2,3,4]", "optimizer.lr=3e-4"], [500.0, 500.0, None, 479.5, 500.0], 4_000),
            ("munchausen", ["seed=[0,1]", "budget=20_000"], [], 620),
        ):
            for config in check_config(compose("train", [STORED, f"agent={agent}", *overrides])):
                score = returns[config.seed] if returns else None
                _store(cwd, config, score, bool(returns), age)


def _store(cwd: Path, config: Any, score: float | None, ended: bool, age: float) -> None:
    """Write the directory of a run that has ended with a score, or without one has failed, or was interrupted."""
    from qohort.config.identity import config_tree
    from qohort.runs.directory import RunDirectory

    directory = cwd / RunDirectory.of(config).path
    directory.mkdir(parents=True)
    files = {"config.yaml": yaml.safe_dump(config_tree(config), sort_keys=False), "manifest.json": '{"code": "0"}'}
    if score is not None:
        numbers = {"env_steps": config.budget, "best_return": score, "auc": score, "wall_s": 60.0}
        numbers |= {"seed": config.seed, "budget": config.budget, "final_return": score}
        files["result.json"] = json.dumps({**numbers, "fingerprint": "0"})
    elif ended:
        files["failed.json"] = json.dumps({"env_steps": 41_500, "reason": "diverged: loss nan, mean Q nan"})
    else:
        files["metrics.jsonl"] = ""
    for name, text in files.items():
        (directory / name).write_text(text)
    space = 1_000_000 - sum(len(text.encode()) for text in files.values())
    (directory / "learning_curve.png").write_bytes(bytes(space))  # so that sizes do not depend on the schema
    for file in directory.iterdir():
        os.utime(file, (time.time() - age, time.time() - age))


def screens(name: str, size: tuple[int, int], cwd: Path) -> tuple[str, list[str]]:
    """Record the screens of one command; it and they."""
    words = typed(name, cwd)
    seen, end = record(qohort(words, cwd), size, SCREENS[name].until)
    if SCREENS[name].until is not None and not seen:
        raise RuntimeError(f"{name}: {SCREENS[name].until!r} was not seen, only this:\n{end}")
    return " ".join(["qohort", *words]), [seen, end][-len(SCREENS[name].moments()) :] if SCREENS[name].ends else [seen]


def prepare(name: str, cwd: Path) -> None:
    """Train what a screen is of."""
    command = [sys.executable, "-m", "qohort", *SCREENS[name].words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True)


def recorded(names: Sequence[str], size: tuple[int, int]) -> dict[str, tuple[str, list[str]]]:
    """Record several commands in a terminal of one size, in the order of `SCREENS`, each as `screens` returns it."""
    found = {}
    with (
        tempfile.TemporaryDirectory() as trained,
        tempfile.TemporaryDirectory() as stored,
        tempfile.TemporaryDirectory() as apart,
    ):
        with HYDRA:
            store(Path(stored))
        for name in sorted(names, key=lambda name: (name not in CHEAP, [*SCREENS].index(name))):  # runs have an age
            for need in NEEDS.get(name, ()):
                if need not in found:
                    prepare(need, Path(trained))
            # The report is of all that was trained, and so not of what only shows compiling.
            found[name] = screens(name, size, Path(stored if name in CHEAP else apart if name == APART else trained))
    return found


def section(name: str, found: Sequence[tuple[str, list[str]]]) -> str:
    """Return the section of the page with the screens of one command, of each of `SIZES`."""
    parts = [f"## {SCREENS[name].title}", SCREENS[name].text, f"```text\n{found[0][0]}\n```"]
    for (columns, lines), (_, shown) in zip(SIZES, found, strict=True):
        for moment, text in zip(SCREENS[name].moments(), shown, strict=True):
            when = f", {moment}" if len(SCREENS[name].moments()) > 1 else ""
            parts += [f"{columns} × {lines}{when}:", f"```text\n{text}\n```"]
    return "\n\n".join(part for part in parts if part)


HEAD = """# In a terminal

What commands show in terminals of 80 × 24 and 120 × 40 characters. Where a command scrolls, these are its last lines.
Nothing is edited: times, speeds and sizes are those of the recording, on two cores that had other work.
`python tests/screens.py` records this page anew, and `python tests/screens.py NAME` one screen of it, as `runs` or
`train`."""


def page_sections() -> dict[str, str]:
    """Return the sections of the page that are there, by the names of `SCREENS`."""
    parts = PAGE.read_text().rstrip("\n").split("\n\n## ") if PAGE.exists() else []
    named = {screen.title: name for name, screen in SCREENS.items()}
    return {named[part.partition("\n")[0]]: f"## {part}" for part in parts[1:] if part.partition("\n")[0] in named}


def main(names: Sequence[str]) -> None:
    """Re-make the page, or some of its sections."""
    if unknown := set(names) - set(SCREENS):
        sys.exit(f"{', '.join(sorted(unknown))}: there is no such screen, only {', '.join(SCREENS)}")
    sections = page_sections()
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda size: recorded(names or list(SCREENS), size), SIZES))
    for name in found[0]:
        sections[name] = section(name, [one[name] for one in found])
    PAGE.write_text("\n\n".join([HEAD, *(sections[name] for name in SCREENS if name in sections)]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

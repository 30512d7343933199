"""What the commands show in terminals of 80 × 24 and 120 × 40: re-makes docs/terminal.md, or prints one screen.

python tests/screens.py            # re-make docs/terminal.md; it trains a small sweep, which takes minutes
python tests/screens.py runs 80    # print one screen
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyte

ROOT = Path(__file__).resolve().parents[1]
SIZES = ((80, 24), (120, 40))
SMALL = ("experiment=debug", "budget=2000")
SCREENS = {
    "train": (("train", *SMALL, "agent=double", "seed=[0,1,2]"), r"eval\w* \d", "A cohort, while it trains"),
    "sweep": (
        ("train", "-m", *SMALL, "agent=dqn,nstep", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
        r"2 running[\s\S]*eval \d",
        "A sweep of two cohorts in two processes, while it trains",
    ),
    "evaluate": (("evaluate", "run={double}", "episodes=5"), None, "A cohort, evaluated"),
    "runs": (("runs",), None, "The runs"),
    "diff": (("diff", "{dqn}", "{nstep}"), None, "What differs"),
    "plan": (("train", "--dry-run", *SMALL, "agent=double", "seed=[0,1,2,3]"), None, "A dry run"),
    "report": (("report", "ablation=tiny"), None, "A report"),
}
"""For each screen: the command, what must be seen when it is recorded (None for its end), and a title."""
TINY = """# @package ablation
title: Two agents
baseline: dqn
seeds: [0, 1]
budget: 2000
settings: [compile=none, learning_starts=500, evaluation.episodes=2, evaluation.every=1000]
environments: {cartpole: {low: 0.0, high: 500.0}}
arms:
  dqn: [agent=dqn]
  double: {overrides: [agent=double], differs: [bootstrap]}
"""


def record(command: list[str], size: tuple[int, int], cwd: Path, until: str | None = None) -> tuple[str, str]:
    """Run a command in a terminal of `columns × lines`.

    Returns:
        The screen when `until` was first seen, or at the end, and everything that was printed.
    """
    columns, lines = size
    screen = pyte.HistoryScreen(columns, lines, history=10_000)
    stream = pyte.ByteStream(screen)
    screen.set_mode(pyte.modes.LNM)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT / "src")}
    environment = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES", "CI")}
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    seen, end = None, time.monotonic() + 600
    while time.monotonic() < end:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                stream.feed(os.read(ours, 1 << 16))
            except OSError:  # the terminal is closed
                break
        elif process.poll() is not None:
            break
        if seen is None and until is not None and re.search(until, "\n".join(screen.display)):
            seen = "\n".join(line.rstrip() for line in screen.display).rstrip()
    process.wait(60)
    os.close(ours)
    final = "\n".join(line.rstrip() for line in screen.display).rstrip()
    scrolled = ("".join(line[x].data for x in range(columns)).rstrip() for line in screen.history.top)
    return seen or final, "\n".join([*scrolled, final])


def shown(name: str, size: tuple[int, int], cwd: Path) -> tuple[str, str, str]:
    """Return the command of a screen as it is typed, the screen, and everything that was printed."""
    words, until, _ = SCREENS[name]
    outputs = cwd / "outputs" / "CartPole-v1"
    places = {
        agent: str(next(outputs.glob(f"{agent}-*"), outputs).relative_to(cwd)) for agent in ("dqn", "double", "nstep")
    }
    arguments = [word.format(**places) for word in words]
    screen, printed = record([sys.executable, "-m", "qohort", *arguments], size, cwd, until)
    return " ".join(["qohort", *arguments]), screen, printed


def prepare(cwd: Path) -> None:
    """Make the manifest of the report's ablation, and its runs."""
    (cwd / "conf" / "ablation").mkdir(parents=True)
    (cwd / "conf" / "ablation" / "tiny.yaml").write_text(TINY)
    command = [sys.executable, "-m", "qohort", "train", "-m", "ablation=tiny", "logger=none"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True)


def sections(size: tuple[int, int]) -> list[str]:
    """Return the sections of the page for a terminal of one size."""
    parts = []
    with tempfile.TemporaryDirectory() as directory:
        cwd = Path(directory)
        prepare(cwd)
        for name, (_, _, title) in SCREENS.items():
            typed, screen, _ = shown(name, size, cwd)
            parts += [f"## {title}, {size[0]} × {size[1]}", f"```\n$ {typed}\n{screen}\n```"]
    return parts


def main() -> None:
    """Re-make the page."""
    parts = [
        "# In a terminal",
        "What the commands show in terminals of 80 × 24 and 120 × 40 characters, recorded. "
        "Where a command scrolls, its last lines are shown.",
        "<!-- re-make: python tests/screens.py -->",
    ]
    with ThreadPoolExecutor() as pool:
        for some in pool.map(sections, SIZES):
            parts += some
    (ROOT / "docs" / "terminal.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        with tempfile.TemporaryDirectory() as here:
            print(shown(sys.argv[1], next(size for size in SIZES if size[0] == int(sys.argv[2])), Path(here))[1])
    else:
        main()

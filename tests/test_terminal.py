"""Screens of the commands in terminals of 80 × 24 and 120 × 40 are those in docs/terminal.md."""

import os
import re
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import screens
from qohort.cli.diff import _names
from qohort.cli.main import main
from qohort.cli.runs import _first
from qohort.runs.listing import differences, in_table, runs_in


def here(words, cwd):
    """What runs a command in a copy of this process, which saves importing torch again."""

    def start():
        signal.alarm(120)
        os.chdir(cwd)
        sys.argv = ["qohort", *words]
        with open(1, "w", closefd=False) as sys.stdout, open(2, "w", closefd=False) as sys.stderr:  # not pytest's
            try:
                main()
            except SystemExit as error:
                return int(error.code or 0)
        return 0

    return start


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The run directories whose screens are in the manual."""
    directory = tmp_path_factory.mktemp("stored")
    screens.store(directory)
    for run in runs_in(directory):
        differences(run.config)  # which composes presets, once for all screens
    return directory


@pytest.mark.parametrize("name", screens.CHEAP)
def test_screens_of_stored_runs_are_those_of_the_manual(name, stored):
    words = screens.typed(name, stored)
    shown = [screens.record(here(words, stored), size)[1] for size in screens.SIZES]
    found = [(" ".join(["qohort", *words]), [text]) for text in shown]
    assert screens.section(name, found) == screens.page_sections()[name], f"re-make it: tests/screens.py {name}"


def alike(section):
    """A section without what varies between recordings: numbers, bars, and the order of a sweep's rows."""
    lines = (re.sub(r"[█▏▎▍▌▋▊▉·]+", "█", line) for line in section.splitlines())
    lines = (re.sub(r"-?\d[\d.,:]*k?", "0", line) for line in lines)
    return sorted({re.sub(r"[ ─━]+", " ", line).strip() for line in lines} - {""})


@pytest.mark.slow
def test_screens_of_commands_that_train_are_those_of_the_manual():
    names = [name for name in screens.SCREENS if name not in screens.CHEAP]
    found = [screens.recorded(names, size) for size in screens.SIZES]
    for name in names:
        own = screens.section(name, [one[name] for one in found])
        assert alike(own) == alike(screens.page_sections()[name]), f"re-make it: tests/screens.py {name}"


@pytest.mark.slow
def test_what_is_compiled_is_said_and_goes(tmp_path):
    words = [*screens.SCREENS["compiling"].words, "budget=1000", "seed=0"]
    seen, end = screens.record(screens.qohort(words, tmp_path), (80, 24), "compiling the")
    assert re.search(r"0/1.00k \[\d\d:\d\d<\?\], compiling the \w", seen)
    assert "compiling the" not in end
    assert "100%" in end


def test_the_manual_has_every_screen():
    assert list(screens.page_sections()) == list(screens.SCREENS)


def test_a_bar_has_returns_and_speed_at_80_columns():
    section = screens.page_sections()["train"].split("120 × 40")[0]
    assert re.search(r"return [\d.]+, eval [\d.]+, \d+/s × 3$", section, re.MULTILINE)


def test_components_are_named_by_their_class():
    assert in_table("head._target_", "qohort.agent.heads.Expected") == ("head", "Expected")
    assert in_table("head._target_", "mine.heads.Expected") == ("head", "mine.heads.Expected")
    assert in_table("network.hidden", [8, 8]) == ("network.hidden", "[8,8]")
    differs = {"head._target_": "qohort.a.B", "head.atoms": 51, "headroom": 1, "gamma": 0.5}
    assert _first(differs) == "head=B, headroom=1, gamma=0.5, head.atoms=51"
    assert _first(differs, 20) == "head=B, headroom=1, and 2 more"


@pytest.mark.parametrize(
    ("directories", "names"),
    [
        (("out/env/a-1/seed-0", "out/env/b-2/seed-0"), ["a-1/seed-0", "b-2/seed-0"]),
        (("out/env/a-1/seed-0", "out/env/a-1/seed-1"), ["seed-0", "seed-1"]),
        (("out/env/a-1/seed-0", "out/env/a-1/seed-0"), ["seed-0", "seed-0"]),
        (("out/a/seed-0", "/old/out/a/seed-0"), ["out/a/seed-0", "/old/out/a/seed-0"]),
        ((".", "out/a/seed-0"), [".", "out/a/seed-0"]),
    ],
)
def test_runs_are_named_without_the_directories_that_they_share(directories, names):
    assert _names([Path(one) for one in directories]) == names

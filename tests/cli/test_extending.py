"""Follows docs/extending.md to the letter, in a copy of the project: types its files, runs its commands and tests."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from matrix import matrix

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
SMALL = (
    *("budget=400", "learning_starts=100", "evaluation.every=200", "evaluation.episodes=2", "compile=none"),
    *("logger=none", "trainer.progress_bar=false"),
)


class Block(NamedTuple):
    language: str
    path: str | None
    """The file that it is, where the line before it names one."""
    text: str


def read_blocks() -> list[Block]:
    pattern = r"(?:^`([^`\n]+)`:\n\n)?^```(\w+)\n(.*?)^```$"
    found = re.findall(pattern, PAGE, flags=re.MULTILINE | re.DOTALL)
    return [Block(language, path or None, text) for path, language, text in found]


BLOCKS = read_blocks()
SHELL = [line for block in BLOCKS if block.language == "bash" for line in block.text.splitlines()]
TRAINING = [line for line in SHELL if line.startswith("python scripts/")]
REFUSED = [block.text.removeprefix("$ ").splitlines() for block in BLOCKS if block.language == "console"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the page's files in it."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("src", "conf", "scripts"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for block in BLOCKS:
        if block.path is not None:
            file = copy / block.path
            assert not file.exists(), f"the page would overwrite {block.path}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
    return copy


def run(copy: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of the page: `python` and `pytest` are this interpreter's, `src` is the copy's."""
    assert command[0] in ("python", "pytest")
    words = [sys.executable, *(["-m", "pytest"] if command[0] == "pytest" else []), *command[1:]]
    environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
    return subprocess.run(words, cwd=copy, env=environment, capture_output=True, text=True, timeout=300)


def test_the_page_has_what_it_promises() -> None:
    paths = [block.path for block in BLOCKS if block.path is not None]
    for start in ("src/", "conf/env/", "conf/network/", "conf/head/", "conf/bootstrap/", "tests/"):
        assert any(path.startswith(start) for path in paths), start
    assert all(block.path for block in BLOCKS if block.language in ("python", "yaml")), "a file without a path"
    assert PAGE.count("```") == 2 * len(BLOCKS), "a block that this test does not read"
    assert len(TRAINING) >= 4
    assert REFUSED


def test_every_other_command_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in SHELL:
        first, *rest = shlex.split(line)
        if first == "make":
            assert re.search(rf"^{rest[0]}:", makefile, re.MULTILINE), line
        else:
            assert line in ("source .venv/bin/activate", "pre-commit install", "pytest tests/mylab") or line in TRAINING
    for target in re.findall(r"`make ([\w-]+)`", PAGE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_file_that_the_page_speaks_of_exists(copy: Path) -> None:
    for path in re.findall(r"`((?:src|conf|tests|scripts)/[\w/.-]+)`", PAGE):
        assert (ROOT / path).exists() or (copy / path).exists(), path
    makefile_arguments = re.search(r'ARGS="(\S+) -k (\w+)"', PAGE)
    assert makefile_arguments is not None
    assert makefile_arguments[2] in (ROOT / makefile_arguments[1]).read_text()


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("command", matrix(TRAINING, TRAINING[:1]))
def test_its_commands_train(command: str, copy: Path, tmp_path: Path) -> None:
    done = run(copy, [*shlex.split(command), *SMALL, f"output_dir={tmp_path}"])
    assert done.returncode == 0, done.stderr
    # A bare command trains the default seeds.
    seed = re.search(r" seed=(\S+)", command)
    seeds = [0, 1, 2, 3, 4] if seed is None else json.loads(f"[{seed[1].strip('[]')}]")
    results = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("*/*/seed-*/result.json"))]
    assert [result["seed"] for result in results] == seeds
    assert {result["env_steps"] for result in results} == {400}


@pytest.mark.parametrize("lines", REFUSED, ids=lambda lines: lines[0])
def test_its_mistakes_are_refused_as_it_says(lines: list[str], copy: Path) -> None:
    done = run(copy, shlex.split(lines[0]))
    assert (done.returncode, done.stderr.splitlines()) == (2, lines[1:])
    assert not (copy / "outputs").exists()


@pytest.mark.slow
@pytest.mark.matrix
def test_its_own_tests_pass(copy: Path) -> None:
    (command,) = [line for line in SHELL if line.startswith("pytest")]
    done = run(copy, [*shlex.split(command), "-p", "no:cacheprovider"])
    assert done.returncode == 0, done.stdout
    tests = sum(block.text.count("\ndef test_") for block in BLOCKS)
    assert f"{tests} passed" in done.stdout


def test_its_code_is_in_style(copy: Path) -> None:
    files = [block.path for block in BLOCKS if block.language == "python" and block.path]
    for action in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *action, "--no-cache", *files], cwd=copy, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout

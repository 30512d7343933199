"""The manual says what is: its map is whole, its commands and links exist, the README is one page."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).parents[1]
# extending.md is executed by tests/cli/test_extending.py.
PAGES = [page for page in (ROOT / "docs").rglob("*.md") if page.stem != "extending"]
PAGES += [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PLACEHOLDERS = re.compile(r"<[^>]+>|\.\.\.|\b(NAME|KEY|VALUE)\b|mylab|corridor")


def commands() -> list[tuple[str, str]]:
    """Each command of Qohort's in a code block of the manual, with its page."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```(?:bash|console|sh|)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            for line, following in zip(lines, (*lines[1:], ""), strict=True):
                if following.startswith("qohort: "):  # a mistake, shown with its message
                    continue
                line = line.removeprefix("$ ").strip()
                line = re.sub(r"^qohort (train|evaluate|export|report|verify|tune)\b", r"python scripts/\1.py", line)
                if line.startswith(("python scripts/", "python benchmarks/", "make ")):
                    found.append((str(page.relative_to(ROOT)), line))
    return found


COMMANDS = commands()


def test_the_map_lists_every_folder():
    page = (ROOT / "docs" / "architecture.md").read_text()
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    if not listed:  # not a clone
        pytest.skip("git lists no files here")
    top = {Path(file).parts[0] for file in listed if len(Path(file).parts) > 1}
    rooms = {path.name for path in (ROOT / "src" / "qohort").iterdir() if (path / "__init__.py").is_file()}
    assert len(rooms) >= 10
    for folder in sorted(top):
        assert f"`{folder}/`" in page, folder
    for room in sorted(rooms):
        assert f"`src/qohort/{room}/`" in page, room


@pytest.mark.parametrize("page", ["architecture.md", "extending.md", "exactness.md", "metrics.md", "configuration.md"])
def test_files_and_names_that_a_page_speaks_of_exist(page):
    text = (ROOT / "docs" / page).read_text()
    for path in re.findall(r"`((?:src/qohort|conf|tests|scripts|benchmarks)/[\w./-]+\.(?:py|yaml))`", text):
        assert (ROOT / path).exists() or ("mylab" in text and f"`{path}`:" in text) or "NAME" in path, path


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page, line in COMMANDS:
        if line.startswith("make "):
            assert line.split()[1] in targets, f"{page}: {line}"


def test_there_are_commands_to_check():
    assert len(COMMANDS) > 40
    assert len({line for _, line in COMMANDS if line.startswith("python scripts/train.py")}) > 15


@pytest.mark.parametrize(
    ("page", "line"),
    [one for one in COMMANDS if one[1].startswith("python scripts/") and not PLACEHOLDERS.search(one[1])],
)
def test_a_command_composes(page, line):
    """Each setting of a command names a key, a choice or an experiment that is there."""
    script, *words = shlex.split(line.partition(" #")[0])[1:]
    assert (ROOT / script).is_file()
    settings = [word for word in words if "=" in word and not word.startswith(("-", "hydra/launcher", "hydra/sweeper"))]
    single = [re.sub(r"^([\w./]+)=(?![\[{'\"])([^,()]+),.*$", r"\1=\2", one) for one in settings]
    single = [re.sub(r"=range\((\d+),.*\)$", r"=\1", one) for one in single]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert compose(Path(script).stem, single) is not None


def test_the_readme_is_one_page():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120
    for link in re.findall(r"\]\(((?!http)[^)#]+)", "\n".join(lines)):
        assert (ROOT / link).exists(), link


@pytest.mark.slow
def test_the_manual_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

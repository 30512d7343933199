"""Make a project of one's own: qohort new DIRECTORY."""

from __future__ import annotations

import importlib.machinery
import keyword
import re
import sys
from pathlib import Path

import jinja2

from qohort.cli.arguments import arguments_of, fail, path_of
from qohort.cli.streams import lenient_streams

TEMPLATE = Path(__file__).parents[1] / "template"
FOLDERS = ("conf", "tests", "sweeps", "outputs", "reports")
"""Folders of a project, whose names its package may not have."""
USAGE = """qohort new DIRECTORY

Makes a project with an environment, a network, a loss, an experiment that uses them, and a test of each."""


@lenient_streams()
def main() -> None:
    """Write the files of a project."""
    arguments = arguments_of(USAGE)
    if len(arguments) != 1 or arguments[0].startswith("-"):
        fail("new needs one directory: qohort new DIRECTORY")
    directory = path_of(arguments[0])
    if "=" in directory.name:
        fail(f"{arguments[0]} is a setting, and new takes none: qohort new DIRECTORY")
    lab = re.sub(r"\W+", "_", directory.absolute().name.lower())
    if not lab.isidentifier() or keyword.iskeyword(lab) or lab in FOLDERS:
        fail(
            f"{directory.name} cannot be the name of a package: begin it with a letter, and choose no keyword "
            f"of Python, nor {', '.join(FOLDERS[:-1])} or {FOLDERS[-1]}"
        )
    if _is_installed(lab):
        fail(f"{directory.name} is the name of another package, {lab}, which it would hide: choose another name")
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            fail(f"{directory} exists and is not an empty directory: choose another name")
    except OSError as error:
        fail(f"{directory} cannot be made: {error.strerror}")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    try:
        for file in sorted(TEMPLATE.rglob("*.j2")):
            name = file.relative_to(TEMPLATE)
            parts = [lab if part == "lab" else part for part in name.with_suffix("").parts]
            target = directory.joinpath(*[".gitignore" if part == "gitignore" else part for part in parts])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(environment.get_template(name.as_posix()).render(lab=lab))
    except OSError as error:
        fail(f"{directory} cannot be written: {error.strerror}")
    print(f"made {directory}; next: cd {directory} && qohort train experiment=mine")


def _is_installed(name: str) -> bool:
    """Return whether there is a package of this name already, which is not one in the current directory."""
    elsewhere = [one for one in sys.path if one and Path(one).resolve() != Path.cwd().resolve()]
    found = importlib.machinery.PathFinder.find_spec(name, elsewhere)
    return name in sys.stdlib_module_names or (found is not None and found.origin is not None)

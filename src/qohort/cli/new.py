"""Make a project of one's own: qohort new DIRECTORY."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import jinja2

from qohort.cli.entry_point import arguments_of, fail
from qohort.cli.streams import lenient_streams

TEMPLATE = Path(__file__).parents[1] / "template"
USAGE = """qohort new DIRECTORY

Makes a project with an environment, a network, a loss, an experiment that uses them, and a test of each."""


@lenient_streams()
def main() -> None:
    """Write the files of a project."""
    arguments = arguments_of(USAGE)
    if len(arguments) != 1 or arguments[0].startswith("-"):
        fail("new needs one directory: qohort new DIRECTORY")
    directory = Path(arguments[0]).expanduser()
    lab = re.sub(r"\W+", "_", directory.absolute().name.lower())
    if not lab.isidentifier() or lab in ("qohort", "conf", "tests", "outputs", *sys.stdlib_module_names):
        fail(f"{directory.name} cannot be the name of a package: begin it with a letter, and do not name it as another")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        fail(f"{directory} exists and is not an empty directory: choose another name")
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

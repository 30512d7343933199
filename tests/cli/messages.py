"""Prints the message of every wrong input, to be read: python tests/cli/messages.py [WORDS]."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from forked import fault, make_project, run_wrong
from wrong import paths
from wrong_inputs import inputs


def main(words: str) -> None:
    """Print the wrong inputs that have these words in their names, each with what it leads to."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o755)
        (place / "own").mkdir()
        project = make_project(place / "own")
        for one in inputs():
            if words in one.name:
                ended = run_wrong(one, project, place / "case")
                mark = "WRONG " if fault(one, ended, paths(project)) else "taken " if ended.code == 0 else ""
                print(f"{mark}{one.name}\n    {ended.err.strip()}", flush=True)


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]))

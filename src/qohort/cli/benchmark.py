"""Measure speed: qohort benchmark [key=value ...]. Keys: conf/benchmark.yaml."""

from __future__ import annotations

import runpy
import sys

from qohort.cli.arguments import fail
from qohort.config.composition import REPOSITORY


def main() -> None:
    """Run `benchmarks/speed.py`, which is not part of the package."""
    script = REPOSITORY / "benchmarks" / "speed.py"
    if not script.is_file():
        fail("benchmark needs a clone of the repository, where make benchmark installs what is measured beside Qohort")
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")

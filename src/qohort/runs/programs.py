"""Which compiled programs of a run are found again on the disk."""

from __future__ import annotations

import hashlib
import json
import sys
from functools import cache, reduce
from importlib.metadata import version
from operator import getitem
from pathlib import Path

import qohort
from qohort.cohort.kept_programs import KeptPrograms
from qohort.config.folding import foldable_keys
from qohort.config.identity import experiment_tree
from qohort.config.instructions import programs_use
from qohort.config.schema import TrainConfig
from qohort.environments.tensor.registry import tensor_environment
from qohort.runs.code import component_packages


def kept_programs(config: TrainConfig) -> KeptPrograms:
    """Return the programs on the disk that a run may use.

    Args:
        config: The configuration of one member.

    Raises:
        ConfigError: If the environment variable `QOHORT_PROGRAMS` has a value that is unknown.
    """
    use = programs_use()
    return KeptPrograms(None if use == "traced" else programs_identity(config), use == "checked", is_unchanged)


def programs_identity(config: TrainConfig) -> str | None:
    """Return all of a run's configuration and code that its compiled programs may depend on, for `KeptPrograms`.

    Numbers that may differ between members are left out: they are tensors in a program, as the seed is.

    Args:
        config: The configuration of one member.

    Returns:
        None if a component, or the environment, is not Qohort's own. It may read anything while it is traced, so its
        programs are traced at each start.
    """
    tree = experiment_tree(config)
    environment = tensor_environment(config.env)
    own = environment is None or type(environment).__module__.startswith("qohort.")
    if component_packages(tree) or not own:
        return None
    for key in foldable_keys(tree):
        *path, name = key.split(".")
        node = reduce(getitem, path, tree)
        node[name] = None if node[name] is None else "of each member"
    versions = [f"{name} {version(name)}" for name in ("gymnasium", "numpy", "sympy")]
    return repr((qohort.BITS, sys.version, versions, _code(), json.dumps(tree, sort_keys=True, default=str)))


@cache
def _code() -> str:
    """Return a hash of Qohort's sources."""
    folder = Path(qohort.__file__).parent
    contents = sorted((str(file.relative_to(folder)), file.read_bytes()) for file in sources())
    return hashlib.sha256(repr(contents).encode()).hexdigest()


@cache
def sources() -> tuple[Path, ...]:
    """Return Qohort's files of code."""
    return tuple(file for file in Path(qohort.__file__).parent.rglob("*.py") if file.is_file())


def is_unchanged() -> bool:
    """Return whether Qohort's sources are those that this process has imported: none was written after it started."""
    try:
        return all(file.stat().st_mtime < qohort.IMPORTED_AT for file in sources())
    except OSError:  # one was deleted or moved
        return False

"""Code identity: a hash of the sources that made a run, which tells results of other code apart."""

from __future__ import annotations

import ast
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import qohort

ROOMS = ("cohort", "networks", "replay", "environments", "agent")
"""The packages of Qohort whose code affects the result of a run."""
LIBRARIES = ("qohort", "torch", "gymnasium", "pytorch_lightning", "numpy", "ale_py", "minatar", "builtins")
"""Packages whose files are not hashed as a user's code: libraries, identified by their version, and Qohort itself."""
PATCH_LIMIT = 1 << 20
"""Maximum size of `code.patch` in bytes."""


def code_hash(config: Mapping[str, Any]) -> str:
    """Return eight hexadecimal digits that identify the sources of a run: Qohort's and those of its components.

    Comments, docstrings and the location of a file do not change the hash.

    Args:
        config: The run's configuration as nested mappings.
    """
    return _hash_of(component_packages(config))


def component_packages(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The packages of a user's own that the components of a configuration, or its environment, come from."""
    return tuple(sorted({package for package in _packages(config) if package not in LIBRARIES}))


@cache
def _hash_of(packages: tuple[str, ...]) -> str:
    folder = Path(qohort.__file__).parent
    files = [file for room in ROOMS for file in (folder / room).rglob("*.py")]
    files += [file for package in packages for file in _files_of(package)]
    digests = sorted(_digest(file) for file in files)
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:8]


def _packages(node: Any) -> Iterator[str]:
    """Yield the top-level packages of a configuration's components and of the module that registers its environment."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == "_target_" and isinstance(value, str):
                yield value.partition(".")[0]
            elif key == "id" and isinstance(value, str):
                yield from _packages_of_environment(value)
            else:
                yield from _packages(value)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for one in node:
            yield from _packages(one)


def _packages_of_environment(id: str) -> Iterator[str]:
    """Yield the packages of the module that registers an environment, and of its class, which may be another one."""
    import gymnasium as gym  # slow to import, and lists of runs do without it

    module, _, name = id.rpartition(":")
    if module:
        yield module.partition(".")[0]
    try:
        if module:
            import_module(module)
        entry = gym.spec(name).entry_point
    except Exception:  # it cannot be made here, which is reported elsewhere
        return
    if entry is not None:
        place = entry if isinstance(entry, str) else getattr(entry, "__module__", "")
        yield place.partition(":")[0].partition(".")[0]


def _files_of(package: str) -> list[Path]:
    """Return the source files of a package or module."""
    spec = find_spec(package)
    if spec is None:
        return []
    if spec.submodule_search_locations:
        return [file for folder in spec.submodule_search_locations for file in Path(folder).rglob("*.py")]
    return [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []


def _digest(file: Path) -> str:
    """Return the SHA-256 of a file's code, without comments and docstrings."""
    text = file.read_text()
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return hashlib.sha256(text.encode()).hexdigest()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):  # a string statement is a docstring of a function, class, module or attribute
            node.body = [one for one in body if not _is_text(one)]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def git(*arguments: str, environment: Mapping[str, str] | None = None) -> str | None:
    """Run git in the repository of Qohort's sources and return its output; None without git or a repository.

    Args:
        arguments: The arguments of git.
        environment: Variables to set in addition to those of this process.
    """
    try:
        done = subprocess.run(
            ["git", *arguments],
            capture_output=True,
            text=True,
            cwd=Path(qohort.__file__).parent,
            timeout=20,
            env={**os.environ, **(environment or {})},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "dubious ownership" in done.stderr:
        _warn_once(f"git refuses the repository, so the manifest has no commit: {done.stderr.splitlines()[0]}")
    return done.stdout.rstrip() if done.returncode == 0 else None


@cache
def _warn_once(message: str) -> None:
    print(f"qohort: {message}", file=sys.stderr)


@cache
def repository() -> tuple[str | None, bool | None]:
    """Return the commit of the sources and whether they have uncommitted changes; None for both without Git."""
    status = git("status", "--porcelain")
    return git("rev-parse", "HEAD"), None if status is None else bool(status)


@cache
def uncommitted_changes() -> str | None:
    """Return the uncommitted changes of Python and YAML files, new files included, as a patch; None for no changes."""
    top = git("rev-parse", "--show-toplevel")
    if not top or not git("status", "--porcelain"):
        return None
    with tempfile.TemporaryDirectory() as directory:
        index = {"GIT_INDEX_FILE": f"{directory}/index"}  # leaves the user's index unchanged
        git("-C", top, "read-tree", "HEAD", environment=index)
        git("-C", top, "add", "--all", "--", "*.py", "*.yaml", environment=index)
        patch = git("-C", top, "diff", "--cached", "HEAD", environment=index)
    if not patch:
        return None
    return patch + "\n" if len(patch) < PATCH_LIMIT else f"The patch is too large to be kept: {len(patch):,} bytes.\n"

"""Imports the class or function that a `_target_` names, or says in one line why it cannot be imported."""

from __future__ import annotations

import difflib
import pkgutil
import pydoc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qohort.config.errors import ConfigError

PACKAGES = ("qohort", "torch", "gymnasium")
"""Packages whose names are suggested, besides those of the current directory."""


def locate(target: Any, name: str) -> Any:
    """Import what a `_target_` names.

    Args:
        target: The `_target_`.
        name: Its name in messages.

    Raises:
        ConfigError: If it cannot be imported or called.
    """
    if not isinstance(target, str) or "." not in target:
        raise ConfigError(f"{name} does not fit: it must be a class or function, as module.Name")
    try:
        found = pydoc.locate(target)
    except pydoc.ErrorDuringImport as error:
        raise ConfigError(f"{name} cannot be imported: {' '.join(str(error).split())}") from error
    if found is None:
        raise ConfigError(f"{name} does not exist: {_absent(target)}")
    if not callable(found):
        raise ConfigError(f"{name} cannot be called: it must be a class or function")
    return found


def _absent(target: str) -> str:
    """Return what of a `_target_` is not there: its package, a module of it, or a name in a module."""
    module, _, last = target.rpartition(".")
    rest = ""
    while module:
        found: Any = pydoc.locate(module)
        near = "" if found is None else _suggestions(last, _names(found), f"{module}.", rest)
        if near or (found is not None and not _is_only_a_directory(found)):
            return f"{module} has no {last}{near}"
        rest = f".{last}{rest}"
        module, _, last = module.rpartition(".")
    here = [one.name for place in (Path.cwd(), Path.cwd() / "src") for one in pkgutil.iter_modules([str(place)])]
    if suggested := _suggestions(last, [*PACKAGES, *here], "", rest):
        return f"there is no package {last}{suggested}"
    return (
        f"the package {last} cannot be imported from here: run this in the project's directory, or install the project "
        "with pip install -e"
    )


def _is_only_a_directory(found: Any) -> bool:
    """Return whether a package is a directory without code, as that of a project, beside which Python was started."""
    return hasattr(found, "__path__") and getattr(found, "__file__", None) is None


def _names(found: Any) -> list[str]:
    """Return the names in a module or a class, with the modules of a package."""
    modules = [one.name for one in pkgutil.iter_modules(found.__path__)] if hasattr(found, "__path__") else []
    return [*modules, *(one for one in dir(found) if not one.startswith("_"))]


def _suggestions(word: str, known: Sequence[str], before: str, after: str) -> str:
    """Return the end of a message with the nearest names, each whole; empty if none is near."""
    close = difflib.get_close_matches(word, sorted(set(known) - {word}), n=3)
    return f": did you mean {' or '.join(f'{before}{one}{after}' for one in close)}?" if close else ""

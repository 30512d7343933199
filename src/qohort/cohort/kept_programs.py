"""Native programs on the disk, so that a later start need not trace them again, which takes seconds.

Inductor keeps what it has compiled, but finds it by its trace. Here a program is found by what its trace depends on:
the identity of the run (`qohort.runs.programs`), the place in its code, the layout of its tensors, the settings of
PyTorch, and the machine. If it depended on anything else, a run that is resumed would not end as one that was not
interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from qohort.cohort.native import Library

VARIABLES = ("TORCH", "CXX", "CC", "CPATH", "CFLAGS", "CPPFLAGS", "CXXFLAGS")
"""The beginnings of the names of variables of the environment that may change how inductor compiles."""


class OtherProgram(AssertionError):
    """What a program was found by does not tell it apart from another one."""


class KeptPrograms:
    """The native programs of runs with one identity.

    Args:
        identity: Everything of the configuration and the code that a trace may depend on; None keeps nothing.
        checked: Whether programs are traced nevertheless, and compared with what was kept.
        is_valid: Returns whether the code is still that of the identity.
    """

    def __init__(
        self, identity: str | None, checked: bool = False, is_valid: Callable[[], bool] = lambda: True
    ) -> None:
        self._identity, self._checked, self._is_valid = identity, checked, is_valid
        self._given: set[Path] = set()

    def file(self, directory: Path, name: str, function: Callable[..., Any], layout: str, settings: str) -> Path | None:
        """Return the file of a program, which need not exist; None if it is not kept.

        Args:
            directory: Where compiled programs are kept.
            name: The program's name.
            function: Its function.
            layout: The layout of its tensors.
            settings: The settings of inductor.
        """
        if self._identity is None:
            return None
        key = repr((self._identity, name, _place(function), layout, settings, _settings(), _machine()))
        path = directory / "qohort" / f"{hashlib.sha256(key.encode()).hexdigest()}.program"
        if path in self._given:  # two programs of a run that cannot be told apart
            return None
        self._given.add(path)
        return path

    def find(self, path: Path | None) -> Library | None:
        """Return a kept program; None if there is none, or it is only compared."""
        return None if path is None or self._checked or not self._is_valid() else _load(path)

    def keep(self, path: Path | None, library: Library) -> None:
        """Keep a program, if the disk allows it.

        Raises:
            OtherProgram: If another one is kept there already, and they are compared.
        """
        if path is None or not self._is_valid():
            return
        kept = _load(path)
        if kept is not None and _equal(kept, library):
            return
        if kept is not None and self._checked:
            raise OtherProgram(f"{path} is another program than what was traced: {kept.path}, {library.path}")
        with contextlib.suppress(Exception):  # it is traced again the next time
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, pickle.dumps(library))


def _write(path: Path, content: bytes) -> None:
    """Write a file all at once, whoever else writes it."""
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _load(path: Path) -> Library | None:
    """Return a kept program; None if there is none that can be used."""
    try:
        library: Library = pickle.loads(path.read_bytes())
        return library if Path(library.path).is_file() else None
    except Exception:  # it is missing, damaged, or was written by other versions
        return None


def _equal(one: Library, other: Library) -> bool:
    """Return whether two compiled programs are the same."""
    alike = (one.path, one.results, len(one.constants)) == (other.path, other.results, len(other.constants))
    return alike and all(map(torch.equal, one.constants, other.constants))


def _place(function: Callable[..., Any]) -> str:
    """Return where a function is defined, without the objects that it is bound to."""
    while isinstance(function, functools.partial):
        function = function.func
    return f"{function.__module__}.{function.__qualname__}"


@functools.cache
def _instructions() -> str:
    """Return the instructions of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return torch.backends.cpu.get_cpu_capability()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _machine() -> str:
    """Return the machine and the build of PyTorch."""
    build = (torch.__version__, torch.version.git_version, torch.__file__)
    return repr((_instructions(), torch.backends.cpu.get_cpu_capability(), build))


def _settings() -> str:
    """Return the settings of this process that a trace or its compilation depends on."""
    variables = sorted((name, value) for name, value in os.environ.items() if name.startswith(VARIABLES))
    deterministic = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )
    numbers = (torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled)
    return repr((variables, deterministic, torch.is_anomaly_enabled(), numbers, torch.get_num_threads()))

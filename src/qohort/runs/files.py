"""Files that are complete or absent, even if the machine stops while they are written."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

TEMPORARY = re.compile(r"[.].*[.]tmp-\w+")
"""Pattern of the names of files that are being written."""


def write_atomically(path: Path, content: bytes | memoryview | Callable[[BinaryIO], None]) -> None:
    """Write a file so that it is complete or absent, even if the machine stops.

    The temporary file is in the same directory, since a rename is only atomic within a filesystem.

    Args:
        path: The file.
        content: Its content, or a function that writes it to the open file.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.tmp-")
    try:
        with os.fdopen(handle, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

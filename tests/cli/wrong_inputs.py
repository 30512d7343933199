"""All wrong inputs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from wrong import Wrong
from wrong_files import files
from wrong_lines import lines
from wrong_projects import projects


def inputs() -> Iterator[Wrong]:
    """Yield them."""
    return chain(lines(), files(), projects())

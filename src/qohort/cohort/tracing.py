"""Whether a function is being traced for inductor, which a few operations need to know."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Tracing:
    """The state of tracing in this process.

    Attributes:
        unrolled: Whether a function is traced for inductor, which compiles a batch of one row to the same loops for any
            M. Elsewhere a batch of one row needs a second one, to be computed as in a cohort.
    """

    unrolled: bool = False

    @contextmanager
    def unrolling(self) -> Iterator[None]:
        """Mark that a function is traced for inductor."""
        self.unrolled = True
        try:
            yield
        finally:
            self.unrolled = False


TRACING = Tracing()

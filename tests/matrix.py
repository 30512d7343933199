"""Matrices: tests of many values, of which `make test` runs a few, .ci/run more and `make test-slow` all."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest

MARKS = (pytest.mark.slow, pytest.mark.matrix)


def matrix(values: Iterable[Any], fast: Collection[Any], in_ci: Collection[Any] | None = None) -> list[Any]:
    """Values for `parametrize`: those that are not in `fast` are left to the slow tests.

    Of these .ci/run has the ones in `in_ci`; all if it is None.
    """

    def parameter(value: Any) -> Any:
        if value in fast:
            return value
        marks = MARKS if in_ci is None or value in in_ci else (pytest.mark.slow,)
        return pytest.param(value, marks=marks, id=str(value))

    return [parameter(value) for value in values]

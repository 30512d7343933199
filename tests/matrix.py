"""Matrices: tests of many values, of which `make test` runs a few and .ci/run all."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest

MARKS = (pytest.mark.slow, pytest.mark.matrix)


def matrix(values: Iterable[Any], fast: Collection[Any]) -> list[Any]:
    """Values for `parametrize`: those that are not in `fast` are left to the slow tests."""
    return [value if value in fast else pytest.param(value, marks=MARKS, id=str(value)) for value in values]

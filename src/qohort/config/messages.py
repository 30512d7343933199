"""Words of messages: values as one would type them, and the names nearest to a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MANY = 12
"""More names than this are not listed where a near one is known."""


def nearest(word: str, words: Iterable[str], prefix: str = "") -> str:
    """The known words nearest to an unknown one, or all of them, as the end of a message.

    Args:
        word: The unknown one.
        words: The known ones.
        prefix: Stands before each near one.
    """
    known = sorted(words)
    if not known:
        return "there are none here"
    close = [prefix + one for one in difflib.get_close_matches(word, known, n=3)]
    listing = f"it must be one of {', '.join(known)}"
    if not close:
        return listing
    return f"did you mean {' or '.join(close)}?" + (f" ({listing})" if len(known) <= MANY else "")


def as_typed(value: Any) -> str:
    """A value as one would type it."""
    text = _typed(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _typed(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value or "''"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_typed(one)}" for key, one in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(_typed, value)) + "]"
    return str(value)

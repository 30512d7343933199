"""Parts of messages: values as they are typed on the command line, and suggestions for unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MANY = 12
"""All valid names are listed beside a suggestion only if there are at most this many."""
NEEDS_GLOBAL = "begin the file with the line # @package _global_"
"""The end of a message about a file that sets keys outside of its group."""


def nearest(word: str, words: Iterable[str], prefix: str = "") -> str:
    """Return the end of a message about an unknown word: the nearest known words, or all of them.

    Args:
        word: The unknown word.
        words: The known words.
        prefix: Put in front of each suggestion.
    """
    known = sorted(words)
    if not known:
        return "there are none here"
    close = [prefix + one for one in difflib.get_close_matches(word, known, n=3)]
    listing = f"it must be one of {', '.join(known)}"
    if not close:
        return listing
    return f"did you mean {' or '.join(close)}?" + (f" ({listing})" if len(known) <= MANY else "")


def format_value(value: Any) -> str:
    """Return a value as it is typed on the command line, cut to 80 characters."""
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

"""Qohort's environment variables: which CPU instructions are used, see `qohort`, and which compiled programs."""

from __future__ import annotations

import os

from qohort.config.errors import ConfigError

PROGRAMS = ("checked", "kept", "traced")
"""The values of `QOHORT_PROGRAMS`: compiled programs of earlier runs are compared, used, or neither."""


def check_bits_variable() -> None:
    """Check the environment variable `QOHORT_BITS`.

    Raises:
        ConfigError: If it has another value than `portable` and `native`.
    """
    bits = os.environ.get("QOHORT_BITS", "portable")
    if bits not in ("portable", "native"):
        raise ConfigError(f"the environment variable QOHORT_BITS={bits} is not a choice: set it to portable or native")


def programs_use() -> str:
    """Return the environment variable `QOHORT_PROGRAMS`, one of `PROGRAMS`.

    Raises:
        ConfigError: If it has another value.
    """
    use = os.environ.get("QOHORT_PROGRAMS", "kept")
    if use not in PROGRAMS:
        raise ConfigError(f"the environment variable QOHORT_PROGRAMS={use} is not one of {', '.join(PROGRAMS)}")
    return use

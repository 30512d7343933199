"""The environment variable that says which CPU instructions the libraries use; see `qohort`."""

from __future__ import annotations

import os

from qohort.config.errors import ConfigError


def check_bits_variable() -> None:
    """Check the environment variable `QOHORT_BITS`.

    Raises:
        ConfigError: If it has another value than `portable` and `native`.
    """
    bits = os.environ.get("QOHORT_BITS", "portable")
    if bits not in ("portable", "native"):
        raise ConfigError(f"the environment variable QOHORT_BITS={bits} is not a choice: set it to portable or native")

"""Qohort: Deep Q-Networks trained in cohorts, with Lightning, Hydra, Gymnasium and Weights & Biases.

Importing the package sets MKL to a reproducible mode before torch loads it. Otherwise the last bit of a member's matrix
products could depend on the alignment of its slice in a stacked tensor, and so on the other members.
"""

import os
import platform
import sys
import warnings
from pathlib import Path


def _widest_vectors() -> str:
    """Return the widest vector instructions of this CPU for which MKL gives the same bits at any alignment."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "AVX2"
    return "AVX512" if " avx512vl" in flags and " avx512dq" in flags and " avx512bw" in flags else "AVX2"


if platform.machine() in ("x86_64", "AMD64"):  # only there torch uses MKL
    _set = os.environ.get("MKL_CBWR")
    if _set is None and "torch" in sys.modules:
        warnings.warn(
            "torch was imported before qohort, so a member's results may depend on its cohort: import qohort first",
            stacklevel=2,
        )
    elif _set is not None and "STRICT" not in _set:
        warnings.warn(
            f"MKL_CBWR={_set} lacks ,STRICT, so a member's results may depend on its cohort: add it", stacklevel=2
        )
os.environ.setdefault("MKL_CBWR", f"{_widest_vectors()},STRICT")

__version__ = "0.2.0"

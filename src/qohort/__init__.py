"""Qohort: Deep Q-Networks trained in cohorts, with Lightning, Hydra, Gymnasium and Weights & Biases.

Importing the package fixes MKL's arithmetic before torch loads it: without it a member's matrix products
could differ in their last bit with the alignment of its slice of a stacked tensor, and so with its neighbours.
"""

import os
import platform
import sys
import warnings
from pathlib import Path


def _widest_vectors() -> str:
    """The widest instructions for which MKL can promise the same bits at any alignment, and this CPU has."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "AVX2"
    return "AVX512" if " avx512vl" in flags and " avx512dq" in flags and " avx512bw" in flags else "AVX2"


if platform.machine() in ("x86_64", "AMD64"):  # where MKL is
    _set = os.environ.get("MKL_CBWR")
    if _set is None and "torch" in sys.modules:
        warnings.warn("torch was imported before qohort: a member's last bits may depend on its cohort", stacklevel=2)
    elif _set is not None and "STRICT" not in _set:
        warnings.warn(f"MKL_CBWR={_set} lacks ,STRICT: a member's last bits may depend on its cohort", stacklevel=2)
os.environ.setdefault("MKL_CBWR", f"{_widest_vectors()},STRICT")

__version__ = "0.1.0"

"""Qohort: Deep Q-Networks trained in cohorts, with Lightning, Hydra, Gymnasium and Weights & Biases.

Importing the package chooses the CPU instructions of the libraries that compute, before they are loaded. With
`bits=portable`, the default, they all use AVX2, so that a run ends with the same bits on x86-64 machines of one make.
With `bits=native` they use the widest that the CPU has. The environment variable `QOHORT_BITS` says which.

In both, MKL computes reproducibly. Otherwise the last bit of a member's matrix products could depend on the alignment
of its slice in a stacked tensor, and so on the other members.
"""

import os
import platform
import sys
import time
import warnings
from pathlib import Path
from typing import Any

__version__ = "0.2.0"

IMPORTED_AT = time.time()
"""When this process began to import Qohort, in seconds since the epoch."""

PORTABLE = {
    "MKL_CBWR": "AVX2,STRICT",
    "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch, and the vectors of inductor's programs
    "TORCHINDUCTOR_CPP_MARCH": "haswell",
    "TORCHINDUCTOR_VEC_ISA_OK": "1",  # inductor need not try in other processes what compiles, a second a start
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    "NUMBA_CPU_NAME": "haswell",
}
"""Environment variables that limit each library to AVX2."""


def _choose_instructions() -> tuple[str, dict[str, str]]:
    """Set environment variables that are not set yet; return what the bits are, and the variables that were set."""
    # A value that is neither is refused by what trains, in one line.
    bits = "native" if os.environ.get("QOHORT_BITS") == "native" else "portable"
    if platform.machine() not in ("x86_64", "AMD64"):
        return bits, {}  # no library that is named here has another choice
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        flags = ["avx2", "fma"]
    if not {"avx2", "fma"} <= {*flags}:
        bits = "native"
    widest = "AVX512" if {"avx512vl", "avx512dq", "avx512bw"} <= {*flags} else "AVX2"
    chosen = PORTABLE if bits == "portable" else {"MKL_CBWR": f"{widest},STRICT"}
    given = {name: os.environ[name] for name in chosen if os.environ.get(name, chosen[name]) != chosen[name]}
    if "STRICT" not in given.get("MKL_CBWR", "STRICT"):
        text = f"MKL_CBWR={given['MKL_CBWR']} lacks ,STRICT, so a member's results may depend on its cohort: add it"
        warnings.warn(text, stacklevel=3)
    elif given and bits == "portable":
        text = f"{', '.join(map('='.join, given.items()))} is set, so bits may be others on another machine: unset it"
        warnings.warn(text, stacklevel=3)
    if "torch" in sys.modules and "MKL_CBWR" not in os.environ:
        warnings.warn(
            "torch was imported before qohort, so a member's results may depend on its cohort: import qohort first",
            stacklevel=3,
        )
    missing = {name: value for name, value in chosen.items() if name not in os.environ}
    os.environ.update(missing)
    return bits, missing


BITS, INSTRUCTIONS = _choose_instructions()
"""Whether this process computes `portable` or `native` bits, and the environment variables that were set for it."""


def __getattr__(name: str) -> Any:
    """Return a part of `qohort.library`, which takes seconds to import."""
    if name in ("Policy", "compose", "load", "train"):
        from qohort import library

        return getattr(library, name)
    raise AttributeError(f"module 'qohort' has no attribute '{name}'")

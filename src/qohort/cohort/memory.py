"""How the process gets memory for the temporary tensors of its programs."""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`, from `malloc.h`."""
LARGEST_KEPT, KEPT = 32 << 20, 512 << 20
"""The bytes of the largest tensor whose memory is kept when it is freed (glibc allows no more), and of all that the
main thread has freed."""


def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors for the next ones.

    By default it returns that of large ones to the system at once, and each use of new memory begins with a page fault
    every 4 KiB. It does nothing without glibc, or if the environment has settings for it.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, KEPT)

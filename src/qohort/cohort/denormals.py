"""Denormal numbers: floats below 1.2e-38, with which a CPU computes many times as slowly.

Where gradients are zero, as for a ReLU unit that is always off, Adam's averages decay into them and stay there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Within this context, take denormal numbers as zero, in this thread and in those that a tape starts.

    If PyTorch has several threads, nothing changes: those that exist would not follow, and new ones would never stop.
    """
    smallest_normal = sys.float_info.min
    flushed_already = smallest_normal / 2 == 0.0
    try:
        if torch.get_num_threads() == 1:
            torch.set_flush_denormal(True)
        yield
    finally:
        torch.set_flush_denormal(flushed_already)

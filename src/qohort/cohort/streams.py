"""TODO cohort.streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

STREAMS = ("network", "environments", "exploration", "replay", "noise", "evaluation")
"""The random streams of a member. Their order is part of every published number: append, never insert."""


def member_seed(seed: int, stream: str, *path: int) -> int:
    """A 64-bit seed for one use of one stream of one member.

    Args:
        seed: The member's seed.
        stream: One of `STREAMS`.
        path: What tells the uses of a stream apart, for example (environment index, episode number).

    Returns:
        An integer in [0, 2^63) that depends on the arguments only.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(STREAMS.index(stream), *path))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


class UniformStream:
    """Numbers uniform in [0, 1) for every member, each from the member's own generator.

    Numbers are drawn a block ahead, since a call to each of M generators at every step would cost more than
    the step. A member's numbers depend on its seed and on how many were taken, not on M.

    Args:
        seeds: The members' seeds.
        stream: One of `STREAMS`.
        shape: The shape of one draw of one member.
        block: The number of draws made at once.
        path: What tells the uses of a stream apart.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        stream: str,
        shape: tuple[int, ...],
        block: int = 1024,
        path: tuple[int, ...] = (),
    ) -> None:
        self._generators = [np.random.Generator(np.random.PCG64(member_seed(seed, stream, *path))) for seed in seeds]
        self._block = np.empty((len(seeds), block, *shape))
        self._refill()

    def next(self) -> NDArray[np.float64]:
        """The next draw: `[M, *shape]`."""
        if self._cursor == self._block.shape[1]:
            self._refill()
        draw: NDArray[np.float64] = self._block[:, self._cursor]
        self._cursor += 1
        return draw

    def _refill(self) -> None:
        self._before = [generator.bit_generator.state for generator in self._generators]
        for m, generator in enumerate(self._generators):
            self._fill(generator, self._block[m])
        self._cursor = 0

    def _fill(self, generator: np.random.Generator, out: NDArray[np.float64]) -> None:
        generator.random(out=out)

    def state_dict(self) -> dict[str, Any]:
        """The generators as they were before the current block, and how much of the block was taken."""
        states = [state["state"] for state in self._before]
        return {"members": [[str(state["state"]), str(state["inc"])] for state in states], "cursor": self._cursor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        for generator, (value, increment) in zip(self._generators, state["members"], strict=True):
            generator.bit_generator.state = {
                "bit_generator": "PCG64",
                "state": {"state": int(value), "inc": int(increment)},
                "has_uint32": 0,
                "uinteger": 0,
            }
        self._refill()
        self._cursor = int(state["cursor"])


class NormalStream(UniformStream):
    """Standard normal numbers, else as `UniformStream`."""

    def _fill(self, generator: np.random.Generator, out: NDArray[np.float64]) -> None:
        generator.standard_normal(out=out)

"""Random streams: independent, named sources of random numbers for each member."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

STREAMS = ("network", "environments", "exploration", "replay", "noise", "evaluation")
"""The random streams of a member. Their order determines the random numbers, so new streams must be appended."""


def member_seed(seed: int, stream: str, *path: int) -> int:
    """Return a seed for one use of one stream of one member.

    Args:
        seed: The member's seed.
        stream: One of `STREAMS`.
        path: Distinguishes the uses of a stream, for example (environment index, episode number).

    Returns:
        An integer in [0, 2^63) that depends only on the arguments.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(STREAMS.index(stream), *path))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


class UniformStream:
    """Draws numbers uniform in [0, 1) for every member, from the member's own generator.

    Numbers are drawn in blocks, because calling M generators at every step would cost more than the step itself. The
    numbers of a member depend on its seed and on the number of draws, not on M.

    Args:
        seeds: The members' seeds.
        stream: One of `STREAMS`.
        shape: The shape of one draw of one member.
        block: The number of draws per block.
        path: Distinguishes the uses of a stream.
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
        """Return the next draw, `[M, *shape]`."""
        if self._cursor == self._block.shape[1]:
            self._refill()
        draw: NDArray[np.float64] = self._block[:, self._cursor]
        self._cursor += 1
        return draw

    def take(self, count: int) -> NDArray[np.float64]:
        """Return the next draws, `[count, M, *shape]`; the same numbers as `count` calls of `next`."""
        draws = np.empty((count, len(self._block), *self._block.shape[2:]))
        taken = 0
        while taken < count:
            if self._cursor == self._block.shape[1]:
                self._refill()
            some = min(count - taken, self._block.shape[1] - self._cursor)
            draws[taken : taken + some] = self._block[:, self._cursor : self._cursor + some].swapaxes(0, 1)
            self._cursor += some
            taken += some
        return draws

    def _refill(self) -> None:
        self._before = [generator.bit_generator.state for generator in self._generators]
        for m, generator in enumerate(self._generators):
            self._fill(generator, self._block[m])
        self._cursor = 0

    def _fill(self, generator: np.random.Generator, out: NDArray[np.float64]) -> None:
        generator.random(out=out)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generators before the current block, and the position in the block."""
        states = [state["state"] for state in self._before]
        return {"members": [[str(state["state"]), str(state["inc"])] for state in states], "cursor": self._cursor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
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
    """Draws standard normal numbers. Otherwise equal to `UniformStream`."""

    def _fill(self, generator: np.random.Generator, out: NDArray[np.float64]) -> None:
        generator.standard_normal(out=out)

"""The random numbers for networks and heads: the noise of noisy layers, and the fractions of implicit quantiles.

Each member has its own `noise` stream, with a separate sequence for each use of a network. Its numbers do not depend on
the other members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qohort.cohort.schedules import Floats
from qohort.cohort.streams import NormalStream, UniformStream

USES = ("online", "target", "policy", "acting")
"""The uses of a network. Their order determines the random numbers, so new uses must be appended."""


NUMBERS_AHEAD = 16_384
"""The approximate number of values that a stream draws at once."""


class Noise:
    """Draws the random numbers for each use of a cohort's networks.

    Args:
        seeds: The members' seeds.
        normals: The number of standard normal values per use of a network.
        fractions: The number of fractions per sample, by use; None for no fractions. Acting uses as many as `policy`.
        uses: The uses of a network during an update.
        batch_size: The number of samples per member in an update, B.
        num_envs: Environments per member, E.
        device: The device of the networks.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        normals: int,
        fractions: Mapping[str, int] | None,
        uses: Sequence[str],
        batch_size: int,
        num_envs: int,
        device: torch.device,
    ) -> None:
        self._device = device
        counts = None if fractions is None else {**fractions, "acting": fractions["policy"]}
        self._streams: dict[str, dict[str, UniformStream]] = {}
        for use in (*uses, "acting"):
            path = USES.index(use)
            streams = self._streams[use] = {}
            if normals:
                ahead = max(1, NUMBERS_AHEAD // normals)
                streams["normal"] = NormalStream(seeds, "noise", (normals,), ahead, (path, 0))
            if counts is not None:
                shape = (num_envs if use == "acting" else batch_size, counts[use])
                ahead = max(1, NUMBERS_AHEAD // (shape[0] * shape[1]))
                streams["fractions"] = UniformStream(seeds, "noise", shape, ahead, (path, 1))

    def for_update(self) -> dict[str, Tensor]:
        """Return the random numbers for one update: `normal_<use> [M, normals]` and `fractions_<use> [M, B, N]`."""
        return {
            f"{kind}_{use}": self._tensor(stream)
            for use, streams in self._streams.items()
            if use != "acting"
            for kind, stream in streams.items()
        }

    def for_acting(self) -> dict[str, Tensor]:
        """Return the random numbers for one step of acting: `normal [M, normals]` and `fractions [M, E, K]`."""
        return {kind: self._tensor(stream) for kind, stream in self._streams["acting"].items()}

    def ahead(self, acting: int, updates: int) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """Return the random numbers for several steps of acting and for several updates, with a leading axis."""
        by_use = {
            use: {kind: stream.take(acting if use == "acting" else updates) for kind, stream in streams.items()}
            for use, streams in self._streams.items()
        }
        of_acting = by_use.pop("acting")
        return of_acting, {f"{kind}_{use}": array for use, kinds in by_use.items() for kind, array in kinds.items()}

    def _tensor(self, stream: UniformStream) -> Tensor:
        return torch.from_numpy(stream.next()).to(self._device, torch.float32)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each stream."""
        return {
            f"{kind}_{use}": stream.state_dict()
            for use, streams in self._streams.items()
            for kind, stream in streams.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        for use, streams in self._streams.items():
            for kind, stream in streams.items():
                stream.load_state_dict(state[f"{kind}_{use}"])

"""The random numbers that networks and heads ask for: noisy layers' noise, implicit quantiles' fractions.

Every member draws them from its own `noise` stream, one set for each use of a network, so that its numbers do not
depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qohort.cohort.streams import NormalStream, UniformStream

USES = ("online", "target", "policy", "acting")
"""What a network is used for. Their order is part of every published number: append, never insert."""


NUMBERS_AHEAD = 16_384
"""About how many numbers of a stream are drawn at once."""


class Noise:
    """Random numbers for each use of a cohort's networks.

    Args:
        seeds: The members' seeds.
        normals: Standard normal numbers that one use of a network needs.
        fractions: Fractions of each sample for each use; None for none. Those of `acting` are those of `policy`.
        uses: The uses that an update makes of its networks.
        batch_size: Samples of an update, B.
        num_envs: Environments of a member, E.
        device: Where the networks are.
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
        """The numbers of one update, as a batch has them: `normal_<use> [M, normals]`, `fractions_<use> [M, B, N]`."""
        return {
            f"{kind}_{use}": self._tensor(stream)
            for use, streams in self._streams.items()
            if use != "acting"
            for kind, stream in streams.items()
        }

    def for_acting(self) -> dict[str, Tensor]:
        """The numbers of one step of the environments: `normal [M, normals]`, `fractions [M, E, K]`."""
        return {kind: self._tensor(stream) for kind, stream in self._streams["acting"].items()}

    def _tensor(self, stream: UniformStream) -> Tensor:
        return torch.from_numpy(stream.next()).to(self._device, torch.float32)

    def state_dict(self) -> dict[str, Any]:
        """How far each stream was drawn from."""
        return {
            f"{kind}_{use}": stream.state_dict()
            for use, streams in self._streams.items()
            for kind, stream in streams.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        for use, streams in self._streams.items():
            for kind, stream in streams.items():
                stream.load_state_dict(state[f"{kind}_{use}"])

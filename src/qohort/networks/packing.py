"""Observations of several parts, and action masks, packed into one row of bytes.

Everything between an environment and its network handles one array per observation. A `Dict` or `Tuple` observation
is therefore packed when it leaves the environment, each part in its own dtype, and unpacked in front of the network. An
action mask is packed with its observation, so that whatever stores an observation stores its mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

KEPT = {
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "bool": torch.bool,
}
"""The dtypes that parts keep. Floats are packed as float32, other integers as int64."""

Key = str | int
"""A key of a `Dict`, or an index of a `Tuple`."""


def parts_of(space: spaces.Space[Any]) -> list[tuple[Any, spaces.Space[Any]]]:
    """Return the parts of a `Dict` or `Tuple` with their keys or indices; none of another space."""
    if isinstance(space, spaces.Dict):
        return list(space.items())
    return list(enumerate(space.spaces)) if isinstance(space, spaces.Tuple) else []


class UnsupportedPart(ValueError):
    """A part of an observation space that cannot be packed."""


class Leaf(NamedTuple):
    """A part of an observation, and its place in a row."""

    path: tuple[Key, ...]
    """The keys that lead to it; empty if the observation has one part only."""
    space: spaces.Space[Any]
    """Its space: `Box`, `Discrete` or `MultiBinary`."""
    dtype: torch.dtype
    start: int
    """The first of its bytes."""
    stop: int

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Its dtype in a row."""
        return np.dtype(str(self.dtype).removeprefix("torch."))

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.space.shape or ())

    @property
    def name(self) -> str:
        """How messages call it, as `observation['camera'][0]`."""
        return "observation" + "".join(f"[{key!r}]" for key in self.path)


class PackedSpace(spaces.Box):
    """The space of packed observations: rows of bytes, a multiple of eight.

    Args:
        unpacked: The observation space, without the action mask.
        masked: The number of actions in the action mask; 0 for no mask.

    Raises:
        UnsupportedPart: If a part of the space is not supported.
    """

    def __init__(self, unpacked: spaces.Space[Any], masked: int = 0) -> None:
        self.unpacked, self.masked = unpacked, masked
        placed, at = [], 0
        # The largest numbers first: then each one is at a multiple of its size.
        for path, space in sorted(_parts(unpacked, ()), key=lambda part: -part_dtype(part[1]).itemsize):
            stop = at + math.prod(space.shape or ()) * part_dtype(space).itemsize
            placed.append(Leaf(path, space, part_dtype(space), at, stop))
            at = stop
        self.leaves = tuple(placed)
        """The parts, in the order of their places."""
        self._mask = slice(at, at + masked)
        super().__init__(0, 255, (-(-(at + masked) // 8) * 8,), np.uint8)

    def unpack(self, rows: Tensor) -> Any:
        """Return rows `[B, bytes]` as observations: a tensor `[B, ...]`, or a dict or tuple of such, as in the space.

        Args:
            rows: The rows. Their bytes are contiguous.
        """
        leaves = {leaf.path: leaf for leaf in self.leaves}

        def of(space: spaces.Space[Any], path: tuple[Key, ...]) -> Any:
            if isinstance(space, spaces.Dict):
                return {key: of(part, (*path, key)) for key, part in parts_of(space)}
            if isinstance(space, spaces.Tuple):
                return tuple(of(part, (*path, key)) for key, part in parts_of(space))
            leaf = leaves[path]
            return rows[..., leaf.start : leaf.stop].view(leaf.dtype).reshape(*rows.shape[:-1], *leaf.shape)

        return of(self.unpacked, ())

    def allowed(self, rows: Tensor) -> Tensor:
        """Return the action masks `[..., A]` of rows `[..., bytes]`: whether each action may be chosen."""
        return rows[..., self._mask] != 0

    def allowed_array(self, rows: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return the action masks `[..., A]` of an array of rows."""
        mask: NDArray[np.bool_] = rows[..., self._mask] != 0
        return mask

    def parts_of(self, row: NDArray[np.uint8]) -> Iterator[tuple[Leaf, NDArray[Any]]]:
        """Yield the parts of a row `[bytes]`."""
        for leaf in self.leaves:
            yield leaf, row[leaf.start : leaf.stop].view(leaf.numpy_dtype).reshape(leaf.shape)

    def put_mask(self, row: NDArray[np.uint8], mask: NDArray[Any] | int) -> None:
        """Write an action mask `[A]` into a row `[bytes]`; 1 allows every action."""
        row[self._mask] = mask

    def __repr__(self) -> str:
        """Return the space that is packed, for messages."""
        return f"{self.unpacked} with an action mask" if self.masked else str(self.unpacked)

    def __eq__(self, other: object) -> bool:
        """Return whether another space packs equal observations."""
        return isinstance(other, PackedSpace) and (self.unpacked, self.masked) == (other.unpacked, other.masked)


def masks_of(space: spaces.Space[Any]) -> PackedSpace | None:
    """Return the space if its observations have an action mask, else None."""
    return space if isinstance(space, PackedSpace) and space.masked else None


def without_masked(values: Tensor, allowed: Tensor) -> Tensor:
    """Return action values that are -inf where an action is masked, and greater than that elsewhere.

    Args:
        values: The action values, `[..., A]`.
        allowed: The action masks, `[..., A]`.
    """
    return torch.where(allowed, values.clamp(min=torch.finfo(values.dtype).min), float("-inf"))


def part_dtype(space: spaces.Space[Any]) -> torch.dtype:
    """Return the dtype in which a part of an observation is packed and reaches the network."""
    dtype = np.dtype(space.dtype)
    return torch.float32 if dtype.kind == "f" else KEPT.get(str(dtype), torch.int64)


def _parts(space: spaces.Space[Any], path: tuple[Key, ...]) -> Iterator[tuple[tuple[Key, ...], spaces.Space[Any]]]:
    """Yield the parts of a space with the keys that lead to them."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for key, part in parts_of(space):
            yield from _parts(part, (*path, key))
        return
    where = f" at {''.join(f'[{key!r}]' for key in path)}" if path else ""
    if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiBinary):
        raise UnsupportedPart(f"{type(space).__name__}{where}")
    if 0 in (space.shape or ()):
        raise UnsupportedPart(f"{space}{where}, which has no numbers")
    yield path, space


class Unpacked(nn.Module):
    """A network of packed observations: unpacks them for a network of observations as the environment returns them.

    Args:
        network: Maps observations `[B, ...]` to outputs `[B, A, atoms]`.
        space: The space of the packed observations.
    """

    def __init__(self, network: nn.Module, space: PackedSpace) -> None:
        super().__init__()
        self.network, self._space = network, space

    def forward(self, rows: Tensor, *fractions: Tensor) -> Tensor:
        """Map packed observations `[B, bytes]` to outputs."""
        outputs: Tensor = self.network(self._space.unpack(rows), *fractions)
        return outputs

"""Whether an observation fits its space, and in which words it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray


class Misfit(Exception):
    """What `reset` or `step` returned does not fit the spaces; the message goes on after the name of the method."""


def fitted(space: spaces.Space[Any], observation: Any, name: str) -> NDArray[Any]:
    """Return an observation, or a part of one, with the shape and the dtype of its space.

    Args:
        space: The space: `Box`, `Discrete` or `MultiBinary`.
        observation: What the environment returned.
        name: What it is called in a message.

    Raises:
        Misfit: If it has another shape, cannot be cast without a change of kind, or is out of range.
    """
    dtype, shape = np.dtype(space.dtype), tuple(space.shape or ())
    try:
        array = np.asarray(observation)
    except ValueError:
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "biuf":
        raise Misfit(f"returned {kind_of(observation)} as {name}, which is not of {space}")
    if array.shape != shape:
        raise Misfit(f"returned an {name} of shape {array.shape}, but the space is {space}")
    integers = array.dtype.kind in "biu" and dtype.kind in "biu"
    if not (integers or np.can_cast(array.dtype, dtype, "same_kind")):
        raise Misfit(f"returned an {name} of {array.dtype}, but the space is {space}: a cast would lose its fractions")
    # A cast of integers would wrap around.
    if integers and array.dtype != dtype and (wrong := outside(space, array)):
        raise Misfit(f"returned an {name} with {wrong}, but the space is {space}")
    with np.errstate(over="ignore"):
        return array.astype(dtype, copy=False)


def bounds(space: spaces.Space[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the smallest and the largest values of an observation space."""
    if isinstance(space, spaces.Discrete):
        return np.asarray(space.start), np.asarray(space.start + space.n - 1)
    if isinstance(space, spaces.Box):
        return space.low, space.high
    return np.asarray(0), np.asarray(1)  # MultiBinary


def outside(space: spaces.Space[Any], observation: NDArray[Any]) -> str | None:
    """Return, in words, the first number of an observation that is not in its space; None if all are.

    Floats may be beyond a bound by a rounding error.
    """
    low, high = bounds(space)
    if (observation >= low).all() and (observation <= high).all() and observation.dtype.kind != "f":
        return None
    if low.dtype.kind == "f":
        low, high = low - 1e-6 * np.maximum(1, np.abs(low)), high + 1e-6 * np.maximum(1, np.abs(high))
    fits = np.isfinite(observation) & (observation >= low) & (observation <= high)
    if fits.all():
        return None
    where = tuple(int(i) for i in np.argwhere(~fits)[0])
    value = observation[where]
    return f"{value} at {list(where)}" if where else f"the value {value}"


def unusable(space: spaces.Space[Any], observation: NDArray[Any]) -> str | None:
    """Return, in words, the first number of an observation that learning cannot use; None if there is none."""
    if observation.dtype.kind != "f":
        return outside(space, observation)
    finite = np.isfinite(observation)
    if finite.all():
        return None
    where = tuple(int(i) for i in np.argwhere(~finite)[0])
    return f"{observation[where]} at {list(where)}"


def kind_of(value: Any) -> str:
    """Return in words what kind of value this is."""
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    return f"a {type(value).__name__}" if value is not None else "None"

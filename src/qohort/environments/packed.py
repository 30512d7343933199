"""Packs what an environment returns: `Dict` and `Tuple` observations, and action masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from qohort.environments.observations import Misfit, fitted, kind_of, unusable
from qohort.networks.packing import Leaf, PackedSpace

ACTION_MASK = "action_mask"
"""The entry of an info, or the key of a `Dict` observation, that has the action mask."""


def packed_space(env: gym.Env[Any, Any], action_mask: bool) -> PackedSpace | None:
    """Return the space in which the observations of an environment are packed; None if they need not be.

    Args:
        env: The environment.
        action_mask: Whether it gives action masks.

    Raises:
        UnsupportedPart: If a part of the observation space is not supported.
        ValueError: If the mask does not fit the actions.
    """
    space, actions = getattr(env, "observation_space", None), getattr(env, "action_space", None)
    if not (isinstance(space, spaces.Space) and isinstance(actions, spaces.Space)):
        return None  # `check_spaces` says what is missing
    if not action_mask:
        return PackedSpace(space) if isinstance(space, spaces.Dict | spaces.Tuple) else None
    if not isinstance(actions, spaces.Discrete):
        raise ValueError(f"an action mask needs Discrete actions, not {actions}: set env.action_mask=false")
    if isinstance(space, spaces.Dict) and ACTION_MASK in space.spaces:
        mask = space[ACTION_MASK]
        if mask.shape != (actions.n,):
            raise ValueError(f"its action mask is {mask}, but it has {actions.n} actions")
        rest = {key: part for key, part in space.items() if key != ACTION_MASK}
        if not rest:
            raise ValueError("its observations have nothing but an action mask")
        space = next(iter(rest.values())) if len(rest) == 1 else spaces.Dict(rest)
    return PackedSpace(space, int(actions.n))


class PackedEnv(gym.Wrapper[NDArray[np.uint8], Any, Any, Any]):
    """Packs the observations of an environment, with their action masks, and checks each part.

    Args:
        env: The environment.
        space: See `packed_space`.
    """

    def __init__(self, env: gym.Env[Any, Any], space: PackedSpace) -> None:
        super().__init__(env)
        self.observation_space: spaces.Space[Any] = space
        self._space = space
        keys = env.observation_space.spaces if isinstance(env.observation_space, spaces.Dict) else {}
        self._in_observation = bool(space.masked) and ACTION_MASK in keys
        # The key of the only other value of a Dict, which the network gets as it is.
        others = tuple(key for key in keys if key != ACTION_MASK)
        self._before = others if self._in_observation and len(others) == 1 else ()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Start an episode.

        Raises:
            Misfit: If the environment returns what does not fit its spaces.
        """
        returned: Any = self.env.reset(seed=seed, options=options)
        if type(returned) is not tuple or len(returned) != 2:
            return returned  # which is reported where every environment is checked
        observation, info = returned
        return self._packed(observation, info, ended=False), info

    def step(self, action: Any) -> Any:
        """Step the environment.

        Raises:
            Misfit: If the environment returns what does not fit its spaces.
        """
        returned: Any = self.env.step(action)
        if type(returned) is not tuple or len(returned) != 5:
            return returned
        observation, reward, terminated, truncated, info = returned
        return self._packed(observation, info, ended=bool(np.all(terminated))), reward, terminated, truncated, info

    def _packed(self, observation: Any, info: Any, ended: bool) -> NDArray[np.uint8]:
        row = np.zeros(self._space.shape, np.uint8)
        for leaf in self._space.leaves:
            value = _at(observation, (*self._before, *leaf.path), self.env.observation_space)
            row[leaf.start : leaf.stop] = np.frombuffer(_of_leaf(value, leaf).tobytes(), np.uint8)
        if self._space.masked:
            self._space.put_mask(row, self._mask(observation, info, ended))
        return row

    def _mask(self, observation: Any, info: Any, terminated: bool) -> NDArray[np.bool_] | int:
        """Return the action mask; 1 for the end of an episode that allows nothing, since nothing follows it."""
        holder, place = (observation, "observation") if self._in_observation else (info, "info")
        mask = holder.get(ACTION_MASK) if isinstance(holder, Mapping) else None
        if mask is None:
            if terminated:
                return 1
            raise Misfit(f"returned no {place}['{ACTION_MASK}'], which env.action_mask=true needs at every step")
        array = np.asarray(mask)
        if array.shape != (self._space.masked,) or array.dtype.kind not in "biu" or ((array != 0) & (array != 1)).any():
            shown = " ".join(repr(mask).split())[:80]
            raise Misfit(
                f"returned {place}['{ACTION_MASK}']={shown}: it must have {self._space.masked} integers, 1 where an "
                "action is allowed and else 0"
            )
        if not array.any():
            if terminated:
                return 1
            raise Misfit(f"returned {place}['{ACTION_MASK}'] that allows no action, but the episode has not terminated")
        return array.astype(np.bool_)


def _at(observation: Any, path: tuple[Any, ...], space: spaces.Space[Any]) -> Any:
    """Return a part of an observation.

    Raises:
        Misfit: If it has no such part.
    """
    value = observation
    for key in path:
        if not isinstance(value, Mapping | tuple | list):
            raise Misfit(f"returned {kind_of(observation)} as observation, which is not of {space}")
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError) as error:
            raise Misfit(f"returned an observation without {key!r}, but the space is {space}") from error
    return value


def _of_leaf(value: Any, leaf: Leaf) -> NDArray[Any]:
    """Return a part of an observation in the dtype of its row.

    Raises:
        Misfit: If it does not fit its space.
    """
    array = fitted(leaf.space, value, leaf.name)
    with np.errstate(over="ignore"):
        array = np.asarray(array).astype(leaf.numpy_dtype, copy=False)
    if wrong := unusable(leaf.space, array):
        raise Misfit(f"returned an {leaf.name} with {wrong}, but its space is {leaf.space}")
    return array


def split_mask(observation: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return what a network gets of an observation that has an action mask, and the mask."""
    rest = {key: value for key, value in observation.items() if key != ACTION_MASK}
    return next(iter(rest.values())) if len(rest) == 1 else rest, observation[ACTION_MASK]


def gives_mask(space: spaces.Space[Any], info: Any) -> bool:
    """Return whether an environment gives an action mask, by its observation space and the info of its `reset`."""
    space = space.unpacked if isinstance(space, PackedSpace) else space
    return (isinstance(space, spaces.Dict) and ACTION_MASK in space.spaces) or (
        isinstance(info, Mapping) and ACTION_MASK in info
    )

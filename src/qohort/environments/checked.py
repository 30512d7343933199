"""One environment whose returns are checked: what does not fit its spaces is an error, with the episode that shows it.

A check of every step must cost next to nothing. So types and shapes are checked step by step, by identity where they
are right, and the values of all environments together (`ValueCheck`).
"""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from qohort.environments.actions import Recorded
from qohort.environments.observations import Misfit, bounds, fitted, kind_of, outside, unusable
from qohort.networks.packing import masks_of

SINCE = "that is Gymnasium's interface since 0.26"
NUMBERS = frozenset((float, int, bool, np.float64, np.float32, np.int64, np.int32, np.bool_))
"""Types of rewards that need no conversion."""
INTEGERS = frozenset((int, np.int64))
"""Types of observations of a `Discrete` space that need no conversion."""


LIFE_LOST = "life_lost"
"""The entry of an info which says that the discount after a step is 0 although the episode goes on."""
INFO_METRICS = "info_metrics"
"""The entry of a vector environment's info that has the numbers of the episodes that ended."""
STEPS_AT_ONCE = 64
"""The steps whose observations are compared with the bounds of their space together."""


class EnvironmentFailure(Exception):
    """An environment raised an error, or returned what it must not.

    Args:
        reason: What happened, in one line.
        seed: The seed of the episode.
        actions: The actions of the episode, the last of which caused the failure; counted as the environment does.
        trace: The traceback, if the environment raised an error.
    """

    def __init__(self, reason: str, seed: int | None, actions: list[Recorded], trace: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.seed, self.actions, self.trace = reason, seed, actions, trace

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to make a copy, in another process."""
        return type(self), (self.reason, self.seed, self.actions, self.trace)


class CheckedEnv:
    """Steps one environment and checks what it returns.

    Args:
        env: The environment.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.env = env
        self.seed: int | None = None
        """The seed of the current episode."""
        self.actions: list[Recorded] = []
        """The actions of the current episode."""
        self.info: Any = {}
        """The newest info."""
        self.life_lost = False
        """Whether the info of the newest step has `life_lost`."""
        self._step, space = env.step, env.observation_space
        self._space = space
        self._dtype, self._shape = np.dtype(space.dtype), tuple(space.shape or ())
        self._integer = self._shape == () and self._dtype.kind in "iu"
        # Times 0, a number is 0 if it is finite, and else NaN, which is true.
        self._zeros = np.zeros(math.prod(self._shape), self._dtype) if self._dtype.kind == "f" else None

    def reset(self, seed: int) -> NDArray[Any]:
        """Start an episode and return its first observation.

        Raises:
            EnvironmentFailure: If the environment raises an error, or returns something else than (observation, info).
        """
        self.seed = seed
        self.actions = []
        try:
            observation, info = returned = self.env.reset(seed=seed)
        except (Exception, SystemExit) as error:
            raise self._raised("reset", "(observation, info)", error) from error
        self.info = info
        if type(returned) is not tuple or not isinstance(info, dict):
            raise self.failure(f"reset() returned {kind_of(returned)}, not a tuple (observation, info): {SINCE}")
        if (
            type(observation) is not np.ndarray
            or observation.dtype is not self._dtype
            or observation.shape != self._shape
        ):
            observation = self._fitted(observation, "reset")
        flat = observation if len(self._shape) == 1 else observation.reshape(-1)
        finite = self._zeros is not None and not flat.dot(self._zeros)
        if not finite and (wrong := unusable(self._space, observation)):
            raise self.failure(f"reset() returned an observation with {wrong}, but the space is {self._space}")
        return observation  # type: ignore[no-any-return]

    def step(self, action: Any) -> tuple[NDArray[Any], float, bool, bool]:
        """Take an action and return the observation, the reward, terminated and truncated.

        Args:
            action: The action as the environment counts it: a NumPy integer, or an array of K.

        Raises:
            EnvironmentFailure: If the environment raises an error, or returns something that does not fit.
        """
        self.actions.append(action.tolist())
        try:
            observation, reward, terminated, truncated, info = self._step(action)
        except (Exception, SystemExit) as error:
            raise self._raised("step", "(observation, reward, terminated, truncated, info)", error) from error
        if type(observation) is np.ndarray:
            if observation.dtype is not self._dtype or observation.shape != self._shape:
                observation = self._fitted(observation, "step")
        elif not (self._integer and type(observation) in INTEGERS):
            observation = self._fitted(observation, "step")
        if type(reward) is not float or reward - reward != 0.0:
            reward = self._number(reward)
        if type(terminated) is not bool or type(truncated) is not bool:
            terminated = self._flag("terminated", terminated)
            truncated = self._flag("truncated", truncated)
        self.info = info
        self.life_lost = type(info) is dict and LIFE_LOST in info and bool(info[LIFE_LOST])
        return observation, reward, terminated, truncated

    def failure(self, reason: str, trace: str | None = None) -> EnvironmentFailure:
        """Return the failure of the current episode for a reason."""
        return EnvironmentFailure(reason, self.seed, list(self.actions), trace)

    def _raised(self, method: str, wanted: str, error: BaseException) -> EnvironmentFailure:
        """Return the failure of a method that raised an error, or returned something that cannot be unpacked."""
        if isinstance(error, Misfit):
            return self.failure(f"{method}() {error}")
        if _cannot_unpack(error):
            return self.failure(f"{method}() did not return a tuple {wanted}: {SINCE}")
        return self.failure(f"{method}() raised {in_words(error)}", "".join(traceback.format_exception(error)))

    def _fitted(self, observation: Any, method: str) -> NDArray[Any]:
        """Return an observation with the shape and the dtype of the space.

        Raises:
            EnvironmentFailure: If it has another shape, cannot be cast without a change of kind, or is out of range.
        """
        try:
            return fitted(self._space, observation, "observation")
        except Misfit as error:
            raise self.failure(f"{method}() {error}") from None

    def _number(self, reward: Any) -> float:
        """Return a reward as a finite number.

        Raises:
            EnvironmentFailure: If it is not one real number, or not finite.
        """
        number = float(reward) if type(reward) in NUMBERS else self._converted(reward)
        if not math.isfinite(number):
            raise self.failure(f"step() returned the reward {reward}: rewards must be finite")
        return number

    def _converted(self, reward: Any) -> float:
        """Return a reward of an unusual type as a number.

        Raises:
            EnvironmentFailure: If it is not one real number.
        """
        try:
            if isinstance(reward, str | bytes | complex | None):
                raise TypeError
            return float(reward.item() if hasattr(reward, "item") else reward)
        except (TypeError, ValueError, RuntimeError) as error:
            shown = " ".join(repr(reward).split())[:60]
            raise self.failure(f"step() returned the reward {shown}, which is not a number") from error

    def _flag(self, name: str, value: Any) -> bool:
        """Return terminated or truncated as a bool.

        Raises:
            EnvironmentFailure: If it is not true or false.
        """
        if isinstance(value, bool | np.bool_) or (np.ndim(value) == 0 and value in (0, 1)):
            return bool(value)
        raise self.failure(f"step() returned {name}={' '.join(repr(value).split())[:60]}, which is not true or false")


class ValueCheck:
    """Checks the values of the observations of several environments.

    Observations must be finite and within the space. Floats beyond the bounds of a `Box` are reported once and allowed,
    because no computation depends on the bounds.

    Args:
        space: The observation space of one environment.
        observations: The array `[N, ...]` into which every step writes its observations.
    """

    def __init__(self, space: spaces.Space[Any], observations: NDArray[Any]) -> None:
        self._space = space
        self._observations = observations
        self._floats = observations.dtype.kind == "f"
        flat = observations.reshape(-1)
        self._dot, self._zeros = flat.dot, np.zeros_like(flat)
        self._low, self._high = bounds(space)
        self.harmless = np.nan_to_num(self._low, neginf=0).astype(observations.dtype)
        """An observation `[...]` that can be used, for an environment that has failed."""
        if (masks := masks_of(space)) is not None:
            masks.put_mask(self.harmless, 1)
        self._bounded = self._floats and bool(np.isfinite(self._low).any() or np.isfinite(self._high).any())
        # Bounds are compared for many steps at once.
        self._steps = np.zeros((STEPS_AT_ONCE if self._bounded else 0, *observations.shape), observations.dtype)
        self._step = 0
        self._reason: str | None = None
        self._any_value = observations.dtype.kind == "b"
        if observations.dtype.kind in "iu":
            full = np.iinfo(observations.dtype)
            self._any_value = bool((self._low <= full.min).all() and (self._high >= full.max).all())

    def wrong(self) -> list[tuple[int, str]]:
        """Return the index of each environment whose observation cannot be used, and why."""
        if self._any_value:
            return []
        if self._floats:
            if self._bounded:
                self._steps[self._step] = self._observations
                self._step += 1
                if self._step == STEPS_AT_ONCE:
                    self._compare_bounds()
            # Times 0, a number is 0 if it is finite, and else NaN, which is true.
            if not self._dot(self._zeros):
                return []
        elif (self._observations >= self._low).all() and (self._observations <= self._high).all():
            return []
        rows = ((i, unusable(self._space, row)) for i, row in enumerate(self._observations))
        return [(i, reason) for i, reason in rows if reason is not None]

    def beyond(self) -> str | None:
        """Return, once, a float that was beyond the bounds of the space at a step since the last call."""
        self._compare_bounds()
        reason, self._reason = self._reason, None
        return reason

    def _compare_bounds(self) -> None:
        """Look for a float beyond the bounds in the steps since the last time. After the first, do not look again."""
        steps, self._step = self._steps[: self._step], 0
        if (steps >= self._low).all() and (steps <= self._high).all():
            return
        reasons = (outside(self._space, row) for step in steps for row in step)
        self._reason = next((reason for reason in reasons if reason is not None), None)
        self._bounded = self._reason is None


def _cannot_unpack(error: BaseException) -> bool:
    """Return whether what an environment returned could not be unpacked, here or in a wrapper around it."""
    trace = error.__traceback__
    if trace is None or trace.tb_next is None:
        return True  # the error was raised where the environment was called
    while trace.tb_next is not None:
        trace = trace.tb_next
    place = str(trace.tb_frame.f_globals.get("__name__"))
    return "unpack" in str(error) and place.startswith(("gymnasium.", "qohort."))


def named_numbers(info: Any, names: Sequence[str]) -> list[float]:
    """Return the numbers of these names in an info; NaN for what is missing or not a number."""
    values: list[Any] = [info.get(name) if isinstance(info, Mapping) else None for name in names]
    return [float(value) if is_number(value) else math.nan for value in values]


def numbers_of(info: Any) -> list[str]:
    """Return the names of the numbers in an info."""
    return [str(name) for name, value in info.items() if is_number(value)] if isinstance(info, Mapping) else []


def is_number(value: Any) -> bool:
    """Return whether a value is one real number, a boolean included."""
    return np.ndim(value) == 0 and np.asarray(value).dtype.kind in "biuf"


def close_all(envs: Iterable[gym.Env[Any, Any]]) -> None:
    """Close environments. An error is reported and has no other effect, because all results are there already."""
    reasons = set()
    for env in envs:
        try:
            env.close()
        except Exception as error:
            reasons.add(in_words(error))
    for reason in sorted(reasons):
        print(f"qohort: close() of an environment raised {reason}: no result is affected", file=sys.stderr)


def in_words(error: BaseException) -> str:
    """Return an error in one line: its type, and its message if it has one."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__

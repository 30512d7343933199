"""Stacks the newest frames of an environment into one observation (`env.frame_stack`)."""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from qohort.config.schema import TrainConfig
from qohort.networks.packing import PackedSpace
from qohort.replay.transition import Frames


class FrameStack(gym.Wrapper[NDArray[Any], Any, NDArray[Any], Any]):
    """Stacks the newest frames on a new first axis, the newest last (Mnih et al., 2015).

    It is Gymnasium's `FrameStackObservation`, except that an environment may return the same array at each step.

    Args:
        env: The environment, whose observations are the frames.
        frames: The number of frames, and what stands for those before the first one of an episode.

    Raises:
        ValueError: If the observations are not arrays.
    """

    def __init__(self, env: gym.Env[NDArray[Any], Any], frames: Frames) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box):
            raise ValueError(f"frames are stacked of a Box, got {space}")
        self._frames = frames
        low, high = (np.repeat(bound[np.newaxis], frames.stack, axis=0) for bound in (space.low, space.high))
        if frames.padding == "zero":
            low, high = np.minimum(low, 0), np.maximum(high, 0)
        self.observation_space = spaces.Box(low, high, dtype=space.dtype.type)
        self._zeros = np.zeros(space.shape, space.dtype)
        self._newest: deque[NDArray[Any]] = deque(maxlen=frames.stack)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start an episode."""
        frame, info = self.env.reset(seed=seed, options=options)
        before = np.array(frame) if self._frames.padding == "reset" else self._zeros
        self._newest.extend([before] * self._frames.stack)
        return self._with(frame), info

    def step(self, action: Any) -> tuple[NDArray[Any], Any, bool, bool, dict[str, Any]]:
        """Step the environment."""
        frame, reward, terminated, truncated, info = self.env.step(action)
        return self._with(frame), reward, terminated, truncated, info

    def _with(self, frame: NDArray[Any]) -> NDArray[Any]:
        self._newest.append(np.array(frame))
        return np.stack(self._newest)


def stored_frames(config: TrainConfig, space: spaces.Space[Any], in_programs: bool) -> Frames | None:
    """Return how the observations of a run are made of frames, for `ReplaySpec`.

    Args:
        config: The configuration.
        space: The observation space.
        in_programs: Whether programs step the environments.

    Returns:
        The frames; None if the replay must store observations in pairs. Normalised, the frames of a stack have the
        statistics of its own step.
    """
    if in_programs or config.normalize_observations:
        return None
    if isinstance(space, PackedSpace):  # a row of bytes, also where a part of it is a stack
        return Frames(1, config.env.frame_padding)
    return Frames(config.env.frame_stack, config.env.frame_padding)

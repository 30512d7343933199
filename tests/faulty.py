"""Environments with one thing wrong: a chain whose best return is known, and a list of wrongs for it.

A wrong shows at once (`when=0`), or after that many steps of one instance.
"""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

LENGTH = 6


class Chain(gym.Env[Any, Any]):
    """Walk right to the end: reward 1 there, 0 before. Observations are one-hot. The best return is 1."""

    def __init__(self, wrong: str = "", when: int = 0, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(0, 1, (LENGTH,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.render_mode = render_mode
        self.wrong, self.when, self.steps = wrong, when, 0
        self.cell = self.time = self.games = 0

    def broken(self, wrong: str) -> bool:
        return self.wrong == wrong and self.steps >= self.when

    def observe(self) -> Any:
        observation = np.zeros(LENGTH, np.float32)
        observation[self.cell] = 1
        for wrong, instead in OBSERVATIONS.items():
            if self.broken(wrong):
                return instead(observation)
        return observation

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.cell, self.time = int(self.np_random.integers(LENGTH - 2)), 0
        self.games += 1
        if self.broken("reset raises"):
            raise ConnectionError("the server has gone")
        if self.broken("ignores the seed"):
            self.cell = int(np.random.default_rng().integers(LENGTH - 2))
            return self.observe() + np.random.default_rng().random(LENGTH).astype(np.float32) / 1e4, {}
        if self.broken("reset without info"):
            return self.observe()
        if self.broken("reset returns three"):
            return self.observe(), {}, False
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.time += 1
        self.cell = min(LENGTH - 1, max(0, self.cell + (1 if action else -1)))
        terminated, truncated = self.cell == LENGTH - 1, self.time >= 20
        reward: Any = float(terminated)
        if self.broken("step raises"):
            raise ZeroDivisionError("speed is 0")
        if self.broken("exits"):
            sys.exit("licence not found")
        if self.broken("old step"):
            return self.observe(), reward, terminated or truncated, {}
        if self.broken("step returns None"):
            return None
        if self.broken("harder with every game"):
            reward -= self.games / 100
        for wrong, instead in REWARDS.items():
            if self.broken(wrong):
                reward = instead
        if self.broken("terminated is None"):
            return self.observe(), reward, None, truncated, {}
        if self.broken("truncated is a word"):
            return self.observe(), reward, terminated, "no", {}
        return self.observe(), reward, terminated, truncated, {}


OBSERVATIONS = {
    "NaN": lambda one: np.where(one > 0, np.nan, one).astype(np.float32),
    "infinite": lambda one: np.where(one > 0, np.inf, one).astype(np.float32),
    "beyond the bounds": lambda one: one * 7,
    "a number": lambda one: np.float32(1),
    "one element": lambda one: one[:1],
    "too long": lambda one: np.append(one, one),
    "an axis more": lambda one: one[None],
    "None": lambda one: None,
    "a word": lambda one: "cell",
    "ragged": lambda one: [[1, 2], [3]],
    "a dictionary": lambda one: {"cell": one},
    "complex": lambda one: one + 1j,
}
REWARDS = {
    "reward NaN": float("nan"),
    "reward infinite": float("inf"),
    "reward None": None,
    "reward a word": "1.0",
    "reward two numbers": np.array([0.0, 1.0]),
    "reward complex": 1 + 2j,
}
LIFE = ("reset raises", "reset without info", "reset returns three", "step raises", "exits", "old step")
LIFE += ("step returns None", "terminated is None", "truncated is a word")
MEMORY = ("ignores the seed", "harder with every game")
WRONGS = (*OBSERVATIONS, *REWARDS, *LIFE)

gym.register("Faulty-v0", Chain)

"""A small environment whose actions have several numbers, and what its values are.

In each of its cells both numbers of the action must be right to go on; each wrong one costs something.
"""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

GAMMA = 0.9
RIGHT = ((0, 2), (1, 0), (1, 1))
"""The right action of each cell, counted from 0."""
SIZES = (2, 3)
COSTS = (0.5, 0.25)
"""What a wrong number costs."""
GOAL = 2.0
"""The reward of the last cell."""
START = (1, -1)
"""The first number of each part of an action, as the environment counts."""


def outcome(cell: int, action: tuple[int, ...]) -> tuple[int | None, float]:
    """The next cell, None at the end, and the reward of an action that is counted from 0."""
    wrong = [one != right for one, right in zip(action, RIGHT[cell], strict=True)]
    reward = -sum(cost for cost, is_wrong in zip(COSTS, wrong, strict=True) if is_wrong)
    if any(wrong):
        return cell, reward
    return (None, reward + GOAL) if cell == len(RIGHT) - 1 else (cell + 1, reward)


class Locks(gym.Env[Any, Any]):
    """Starts in a random cell. `space` is `MultiDiscrete` with a start that is not 0."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Discrete(len(RIGHT))
        self.action_space = spaces.MultiDiscrete(np.array(SIZES), dtype=np.int32, start=np.array(START))
        self.render_mode = render_mode
        self.cell = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.cell = int(self.np_random.integers(len(RIGHT)))
        return self.cell, {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        following, reward = outcome(self.cell, tuple((action - START).tolist()))
        self.cell = self.cell if following is None else following
        return self.cell, reward, following is None, False, {}

    def render(self) -> NDArray[np.uint8]:
        return np.full((16, 16, 3), 80 * self.cell, np.uint8)


class Pictures(Locks):
    """The same with large observations, which a replay stores once."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.observation_space = spaces.Box(0, 255, (4, 20, 20), np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.picture(super().reset(seed=seed, options=options))

    def step(self, action: Any) -> Any:
        return self.picture(super().step(action))

    def picture(self, outcome: Any) -> Any:
        return np.full((4, 20, 20), outcome[0] * 60, np.uint8), *outcome[1:]


class Switches(Locks):
    """Actions of a `MultiBinary` space, which move on; an error after some steps of one instance."""

    def __init__(self, render_mode: str | None = None, until: int = 10**9) -> None:
        super().__init__(render_mode)
        self.action_space, self.until, self.steps = spaces.MultiBinary(2), until, 0

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self.steps += 1
        if self.steps > self.until:
            raise ZeroDivisionError("the switch is stuck")
        self.cell = (self.cell + int(action.sum())) % len(RIGHT)
        return self.cell, float(action[0]), self.cell == 0, False, {}


for _made in (Locks, Pictures, Switches):
    gym.register(f"Qohort{_made.__name__}-v0", _made, max_episode_steps=20)

ACTIONS = list(itertools.product(*map(range, SIZES)))


def optimal_values() -> NDArray[np.float64]:
    """Q* of each branch where the other one is right, `[cells, Σ n_k]`: joint value iteration."""
    value = np.zeros(len(RIGHT))

    def backup(cell: int, action: tuple[int, ...]) -> float:
        following, reward = outcome(cell, action)
        return reward + (0.0 if following is None else GAMMA * value[following])

    for _ in range(500):
        value = np.array([max(backup(cell, action) for action in ACTIONS) for cell in range(len(RIGHT))])
    return np.array(
        [
            [backup(cell, (a, right[1])) for a in range(SIZES[0])]
            + [backup(cell, (right[0], a)) for a in range(SIZES[1])]
            for cell, right in enumerate(RIGHT)
        ]
    )


def branched_values() -> NDArray[np.float64]:
    """The fixed point of the branches' update where all actions are random, `[cells, Σ n_k]`.

    A branch averages over what the others do, and all have one target: Q_k(s, a) = E[r + γ mean_j max Q_j(s')].
    """
    parts = (slice(0, SIZES[0]), slice(SIZES[0], sum(SIZES)))
    values = np.zeros((len(RIGHT), sum(SIZES)))
    for _ in range(500):
        state = np.mean([values[:, part].max(1) for part in parts], 0)
        new = np.zeros_like(values)
        for cell in range(len(RIGHT)):
            for action in ACTIONS:
                following, reward = outcome(cell, action)
                target = reward + (0.0 if following is None else GAMMA * state[following])
                for k, part in enumerate(parts):
                    new[cell, part.start + action[k]] += target * SIZES[k] / len(ACTIONS)
        values = new
    return values

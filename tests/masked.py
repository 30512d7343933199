"""Small environments with action masks or observations of several parts, whose optimal action values are known."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

LENGTH, ACTIONS = 4, 4
LEFT, RIGHT, JUMP, FALL = range(ACTIONS)


class MaskedChain(gym.Env[Any, Any]):
    """States 0 to 3 in a row; right from the last one ends the episode with reward 1.

    `JUMP` goes right by two and costs 0.05, and is allowed in the even states only. `LEFT` is not allowed in state 0.
    `FALL`, which would give a reward of 10 for ever, is never allowed. A masked action is an error. Every seventh
    episode is truncated after three steps.

    Args:
        where: Where the mask is: `info`, or `observation` for a key of it.
        wrong: What is wrong with the mask from the third step on: "", `nothing`, `shape`, `dtype`, `missing`.
    """

    def __init__(self, where: str = "info", wrong: str = "", render_mode: str | None = None) -> None:
        self.action_space = spaces.Discrete(ACTIONS)
        self._where, self._wrong, self._steps = where, wrong, 0
        self.observation_space: spaces.Space[Any] = spaces.Discrete(LENGTH)
        if where == "observation":
            mask = spaces.MultiBinary(ACTIONS)
            self.observation_space = spaces.Dict({"observation": spaces.Discrete(LENGTH), "action_mask": mask})

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._state, self._steps = int(self.np_random.integers(LENGTH)), 0
        self._limit = 3 if self.np_random.random() < 1 / 7 else 100
        return self._seen()

    def step(self, action: Any) -> Any:
        if not allowed(self._state)[action]:
            raise AssertionError(f"action {action} is masked in state {self._state}")
        reward, after = outcome(self._state, int(action))
        self._steps += 1
        terminated = after is None
        self._state = 0 if after is None else after
        observation, info = self._seen()
        return observation, reward, terminated, self._steps >= self._limit, info

    def _seen(self) -> Any:
        mask: Any = np.array(allowed(self._state), dtype=np.int8)
        if self._wrong and self._steps >= 3:
            wrong = {"nothing": 0 * mask, "shape": mask[:2], "dtype": mask * 0.5}
            mask = wrong.get(self._wrong)
        given = {} if mask is None else {"action_mask": mask}
        if self._where == "info":
            return self._state, given
        return {"observation": self._state, **given}, {}


def allowed(state: int) -> list[bool]:
    """Which actions are allowed in a state."""
    return [state > 0, True, state % 2 == 0, False]


def outcome(state: int, action: int) -> tuple[float, int | None]:
    """The reward of an action, and the state after it; None for the end."""
    if action == LEFT:
        return 0.0, state - 1
    if action == FALL:
        return 10.0, state
    cost, after = (0.05, state + 2) if action == JUMP else (0.0, state + 1)
    return (1.0 - cost, None) if after >= LENGTH else (-cost, after)


def optimal(gamma: float) -> Any:
    """The optimal action values `[LENGTH, ACTIONS]`, -inf where an action is masked."""
    q = np.where([allowed(state) for state in range(LENGTH)], 0.0, -np.inf)
    for _ in range(200):
        best = q.max(1)
        for state, action in np.argwhere(np.isfinite(q)).tolist():
            reward, after = outcome(state, action)
            q[state, action] = reward + (0.0 if after is None else gamma * best[after])
    return q


class Rooms(gym.Env[Any, Any]):
    """A room of two and a lamp: the state is in several parts, and no part alone says which action is right.

    The right action is `room` if the lamp is off, and `1 - room` if it is on. It gives 1 and ends the episode; the
    other one gives 0 and turns the lamp.
    """

    def __init__(self, render_mode: str | None = None, kind: str = "dict", wrong: str = "", side: int = 8) -> None:
        self.action_space = spaces.Discrete(2)
        image = spaces.Box(0, 255, (1, side, side), np.uint8)
        lamp = spaces.Box(-1.0, 1.0, (2,), np.float64)
        self._kind, self._wrong, self._side = kind, wrong, side
        if kind == "tuple":
            self.observation_space: spaces.Space[Any] = spaces.Tuple([spaces.Discrete(2, start=5), lamp])
        else:
            inner = spaces.Dict({"lamp": lamp, "bits": spaces.MultiBinary(3)})
            self.observation_space = spaces.Dict({"camera": image, "room": spaces.Discrete(2), "inner": inner})

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._room, self._lamp = (int(one) for one in self.np_random.integers(2, size=2))
        self._steps = 0
        return self._seen(), {"is_success": False, "steps": 0}

    def step(self, action: Any) -> Any:
        right = int(action) == (self._room ^ self._lamp)
        self._lamp ^= 1
        self._steps += 1
        info = {"is_success": right, "steps": self._steps, "text": "not a number"}
        return self._seen(), float(right), right, self._steps >= 6, info

    def _seen(self) -> Any:
        lamp = np.array([self._lamp, 0.5], np.float64)
        if self._kind == "tuple":
            return 5 + self._room, lamp
        camera = np.full((1, self._side, self._side), 255 * self._lamp, np.uint8)
        seen: dict[str, Any] = {
            "camera": camera,
            "room": self._room,
            "inner": {"lamp": lamp, "bits": np.eye(3, dtype=np.int8)[0]},
        }
        if self._wrong and self._steps >= 2:
            seen |= {
                "nan": {"inner": {"lamp": lamp * np.nan, "bits": seen["inner"]["bits"]}},
                "range": {"room": 2},
            }.get(self._wrong, {})
            if self._wrong == "missing":
                del seen["room"]
            if self._wrong == "shape":
                seen["camera"] = camera[0]
        return seen


def rooms_q(gamma: float) -> Any:
    """The optimal action values of the right action and of the other one."""
    return 1.0, gamma


gym.register("MaskedChain-v0", MaskedChain)
gym.register("Rooms-v0", Rooms)

"""Freeway: cross a road (MinAtar, Young & Tian, 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from qohort.environments.tensor.base import State
from qohort.environments.tensor.minatar.base import (
    SIZE,
    MinAtarGame,
    choice,
    minus,
    moved,
    one_hot,
    sparse_picture,
    wholes,
)

PLAYER_SPEED = 3
TIME_LIMIT = 2500
COLUMN = 4
"""The x of the chicken."""


class Freeway(MinAtarGame):
    """Lead the chicken from the bottom to the top, across the rows 1 to 8 with one car each.

    The state: `chicken` is its y, its move_timer and the terminate_timer. `cars` are the x, the timer and the speed of
    the car of each row, `[..., 3, 10]`. A car moves every |speed| + 1 steps, to the right if the speed is positive.
    The rows 0 and 9 have none (x = -1).

    The random numbers of a reset, and those of a step where the chicken reaches the top: for the rows 1 to 8,
    1 + floor(number * 5) is the car's |speed|; for the rows 1 to 8 again, the car goes to the left if the number is
    below 1/2, else to the right.
    """

    channels = ("chicken", "car", "speed1", "speed2", "speed3", "speed4", "speed5")
    minimal_actions = ("n", "u", "d")
    reset_draws = 16
    step_draws = 17

    def start(self, uniforms: Tensor) -> State:
        """Return the chicken at the bottom and cars at the left side."""
        speed = _random_speeds(uniforms)
        x = torch.where(speed == 0, -1, 0)
        return {
            "chicken": wholes(uniforms, SIZE - 1, PLAYER_SPEED, TIME_LIMIT),
            "cars": torch.stack([x, speed.abs(), speed], -2),
        }

    def play(self, state: State, action: Tensor, uniforms: Tensor) -> tuple[State, Tensor, Tensor]:
        """Move the chicken, then the cars."""
        y, move_timer, terminate_timer = state["chicken"].unbind(-1)
        up, down = self.takes(action, "u") & (move_timer == 0), self.takes(action, "d") & (move_timer == 0)
        y = moved(y, up, down)
        move_timer = torch.where(up | down, PLAYER_SPEED, move_timer)
        wins = y == 0
        y = torch.where(wins, SIZE - 1, y)

        x, timer, speed = state["cars"].unbind(-2)
        new_speed = _random_speeds(uniforms)
        speed = torch.where(wins.unsqueeze(-1), new_speed, speed)
        timer = torch.where(wins.unsqueeze(-1), new_speed.abs(), timer)
        # The rows without a car have speed 0.
        moves = (timer == 0) & (speed != 0)
        new_x = torch.where(moves, _around(x + speed.sign()), x)
        timer = torch.where(moves, speed.abs(), minus(timer, timer > 0))
        hit = (((x == COLUMN) | (new_x == COLUMN)) & one_hot(y)).any(-1)
        y = torch.where(hit, SIZE - 1, y)

        terminate_timer = terminate_timer - 1
        state = {
            "chicken": torch.stack([y, minus(move_timer, move_timer > 0), terminate_timer], -1),
            "cars": torch.stack([new_x, timer, speed], -2),
        }
        return state, wins, terminate_timer < 0

    def observe(self, state: State) -> Tensor:
        """Return the pictures."""
        x, _, speed = state["cars"].unbind(-2)
        channels = len(self.channels)
        chicken = torch.where(one_hot(state["chicken"][..., 0]), channels * COLUMN, -1)
        car = torch.where(speed != 0, channels * x + 1, -1)
        # The speeds' channels follow the car's.
        trail = torch.where(speed != 0, channels * _around(x - speed.sign()) + 1 + speed.abs(), -1)
        return sparse_picture(channels, chicken, car, trail)


def _around(x: Tensor) -> Tensor:
    """Return x, or the other side if x is one cell outside the picture."""
    return torch.where(x < 0, SIZE - 1, torch.where(x >= SIZE, 0, x))


def _random_speeds(uniforms: Tensor) -> Tensor:
    """Return the cars' speeds from 16 random numbers, `[..., 10]`; those of the rows without a car are 0."""
    speed = 1 + choice(uniforms[..., :8], 5)
    speed = torch.where(uniforms[..., 8:] < 1 / 2, -speed, speed)
    none = torch.zeros_like(speed[..., :1])
    return torch.cat([none, speed, none], -1)

"""Breakout: break bricks with a ball (MinAtar, Young & Tian, 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from qohort.environments.tensor.base import State
from qohort.environments.tensor.minatar.base import (
    SIZE,
    MinAtarGame,
    cells,
    choice,
    dot,
    moved,
    nothing,
    one_hot,
    picture,
    whole,
)

WIDTH = 4
"""The bits of a cell: one for each channel, so that a row of the picture is the sum of its channels' rows."""
FULL_ROW = sum(1 << WIDTH * x for x in range(SIZE))


class Breakout(MinAtarGame):
    """Move the paddle so that the ball breaks the bricks in the rows 1 to 3.

    The state: `ball` is its x and y, its direction dx and dy (-1 or 1), and its previous x and y. `paddle` is the
    paddle's x. `bricks` is a map. `strike` tells whether the ball touched a brick in the previous step.

    The random number of a reset: floor(number * 2) is 0 for a ball that starts at the left side, 1 at the right.
    A step has none but that of the sticky actions.
    """

    channels = ("paddle", "ball", "trail", "brick")
    minimal_actions = ("n", "l", "r")
    reset_draws = 1

    def start(self, uniforms: Tensor) -> State:
        """Return the ball at one of the sides, and all bricks."""
        side = choice(uniforms[..., 0], 2)
        x, y = (SIZE - 1) * side, torch.full_like(side, 3)
        return {
            "ball": torch.stack([x, y, 1 - 2 * side, torch.ones_like(side), x, y], -1),
            "paddle": whole(uniforms, 4),
            "bricks": whole(uniforms, 0, SIZE) | _all_bricks(x),
            "strike": nothing(uniforms),
        }

    def play(self, state: State, action: Tensor, uniforms: Tensor) -> tuple[State, Tensor, Tensor]:
        """Move the paddle, then the ball."""
        paddle = moved(state["paddle"], self.takes(action, "l"), self.takes(action, "r"))
        last_x, last_y, dx, dy, _, _ = state["ball"].unbind(-1)
        bricks = state["bricks"]

        x, y = last_x + dx, last_y + dy
        dx = torch.where((x < 0) | (x >= SIZE), -dx, dx)
        x = x.clamp(0, SIZE - 1)
        row = one_hot(y)
        # A ball that broke a brick in the previous step goes through the next one.
        touches = (row & ((torch.bitwise_right_shift(bricks, WIDTH * x.unsqueeze(-1)) & 1) == 1)).any(-1)
        breaks = touches & ~state["strike"]
        bricks = bricks & ~torch.where(breaks.unsqueeze(-1), dot(x, y, WIDTH), 0)
        falls = y == SIZE - 1
        cleared = falls & (bricks == 0).all(-1)
        bricks = torch.where(cleared.unsqueeze(-1), _all_bricks(x), bricks)

        on_top = falls & (last_x == paddle)
        on_corner = falls & ~on_top & (x == paddle)
        returns = breaks | on_top | on_corner
        dx = torch.where(on_corner, -dx, dx)
        dy = torch.where(returns | (y < 0), -dy, dy)
        y = torch.where(returns, last_y, y.clamp(min=0))
        state = {
            "ball": torch.stack([x, y, dx, dy, last_x, last_y], -1),
            "paddle": paddle,
            "bricks": bricks,
            "strike": touches,
        }
        return state, breaks, falls & ~on_top & ~on_corner

    def observe(self, state: State) -> Tensor:
        """Return the pictures."""
        x, y, _, _, last_x, last_y = state["ball"].unbind(-1)
        paddle = state["paddle"]
        paddle = dot(paddle, torch.full_like(paddle, SIZE - 1), WIDTH)
        ball, trail = dot(x, y, WIDTH), dot(last_x, last_y, WIDTH)
        return picture((paddle | ball << 1 | trail << 2 | state["bricks"] << 3).unsqueeze(-1), WIDTH)


def _all_bricks(like: Tensor) -> Tensor:
    """Return the map of all bricks, `[10]`, on the device of a tensor."""
    row = cells(like)
    return torch.where((row >= 1) & (row <= 3), FULL_ROW, 0)

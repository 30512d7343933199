"""Space Invaders: shoot aliens (MinAtar, Young & Tian, 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from qohort.environments.tensor.base import State
from qohort.environments.tensor.minatar.base import (
    SIZE,
    MinAtarGame,
    cells,
    dot,
    minus,
    moved,
    number_of,
    picture,
    whole,
    wholes,
)

SHOT_COOL_DOWN = 5
ENEMY_MOVE_INTERVAL = 12
ENEMY_SHOT_INTERVAL = 10
FASTEST_MOVE_INTERVAL = 6

WIDTH = 6
"""The bits of a cell: one for each channel, so that a row of the picture is the sum of its channels' rows."""
WAVE = sum(1 << WIDTH * x for x in range(2, 8))
"""A row of a new wave of aliens."""


class SpaceInvaders(MinAtarGame):
    """Move the cannon at the bottom and shoot the aliens, which come down and shoot back.

    The state: `maps` are those of the aliens, the friendly bullets and the enemy bullets, `[..., 3, 10]`. `numbers` are
    the cannon's x, shot_timer, alien_dir (-1 or 1), alien_move_timer, alien_shot_timer and enemy_move_interval.

    A step has no random number but that of the sticky actions.
    """

    channels = ("cannon", "alien", "alien_left", "alien_right", "friendly_bullet", "enemy_bullet")
    minimal_actions = ("n", "l", "r", "f")

    def start(self, uniforms: Tensor) -> State:
        """Return the cannon in the middle and all aliens."""
        empty = whole(uniforms, 0, SIZE)
        numbers = wholes(uniforms, 5, 0, -1, ENEMY_MOVE_INTERVAL, ENEMY_SHOT_INTERVAL, ENEMY_MOVE_INTERVAL)
        return {"maps": torch.stack([empty | _all_aliens(empty), empty, empty], -2), "numbers": numbers}

    def play(self, state: State, action: Tensor, uniforms: Tensor) -> tuple[State, Tensor, Tensor]:
        """Move the cannon, the bullets and the aliens, and remove what was hit."""
        aliens, friendly, enemy = state["maps"].unbind(-2)
        x, shot_timer, direction, move_timer, alien_shot_timer, interval = state["numbers"].unbind(-1)
        x = moved(x, self.takes(action, "l"), self.takes(action, "r"))
        fires = self.takes(action, "f") & (shot_timer == 0)
        shot_timer = torch.where(fires, SHOT_COOL_DOWN, shot_timer)

        # A shot starts in the row of the cannon and moves up at once.
        shot = torch.where(fires.unsqueeze(-1), dot(x, torch.full_like(x, SIZE - 2), WIDTH), 0)
        none = torch.zeros_like(enemy[..., :1])
        friendly = torch.cat([friendly[..., 1:], none], -1) | shot
        enemy = torch.cat([none, enemy[..., :-1]], -1)
        hit = _is_at(enemy[..., -1] | aliens[..., -1], x)

        moves = move_timer == 0
        move_timer = torch.where(moves, torch.minimum(number_of(aliens, WIDTH), interval), move_timer)
        aliens, direction, landed = _march(aliens, direction, moves)
        hit = hit | landed | _is_at(aliens[..., -1], x)

        shoots = alien_shot_timer == 0
        alien_shot_timer = torch.where(shoots, ENEMY_SHOT_INTERVAL, alien_shot_timer)
        enemy = enemy | torch.where(shoots.unsqueeze(-1), _nearest_alien(aliens, x), 0)

        killed = aliens & friendly
        aliens, friendly = aliens ^ killed, friendly ^ killed
        cleared = (aliens == 0).all(-1)
        if self.ramping:
            interval = minus(interval, cleared & (interval > FASTEST_MOVE_INTERVAL))
        aliens = torch.where(cleared.unsqueeze(-1), _all_aliens(aliens), aliens)

        shot_timer = minus(shot_timer, shot_timer > 0)
        numbers = torch.stack([x, shot_timer, direction, move_timer - 1, alien_shot_timer - 1, interval], -1)
        return {"maps": torch.stack([aliens, friendly, enemy], -2), "numbers": numbers}, number_of(killed, WIDTH), hit

    def observe(self, state: State) -> Tensor:
        """Return the pictures."""
        aliens, friendly, enemy = state["maps"].unbind(-2)
        x, _, direction, _, _, _ = state["numbers"].unbind(-1)
        cannon = dot(x, torch.full_like(x, SIZE - 1), WIDTH)
        marching = torch.where((direction < 0).unsqueeze(-1), aliens << 2, aliens << 3)
        words = cannon | aliens << 1 | marching | friendly << 4 | enemy << 5
        return picture(words.unsqueeze(-1), WIDTH)


def _all_aliens(like: Tensor) -> Tensor:
    """Return the map of a new wave, `[10]`, on the device of a tensor."""
    return torch.where(cells(like) < 4, WAVE, 0)


def _is_at(row: Tensor, x: Tensor) -> Tensor:
    """Return whether a row has something at x."""
    return (torch.bitwise_right_shift(row, WIDTH * x) & 1) == 1


def _march(aliens: Tensor, direction: Tensor, moves: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move the aliens to the side, or down if they are at the edge; return them, their direction, and who landed.

    Aliens that go down from the last row, which ends the episode, appear in the first one.
    """
    to_left = direction < 0
    edge = torch.where(to_left, 1, 1 << WIDTH * (SIZE - 1)).unsqueeze(-1)
    turns = moves & ((aliens & edge) != 0).any(-1)
    landed = turns & (aliens[..., -1] != 0)
    aside = torch.where(to_left.unsqueeze(-1), aliens >> WIDTH, aliens << WIDTH)
    marched = torch.where(turns.unsqueeze(-1), aliens.roll(1, -1), aside)
    return torch.where(moves.unsqueeze(-1), marched, aliens), torch.where(turns, -direction, direction), landed


def _nearest_alien(aliens: Tensor, x: Tensor) -> Tensor:
    """Return the map of the lowest alien of the column that is nearest to x; of two, the left one."""
    index = cells(x)
    distance = index - x.unsqueeze(-1)
    # The distances 0, -1, 1, -2, 2, ... have the ranks 0, 2, 3, 4, 5, ...
    rank = 2 * distance.abs() + (distance > 0)
    # One number tells the column's rank and, in its last digit, the row from below.
    order = SIZE * rank.unsqueeze(-2) + (SIZE - 1 - index).unsqueeze(-1)
    is_alien = (torch.bitwise_right_shift(aliens.unsqueeze(-1), WIDTH * index) & 1) == 1
    first = torch.where(is_alien, order, SIZE * 2 * SIZE).amin((-2, -1))
    rank = first // SIZE
    column = x + torch.where(rank % 2 == 1, rank // 2, -(rank // 2))
    return dot(column, SIZE - 1 - first % SIZE, WIDTH)

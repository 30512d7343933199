"""Seaquest: shoot enemies and rescue divers under water (MinAtar, Young & Tian, 2019).

MinAtar keeps bullets, fish, enemy subs and divers in lists. Here, all but the divers are maps with 6 bits a cell.
A thing without a timer is the lowest bit of its cell, and an enemy is the bit of its move timer, 0 to 5. So the timers
fall with a shift, and enemies move with another one. Maps hold whatever the lists can hold, however long they get, and
need no order, because of these facts.

1. The enemies of a row all have the same direction, since no other one may appear. They appear one by one. With
   `move_speed` s, an enemy moves every s + 1 steps. Enemies that appear with s = 2, its lowest value, keep their
   distance in time for ever. After an enemy that appears with a larger s, the next one takes at least 15 steps, since
   `e_spawn_speed` is at least 15 until s is 2. By then, the older one has moved twice. It stays 2 moves ahead, also
   while s falls, since s falls by at most 1 in a step. So two enemies share a cell only if they appeared with s = 2,
   one or two steps apart, and then their move timers differ. The enemy with the lowest one is the oldest, which comes
   first in MinAtar's list and is hit first. Enemies that arrive in the same step come from different cells.
2. The player moves by at most one cell in a step, and not when it fires. So it never catches up with its bullets. Two
   of them are never in the same cell after a step, and each is hit by at most one enemy.
3. Enemy bullets that share a cell and a direction are one, since they are never counted and never hit by anything.
4. A diver appears every 30 steps, moves every 6 steps, and is gone after its tenth move, before a third one appears. So
   there are at most two. They all move in the same steps, which follow from the timer of their appearance.

MinAtar removes things from its lists by their values while it walks through them. If a bullet comes to where the
previous bullet still is, and hits an enemy that has just appeared there, MinAtar removes the previous bullet and moves
the other one again in its place. The outcome is the same.
"""

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
    minus,
    moved,
    nothing,
    number_of,
    one_hot,
    picture,
    whole,
    wholes,
)

MAX_OXYGEN = 200
INIT_SPAWN_SPEED = 20
DIVER_SPAWN_SPEED = 30
INIT_MOVE_INTERVAL = 5
FASTEST_MOVE_INTERVAL = 2
SHOT_COOL_DOWN = 5
ENEMY_SHOT_INTERVAL = 10
DIVER_MOVE_INTERVAL = 5
MAX_DIVERS = 6

WIDTH = INIT_MOVE_INTERVAL + 1
"""The bits of a cell."""
LOWEST = sum(1 << WIDTH * x for x in range(SIZE))
"""A row with the lowest bit of each cell."""
ROW = (1 << WIDTH * SIZE) - 1
"""A row with all bits."""
FISH = ENEMY_SHOT_INTERVAL + 1
"""The index of the fish among the enemies, after the subs of each shot timer."""


class Seaquest(MinAtarGame):
    """Shoot fish and enemy subs, rescue divers, and surface before the oxygen is used up.

    The state: `numbers` are sub_x, sub_y, sub_or (1 if the sub looks to the right), shot_timer, oxygen, diver_count,
    surface (1 if the sub stays at the surface), ramp_index, move_speed, e_spawn_speed, e_spawn_timer and d_spawn_timer.
    `bullets` are the maps of the friendly bullets to the left and to the right, and of the enemy bullets to the left
    and to the right, `[..., 4, 10]`. `enemies` are the maps of the subs with the shot timers 0, ..., 10, and of the
    fish, `[..., 12, 10]`. `to_right` tells for each row whether its enemies go to the right. `divers` are the x, the y
    and the direction (1 to the right) of the younger and the older diver, `[..., 3, 2]`; x is -1 if there is none.

    The random numbers of a step. Where an enemy appears: 1. it goes to the right if the number is below 1/2; 2. it is
    a sub if the number is below 1/3; 3. 1 + floor(number * 8) is its row. Where a diver appears: 4. it goes to the
    right if the number is below 1/2; 5. 1 + floor(number * 8) is its row.
    """

    channels = (
        "sub_front",
        "sub_back",
        "friendly_bullet",
        "trail",
        "enemy_bullet",
        "enemy_fish",
        "enemy_sub",
        "oxygen_guage",
        "diver_guage",
        "diver",
    )
    minimal_actions = ("n", "l", "u", "r", "d", "f")
    step_draws = 6

    def start(self, uniforms: Tensor) -> State:
        """Return the sub at the surface, and nothing else."""
        sub = (5, 0, 0, 0, MAX_OXYGEN, 0, 1)
        speeds = (0, INIT_MOVE_INTERVAL, INIT_SPAWN_SPEED, INIT_SPAWN_SPEED, DIVER_SPAWN_SPEED)
        return {
            "numbers": wholes(uniforms, *sub, *speeds),
            "bullets": whole(uniforms, 0, 4, SIZE),
            "enemies": whole(uniforms, 0, FISH + 1, SIZE),
            "to_right": nothing(uniforms, SIZE),
            "divers": whole(uniforms, -1, 3, 2),
        }

    def play(self, state: State, action: Tensor, uniforms: Tensor) -> tuple[State, Tensor, Tensor]:
        """Let things appear, then move the sub, its bullets, divers, enemies, their bullets; then surface or not."""
        x, y, facing, shot_timer, oxygen, diver_count, surface, *speeds = state["numbers"].unbind(-1)
        ramp_index, move_speed, e_spawn_speed, e_spawn_timer, d_spawn_timer = speeds
        enemies, to_right = _spawn_enemy(state, e_spawn_timer == 0, move_speed, uniforms[..., :3])
        e_spawn_timer = torch.where(e_spawn_timer == 0, e_spawn_speed, e_spawn_timer)
        divers = _spawn_diver(state["divers"], d_spawn_timer == 0, uniforms[..., 3:])
        d_spawn_timer = torch.where(d_spawn_timer == 0, DIVER_SPAWN_SPEED, d_spawn_timer)

        fires = self.takes(action, "f") & (shot_timer == 0)
        shot = torch.where(fires.unsqueeze(-1), dot(x, y, WIDTH), 0)
        shot_timer = torch.where(fires, SHOT_COOL_DOWN, shot_timer)
        left, right = self.takes(action, "l"), self.takes(action, "r")
        x, y = moved(x, left, right), moved(y, self.takes(action, "u"), self.takes(action, "d"), 0, 8)
        friendly_left, friendly_right, enemy_left, enemy_right = state["bullets"].unbind(-2)
        looks_right = (facing == 1).unsqueeze(-1)
        friendly_left = _left(friendly_left | torch.where(looks_right, 0, shot))
        friendly_right = _right(friendly_right | torch.where(looks_right, shot, 0))
        facing = torch.where(right, 1, torch.where(left, 0, facing))
        sub = dot(x, y, WIDTH)

        enemies, used = _shoot(friendly_left | friendly_right, enemies)
        friendly_left, friendly_right = friendly_left & ~used, friendly_right & ~used
        reward = number_of(used, WIDTH)
        divers, diver_count = _rescue(divers, diver_count, d_spawn_timer, x, y)
        enemies, used, shots, hit = _move_enemies(friendly_left | friendly_right, enemies, to_right, move_speed, sub)
        friendly_left, friendly_right = friendly_left & ~used, friendly_right & ~used
        reward = reward + number_of(used, WIDTH)

        enemy_left, enemy_right = (
            enemy_left | torch.where(to_right, 0, shots),
            enemy_right | torch.where(to_right, shots, 0),
        )
        next_left, next_right = _left(enemy_left), _right(enemy_right)
        hit = hit | (((enemy_left | enemy_right | next_left | next_right) & sub) != 0).any(-1)

        below = y > 0
        surfaces = ~below & (surface == 0)
        rises = surfaces & (diver_count != 0)
        terminated = hit | (oxygen <= 0) | (surfaces & (diver_count == 0))
        full = rises & (diver_count == MAX_DIVERS)
        reward = reward + torch.where(full, oxygen * 10 // MAX_OXYGEN, 0)
        oxygen = torch.where(rises, MAX_OXYGEN, minus(oxygen, below))
        # MinAtar takes a diver off after the full load too, which leaves -1.
        diver_count = minus(torch.where(full, 0, diver_count), rises)
        surface = torch.where(below, 0, torch.where(rises, 1, surface))
        if self.ramping:
            ramps = rises & ((e_spawn_speed > 1) | (move_speed > FASTEST_MOVE_INTERVAL))
            faster = ramps & (move_speed > FASTEST_MOVE_INTERVAL) & (ramp_index % 2 == 1)
            move_speed = minus(move_speed, faster)
            e_spawn_speed = minus(e_spawn_speed, ramps & (e_spawn_speed > 1))
            ramp_index = ramp_index + ramps

        shot_timer = minus(shot_timer, shot_timer > 0)
        e_spawn_timer, d_spawn_timer = minus(e_spawn_timer, e_spawn_timer > 0), d_spawn_timer - 1
        numbers = (x, y, facing, shot_timer, oxygen, diver_count, surface)
        speeds = [ramp_index, move_speed, e_spawn_speed, e_spawn_timer, d_spawn_timer]
        state = {
            "numbers": torch.stack([*numbers, *speeds], -1),
            "bullets": torch.stack([friendly_left, friendly_right, next_left, next_right], -2),
            "enemies": enemies,
            "to_right": to_right,
            "divers": divers,
        }
        return state, reward, terminated

    def observe(self, state: State) -> Tensor:
        """Return the pictures."""
        x, y, facing, _, oxygen, diver_count, *_ = state["numbers"].unbind(-1)
        friendly_left, friendly_right, enemy_left, enemy_right = state["bullets"].unbind(-2)
        fish, subs = _places(state["enemies"][..., FISH, :]), _places(state["enemies"][..., :FISH, :].sum(-2))
        behind = torch.where(state["to_right"], _left(fish | subs), _right(fish | subs))
        diver_x, diver_y, diver_right = state["divers"].unbind(-2)
        diver = dot(diver_x, diver_y, WIDTH)
        diver_behind = dot(torch.where(diver_x >= 0, diver_x + 1 - 2 * diver_right, -1), diver_y, WIDTH)
        last = cells(x) == SIZE - 1
        oxygen_guage = _first(oxygen.clamp(min=0) * 10 // MAX_OXYGEN)
        diver_guage = _first(torch.full_like(x, SIZE - 1)) ^ _first(SIZE - 1 - diver_count.clamp(min=0))
        channels = (
            dot(x, y, WIDTH),
            dot(x + 1 - 2 * facing, y, WIDTH),
            friendly_left | friendly_right,
            behind | diver_behind[..., 0, :] | diver_behind[..., 1, :],
            enemy_left | enemy_right,
            fish,
            subs,
            torch.where(last, oxygen_guage.unsqueeze(-1), 0),
            torch.where(last, diver_guage.unsqueeze(-1), 0),
            diver[..., 0, :] | diver[..., 1, :],
        )
        return picture(_words(channels), len(channels))


def _left(map: Tensor) -> Tensor:
    """Move things without a timer to the left. What leaves the picture is gone."""
    return map >> WIDTH


def _right(map: Tensor) -> Tensor:
    """Move things without a timer to the right. What leaves the picture is gone."""
    return (map << WIDTH) & ROW


def _places(enemies: Tensor) -> Tensor:
    """Return the map of enemies without their timers: the lowest bit of a cell is any of its bits."""
    pairs = enemies | (enemies >> 1)
    return (pairs | (pairs >> 2) | (pairs >> 4)) & LOWEST


def _first(number: Tensor) -> Tensor:
    """Return a row with things in its first cells."""
    return (torch.bitwise_left_shift(torch.ones_like(number), WIDTH * number) - 1) & LOWEST


def _words(channels: tuple[Tensor, ...]) -> Tensor:
    """Return the two words of each row of the picture, with ten bits for each of five cells, `[..., 10, 2]`."""
    # Five channels fit into the six bits of a cell.
    fives = [sum((map << bit for bit, map in enumerate(channels[i + 1 : i + 5], 1)), channels[i]) for i in (0, 5)]
    rows = torch.stack(fives, -1)
    half = WIDTH * SIZE // 2
    words = torch.stack([rows & ((1 << half) - 1), rows >> half], -2)
    # Cell i has to move from bit 6 * i to bit 10 * i. First cell 4 moves by 16, then 2 and 3 by 8, then 1 and 3 by 4.
    for moving, distance in ((63 << 24, 16), (63 << 12 | 63 << 18, 8), (63 << 6 | 63 << 26, 4)):
        words = words + (words & moving) * ((1 << distance) - 1)
    return words[..., 0] | (words[..., 1] << 5)


def _spawn_enemy(state: State, spawns: Tensor, move_speed: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Let an enemy appear, unless its row has enemies with the other direction; return enemies and directions."""
    enemies, directions = state["enemies"], state["to_right"]
    to_right, is_sub, row = uniforms.unbind(-1)
    to_right, is_sub, row = to_right < 1 / 2, is_sub < 1 / 3, one_hot(1 + choice(row, 8))
    is_free = (enemies == 0).all(-2) | (directions == to_right.unsqueeze(-1))
    row = row & is_free & spawns.unsqueeze(-1)
    bit = torch.bitwise_left_shift(torch.where(to_right, 1, 1 << WIDTH * (SIZE - 1)), move_speed)
    new = torch.where(row, bit.unsqueeze(-1), 0).unsqueeze(-2)
    index = torch.arange(FISH + 1, device=row.device)
    kind = index == torch.where(is_sub, ENEMY_SHOT_INTERVAL, FISH).unsqueeze(-1)
    return (
        enemies | torch.where(kind.unsqueeze(-1), new, 0),
        torch.where(row, to_right.unsqueeze(-1), directions),
    )


def _spawn_diver(divers: Tensor, spawns: Tensor, uniforms: Tensor) -> Tensor:
    """Let a diver appear. The younger one becomes the older one."""
    to_right, row = uniforms.unbind(-1)
    to_right = to_right < 1 / 2
    new = torch.stack([torch.where(to_right, 0, SIZE - 1), 1 + choice(row, 8), to_right.to(torch.int64)], -1)
    return torch.where(spawns.unsqueeze(-1).unsqueeze(-1), torch.stack([new, divers[..., 0]], -1), divers)


def _shoot(bullets: Tensor, enemies: Tensor) -> tuple[Tensor, Tensor]:
    """Remove the enemies that bullets hit; return the rest, and the places of the hits.

    A bullet hits the fish of a cell before the subs, and the oldest first.
    """
    fish, subs = enemies[..., FISH, :], enemies[..., :FISH, :].sum(-2)
    fish_hits = bullets & _places(fish)
    sub_hits = bullets & _places(subs) & ~fish_hits
    # Where n is hit, n & ~(n - 1) is its lowest bit. Elsewhere, n & ~n is nothing.
    removed = (fish & ~(fish - fish_hits)) | (subs & ~(subs - sub_hits))
    return enemies & ~removed.unsqueeze(-2), fish_hits | sub_hits


def _rescue(divers: Tensor, diver_count: Tensor, d_spawn_timer: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Move the divers, and let the sub pick up those at its place, the younger one first, if there is room."""
    diver_x, diver_y, to_right = divers.unbind(-2)
    x, y = x.unsqueeze(-1), y.unsqueeze(-1)
    # The first move is the sixth step after the appearance, which sets the timer to 30.
    moves = (d_spawn_timer % (DIVER_MOVE_INTERVAL + 1) == 1).unsqueeze(-1) & (diver_x >= 0)
    next_x = torch.where(moves, diver_x + 2 * to_right - 1, diver_x)
    next_x = torch.where(next_x < SIZE, next_x, -1)
    younger, older = (((diver_x == x) | (next_x == x)) & (diver_y == y)).unbind(-1)
    younger = younger & (diver_count < MAX_DIVERS)
    diver_count = diver_count + younger
    older = older & (diver_count < MAX_DIVERS)
    next_x = torch.where(torch.stack([younger, older], -1), -1, next_x)
    return torch.stack([next_x, diver_y, to_right], -2), diver_count + older


def _move_enemies(
    bullets: Tensor, enemies: Tensor, to_right: Tensor, move_speed: Tensor, sub: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Move the enemies whose move timers are 0, and let the subs shoot whose shot timers are 0.

    Returns:
        The enemies, the places where they ran into bullets, the subs' new bullets, and whether an enemy hit the
        player's sub.
    """
    leaves = enemies & LOWEST
    arrives = torch.where(to_right.unsqueeze(-2), _right(leaves), _left(leaves))
    stays = (enemies ^ leaves) >> 1
    place = sub.unsqueeze(-2)
    hit = (((enemies & (place * ((1 << WIDTH) - 1))) | (arrives & place)) != 0).any(-1).any(-1)
    # An enemy that hits the player's sub does not look for bullets.
    rammed = arrives & (bullets & ~sub).unsqueeze(-2)
    # A sub shoots from where it is after its move, even if that is where it was hit.
    shots = _places(stays[..., 0, :]) | arrives[..., 0, :]
    enemies = stays | torch.bitwise_left_shift(arrives ^ rammed, move_speed.unsqueeze(-1).unsqueeze(-1))
    enemies = torch.cat([enemies[..., 1:FISH, :], enemies[..., :1, :], enemies[..., FISH:, :]], -2)
    return enemies, rammed.sum(-2), shots, hit

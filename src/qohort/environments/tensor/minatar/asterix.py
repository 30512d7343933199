"""Asterix: collect gold and avoid enemies (MinAtar, Young & Tian, 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from qohort.environments.tensor.base import State
from qohort.environments.tensor.minatar.base import (
    SIZE,
    MinAtarGame,
    cells,
    choice,
    minus,
    moved,
    nothing,
    one_hot,
    sparse_picture,
    whole,
    wholes,
)

RAMP_INTERVAL = 100
INIT_SPAWN_SPEED = 10
INIT_MOVE_INTERVAL = 5


class Asterix(MinAtarGame):
    """Collect gold and avoid enemies, which cross the picture in the rows 1 to 8, at most one in a row.

    The state: `player` is x and y. The entity of each row has `entity_x` (-1 if there is none), `entity_right` (it
    goes to the right) and `entity_gold` (else it is an enemy). The rows 0 and 9 never have one. `clocks` are
    spawn_speed, spawn_timer, move_speed, move_timer, ramp_timer and ramp_index.

    The random numbers of a step, used where an entity appears: 1. it goes to the right if the number is below 1/2;
    2. it is gold if the number is below 1/3; 3. floor(number * empty rows) is its row, counted among the empty rows
    from above.
    """

    channels = ("player", "enemy", "trail", "gold")
    minimal_actions = ("n", "l", "u", "r", "d")
    step_draws = 4

    def start(self, uniforms: Tensor) -> State:
        """Return the player in the middle and no entity."""
        return {
            "player": whole(uniforms, 5, 2),
            "entity_x": whole(uniforms, -1, SIZE),
            "entity_right": nothing(uniforms, SIZE),
            "entity_gold": nothing(uniforms, SIZE),
            "clocks": wholes(
                uniforms, INIT_SPAWN_SPEED, INIT_SPAWN_SPEED, INIT_MOVE_INTERVAL, INIT_MOVE_INTERVAL, RAMP_INTERVAL, 0
            ),
        }

    def play(self, state: State, action: Tensor, uniforms: Tensor) -> tuple[State, Tensor, Tensor]:
        """Let an entity appear, move the player, then the entities."""
        _, spawn_timer, _, move_timer, _, _ = state["clocks"].unbind(-1)
        x, right, gold = self._spawn(state, spawn_timer == 0, uniforms)
        player_x, player_y = state["player"].unbind(-1)
        player_x = moved(player_x, self.takes(action, "l"), self.takes(action, "r"))
        player_y = moved(player_y, self.takes(action, "u"), self.takes(action, "d"), 1, 8)

        here, row = player_x.unsqueeze(-1), one_hot(player_y)
        met = row & (x == here)
        x = torch.where(met & gold, -1, x)
        moves = (move_timer == 0).unsqueeze(-1) & (x >= 0)
        x = torch.where(moves, x + torch.where(right, 1, -1), x)
        x = torch.where(x < SIZE, x, -1)
        met_moved = moves & row & (x == here)
        x = torch.where(met_moved & gold, -1, x)

        meets = met | met_moved
        state = {
            "player": torch.stack([player_x, player_y], -1),
            "entity_x": x,
            "entity_right": right,
            "entity_gold": gold,
            "clocks": self._tick(state["clocks"]),
        }
        return state, (meets & gold).any(-1), (meets & ~gold).any(-1)

    def observe(self, state: State) -> Tensor:
        """Return the pictures."""
        x, right, gold = state["entity_x"], state["entity_right"], state["entity_gold"]
        player_x, player_y = state["player"].unbind(-1)
        behind = x - torch.where(right, 1, -1)
        channels = len(self.channels)
        player = torch.where(one_hot(player_y), channels * player_x.unsqueeze(-1), -1)
        entity = torch.where(x >= 0, channels * x + torch.where(gold, 3, 1), -1)
        trail = torch.where((x >= 0) & (behind >= 0), channels * behind + 2, -1)
        return sparse_picture(channels, player, entity, trail)

    def _spawn(self, state: State, spawns: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Let an entity appear in one of the empty rows, if there is one; return x, direction and kind."""
        to_right, is_gold, row = uniforms.unbind(-1)
        to_right, is_gold = (to_right < 1 / 2).unsqueeze(-1), (is_gold < 1 / 3).unsqueeze(-1)
        x = state["entity_x"]
        rows = cells(x)
        empty = (x < 0) & (rows >= 1) & (rows <= 8)
        empty_above = (empty.unsqueeze(-2) & (rows < rows.unsqueeze(-1))).sum(-1)
        chosen = empty & (empty_above == choice(row, empty.sum(-1)).unsqueeze(-1)) & spawns.unsqueeze(-1)
        return (
            torch.where(chosen, torch.where(to_right, 0, SIZE - 1), x),
            torch.where(chosen, to_right, state["entity_right"]),
            torch.where(chosen, is_gold, state["entity_gold"]),
        )

    def _tick(self, clocks: Tensor) -> Tensor:
        """Count the timers down, and ramp the difficulty."""
        spawn_speed, spawn_timer, move_speed, move_timer, ramp_timer, ramp_index = clocks.unbind(-1)
        spawn_timer = torch.where(spawn_timer == 0, spawn_speed, spawn_timer) - 1
        move_timer = torch.where(move_timer == 0, move_speed, move_timer) - 1
        if self.ramping:
            can_ramp = (spawn_speed > 1) | (move_speed > 1)
            ramps = can_ramp & (ramp_timer < 0)
            move_speed = minus(move_speed, ramps & (move_speed > 1) & (ramp_index % 2 == 1))
            spawn_speed = minus(spawn_speed, ramps & (spawn_speed > 1))
            ramp_index = ramp_index + ramps
            ramp_timer = torch.where(ramps, RAMP_INTERVAL, minus(ramp_timer, can_ramp))
        return torch.stack([spawn_speed, spawn_timer, move_speed, move_timer, ramp_timer, ramp_index], -1)

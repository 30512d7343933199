"""Registers the MinAtar games (Young & Tian, 2019) with Gymnasium when it is imported.

The ids have the form `env.id=qohort.environments.minatar:MinAtar/Breakout-v1`. Each game has its minimal action set.
"""

from __future__ import annotations

import logging
from typing import Any

import gymnasium as gym

_disabled_level = logging.root.manager.disable


logging.disable(logging.WARNING)  # MinAtar warns if seaborn is missing, which only its own windows need


try:
    from minatar.gym import BaseEnv
finally:
    logging.disable(_disabled_level)


GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")


class Game(BaseEnv):  # type: ignore[misc]
    """A MinAtar game whose episodes depend only on their seed and their actions.

    MinAtar repeats the previous action with probability `sticky_action_prob`. In its own version, the first step of an
    episode may repeat the last action of the previous episode. Here, `reset` clears the previous action.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode and return its first observation, a `bool` image `[10, 10, C]`, and an empty info."""
        self.game.last_action = 0
        outcome: tuple[Any, dict[str, Any]] = super().reset(seed=seed, options=options)
        return outcome


for game in GAMES:
    gym.register(
        id=f"MinAtar/{game.title().replace('_', '')}-v1",
        entry_point="qohort.environments.minatar:Game",
        kwargs={"game": game, "use_minimal_action_set": True},
    )

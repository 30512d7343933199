"""MinAtar's games (Young & Tian, 2019) as Gymnasium ids: `env.id=qohort.environments.minatar:MinAtar/Breakout-v1`.

Importing this module registers them, each with the actions that have an effect in it.
"""

from __future__ import annotations

import logging
from typing import Any

import gymnasium as gym

_before = logging.root.manager.disable


logging.disable(logging.WARNING)  # of seaborn, which only MinAtar's own windows need


try:
    from minatar.gym import BaseEnv
finally:
    logging.disable(_before)


GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")


class Game(BaseEnv):  # type: ignore[misc]
    """A game whose episodes depend on nothing but their seed and their actions.

    MinAtar repeats the action before with probability `sticky_action_prob`, at the first step that of the episode
    before; here an episode begins as the first one does.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode: a `bool` image `[10, 10, C]`."""
        self.game.last_action = 0
        outcome: tuple[Any, dict[str, Any]] = super().reset(seed=seed, options=options)
        return outcome


for game in GAMES:
    gym.register(
        id=f"MinAtar/{game.title().replace('_', '')}-v1",
        entry_point="qohort.environments.minatar:Game",
        kwargs={"game": game, "use_minimal_action_set": True},
    )

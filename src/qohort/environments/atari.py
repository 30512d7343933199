"""Wrappers for Atari's protocols that Gymnasium does not have: lost lives, and games that begin with a button.

Gymnasium's `AtariPreprocessing` does the rest: no-ops at the start, frame skip, the maximum of two frames, grey images.
Wrap these around it.
"""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym

from qohort.environments.checked import LIFE_LOST


class LifeLoss(gym.Wrapper[Any, Any, Any, Any]):
    """Marks the steps at which a life is lost, so that the discount that is stored with them is 0 (DQN Zoo).

    The game goes on: episodes, their returns and their stacks of frames are not changed. Evaluation takes no notice.
    Gymnasium's `terminal_on_life_loss` starts the game over instead.

    Args:
        env: The environment, whose info has `lives`, as that of ale-py.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._lives = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a game."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._lives = int(info["lives"])
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the game. The info has `life_lost` if a life was lost."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        lives = int(info["lives"])
        if lives < self._lives:
            info = {**info, LIFE_LOST: True}
        self._lives = lives
        return observation, reward, terminated, truncated, info


class FireOnReset(gym.Wrapper[Any, Any, Any, Any]):
    """Presses FIRE where a game waits for it: at its start and after each lost life (OpenAI Baselines).

    Deviations: 1. The game is not started over if it ends with that. 2. Only FIRE is pressed, not a second button.

    Args:
        env: The environment, an Atari game.

    Raises:
        ValueError: If the game has no button FIRE.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        meanings = env.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
        if "FIRE" not in meanings:
            raise ValueError(f"this game has no button FIRE, only {', '.join(meanings)}")
        self._fire, self._lives = meanings.index("FIRE"), 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a game and press FIRE."""
        self.env.reset(seed=seed, options=options)
        observation, _, _, _, info = self.env.step(self._fire)
        self._lives = int(info["lives"])
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the game. If a life was lost, press FIRE too; the step has the reward of both."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        lost, self._lives = int(info["lives"]) < self._lives, int(info["lives"])
        if lost and not (terminated or truncated):
            observation, more, terminated, truncated, info = self.env.step(self._fire)
            reward = float(reward) + float(more)
            self._lives = int(info["lives"])
        return observation, reward, terminated, truncated, info

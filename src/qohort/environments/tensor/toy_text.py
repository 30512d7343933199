"""Toy text as tensor environments: Gymnasium's own tables of transitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.toy_text.cliffwalking import CliffWalkingEnv
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv
from numpy.typing import NDArray
from torch import Tensor

from qohort.environments.tensor.base import State


class Tabular:
    """An environment of cells, given by a table of transitions.

    A transition is chosen by inverse transform sampling: it is the first with a cumulative probability above a random
    number in [0, 1). This is Gymnasium's `categorical_sample`, so the same number chooses the same transition.

    Args:
        original: Gymnasium's environment, without wrappers. It has the transitions `P` and `initial_state_distrib`.
        max_episode_steps: The env_steps after which an episode is truncated; None for no limit.
    """

    reset_draws = 1
    step_draws = 1

    def __init__(self, original: CliffWalkingEnv | FrozenLakeEnv, max_episode_steps: int | None) -> None:
        self.max_episode_steps = max_episode_steps
        self.observation_space: spaces.Space[Any] = original.observation_space
        transitions = original.P
        self.action_space = spaces.Discrete(len(transitions[0]))
        self._branches = max(len(branches) for row in transitions.values() for branches in row.values())
        # Cumulative probability, next cell, reward and whether the episode terminates: [cells, actions, branches, 4].
        # One table, so that a compiled program holds one constant. It is an array, because a traced program may not
        # refer to tensors from outside. An unused branch has a cumulative probability of 0 and is never chosen.
        self._table = np.zeros((len(transitions), len(transitions[0]), self._branches, 4), dtype=np.float32)
        for cell, row in transitions.items():
            for action, branches in row.items():
                probability, *outcome = zip(*branches, strict=True)
                self._table[cell, action, : len(branches)] = np.stack([_cumulative(probability), *outcome], -1)
        starts = np.flatnonzero(original.initial_state_distrib)
        self._starts: list[int] = starts.tolist()
        self._start_probabilities: list[float] = _cumulative(original.initial_state_distrib[starts]).tolist()

    def reset(self, uniforms: Tensor) -> State:
        """Return a random first cell."""
        draw = uniforms[..., 0]
        cell = torch.full_like(draw, self._starts[0], dtype=torch.int64)
        for start, probability_before in zip(self._starts[1:], self._start_probabilities, strict=False):
            cell = torch.where(draw >= probability_before, start, cell)
        return {"cell": cell}

    def step(self, state: State, action: Tensor, uniforms: Tensor) -> tuple[State, Tensor, Tensor]:
        """Go to the next cell."""
        cell = state["cell"]
        table = torch.from_numpy(self._table).to(cell.device)
        branches = table[cell, action]
        outcome = branches[..., 0, 1:]
        for branch in reversed(range(self._branches)):
            outcome = torch.where(branches[..., branch, :1] > uniforms, branches[..., branch, 1:], outcome)
        next_cell, reward, terminated = outcome.unbind(-1)
        return {"cell": next_cell.to(torch.int64)}, reward, terminated > 0.0

    def observe(self, state: State) -> Tensor:
        """Return the number of the cell: row × columns + column."""
        return state["cell"]


class FrozenLake(Tabular):
    """Cross a frozen lake without falling into a hole, as Gymnasium's `FrozenLake-v1`.

    `FrozenLake8x8-v1` is `FrozenLake(map_name="8x8", max_episode_steps=200)`.

    Args:
        max_episode_steps: The env_steps after which an episode is truncated; None for no limit.
        arguments: As for Gymnasium's environment: `desc`, `map_name`, `is_slippery`, and, if the installed
            version has them, `success_rate` and `reward_schedule`.

    Raises:
        ValueError: If there is no map. Gymnasium would make a random one, which depends on no seed.
    """

    def __init__(self, max_episode_steps: int | None = 100, **arguments: Any) -> None:
        if arguments.get("desc") is None and arguments.get("map_name", "4x4") is None:
            raise ValueError("map_name is null and so is desc: set map_name to 4x4 or 8x8, or desc to rows of a map")
        super().__init__(FrozenLakeEnv(**arguments), max_episode_steps)


class CliffWalking(Tabular):
    """Walk along a cliff (Sutton & Barto, 2018, example 6.6), as Gymnasium's `CliffWalking-v1`.

    `CliffWalkingSlippery-v1` is `CliffWalking(is_slippery=True)`.

    Args:
        max_episode_steps: The env_steps after which an episode is truncated; None for no limit.
        arguments: As for Gymnasium's environment: `is_slippery`, if the installed version has it.
    """

    def __init__(self, max_episode_steps: int | None = None, **arguments: Any) -> None:
        super().__init__(CliffWalkingEnv(**arguments), max_episode_steps)


def _cumulative(probabilities: Any) -> NDArray[np.float32]:
    """Return cumulative probabilities, rounded up to float32.

    Rounded up, they compare with each float32 number as the exact ones do: `rounded > number` if `exact > number`.
    """
    exact = np.cumsum(np.asarray(probabilities, dtype=np.float64))
    rounded = exact.astype(np.float32)
    return np.where(rounded < exact, np.nextafter(rounded, np.float32(np.inf)), rounded)

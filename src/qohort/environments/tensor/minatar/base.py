"""What the games of MinAtar share: actions, sticky actions and images.

Young & Tian (2019). MinAtar: An Atari-inspired testbed for thorough and reproducible reinforcement learning
experiments.

A picture is a grid of 10 × 10 cells with x to the right and y down. A map is kept as its rows, `[..., 10]` int64: bit
`width` * x of row y is the cell at x and y. So a map has 10 elements instead of 100, and moves with a shift. Things
that are nowhere have the coordinate -1.

Shifts by tensors are `torch.bitwise_left_shift` and `torch.bitwise_right_shift`, since PyTorch 2.13 cannot trace `<<`
and `>>` with broadcasting, nor `pad`, for any number of environments.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from qohort.environments.tensor.base import State

SIZE = 10
"""The cells of each side of the picture."""
ACTIONS = ("n", "l", "u", "r", "d", "f")
"""All actions of MinAtar: none, left, up, right, down, fire."""


class MinAtarGame(ABC):
    """A game of MinAtar (Young & Tian, 2019) as a tensor environment.

    Given the same random decisions, each observation, reward and termination equals that of the package `minatar`,
    with one deviation: `reset` clears the previous action, as `qohort.environments.minatar.Game` does.

    The first number of each step decides whether the previous action is repeated: it is, if the number is below
    `sticky_action_prob`. The other numbers belong to the game.

    Args:
        use_minimal_action_set: Whether the actions are those that have an effect in this game. Otherwise, they are
            MinAtar's six.
        sticky_action_prob: The probability with which the previous action is repeated.
        difficulty_ramping: Whether the game gets harder with time. Breakout and Freeway never do.
    """

    channels: ClassVar[tuple[str, ...]]
    """The names of the picture's channels."""
    minimal_actions: ClassVar[tuple[str, ...]]
    """The actions that have an effect."""
    reset_draws: int = 0
    step_draws: int = 1
    max_episode_steps: int | None = None

    def __init__(
        self, use_minimal_action_set: bool = True, sticky_action_prob: float = 0.1, difficulty_ramping: bool = True
    ) -> None:
        self.action_set = self.minimal_actions if use_minimal_action_set else ACTIONS
        self.action_space = spaces.Discrete(len(self.action_set))
        shape = (SIZE, SIZE, len(self.channels))
        self.observation_space: spaces.Space[Any] = spaces.Box(0.0, 1.0, shape, dtype=np.bool_)
        self.sticky_action_prob = sticky_action_prob
        self.ramping = difficulty_ramping

    def reset(self, uniforms: Tensor) -> State:
        """Return the first state of episodes."""
        return {"last_action": whole(uniforms, 0), **self.start(uniforms)}

    def step(self, state: State, action: Tensor, uniforms: Tensor) -> tuple[State, Tensor, Tensor]:
        """Take one step with the action, or with the previous one if it sticks."""
        # All action sets begin with "n", so that 0 is MinAtar's 0 too.
        action = torch.where(uniforms[..., 0] < self.sticky_action_prob, state["last_action"], action)
        state, reward, terminated = self.play(state, action, uniforms[..., 1:])
        return {"last_action": action, **state}, reward.to(torch.float32), terminated

    @abstractmethod
    def start(self, uniforms: Tensor) -> State:
        """Return the first state without the previous action."""

    @abstractmethod
    def play(self, state: State, action: Tensor, uniforms: Tensor) -> tuple[State, Tensor, Tensor]:
        """Take one step with the action, and return the state without the previous action, reward and termination."""

    @abstractmethod
    def observe(self, state: State) -> Tensor:
        """Return the pictures, `[..., 10, 10, C]` bool."""

    def takes(self, action: Tensor, name: str) -> Tensor:
        """Return where the action is the one with this name, `[...]` bool."""
        return action == self.action_set.index(name)


def whole(uniforms: Tensor, value: int, *shape: int) -> Tensor:
    """Return `[..., *shape]` int64 filled with a value, for as many environments as there are random numbers for."""
    return uniforms.new_full((*uniforms.shape[:-1], *shape), value, dtype=torch.int64)


def wholes(uniforms: Tensor, *values: int) -> Tensor:
    """Return the values for each environment, `[..., len(values)]` int64."""
    return torch.stack([whole(uniforms, value) for value in values], -1)


def nothing(uniforms: Tensor, *shape: int) -> Tensor:
    """Return `[..., *shape]` bool filled with False, for as many environments as there are random numbers for."""
    return uniforms.new_zeros((*uniforms.shape[:-1], *shape), dtype=torch.bool)


def choice(uniform: Tensor, number: Tensor | int) -> Tensor:
    """Return one of 0, ..., number - 1 with equal probability.

    With numbers up to 8 and uniforms of 24 bits, the rounded product is below `number`.
    """
    return (uniform * number).to(torch.int64)


def minus(number: Tensor, where: Tensor) -> Tensor:
    """Return the numbers, less 1 where it is True."""
    return number - where.to(number.dtype)


def cells(like: Tensor) -> Tensor:
    """Return 0, ..., 9 on the device of a tensor."""
    return torch.arange(SIZE, device=like.device)


def one_hot(coordinate: Tensor) -> Tensor:
    """Return `[..., 10]` bool that is True at the coordinate `[...]`, if it is within the picture."""
    return coordinate.unsqueeze(-1) == cells(coordinate)


def dot(x: Tensor, y: Tensor, width: int) -> Tensor:
    """Return the map of one cell, or of none if x or y is outside the picture."""
    within = (x >= 0) & (x < SIZE)
    bit = torch.bitwise_left_shift(torch.ones_like(x), width * x.clamp(0, SIZE - 1))
    return torch.where(one_hot(y) & within.unsqueeze(-1), bit.unsqueeze(-1), 0)


def number_of(map: Tensor, width: int) -> Tensor:
    """Return the number of cells of a map, if there are fewer than 2^width - 1.

    The digits to the base 2^width are the numbers of each column. The base is 1 modulo 2^width - 1, so the remainder is
    the sum of the digits.
    """
    return map.sum(-1) % ((1 << width) - 1)


def picture(words: Tensor, channels: int) -> Tensor:
    """Return the pictures whose pixels are the bits of words, in the order of x and channels.

    Args:
        words: The words of each row, `[..., 10, words]`. All have the same number of bits, at most 63.
        channels: The number of channels.
    """
    bits = SIZE * channels // words.shape[-1]
    pixels = torch.bitwise_right_shift(words.unsqueeze(-1), torch.arange(bits, device=words.device)) & 1
    # For a CPU, PyTorch's compiler makes fast code for uint8, but slow code for bool. It cannot compile a bool that was
    # a uint8 and becomes a float in one loop, so `clone` makes the pictures before a network reads them. For a GPU, it
    # cannot compile a bool that was a uint8 at all (torch 2.11).
    pixels = pixels.to(torch.uint8).view(torch.bool) if words.device.type == "cpu" else pixels.to(torch.bool)
    return pixels.reshape(*words.shape[:-1], SIZE, channels).clone()


def sparse_picture(channels: int, *pixels: Tensor) -> Tensor:
    """Return the pictures with a few pixels in each row, given as channels * x + channel, `[..., 10]`, or as -1."""
    number = 1 if SIZE * channels < 64 else 2
    bits = SIZE * channels // number
    words = torch.stack([sum_of_bits([pixel - bits * index for pixel in pixels], bits) for index in range(number)], -1)
    return picture(words, channels)


def sum_of_bits(positions: Sequence[Tensor], bits: int) -> Tensor:
    """Return words with bits at positions. Those outside 0, ..., bits - 1 are left out."""
    one = torch.ones_like(positions[0])
    words = [
        torch.where((at >= 0) & (at < bits), torch.bitwise_left_shift(one, at.clamp(0, bits - 1)), 0)
        for at in positions
    ]
    return functools.reduce(torch.bitwise_or, words)


def moved(coordinate: Tensor, back: Tensor, forth: Tensor, low: int = 0, high: int = SIZE - 1) -> Tensor:
    """Return a coordinate after a step back, a step forth or none, kept between two bounds."""
    return (coordinate - back.to(torch.int64) + forth.to(torch.int64)).clamp(low, high)

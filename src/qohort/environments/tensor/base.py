"""What a tensor environment is, its random numbers, and sine and cosine with the same bits everywhere.

A tensor environment is a set of pure functions of tensors. They treat any number of leading axes alike, such as
`[M, E]` for the environments of a cohort, and use element-wise operations only, so that the bits of one environment
do not depend on how many there are.

Random numbers are passed in. An episode has a seed, and the numbers of its step t are a hash of the seed and t. So an
episode is a pure function of its seed and its actions, and its random state is two integers.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import torch
from gymnasium import spaces
from torch import Tensor

State = dict[str, Tensor]
"""The state of environments: tensors `[..., *shape]` with the same leading axes, of fixed dtypes."""

WORD = 0xFFFFFFFF
"""The largest 32-bit word."""
OFFSET = 0x61C88647
"""Added to each word, since the hash of 0 is 0: 2^32 less 2^32 divided by the golden ratio."""

Word = TypeVar("Word", Tensor, int)


class TensorEnvironment(Protocol):
    """An environment as functions of tensors."""

    observation_space: spaces.Space[Any]
    """The observation space of one environment."""
    action_space: spaces.Discrete
    """The action space of one environment. Actions are counted from 0."""
    max_episode_steps: int | None
    """The env_steps after which an episode is truncated; None for no limit."""
    reset_draws: int
    """The number of random numbers that `reset` needs."""
    step_draws: int
    """The number of random numbers that `step` needs."""

    def reset(self, uniforms: Tensor) -> State:
        """Return the first state of episodes.

        Args:
            uniforms: Random numbers uniform in [0, 1), `[..., reset_draws]` float32. If `reset_draws` is 0, only
                their leading axes matter.
        """

    def step(self, state: State, action: Tensor, uniforms: Tensor) -> tuple[State, Tensor, Tensor]:
        """Take one step. The time limit is not applied here.

        Args:
            state: The state.
            action: The actions, `[...]` int64.
            uniforms: Random numbers uniform in [0, 1), `[..., step_draws]` float32.

        Returns:
            The next state, the reward `[...]` float32, and whether the episode terminated, `[...]` bool.
        """

    def observe(self, state: State) -> Tensor:
        """Return the observations of a state, `[..., *shape]`, with the dtype of the observation space."""


def mix(word: Word) -> Word:
    """Return a hash of 32-bit words, held in int64 or in Python integers. Each bit depends on every bit of the word.

    The constants are those of Ellis' and Wellons' search for integer hashes (hash-prospector, 2018). Both factors are
    below 2^31, so a product never overflows a signed 64-bit integer.
    """
    word = word ^ (word >> 16)
    word = (word * 0x21F0AAAD) & WORD
    word = word ^ (word >> 15)
    word = (word * 0x735A2D97) & WORD
    return word ^ (word >> 15)


def hash_of(first: Tensor, *others: Tensor | int) -> Tensor:
    """Return a 32-bit hash of several words, `[...]` int64. Their order matters."""
    result = mix(mix((first + OFFSET) & WORD))
    for word in others:
        shifted: Any = (word + OFFSET) & WORD
        result = mix(mix(shifted) ^ result)
    return result


def uniforms_of(seed: Tensor, time: Tensor | int, draws: int) -> Tensor:
    """Return random numbers uniform in [0, 1) with 24 bits.

    Args:
        seed: The seeds of the episodes, `[...]`: 32-bit words as int64.
        time: The steps so far, `[...]` int64.
        draws: The number of numbers for each environment.

    Returns:
        The numbers, `[..., draws]` float32.
    """
    if draws == 0:
        return seed.new_zeros((*seed.shape, 0), dtype=torch.float32)
    word = hash_of(seed, time)
    # The hash of `hash_of`, with a third word whose own hash is known beforehand.
    words = [mix(word ^ mix((draw + OFFSET) & WORD)) for draw in range(draws)]
    return torch.stack([(one >> 8).to(torch.float32) * 2.0**-24 for one in words], -1)


def sin_cos(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return sine and cosine of angles in radians, within 1e-7 for |angle| < 1,000.

    Compilers and libraries have several versions of these functions, which differ in the last bit, and choose one by
    the number of elements. Here they are polynomials: additions and multiplications, which have one result only.

    The coefficients are those of Cephes' `sinf` and `cosf` (Moshier, 1984).
    """
    quadrants = torch.round(angle * 0.6366197723675814)  # 2 / π
    # π / 2 in two parts, the first with so few bits that the product is exact (Cody and Waite, 1980).
    rest = angle - quadrants * 1.57080078125 + quadrants * 4.4544551033807686e-06
    square = rest * rest
    sine = rest + rest * (square * (-1.6666654611e-1 + square * (8.3321608736e-3 + square * -1.9515295891e-4)))
    cosine = 4.166664568298827e-2 + square * (-1.388731625493765e-3 + square * 2.443315711809948e-5)
    cosine = 1.0 + square * (-0.5 + square * cosine)
    quadrant = quadrants.to(torch.int32)
    swapped = (quadrant & 1) == 1
    sin = torch.where(swapped, cosine, sine) * (1 - (quadrant & 2))
    return sin, torch.where(swapped, sine, cosine) * (1 - ((quadrant + 1) & 2))

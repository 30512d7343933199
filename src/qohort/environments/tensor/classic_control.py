"""Classic control as tensor environments: the equations of Gymnasium's, in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from qohort.environments.tensor.base import State, sin_cos


class CartPole:
    """Balance a pole on a cart (Barto, Sutton & Anderson, 1983), as Gymnasium's `CartPole-v1`.

    Args:
        sutton_barto_reward: Whether the reward is -1 at the end and 0 before, instead of 1 at each step.
        max_episode_steps: The env_steps after which an episode is truncated; None for no limit.
    """

    reset_draws = 4
    step_draws = 0
    action_space = spaces.Discrete(2)

    def __init__(self, sutton_barto_reward: bool = False, max_episode_steps: int | None = 500) -> None:
        self.sutton_barto_reward = sutton_barto_reward
        self.max_episode_steps = max_episode_steps
        high = np.array([4.8, np.inf, 24 * math.pi / 180, np.inf], dtype=np.float32)
        self.observation_space: spaces.Space[Any] = spaces.Box(-high, high, dtype=np.float32)

    def reset(self, uniforms: Tensor) -> State:
        """Return states with each number uniform in [-0.05, 0.05)."""
        return {"physics": uniforms * 0.1 - 0.05}

    def step(self, state: State, action: Tensor, uniforms: Tensor) -> tuple[State, Tensor, Tensor]:
        """Push the cart to the left (0) or to the right (1) for 0.02 s."""
        x, speed, angle, turning = state["physics"].unbind(-1)
        force = torch.where(action == 1, 10.0, -10.0)
        sine, cosine = sin_cos(angle)
        push = (force + 0.05 * turning * turning * sine) / 1.1
        angular = (9.8 * sine - cosine * push) / (0.5 * (4.0 / 3.0 - 0.1 * cosine * cosine / 1.1))
        acceleration = push - 0.05 * angular * cosine / 1.1
        x, speed = x + 0.02 * speed, speed + 0.02 * acceleration
        angle, turning = angle + 0.02 * turning, turning + 0.02 * angular
        terminated = (x.abs() > 2.4) | (angle.abs() > 12 * math.pi / 180)
        reward = torch.where(terminated, -1.0, 0.0) if self.sutton_barto_reward else torch.ones_like(x)
        return {"physics": torch.stack([x, speed, angle, turning], -1)}, reward, terminated

    def observe(self, state: State) -> Tensor:
        """Return position, speed, angle and angular speed: m, m/s, rad, rad/s."""
        return state["physics"]


class Acrobot:
    """Swing up a chain of two links by a torque at the joint between them (Sutton, 1996), as Gymnasium's `Acrobot-v1`.

    The equations are those of Sutton & Barto (1998), as in Gymnasium with `book_or_nips="book"`, without noise.

    Args:
        max_episode_steps: The env_steps after which an episode is truncated; None for no limit.
    """

    reset_draws = 4
    step_draws = 0
    action_space = spaces.Discrete(3)

    def __init__(self, max_episode_steps: int | None = 500) -> None:
        self.max_episode_steps = max_episode_steps
        high = np.array([1.0, 1.0, 1.0, 1.0, 4 * math.pi, 9 * math.pi], dtype=np.float32)
        self.observation_space: spaces.Space[Any] = spaces.Box(-high, high, dtype=np.float32)

    def reset(self, uniforms: Tensor) -> State:
        """Return states with each number uniform in [-0.1, 0.1)."""
        return {"physics": uniforms * 0.2 - 0.1}

    def step(self, state: State, action: Tensor, uniforms: Tensor) -> tuple[State, Tensor, Tensor]:
        """Apply a torque of -1 (0), 0 (1) or 1 N m (2) for 0.2 s: one step of the fourth-order Runge-Kutta method."""
        torque = (action - 1).to(torch.float32)
        start = state["physics"].unbind(-1)
        first = _acrobot_slopes(start, torque)
        second = _acrobot_slopes(_moved(start, first, 0.1), torque)
        third = _acrobot_slopes(_moved(start, second, 0.1), torque)
        fourth = _acrobot_slopes(_moved(start, third, 0.2), torque)
        slopes = [a + 2.0 * b + 2.0 * c + d for a, b, c, d in zip(first, second, third, fourth, strict=True)]
        inner, outer, inner_speed, outer_speed = _moved(start, slopes, 0.2 / 6.0)
        inner, outer = _within_half_a_turn(inner), _within_half_a_turn(outer)
        inner_speed = inner_speed.clamp(-4 * math.pi, 4 * math.pi)
        outer_speed = outer_speed.clamp(-9 * math.pi, 9 * math.pi)
        (sine, cosine), (bend_sine, bend_cosine) = sin_cos(inner), sin_cos(outer)
        # The height of the free end: -cos(inner) - cos(inner + outer).
        terminated = sine * bend_sine - cosine * bend_cosine - cosine > 1.0
        reward = torch.where(terminated, 0.0, -1.0)
        return {"physics": torch.stack([inner, outer, inner_speed, outer_speed], -1)}, reward, terminated

    def observe(self, state: State) -> Tensor:
        """Return cosine and sine of both angles, and both angular speeds in rad/s."""
        inner, outer, inner_speed, outer_speed = state["physics"].unbind(-1)
        (sine, cosine), (bend_sine, bend_cosine) = sin_cos(inner), sin_cos(outer)
        return torch.stack([cosine, sine, bend_cosine, bend_sine, inner_speed, outer_speed], -1)


class MountainCar:
    """Drive a car out of a valley by gaining momentum (Moore, 1990), as Gymnasium's `MountainCar-v0`.

    Args:
        goal_velocity: The least speed to the right at which the car may reach the goal.
        max_episode_steps: The env_steps after which an episode is truncated; None for no limit.
    """

    reset_draws = 1
    step_draws = 0
    action_space = spaces.Discrete(3)

    def __init__(self, goal_velocity: float = 0.0, max_episode_steps: int | None = 200) -> None:
        self.goal_velocity = goal_velocity
        self.max_episode_steps = max_episode_steps
        low, high = np.array([-1.2, -0.07], dtype=np.float32), np.array([0.6, 0.07], dtype=np.float32)
        self.observation_space: spaces.Space[Any] = spaces.Box(low, high, dtype=np.float32)

    def reset(self, uniforms: Tensor) -> State:
        """Return states with the position uniform in [-0.6, -0.4) and speed 0."""
        position = uniforms[..., 0] * 0.2 - 0.6
        return {"physics": torch.stack([position, torch.zeros_like(position)], -1)}

    def step(self, state: State, action: Tensor, uniforms: Tensor) -> tuple[State, Tensor, Tensor]:
        """Accelerate to the left (0), not at all (1) or to the right (2)."""
        position, speed = state["physics"].unbind(-1)
        _, slope = sin_cos(3.0 * position)
        speed = (speed + ((action - 1).to(torch.float32) * 0.001 - 0.0025 * slope)).clamp(-0.07, 0.07)
        position = (position + speed).clamp(-1.2, 0.6)
        speed = torch.where((position <= -1.2) & (speed < 0.0), 0.0, speed)
        terminated = (position >= 0.5) & (speed >= self.goal_velocity)
        return {"physics": torch.stack([position, speed], -1)}, torch.full_like(position, -1.0), terminated

    def observe(self, state: State) -> Tensor:
        """Return position and speed: m, m per step."""
        return state["physics"]


def _moved(start: Sequence[Tensor], slopes: Sequence[Tensor], time: float) -> list[Tensor]:
    """Return variables after some time with constant slopes."""
    return [value + time * slope for value, slope in zip(start, slopes, strict=True)]


def _acrobot_slopes(variables: Sequence[Tensor], torque: Tensor) -> list[Tensor]:
    """Return the slopes of Acrobot's variables (Sutton & Barto, 1998, section 11.3).

    Both links are 1 m long, with 1 kg in the middle and a moment of inertia of 1 kg m². Gravity is 9.8 m/s².

    They are linear equations for the accelerations: d1 a1 + d2 a2 = right1 and d2 a1 + 1.25 a2 = right2. Cramer's rule
    solves them in fewer operations than substitution, and so takes less time to compile.
    """
    inner, outer, inner_speed, outer_speed = variables
    (sine, cosine), (bend_sine, bend_cosine) = sin_cos(inner), sin_cos(outer)
    d1, d2 = 3.5 + bend_cosine, 1.25 + 0.5 * bend_cosine
    gravity = 4.9 * (sine * bend_cosine + cosine * bend_sine)  # 4.9 sin(inner + outer)
    right1 = (0.5 * outer_speed + inner_speed) * outer_speed * bend_sine - 14.7 * sine - gravity
    right2 = torque - 0.5 * inner_speed * inner_speed * bend_sine - gravity
    determinant = 2.8125 - 0.25 * bend_cosine * bend_cosine  # 1.25 d1 - d2²
    inner_slope = (1.25 * right1 - d2 * right2) / determinant
    outer_slope = (d1 * right2 - d2 * right1) / determinant
    return [inner_speed, outer_speed, inner_slope, outer_slope]


def _within_half_a_turn(angle: Tensor) -> Tensor:
    """Return angles in [-π, π] that differ from given ones by whole turns."""
    turns = torch.round(angle * 0.15915494309189535)  # 1 / 2π
    # 2π in two parts: the first has few bits, so that its product is exact.
    return angle - turns * 6.28125 - turns * 0.0019353071795864769

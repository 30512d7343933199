"""Environments for tests of processes, which import this module: it imports nothing else that takes seconds."""

import os
import signal

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Grumpy(gym.Env):
    """Counts its steps; where the seed is a multiple of `every`, the fifth raises an error, or ends the process."""

    observation_space = spaces.Box(-10, 10, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, every=3, dies=False):
        self.every, self.dies = every, dies

    def reset(self, *, seed=None, options=None):
        self.seed, self.time = seed, 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.time += 1
        if self.time == 5 and self.every and self.seed % self.every == 0:
            if self.dies:
                os.kill(os.getpid(), signal.SIGKILL)
            raise LookupError("no fifth step")
        return np.full(2, self.time, np.float32), 1.0, self.time == 7, False, {}


class Lively(Grumpy):
    """Loses a life at its second step."""

    def step(self, action):
        *rest, info = super().step(action)
        return *rest, {"life_lost": True} if self.time == 2 else info


gym.register("Grumpy-v0", Grumpy)
gym.register("Lively-v0", Lively)

"""The ring: storage of a cohort's newest transitions, and uniform replay from it.

Arrays have a leading member axis. A member's samples come from its own stream, so they do not depend on its
neighbours.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qohort.cohort.schedules import Progress
from qohort.cohort.streams import UniformStream
from qohort.config.annotations import PositiveInt
from qohort.config.schema import TrainConfig
from qohort.replay.base import Batch, Replay, ReplaySpec, Transition

STORED_DTYPES = {
    "float16": torch.float32,
    "float32": torch.float32,
    "float64": torch.float32,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "bool": torch.bool,
}
"""How observations are stored, by the dtype of their space; other integers as int64."""


def _rows(state: Mapping[str, Any], name: str, index: Tensor) -> Tensor:
    """What an array holds at `index [M, ...]`: `[M, ..., ...]`."""
    array: Tensor = state["arrays"][name]
    first: Tensor = state["first"].view(-1, *[1] * (index.dim() - 1))
    return array.flatten(0, 1).index_select(0, (index + first).flatten()).view(*index.shape, *array.shape[2:])


def _gather(state: Mapping[str, Any], index: Tensor) -> Batch:
    """The transitions at `index [M, B]`, and their discounts."""
    drawn = {name: _rows(state, name, index) for name in state["arrays"]}
    drawn["discount"] = drawn.pop("continues") * state["gamma"]
    return drawn


def _gather_windows(state: Mapping[str, Any], index: Tensor, n_step: int, stride: int, capacity: int) -> Batch:
    """The n-step transitions that begin at `index [M, B]`; a window ends with its episode."""
    last, running = index, torch.ones_like(index, dtype=torch.bool)
    total = torch.zeros_like(index, dtype=torch.float32)
    discount, power = torch.zeros_like(total), torch.ones_like(total)
    for step in range(n_step):
        slot = index + step * stride
        slot = torch.where(slot < capacity, slot, slot - capacity)
        last = torch.where(running, slot, last)
        total = torch.where(running, total + power * _rows(state, "reward", slot), total)
        power = power * state["gamma"]
        discount = torch.where(running, power * _rows(state, "continues", slot), discount)
        running = running & ~_rows(state, "ended", slot)
    return {
        "observation": _rows(state, "observation", index),
        "action": _rows(state, "action", index),
        "reward": total,
        "discount": discount,
        "next_observation": _rows(state, "next_observation", last),
    }


class Storage:
    """Preallocated arrays of transitions `[M, slots, ...]`, written a row of E at a time.

    Args:
        spec: See `ReplaySpec`.
        slots: Transitions a member; a multiple of E.
        n_step: Steps of the transitions that are drawn.
        capacity: Where the ring of slots closes.
        ended: Whether batches tell where episodes ended, terminated or truncated.
    """

    def __init__(
        self, spec: ReplaySpec, slots: int, n_step: int = 1, capacity: int | None = None, ended: bool = False
    ) -> None:
        members, shape = len(spec.seeds), spec.observation_space.shape or ()
        dtype = STORED_DTYPES.get(str(spec.observation_space.dtype), torch.int64)
        self.slots = slots
        empty = {
            "observation": torch.empty((members, slots, *shape), dtype=dtype, device=spec.device),
            "action": torch.empty((members, slots), dtype=torch.int64, device=spec.device),
            "reward": torch.empty((members, slots), dtype=torch.float32, device=spec.device),
            "continues": torch.empty((members, slots), dtype=torch.float32, device=spec.device),
            "next_observation": torch.empty((members, slots, *shape), dtype=dtype, device=spec.device),
        }
        if ended or n_step > 1:
            empty["ended"] = torch.empty((members, slots), dtype=torch.bool, device=spec.device)
        self.arrays = empty
        first = slots * torch.arange(members, device=spec.device).unsqueeze(1)
        state = {"arrays": empty, "gamma": spec.gamma.to(spec.device).unsqueeze(1), "first": first}
        # A GPU has a kernel for each of these few operations: compiling them gains nothing there.
        compiler = spec.compiler if spec.device.type == "cpu" else spec.compiler.without_compiling()
        windows = functools.partial(_gather_windows, n_step=n_step, stride=spec.num_envs, capacity=capacity or slots)
        self._gather = compiler.program("the drawing of batches", windows if n_step > 1 else _gather, state)
        self._device = spec.device
        # On the CPU rows are written through NumPy, which is several times quicker for a few numbers.
        self._writable = {name: array.numpy() for name, array in empty.items()} if spec.device.type == "cpu" else None

    def write(self, slot: int, transition: Transition) -> None:
        """Write one step of every environment at `slot` and the slots after it."""
        rows = {
            "observation": transition.observation,
            "action": transition.action,
            "reward": transition.reward,
            "continues": ~transition.terminated,
            "next_observation": transition.next_observation,
        }
        if "ended" in self.arrays:
            rows["ended"] = transition.ended
        for name, row in rows.items():
            end = slot + row.shape[1]
            if self._writable is not None:
                self._writable[name][:, slot:end] = row
            else:
                self.arrays[name][:, slot:end] = torch.as_tensor(row).to(self.arrays[name].device, non_blocking=True)

    def batch(self, index: NDArray[np.int64] | Tensor) -> Batch:
        """The transitions that begin at `index [M, B]`, as new tensors."""
        batch: Batch = self._gather(torch.as_tensor(index).to(self._device))
        return batch

    def state_dict(self, written: int) -> dict[str, Tensor]:
        """Copies of the first `written` slots."""
        return {name: array[:, :written].cpu().clone() for name, array in self.arrays.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` copied."""
        for name, array in self.arrays.items():
            array[:, : state[name].shape[1]] = state[name].to(array.device)


class Ring(Replay):
    """A ring of the newest transitions.

    Next observations are stored beside observations, the true final one included; terminated and truncated
    are kept apart: only termination sets the discount to 0.

    An n-step transition (Sutton, 1988; in DQN: Hessel et al., 2018) is put together when it is drawn: the discounted
    sum of rewards up to n steps or to the end of the episode, whichever is first, and what was observed then. Its
    window crosses neither an episode's end, terminated or truncated, nor the ring's seam: the newest n - 1 steps of
    each environment are not drawn before the steps after them are there.

    Args:
        spec: See `ReplaySpec`.
        capacity: Transitions a member, in env_steps; rounded down to a multiple of the environments, so that
            the ring's seam never parts the environments' rows.
        n_step: Steps of a transition, n.
    """

    def __init__(self, spec: ReplaySpec, capacity: int, n_step: int) -> None:
        self.capacity = capacity // spec.num_envs * spec.num_envs
        self._num_envs, self._batch_size = spec.num_envs, spec.batch_size
        self._incomplete = (n_step - 1) * spec.num_envs
        # No slot that the budget cannot fill is allocated.
        slots = min(self.capacity, -(-spec.budget // spec.num_envs) * spec.num_envs)
        self._storage = Storage(spec, slots, n_step, self.capacity)
        self._added = 0

    def __len__(self) -> int:
        """Transitions held for a member."""
        return min(self._added, self.capacity)

    @property
    def complete(self) -> int:
        """How many of them, the oldest ones, can be drawn."""
        return len(self) - self._incomplete

    @classmethod
    def min_env_steps(cls, config: TrainConfig) -> int:
        """As many env_steps as complete a batch of transitions."""
        return config.batch_size + (int(config.replay.get("n_step", 1)) - 1) * config.env.num_envs

    @classmethod
    def incompatibility(cls, config: TrainConfig) -> str | None:
        """Whether it cannot hold as much as is needed for a batch."""
        capacity = config.replay["capacity"]
        least = cls.min_env_steps(config)
        if capacity // config.env.num_envs * config.env.num_envs >= least:
            return None
        why = f"batch_size={least}" if least == config.batch_size else f"{least}, which complete one"
        return f"replay.capacity={capacity} holds less than a batch: give at least {why}"

    def add(self, transition: Transition) -> None:
        """Store one step of every environment."""
        self._storage.write(self._added % self.capacity, transition)
        self._added += self._num_envs

    def state_dict(self) -> dict[str, Any]:
        """The transitions held, and the ring's position."""
        return {"transitions": self._storage.state_dict(len(self)), "added": self._added}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        self._storage.load_state_dict(state["transitions"])
        self._added = int(state["added"])


class UniformReplay(Ring):
    """A ring of the newest transitions, sampled uniformly with replacement (Lin, 1992; Mnih et al., 2015).

    Args:
        spec: See `ReplaySpec`.
        capacity: Transitions a member, in env_steps; see `Ring`.
        n_step: Steps of a transition, n.
    """

    def __init__(self, spec: ReplaySpec, capacity: PositiveInt, n_step: PositiveInt = 1) -> None:
        super().__init__(spec, capacity, n_step)
        self._uniforms = UniformStream(spec.seeds, "replay", (spec.batch_size,), block=64)

    def sample(self, progress: Progress) -> Batch:
        """Draw `[M, B]` transitions, each uniform over those that are complete."""
        index = (self._uniforms.next() * self.complete).astype(np.int64)
        if self._incomplete and self._added > self.capacity:  # then counted from the oldest
            index = (index + self._added) % self.capacity
        return self._storage.batch(index)

    def state_dict(self) -> dict[str, Any]:
        """The transitions held, the ring's position and the sampling stream."""
        return {**super().state_dict(), "uniforms": self._uniforms.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        super().load_state_dict(state)
        self._uniforms.load_state_dict(state["uniforms"])

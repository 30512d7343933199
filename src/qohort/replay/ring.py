"""The ring buffer that stores the newest transitions of a cohort, and uniform replay from it.

Arrays have a leading member axis. Each member samples with its own random stream, so its batches do not depend on the
other members.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
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
"""The storage dtype of observations by the dtype of their space. Other integers are stored as int64."""


def _as_words(array: Tensor) -> Tensor:
    """Return rows of bytes `[M, slots, ...]` as rows of 64-bit words in the same memory, if they have whole ones.

    A program that draws the pixels of pictures one by one takes several times as long.
    """
    row = array[0, 0].nbytes
    if array.element_size() > 2 or row == 0 or row % 8:
        return array
    return array.flatten(2).view(torch.int64)


def _rows(state: Mapping[str, Any], name: str, index: Tensor) -> Tensor:
    """Return the entries of an array at slots `index [M, ...]`."""
    array: Tensor = state["arrays"][name]
    first: Tensor = state["first"].view(-1, *[1] * (index.dim() - 1))
    return array.flatten(0, 1).index_select(0, (index + first).flatten()).view(*index.shape, *array.shape[2:])


def put(arrays: Mapping[str, Tensor], slot: Tensor, rows: Mapping[str, Tensor]) -> None:
    """Write one step of every environment in place, in a program.

    Args:
        arrays: The arrays of a `Storage`, `[M, slots, ...]`.
        slot: The slot of the first environment, `[M]`, the same for all members.
        rows: What to write into each array, `[M, E, ...]`.
    """
    environments = next(iter(rows.values())).shape[1]
    member = torch.arange(slot.shape[0], device=slot.device).unsqueeze(1)
    slots = slot.unsqueeze(1) + torch.arange(environments, device=slot.device)
    for name, array in arrays.items():
        array.index_put_((member, slots), rows[name].to(array.dtype))


def _gather(state: Mapping[str, Any], index: Tensor) -> Batch:
    """Return the one-step transitions at slots `index [M, B]`."""
    batch = {name: _rows(state, name, index) for name in state["arrays"]}
    batch["discount"] = batch.pop("continues") * state["gamma"]
    return batch


def _gather_windows(state: Mapping[str, Any], index: Tensor, n_step: int, stride: int, capacity: int) -> Batch:
    """Return the n-step transitions that start at slots `index [M, B]`. A window ends with its episode."""
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
    """Preallocated arrays of transitions `[M, slots, ...]`, written E slots at a time.

    Args:
        spec: See `ReplaySpec`.
        slots: The number of transitions per member, a multiple of E.
        n_step: The number of steps of the sampled transitions.
        capacity: The number of slots after which the ring wraps around; None for `slots`.
        ended: Whether batches have the entry `ended`.
    """

    def __init__(
        self, spec: ReplaySpec, slots: int, n_step: int = 1, capacity: int | None = None, ended: bool = False
    ) -> None:
        members, shape = len(spec.seeds), spec.observation_space.shape or ()
        dtype = STORED_DTYPES.get(str(spec.observation_space.dtype), torch.int64)
        self.slots = slots
        arrays = {
            "observation": torch.empty((members, slots, *shape), dtype=dtype, device=spec.device),
            "action": torch.empty((members, slots), dtype=torch.int64, device=spec.device),
            "reward": torch.empty((members, slots), dtype=torch.float32, device=spec.device),
            "continues": torch.empty((members, slots), dtype=torch.float32, device=spec.device),
            "next_observation": torch.empty((members, slots, *shape), dtype=dtype, device=spec.device),
        }
        if ended or n_step > 1:
            arrays["ended"] = torch.empty((members, slots), dtype=torch.bool, device=spec.device)
        self.arrays = arrays
        first = slots * torch.arange(members, device=spec.device).unsqueeze(1)
        words = {name: _as_words(array) if array.dim() > 2 else array for name, array in arrays.items()}
        self.state = {"arrays": words, "gamma": spec.gamma.to(spec.device).unsqueeze(1), "first": first}
        """What `gather` reads."""
        # On a GPU, compiling these few operations gains nothing.
        compiler = spec.compiler if spec.device.type == "cpu" else spec.compiler.without_compiling()
        windows = functools.partial(_gather_windows, n_step=n_step, stride=spec.num_envs, capacity=capacity or slots)
        self.gather: Callable[[Mapping[str, Any], Tensor], Batch] = windows if n_step > 1 else _gather
        """Returns the transitions that start at slots `index [M, B]`, given `state`; `observed` completes them."""
        self._gather = compiler.program("the drawing of batches", self.gather, self.state)
        self._device = spec.device
        # On the CPU, transitions are written through NumPy, which is several times faster for small arrays.
        self._writable = {name: array.numpy() for name, array in arrays.items()} if spec.device.type == "cpu" else None

    def write(self, slot: int, transition: Transition) -> None:
        """Write one step of every environment to the slots from `slot` to `slot + E - 1`."""
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
        """Return the transitions that start at slots `index [M, B]`, as new tensors."""
        return self.observed(self._gather(torch.as_tensor(index).to(self._device)))

    def observed(self, batch: Batch) -> Batch:
        """Return a batch of `gather` with observations of their own dtype and shape, in the same memory."""
        arrays = {name: self.arrays[name] for name in ("observation", "next_observation")}
        typed = {
            name: batch[name].view(one.dtype).view(*batch[name].shape[:2], *one.shape[2:])
            for name, one in arrays.items()
        }
        return {**batch, **typed}

    def state_dict(self, written: int) -> dict[str, Tensor]:
        """Return the first `written` slots: on a CPU the storage itself, since a copy could be too large for memory."""
        return {name: array[:, :written].cpu() for name, array in self.arrays.items()}

    @property
    def nbytes(self) -> int:
        """The size of all arrays, in bytes."""
        return sum(array.nbytes for array in self.arrays.values())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the slots that `state_dict` returned."""
        for name, array in self.arrays.items():
            array[:, : state[name].shape[1]] = state[name].to(array.device)


class StoredSteps(Replay):
    """A replay that keeps its newest steps in a `Storage`. Programs may write them in place.

    Args:
        storage: The storage.
        num_envs: Environments per member, E.
        capacity: The number of slots after which the storage is written from the start again, a multiple of E.
    """

    def __init__(self, storage: Storage, num_envs: int, capacity: int) -> None:
        self.storage, self.capacity = storage, capacity
        self._num_envs, self._added = num_envs, 0

    def add(self, transition: Transition) -> None:
        """Store one step of every environment."""
        self.storage.write(self._added % self.capacity, transition)
        self._added += self._num_envs

    def added_after(self, steps: int) -> NDArray[np.int64]:
        """Return the transitions ever stored, now and after each of the next steps of all environments, `[1 + steps]`.

        Modulo `capacity`, each is the slot of the first environment in the step that follows.
        """
        return self._added + self._num_envs * np.arange(steps + 1)

    def written(self, steps: int) -> None:
        """Take note of steps of all environments that a program has stored."""
        self._added += steps * self._num_envs

    def truncate(self) -> None:
        """Mark the newest step of each environment as the end of its episode."""
        if self._added and "ended" in self.storage.arrays:
            slot = (self._added - self._num_envs) % self.capacity
            self.storage.arrays["ended"][:, slot : slot + self._num_envs] = True

    @property
    def nbytes(self) -> int:
        """The size of the stored transitions of all members, in bytes."""
        return self.storage.nbytes

    def state_dict(self) -> dict[str, Any]:
        """Return the stored transitions and the number of those ever stored."""
        written = min(self._added, self.storage.slots)
        return {"transitions": self.storage.state_dict(written), "added": self._added}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.storage.load_state_dict(state["transitions"])
        self._added = int(state["added"])


class Ring(StoredSteps):
    """A ring buffer of the newest transitions. Base class of the replays that sample from it.

    Observations and next observations are both stored, including the final observation of each episode. Termination
    and truncation are distinguished: only termination sets the discount to 0.

    An n-step transition (Sutton, 1988; in DQN: Hessel et al., 2018) is built when it is sampled. Its reward is the
    discounted sum of rewards over n steps, or until the end of the episode if that comes first. Its next observation
    is the observation after the last of these steps. A window never crosses the end of an episode, terminated or
    truncated. It never crosses the end of the ring either: the newest n - 1 steps of each environment are not sampled
    before the steps that complete them are stored.

    Args:
        spec: See `ReplaySpec`.
        capacity: Transitions per member. Rounded down to a multiple of the number of environments, so that one step
            of all environments is stored in consecutive slots.
        n_step: The number of steps of a transition, n.
        ended: Whether the storage has the entry `ended` even for n = 1.
    """

    def __init__(self, spec: ReplaySpec, capacity: int, n_step: int, ended: bool = False) -> None:
        capacity = capacity // spec.num_envs * spec.num_envs
        self._batch_size = spec.batch_size
        self._incomplete = (n_step - 1) * spec.num_envs
        # Slots that the budget cannot fill are not allocated.
        slots = min(capacity, -(-spec.budget // spec.num_envs) * spec.num_envs)
        super().__init__(Storage(spec, slots, n_step, capacity, ended), spec.num_envs, capacity)

    def __len__(self) -> int:
        """The number of stored transitions per member."""
        return min(self._added, self.capacity)

    @property
    def complete(self) -> int:
        """The number of stored transitions per member that can be sampled. These are the oldest ones."""
        return len(self) - self._incomplete

    @classmethod
    def min_env_steps(cls, config: TrainConfig) -> int:
        """Return the env_steps after which `batch_size` transitions are complete."""
        return config.batch_size + (int(config.replay.get("n_step", 1)) - 1) * config.env.num_envs

    @classmethod
    def incompatibility(cls, config: TrainConfig) -> str | None:
        """Return a message if the capacity is too small for a batch."""
        capacity = config.replay["capacity"]
        minimum = cls.min_env_steps(config)
        if capacity // config.env.num_envs * config.env.num_envs >= minimum:
            return None
        needed = f"batch_size={minimum}" if minimum == config.batch_size else str(minimum)
        return f"replay.capacity={capacity} holds less than a batch: give at least {needed}"


class UniformReplay(Ring):
    """A ring buffer sampled uniformly with replacement (Lin, 1992; Mnih et al., 2015).

    Args:
        spec: See `ReplaySpec`.
        capacity: Transitions per member; see `Ring`.
        n_step: The number of steps of a transition, n.
    """

    def __init__(self, spec: ReplaySpec, capacity: PositiveInt, n_step: PositiveInt = 1) -> None:
        super().__init__(spec, capacity, n_step)
        self._uniforms = UniformStream(spec.seeds, "replay", (spec.batch_size,), block=64)

    def sample(self, progress: Progress) -> Batch:
        """Sample `[M, B]` transitions uniformly from those that are complete."""
        return self.storage.batch(self.draw(np.array([self._added]))[0])

    def draw(self, added: NDArray[np.int64]) -> NDArray[np.int64]:
        """Draw the slots of batches.

        Args:
            added: The transitions ever stored when each batch is drawn, `[n]`.

        Returns:
            The slots, `[n, M, B]`.
        """
        complete = np.minimum(added, self.capacity) - self._incomplete
        index: NDArray[np.int64] = (self._uniforms.take(len(added)) * complete[:, None, None]).astype(np.int64)
        if self._incomplete:  # once the ring is full, `index` counts from the oldest transition
            oldest = np.where(added > self.capacity, added, 0)
            index = (index + oldest[:, None, None]) % self.capacity
        return index

    def state_dict(self) -> dict[str, Any]:
        """Return the stored transitions, the position in the ring and the random stream."""
        return {**super().state_dict(), "uniforms": self._uniforms.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        self._uniforms.load_state_dict(state["uniforms"])

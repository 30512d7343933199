"""The storage of transitions whose observations are large: each frame is stored once.

The observation after a step is the observation of the next step, and with stacked frames all but one frame of an
observation are those of the steps before it. Stacks and next observations are put together when a batch is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qohort.replay.base import ReplaySpec
from qohort.replay.transition import Batch, Transition
from qohort.replay.windows import stored_dtype, windows

LARGE = 1024
"""The bytes of an observation from which on it is stored once. Pairs of smaller ones are drawn faster."""


def stores_frames(spec: ReplaySpec) -> bool:
    """Return whether observations are stored once: where frames are stacked, or observations are large."""
    if spec.frames is None:
        return False
    space = spec.observation_space
    size = math.prod(space.shape or ()) * stored_dtype(space).itemsize
    return spec.frames.stack > 1 or size >= LARGE


class FrameStorage:
    """Frames `[M, places, ...]` and transitions `[M, slots]`, written E at a time.

    The steps of a member are numbered n = 0, 1, ...; consecutive steps of one environment are E apart. Step n has the
    slot n mod `capacity`, and its frame the place n mod `places`. There are more places than slots: for the first
    frames of the oldest stack, and for the frames of the E steps that come next. The final frame of an episode belongs
    to no step. It is in `finals`, which grows when it is full.

    Args:
        spec: See `ReplaySpec`. Its `frames` say how many frames an observation stacks, on its first axis.
        slots: The number of transitions per member, a multiple of E.
        n_step: The number of steps of the sampled transitions.
        capacity: The number of slots after which the ring wraps around.
    """

    def __init__(self, spec: ReplaySpec, slots: int, n_step: int, capacity: int) -> None:
        assert spec.frames is not None
        members, shape = len(spec.seeds), tuple(spec.observation_space.shape or ())
        self._stack, self._padding = spec.frames
        self._stacked = self._stack > 1
        self._frame = shape[1:] if self._stacked else shape
        dtype = stored_dtype(spec.observation_space)
        self.slots, self._capacity, self._n_step = slots, capacity, n_step
        self._environments, self._device, self._added = spec.num_envs, spec.device, 0
        self._gamma = spec.gamma.to(spec.device).unsqueeze(1)
        self._members = torch.arange(members, device=spec.device).unsqueeze(1)
        self._places = slots + self._stack * spec.num_envs

        def array(length: int, dtype: torch.dtype, *rest: int) -> Tensor:
            return torch.empty((members, length, *rest), dtype=dtype, device=spec.device)

        self.frames = array(self._places, dtype, *self._frame)
        """The frame of each step."""
        self.finals = array(1, dtype, *self._frame)
        """The final frames of episodes."""
        self._age = array(self._places, torch.uint8)  # the frames of the same episode before it, at most stack - 1
        self.arrays = {
            "action": array(slots, torch.int64, *spec.action_shape),
            "reward": array(slots, torch.float32),
            "continues": array(slots, torch.float32),
            "ended": array(slots, torch.bool),
            "final": array(slots, torch.int32),
        }
        """What is stored of each transition; `final` is the index of its final frame, or -1."""
        self._ages = np.zeros((members, spec.num_envs), dtype=np.uint8)
        self._free: list[list[int]] = [[0] for _ in range(members)]

    def write(self, slot: int, transition: Transition) -> None:
        """Write one step of every environment to the slots from `slot` to `slot + E - 1`."""
        environments, overwrites = self._environments, self._added >= self._capacity
        stop = slot + environments
        if overwrites:
            self._release(self.arrays["final"][:, slot:stop])
        rows = {
            "action": transition.action,
            "reward": transition.reward,
            "continues": transition.continues,
            "ended": transition.ended,
            "final": np.full_like(transition.ended, -1, dtype=np.int64),
        }
        for name, row in rows.items():
            self.arrays[name][:, slot:stop] = torch.as_tensor(row).to(self._device)
        self._put(self._added, transition.observation)
        self._added += environments
        self._ages = np.where(transition.ended, 0, np.minimum(self._ages + 1, self._stack - 1)).astype(np.uint8)
        self._put(self._added, transition.next_observation)
        for m, e in np.argwhere(transition.ended).tolist():
            self._end(m, e)

    def _put(self, number: int, observation: NDArray[Any]) -> None:
        """Write the newest frames of observations `[M, E, ...]`, those of the steps from `number` on."""
        frames = observation[:, :, -1] if self._stacked else observation
        first = number % self._places
        stop = min(first + self._environments, self._places)
        for low, high, source in ((first, stop, 0), (0, self._environments - (stop - first), stop - first)):
            if high > low:
                part = slice(source, source + high - low)
                self.frames[:, low:high] = torch.as_tensor(frames[:, part]).to(self._device)
                self._age[:, low:high] = torch.as_tensor(self._ages[:, part]).to(self._device)

    def _end(self, m: int, e: int) -> None:
        """Move the frame after the newest step of an environment to the final frames."""
        if not self._free[m]:
            more = torch.empty_like(self.finals)
            for free in self._free:
                free.extend(reversed(range(len(self.finals[0]), 2 * len(self.finals[0]))))
            self.finals = torch.cat([self.finals, more], 1)
        index, newest = self._free[m].pop(), self._added - self._environments + e
        self.finals[m, index] = self.frames[m, (self._added + e) % self._places]
        self.arrays["final"][m, newest % self._capacity] = index

    def _release(self, final: Tensor) -> None:
        """Free the final frames of transitions that are overwritten, `[M, E]`."""
        for m, index in enumerate(final.cpu().numpy()):
            self._free[m].extend(index[index >= 0].tolist())

    def truncate(self, slot: int, environments: int) -> None:
        """Mark the newest step, at the slots from `slot` to `slot + environments - 1`, as the end of its episode."""
        steps = slice(slot, slot + environments)
        for m, e in (self.arrays["final"][:, steps] < 0).cpu().nonzero().tolist():
            self._end(m, e)
        self.arrays["ended"][:, steps] = True
        self._ages[:] = 0

    def entries(self, index: NDArray[np.int64] | Tensor) -> Batch:
        """Return what is stored of the steps at slots `index [M, B]`, with observations and next observations."""
        slot = torch.as_tensor(index).to(self._device)
        observation, following = self._observations(slot)
        return {
            **{name: self._rows(array, slot) for name, array in self.arrays.items() if name != "final"},
            "observation": observation,
            "next_observation": following,
        }

    def batch(self, index: NDArray[np.int64] | Tensor) -> Batch:
        """Return the transitions that start at slots `index [M, B]`, as new tensors.

        Observations and next observations share memory with each other, not with the storage.
        """
        slot = torch.as_tensor(index).to(self._device)
        rows = {"action": self._rows(self.arrays["action"], slot)}
        if self._n_step == 1:
            rows["reward"] = self._rows(self.arrays["reward"], slot)
            rows["discount"] = self._rows(self.arrays["continues"], slot) * self._gamma
            last = None
        else:
            sizes = (self._n_step, self._environments, self._capacity)
            found = windows(lambda name, at: self._rows(self.arrays[name], at), slot, self._gamma, *sizes)
            rows |= {"reward": found.reward, "discount": found.discount}
            last = found.last
        observation, following = self._observations(slot, last)
        return {"observation": observation, "next_observation": following, **rows}

    def _observations(self, slot: Tensor, last: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the observations of steps, and those after them or after other ones, by their slots `[M, B]`."""
        first = self._with_next(slot)
        following = first if last is None else self._with_next(last)
        if self._stacked:
            return first[:, :, :-1], following[:, :, 1:]
        return first[:, :, 0], following[:, :, 1]

    def _with_next(self, slot: Tensor) -> Tensor:
        """Return the frames of the observations of steps, and the newest one after them, `[M, B, stack + 1, ...]`."""
        newest = self._added - 1
        number = newest - (newest - slot) % self._capacity
        age = self._rows(self._age, number % self._places).long().unsqueeze(-1)
        back = torch.arange(self._stack - 1, -2, -1, device=self._device)
        steps = torch.minimum(back, age) if self._padding == "reset" else back
        place = (number.unsqueeze(-1) - steps * self._environments) % self._places
        frames = self._rows(self.frames, place.flatten(1)).view(*place.shape, *self._frame)
        if self._padding == "zero":
            frames[back > age] = 0
        final = self._rows(self.arrays["final"], slot).long()
        of_member, of_batch = (final >= 0).nonzero(as_tuple=True)
        frames[of_member, of_batch, -1] = self.finals[of_member, final[of_member, of_batch]]
        return frames

    def _rows(self, array: Tensor, index: Tensor) -> Tensor:
        """Return the entries of an array `[M, N, ...]` at `index [M, B]`, whole rows at a time."""
        flat = (index + array.shape[1] * self._members).flatten()
        return array.flatten(0, 1).index_select(0, flat).view(*index.shape, *array.shape[2:])

    @property
    def nbytes(self) -> int:
        """The size of all arrays, in bytes."""
        arrays = (*self.arrays.values(), self.frames, self.finals, self._age)
        return sum(array.nbytes for array in arrays)

    def state_dict(self, written: int) -> dict[str, Any]:
        """Return the first `written` slots: on a CPU the storage itself, since a copy could be too large for memory."""
        places = min(self._added + self._environments, self._places)
        finals = []
        for m, final in enumerate(self.arrays["final"][:, :written].cpu()):
            finals.append(self.finals[m, final[final >= 0].to(self._device).long()].cpu())
        arrays = {name: array[:, :written].cpu() for name, array in self.arrays.items()}
        arrays["final"] = arrays["final"].clamp(max=0)  # their order says which frame it is, see `load_state_dict`
        return {
            **arrays,
            "frames": self.frames[:, :places].cpu(),
            "age": self._age[:, :places].cpu(),
            "ages": torch.from_numpy(self._ages.copy()),
            "finals": {"members": finals},
            "added": self._added,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the slots that `state_dict` returned."""
        for name, array in {**self.arrays, "frames": self.frames, "age": self._age}.items():
            array[:, : state[name].shape[1]] = state[name].to(array.device)
        self._ages = state["ages"].numpy().copy()
        self._added = int(state["added"])
        finals: list[Tensor] = state["finals"]["members"]
        size = max(1, *map(len, finals))
        self.finals = self.finals.new_empty((len(finals), size, *self._frame))
        for m, frames in enumerate(finals):
            self.finals[m, : len(frames)] = frames.to(self._device)
            final = self.arrays["final"][m, : state["final"].shape[1]]
            final[final >= 0] = torch.arange(len(frames), dtype=final.dtype, device=self._device)
        self._free = [list(reversed(range(len(frames), size))) for frames in finals]

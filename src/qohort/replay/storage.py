"""The storage of transitions in pairs: each with its observation and its next observation.

Arrays have a leading member axis.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qohort.replay.base import ReplaySpec
from qohort.replay.transition import Batch, Transition
from qohort.replay.windows import stored_dtype, windows


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
    first: Tensor = state["first"] - state["first"][:1]  # of these members: a thread may have a share of all
    first = first.view(-1, *[1] * (index.dim() - 1))
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
    """Return the n-step transitions that start at slots `index [M, B]`."""
    rows = functools.partial(_rows, state)
    found = windows(rows, index, state["gamma"], n_step, stride, capacity)
    return {
        "observation": rows("observation", index),
        "action": rows("action", index),
        "reward": found.reward,
        "discount": found.discount,
        "next_observation": rows("next_observation", found.last),
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
        dtype = stored_dtype(spec.observation_space)
        self.slots = slots
        arrays = {
            "observation": torch.empty((members, slots, *shape), dtype=dtype, device=spec.device),
            "action": torch.empty((members, slots, *spec.action_shape), dtype=torch.int64, device=spec.device),
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
        of_windows = functools.partial(_gather_windows, n_step=n_step, stride=spec.num_envs, capacity=capacity or slots)
        self.gather: Callable[[Mapping[str, Any], Tensor], Batch] = of_windows if n_step > 1 else _gather
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
            "continues": transition.continues,
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

    def entries(self, index: NDArray[np.int64]) -> Batch:
        """Return what is stored of the steps at slots `index [M, B]`."""
        members = np.arange(len(index))[:, None]
        return {name: array[members, index] for name, array in self.arrays.items()}

    def truncate(self, slot: int, environments: int) -> None:
        """Mark the step at the slots from `slot` to `slot + environments - 1` as the end of its episode."""
        if "ended" in self.arrays:
            self.arrays["ended"][:, slot : slot + environments] = True

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

"""State: what changes while training, of parts and as a whole, split into members' states and merged back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Stateful(Protocol):
    """Something that changes while training."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, in tensors and plain containers."""

    def load_state_dict(self, state: Any) -> Any:
        """Continue exactly where `state` was taken."""


def state_of(parts: Mapping[str, Stateful]) -> dict[str, Any]:
    """The state of each part, by name."""
    return {name: part.state_dict() for name, part in parts.items()}


def load_state(parts: Mapping[str, Stateful], state: Mapping[str, Any]) -> None:
    """Put back what `state_of` took."""
    for name, part in parts.items():
        part.load_state_dict(state[name])


def split_state(state: Any, m: int) -> Any:
    """Member m's part of a cohort's state, as a cohort of one has it.

    In a state, tensors with a dimension have a leading member axis, and so has the list under a key
    `members`; mappings, other lists and tuples are walked through; anything else (counters, text,
    0-dimensional tensors) is shared by all members.
    """
    if isinstance(state, Tensor) and state.dim() > 0:
        return state[m : m + 1].clone()
    if isinstance(state, Mapping):
        return {
            key: [value[m]] if key == "members" and isinstance(value, list) else split_state(value, m)
            for key, value in state.items()
        }
    if isinstance(state, list | tuple):
        return type(state)(split_state(value, m) for value in state)
    return state


def merge_states(states: Sequence[Any]) -> Any:
    """A cohort's state from its members' states: the inverse of `split_state`.

    Raises:
        ValueError: If what members share differs, for example their number of steps.
    """
    first = states[0]
    if isinstance(first, Tensor) and first.dim() > 0:
        return torch.cat(list(states))
    if isinstance(first, Mapping):
        if any(state.keys() != first.keys() for state in states[1:]):
            raise ValueError(f"members of one cohort must have the same state, got {[list(state) for state in states]}")
        return {
            key: [state[key][0] for state in states]
            if key == "members" and isinstance(value, list)
            else merge_states([state[key] for state in states])
            for key, value in first.items()
        }
    if isinstance(first, list | tuple):
        return type(first)(merge_states(values) for values in zip(*states, strict=True))
    if any(not _equal(state, first) for state in states[1:]):
        raise ValueError(f"members of one cohort must agree on what they share, got {list(states)}")
    return first


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)

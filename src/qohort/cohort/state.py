"""The training state: collecting it from the parts of a run, splitting it by member and merging it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Stateful(Protocol):
    """An object that changes during training."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes, as tensors and plain containers."""

    def load_state_dict(self, state: Any) -> Any:
        """Restore the state that `state_dict` returned, so that training continues exactly from there."""


def state_of(parts: Mapping[str, Stateful]) -> dict[str, Any]:
    """Return the state of each part by name."""
    return {name: part.state_dict() for name, part in parts.items()}


def load_state(parts: Mapping[str, Stateful], state: Mapping[str, Any]) -> None:
    """Restore the state that `state_of` returned."""
    for name, part in parts.items():
        part.load_state_dict(state[name])


def split_state(state: Any, m: int, copy: bool = True) -> Any:
    """Return the state of member m as the state of a cohort of one.

    Tensors with at least one dimension, and lists under a key `members`, have a leading member axis. Mappings, other
    lists and tuples are traversed. Everything else (counters, strings, 0-dimensional tensors) is shared by all members.

    Args:
        state: The state of a cohort.
        m: The index of the member.
        copy: Whether tensors are copied. Otherwise they are parts of those of the cohort.
    """
    if isinstance(state, Tensor) and state.dim() > 0:
        return state[m : m + 1].clone() if copy else state[m : m + 1]
    if isinstance(state, Mapping):
        return {
            key: [value[m]] if key == "members" and isinstance(value, list) else split_state(value, m, copy)
            for key, value in state.items()
        }
    if isinstance(state, list | tuple):
        return type(state)(split_state(value, m, copy) for value in state)
    return state


def merge_states(states: Sequence[Any], join: Callable[[list[Tensor]], Tensor] = torch.cat) -> Any:
    """Merge the states of members into the state of their cohort. The inverse of `split_state`.

    Args:
        states: The state of each member, as a cohort of one.
        join: Concatenates tensors along the first axis.

    Raises:
        ValueError: If a value that all members share differs, for example the number of env_steps.
    """
    first = states[0]
    if len(states) == 1:
        return first
    if isinstance(first, Tensor) and first.dim() > 0:
        return join(list(states))
    if isinstance(first, Mapping):
        if any(state.keys() != first.keys() for state in states[1:]):
            raise ValueError(f"members of one cohort must have the same state, got {[list(state) for state in states]}")
        return {
            key: [state[key][0] for state in states]
            if key == "members" and isinstance(value, list)
            else merge_states([state[key] for state in states], join)
            for key, value in first.items()
        }
    if isinstance(first, list | tuple):
        return type(first)(merge_states(values, join) for values in zip(*states, strict=True))
    if any(not _equal(state, first) for state in states[1:]):
        raise ValueError(f"members of one cohort must agree on what they share, got {list(states)}")
    return first


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)

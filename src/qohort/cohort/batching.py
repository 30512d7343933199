"""Rules by which `torch.func.vmap` lifts operations over members, where PyTorch's own ask for the number of members.

A program is compiled for any number of members, so that number is a symbol while it is traced. Some of PyTorch's rules
ask for it as an integer, which fixes it. The rules here compute the same, and `register` replaces PyTorch's by them.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet, _ExcludeDispatchKeyGuard
from torch._C._functorch import _add_batch_dim, get_unwrapped, is_batchedtensor, maybe_get_bdim, maybe_get_level
from torch._decomp.decompositions import gelu_backward

Rule = Callable[..., Any]
LIFTED = "FuncTorchBatched"
"""PyTorch's name of the place in its dispatcher where lifted operations go."""


def _along(operation: Rule, tensors: Sequence[int], axis: int, default: int = 0) -> Rule:
    """Return the rule of an operation along an axis: the same operation, with the members as a new first axis.

    Args:
        operation: The operation.
        tensors: The positions of its tensor arguments, each a tensor or a list of tensors of as many axes.
        axis: The position of the argument that is the axis.
        default: The axis if the argument is not given.
    """

    def rule(*given: Any) -> Any:
        arguments = [*given, *[default] * (axis + 1 - len(given))]
        lifted = [one for position in tensors for one in _listed(arguments[position])]
        level = max(maybe_get_level(one) for one in lifted if is_batchedtensor(one))
        with _ExcludeDispatchKeyGuard(DispatchKeySet(DispatchKey.FuncTorchBatched)):
            plain = _members_first(lifted, level)
            arguments[axis] = arguments[axis] % (plain[0].dim() - 1) + 1
            remaining = iter(plain)
            for position in tensors:
                taken = [next(remaining) for _ in _listed(arguments[position])]
                arguments[position] = taken if isinstance(arguments[position], list | tuple) else taken[0]
            results = operation(*arguments)
            if isinstance(results, Tensor):
                return _add_batch_dim(results, 0, level)
            return type(results)(_add_batch_dim(one, 0, level) for one in results)

    return rule


def _listed(argument: Any) -> list[Tensor]:
    return list(argument) if isinstance(argument, list | tuple) else [argument]


def _members_first(lifted: Sequence[Tensor], level: int) -> list[Tensor]:
    """Return tensors with the members of a level of `vmap` as their first axis."""
    plain: list[tuple[Tensor, bool]] = []
    for one in lifted:
        if is_batchedtensor(one) and maybe_get_level(one) == level:
            plain.append((get_unwrapped(one).movedim(maybe_get_bdim(one), 0), True))
        else:
            plain.append((one, False))
    members = next(one.shape[0] for one, has in plain if has)
    return [one if has else one.unsqueeze(0).expand(members, *one.shape) for one, has in plain]


def _slice_backward(
    gradient: Tensor, sizes: Sequence[int], axis: int, start: int | None, end: int | None, step: int
) -> Tensor:
    """Return the gradient of what was sliced."""
    kept = range(sizes[axis])[start:end:step]
    if not kept:
        return gradient.sum(axis, keepdim=True).expand(*sizes)  # of nothing: zeros
    offset = torch.arange(sizes[axis], device=gradient.device) - kept.start
    inside = (offset >= 0) & (offset <= kept[-1] - kept.start) & (offset % step == 0)
    moved = gradient.movedim(axis, -1)
    spread = moved.index_select(-1, (offset // step).clamp(0, len(kept) - 1))
    return torch.where(inside, spread, 0.0).movedim(-1, axis)


def _constant_pad(value: Tensor, border: Sequence[int], fill: float = 0.0) -> Tensor:
    """Return a tensor with a border; a negative width takes away."""
    for pair in range(len(border) // 2):
        axis = value.dim() - 1 - pair
        before, after = border[2 * pair], border[2 * pair + 1]
        value = value.narrow(axis, max(-before, 0), value.shape[axis] + min(before, 0) + min(after, 0))
        sides = [
            value.new_full((*value.shape[:axis], max(width, 0), *value.shape[axis + 1 :]), fill)
            for width in (before, after)
        ]
        value = torch.cat([sides[0], value, sides[1]], axis)
    return value


def _rules() -> Iterator[tuple[str, Rule]]:
    aten = torch.ops.aten
    yield "gelu_backward", gelu_backward
    yield "slice_backward", _slice_backward
    yield "constant_pad_nd", _constant_pad
    yield "cat", _along(aten.cat.default, [0], 1)
    yield "split.Tensor", _along(aten.split.Tensor, [0], 2)
    yield "gather", _along(aten.gather.default, [0, 2], 1)
    yield "scatter.src", _along(aten.scatter.src, [0, 2, 3], 1)
    yield "scatter_add", _along(aten.scatter_add.default, [0, 2, 3], 1)
    yield "max.dim", _along(aten.max.dim, [0], 1)
    yield "min.dim", _along(aten.min.dim, [0], 1)
    yield "sort", _along(aten.sort.default, [0], 1, -1)
    yield "topk", _along(aten.topk.default, [0], 2, -1)


@functools.cache
def register() -> torch.library.Library:
    """Replace PyTorch's rules in this process, and return the library that holds the new ones."""
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that rules are replaced
        for name, rule in _rules():
            library.impl(name, rule, LIFTED, allow_override=True)  # type: ignore[no-untyped-call]
    return library

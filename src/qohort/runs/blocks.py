"""The large tensors of a replay, in files that the checkpoints of a run share.

A replay may take gigabytes, of which little changes between two checkpoints. Its large tensors are cut into blocks. A
block is a file that is named by the SHA-256 of its content, so one that has not changed is not written again.
"""

from __future__ import annotations

import hashlib
import mmap
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from qohort.runs.files import write_atomically

BLOCK = 16 * 2**20
"""The size of a block in bytes. Tensors up to this size stay in the checkpoint."""

REFERENCE = "blocks"
"""The key of the names of the blocks of a tensor, beside its `dtype` and `shape`."""


class Blocks(NamedTuple):
    """The blocks of one run.

    Attributes:
        folder: Where they are.
    """

    folder: Path

    def store(self, state: Any) -> Any:
        """Write the large tensors of a state, and return the state with references in their place.

        Other tensors are copied where they are part of a larger one, which would be saved with them. Blocks are written
        one after the other, straight from the tensor: a copy of a replay could be too large for memory.
        """
        if isinstance(state, Tensor):
            if state.nbytes > BLOCK:
                return self._store(state)
            return state.clone() if state.untyped_storage().nbytes() > state.nbytes else state
        if isinstance(state, Mapping):
            return {key: self.store(value) for key, value in state.items()}
        if isinstance(state, list | tuple):
            return type(state)(self.store(value) for value in state)
        return state

    def _store(self, tensor: Tensor) -> dict[str, Any]:
        content = _content(tensor)
        names = []
        for start in range(0, len(content), BLOCK):
            block = content[start : start + BLOCK]
            names.append(hashlib.sha256(block).hexdigest())
            path = self.folder / names[-1]
            if not path.is_file() or path.stat().st_size != len(block):
                self.folder.mkdir(exist_ok=True)
                write_atomically(path, block)
        return {REFERENCE: names, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}

    def restore(self, state: Any) -> Any:
        """Return a state with its tensors in place of the references. The inverse of `store`."""
        if _is_reference(state):
            return self._restore(state)
        if isinstance(state, Mapping):
            return {key: self.restore(value) for key, value in state.items()}
        if isinstance(state, list | tuple):
            return type(state)(self.restore(value) for value in state)
        return state

    def _restore(self, reference: Mapping[str, Any]) -> Tensor:
        def write(whole: IO[bytes]) -> None:
            for name in reference[REFERENCE]:
                with (self.folder / name).open("rb") as block:
                    shutil.copyfileobj(block, whole)

        return _in_a_file(self.folder, write, getattr(torch, reference["dtype"]), reference["shape"])

    def join(self, tensors: list[Tensor]) -> Tensor:
        """Concatenate tensors along the first axis; large ones in a file."""
        first = tensors[0]
        if first.nbytes <= BLOCK:
            return torch.cat(tensors)

        def write(whole: IO[bytes]) -> None:
            for tensor in tensors:
                whole.write(_content(tensor))

        return _in_a_file(self.folder, write, first.dtype, [sum(map(len, tensors)), *first.shape[1:]])

    def are_whole(self, state: Any) -> bool:
        """Return whether all blocks of a state are there and undamaged."""
        return all(self._is_whole(name) for name in set(references(state)))

    def _is_whole(self, name: str) -> bool:
        try:
            with (self.folder / name).open("rb") as block:
                return hashlib.file_digest(block, "sha256").hexdigest() == name
        except OSError:
            return False

    def keep_only(self, names: set[str]) -> None:
        """Delete all blocks but those with the given names, and the folder if it is empty then."""
        if not self.folder.is_dir():
            return
        for path in self.folder.iterdir():
            if path.name not in names:
                path.unlink()
        if not names:
            self.folder.rmdir()


def _content(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor, without a copy if it is contiguous."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def _in_a_file(folder: Path, write: Callable[[IO[bytes]], None], dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """Return a tensor whose memory is an unnamed file: beside the replay, there may be no room for it in memory."""
    with tempfile.TemporaryFile(dir=folder) as whole:
        write(whole)
        whole.flush()
        content = mmap.mmap(whole.fileno(), 0, access=mmap.ACCESS_COPY)
    return torch.frombuffer(content, dtype=dtype).view(shape)


def references(state: Any) -> Iterator[str]:
    """Return the names of the blocks of a state."""
    if _is_reference(state):
        yield from state[REFERENCE]
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from references(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from references(value)


def _is_reference(state: Any) -> bool:
    return isinstance(state, Mapping) and state.keys() == {REFERENCE, "dtype", "shape"}

"""Policy weights -> rollout workers, in memory: chunked, checksummed, with a version number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from rl4dlm.errors import SyncError

CHUNK_BYTES = 256 * 2**20


@dataclass(frozen=True)
class WeightChunk:
    """Some tensors of a policy as raw bytes, ready for the object store."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    data: np.ndarray
    """uint8, the tensors' bytes end to end."""
    checksum: str

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors by name, views of `data`.

        Raises:
            SyncError: the bytes are not those that were sent.
        """
        if checksum(self.names, self.shapes, self.dtypes, self.data) != self.checksum:
            raise SyncError(f"weights {self.names[0]} .. {self.names[-1]} arrived damaged: checksum differs.")
        start = 0
        for name, shape, dtype in zip(self.names, self.shapes, self.dtypes, strict=True):
            kind = getattr(torch, dtype)
            size = int(np.prod(shape, dtype=np.int64)) * torch.empty((), dtype=kind).element_size()
            # Arrays from the object store are read-only; the tensors made here are only ever read.
            flat = torch.from_numpy(self.data[start : start + size].copy()).view(kind)
            yield name, flat.view(shape)
            start += size


@dataclass(frozen=True)
class Manifest:
    """A published set of weights."""

    version: int
    checksum: str
    """Of all chunks in order."""
    num_bytes: int
    chunks: tuple[Any, ...]
    """Object references to `WeightChunk`."""
    pack_s: float = 0.0
    """Seconds to gather, hash and store them."""


def checksum(
    names: Iterable[str], shapes: Iterable[tuple[int, ...]], dtypes: Iterable[str], data: np.ndarray
) -> str:
    """xxh3-128 over names, shapes, dtypes and bytes."""
    state = xxhash.xxh3_128()
    for name, shape, dtype in zip(names, shapes, dtypes, strict=True):
        state.update(f"{name}{tuple(shape)}{dtype}".encode())
    state.update(np.ascontiguousarray(data).data)
    return state.hexdigest()


def pack(state: Mapping[str, Tensor], chunk_bytes: int = CHUNK_BYTES) -> Iterator[WeightChunk]:
    """Split a state dict into chunks of at most `chunk_bytes` (or one tensor), in the order of its names."""
    group: list[tuple[str, Tensor]] = []
    size = 0
    for name in sorted(state):
        tensor = state[name]
        num_bytes = tensor.numel() * tensor.element_size()
        if group and size + num_bytes > chunk_bytes:
            yield _chunk(group)
            group, size = [], 0
        group.append((name, tensor))
        size += num_bytes
    if group:
        yield _chunk(group)


def _chunk(group: list[tuple[str, Tensor]]) -> WeightChunk:
    names = tuple(name for name, _ in group)
    shapes = tuple(tuple(tensor.shape) for _, tensor in group)
    dtypes = tuple(str(tensor.dtype).removeprefix("torch.") for _, tensor in group)
    parts = [tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for _, tensor in group]
    data = np.concatenate(parts)
    return WeightChunk(names, shapes, dtypes, data, checksum(names, shapes, dtypes, data))


def combined_checksum(checksums: Iterable[str]) -> str:
    """The checksum of a whole set of weights from those of its chunks."""
    return xxhash.xxh3_128("".join(checksums).encode()).hexdigest()


def load_into(target: Mapping[str, Tensor], chunk: WeightChunk) -> set[str]:
    """Copy a chunk's tensors into a module's own; returns their names.

    Raises:
        SyncError: a name or a shape is not the module's.
    """
    with torch.no_grad():
        for name, tensor in chunk.tensors():
            if name not in target or tuple(target[name].shape) != tuple(tensor.shape):
                have = tuple(target[name].shape) if name in target else "no such tensor"
                raise SyncError(
                    f"weights for {name} of shape {tuple(tensor.shape)} arrived; the worker has {have}."
                )
            target[name].copy_(tensor)
    return set(chunk.names)

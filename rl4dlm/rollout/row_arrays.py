"""Arrays with one entry per row under way, each declared once with its dtype, its width and its fill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor


def _column(dtype: torch.dtype = torch.int64, width: str = "", fill: str = "") -> Any:
    """A declaration.

    Args:
        dtype: of the array.
        width: what its second dimension is as wide as; "" for an array `[rows]`.
        fill: the id that an empty row holds; "" for 0.
    """
    return field(metadata={"dtype": dtype, "width": width, "fill": fill})


@dataclass(init=False)
class RowArrays:
    """The arrays of all rows; `state` is what the sampler keeps of them, `[rows, ...]` by name.

    A row that is cleared starts from nothing: no value of its former tenant is left.
    """

    state: dict[str, Tensor]

    prompt: Tensor = _column(width="prompt", fill="pad")
    """Right-aligned."""
    canvas: Tensor = _column(width="canvas", fill="mask")
    """Mask token where not committed."""
    schedule: Tensor = _column(width="schedule")
    """Commits per step of a block."""

    seed: Tensor = _column()
    """Root of all draws of the row."""
    prompt_len: Tensor = _column()
    num_steps: Tensor = _column()
    """Steps in all of the row's own sampler."""
    block_length: Tensor = _column()
    block_steps: Tensor = _column()
    """Steps per block."""
    offset: Tensor = _column()
    """Prompt tokens in the first block."""
    last_block: Tensor = _column()
    """Index of the last block."""

    step: Tensor = _column()
    """Steps taken."""
    block: Tensor = _column()
    """The active block."""
    block_step: Tensor = _column()
    """Steps taken in it."""
    forwards: Tensor = _column()
    """Forwards that the row took part in."""
    tokens: Tensor = _column()
    """Query tokens of those forwards."""
    prompt_is_stored: Tensor = _column(torch.bool)
    """The cache has the finished blocks of the prompt already."""

    step_map: Tensor = _column(torch.int32, "canvas")
    """The trace so far, here and below; 0 where nothing is committed."""
    rank: Tensor = _column(torch.int16, "canvas")
    kind: Tensor = _column(torch.uint8, "canvas")
    logp: Tensor = _column(torch.float32, "canvas")
    score: Tensor = _column(torch.float32, "canvas")
    step_block: Tensor = _column(torch.int16, "canvas")
    """Per step taken; a step commits at least one position, so there are no more steps than positions."""
    step_masked: Tensor = _column(torch.int32, "canvas")
    """Per step taken."""

    def make_empty(self, rows: int, widths: Mapping[str, int], fills: Mapping[str, int], device: str) -> None:
        """Give every array its size and its fill; nothing is kept for a sampler yet.

        Args:
            rows: how many.
            widths: by the names that declarations give.
            fills: ids by the names that declarations give.
            device: of all arrays.
        """
        self._fills = {column.name: fills.get(column.metadata["fill"], 0) for column in _columns()}
        for column in _columns():
            width = column.metadata["width"]
            shape = (rows, widths[width]) if width else (rows,)
            empty = torch.full(shape, self._fills[column.name], dtype=column.metadata["dtype"], device=device)
            setattr(self, column.name, empty)
        self.state = {}

    def clear(self, where: Tensor) -> None:
        """Make rows empty: int64 `[cleared]`."""
        for name, fill in self._fills.items():
            getattr(self, name)[where] = fill
        for kept in self.state.values():
            kept[where] = 0

    def map_arrays(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace every array, what is kept for the sampler included."""
        for name in self._fills:
            setattr(self, name, change(getattr(self, name)))
        self.state = {name: change(kept) for name, kept in self.state.items()}


def _columns() -> list[Field[Tensor]]:
    return [column for column in fields(RowArrays) if column.metadata]

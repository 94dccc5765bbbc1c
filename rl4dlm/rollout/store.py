"""Where keys and values of the rows under way are kept: by layer, row and column, at one place in memory."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor


class Store:
    """Keys and values of every layer, by row and column; made when the first forward shows their shape.

    `update` is what the model calls (the signature of `transformers.Cache.update`). Once made they never
    move, so a recorded program may go on writing to them.
    """

    def __init__(self, num_rows: int, num_columns: int) -> None:
        """
        Args:
            num_rows: rows that can be under way.
            num_columns: columns of prompt and canvas; one more takes what padded queries write.
        """
        self.num_rows, self.num_columns = num_rows, num_columns
        self._layers: list[tuple[Tensor, Tensor]] = []
        self._rows = self._columns = torch.zeros(0, dtype=torch.int64)
        self._keys, self._are_first = slice(0, num_columns), True

    @property
    def dump(self) -> int:
        """The column that padded queries are given."""
        return self.num_columns

    @property
    def rows(self) -> Tensor:
        """int64 `[rows]`: whose forward comes next."""
        return self._rows

    @property
    def columns(self) -> Tensor:
        """int64 `[rows, queries]`: where its queries stand."""
        return self._columns

    @property
    def are_first(self) -> bool:
        """The rows are 0, 1, 2, ...: what they attend to is read in place."""
        return self._are_first

    @property
    def keys(self) -> tuple[int, int]:
        """First and one past the last column that may be attended to."""
        return self._keys.start, self._keys.stop

    def aim(self, rows: Tensor, columns: Tensor, keys: slice, *, are_first: bool) -> None:
        """Say whose forward comes next.

        Args:
            rows: int64 `[rows]`, ascending: rows of the store that take part.
            columns: int64 `[rows, queries]`: where each query stands.
            keys: columns that may be attended to.
            are_first: the rows are 0, 1, 2, ...
        """
        self._rows, self._columns, self._keys, self._are_first = rows, columns, keys, are_first

    def aimed(self, rows: Tensor, columns: Tensor) -> Store:
        """The same store, aimed as it is but by other tensors of rows and columns."""
        other = copy.copy(self)
        other._rows, other._columns = rows, columns
        return other

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See `rl4dlm.types.KeyValueStore`."""
        while layer_idx >= len(self._layers):
            shape = (self.num_rows, self.num_columns + 1, key_states.shape[1], key_states.shape[3])
            self._layers.append((key_states.new_zeros(shape), value_states.new_zeros(shape)))
        found = []
        for kept, new in zip(self._layers[layer_idx], (key_states, value_states), strict=True):
            kept[self._rows[:, None], self._columns] = new.transpose(1, 2)
            rows = kept[: len(self._rows)] if self._are_first else kept[self._rows]
            found.append(rows[:, self._keys].transpose(1, 2))
        return found[0], found[1]

    def keep(self, rows: list[int]) -> None:
        """Move rows to the front; the others are free."""
        for kept in self._tensors():
            kept[: len(rows)] = kept[rows]

    def copy_columns(self, pairs: list[tuple[int, int]], columns: slice) -> None:
        """Write columns of some rows into others.

        Args:
            pairs: (from, to).
            columns: which.
        """
        source, target = (list(rows) for rows in zip(*pairs, strict=True))
        for kept in self._tensors():
            kept[target, columns] = kept[source, columns]

    def clear(self) -> None:
        """Forget all that was kept."""
        for kept in self._tensors():
            kept.zero_()

    def _tensors(self) -> list[Tensor]:
        return [kept for layer in self._layers for kept in layer]

"""The rows of one split, by index: JSON as it stands in the file, tables as Arrow holds them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from rl4dlm.data.files import Row, json_lines, json_object, require_object
from rl4dlm.errors import DataError
from rl4dlm.recipe.bounded import Unreadable, parse_json

if TYPE_CHECKING:
    from datasets import Dataset

_READ_AHEAD = 1000


class Rows(ABC):
    """Rows that are read when they are asked for. A column that a row lacks is None."""

    column_names: list[str]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Row: ...

    def __iter__(self) -> Iterator[Row]:
        return (row for _, row in self.scan(range(len(self))))

    def scan(self, rows: range, columns: Collection[str] | None = None) -> Iterator[tuple[int, Row]]:
        """Index and row, in order.

        Args:
            rows: which, consecutive.
            columns: that are wanted; None: all. Others may be there, too.
        """
        return ((index, self[index]) for index in rows)


class ArrowRows(Rows):
    """Rows of a dataset that `datasets` keeps memory-mapped."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.column_names = list(dataset.column_names)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Row:
        row: Row = self._dataset[index]
        return row

    def scan(self, rows: range, columns: Collection[str] | None = None) -> Iterator[tuple[int, Row]]:
        wanted = [name for name in self.column_names if columns is None or name in columns]
        table = self._dataset.select_columns(wanted)
        for start in range(rows.start, rows.stop, _READ_AHEAD):
            batch = table[start : min(start + _READ_AHEAD, rows.stop)]
            for offset, values in enumerate(zip(*batch.values(), strict=True)):
                yield start + offset, dict(zip(batch, values, strict=True))


class JsonRows(Rows):
    """Rows of JSON files, parsed when they are asked for: values stay what the files say they are."""

    def __init__(self, column_names: Sequence[str], files: Sequence[_JsonFile], rows: np.ndarray) -> None:
        """
        Args:
            column_names: of all rows together.
            files: one after the other.
            rows: int64: which rows of the files these are, in order.
        """
        self.column_names = list(column_names)
        self._files, self._rows = files, rows
        self._first = np.cumsum([0, *(len(file) for file in files)])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        row = int(self._rows[index])
        file = int(np.searchsorted(self._first, row, side="right")) - 1
        return dict.fromkeys(self.column_names) | self._files[file].read(row - int(self._first[file]))

    def select(self, rows: range) -> JsonRows:
        """Consecutive rows."""
        return JsonRows(self.column_names, self._files, self._rows[rows.start : rows.stop])

    @classmethod
    def joined(cls, parts: Sequence[JsonRows]) -> JsonRows:
        """The rows of several splits one after the other."""
        names = dict.fromkeys(name for part in parts for name in part.column_names)
        first = np.cumsum([0, *(part._first[-1] for part in parts)])
        rows = np.concatenate([part._rows + start for part, start in zip(parts, first, strict=False)])
        return cls(list(names), [file for part in parts for file in part._files], rows)


def open_json(paths: Sequence[Path], where: str) -> JsonRows:
    """The rows of JSON files one after the other: each a list of objects, or an object a line.

    Every row is parsed once here, so that what cannot be read shows up before anything starts.

    Raises:
        DataError: a file or a row cannot be read.
    """
    names: dict[str, None] = {}
    files: list[_JsonFile] = []
    for path in paths:
        here = where if len(paths) == 1 else f"{where}, {path.name}"
        with open(path, "rb") as file:
            starts_list = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
            file.seek(0)
            opened = _JsonList(file, here) if starts_list else _JsonLines(path, file, here)
        names |= opened.names
        files.append(opened)
    return JsonRows(list(names), files, np.arange(sum(len(file) for file in files)))


class _JsonFile(ABC):
    """One file of rows."""

    names: dict[str, None]
    """Columns of any row, in the order in which they first appear."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, row: int) -> Row: ...


class _JsonLines(_JsonFile):
    """An object a line; the rows stay on disk."""

    def __init__(self, path: Path, file: BinaryIO, where: str) -> None:
        self._path, self._where = path, where
        self.names = {}
        starts = []
        for start, row in json_lines(file, where):
            starts.append(start)
            self.names |= dict.fromkeys(row)
        self._starts = np.array(starts, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, row: int) -> Row:
        with open(self._path, "rb") as file:
            file.seek(int(self._starts[row]))
            return json_object(file.readline(), f"{self._where}, row {row}")


class _JsonList(_JsonFile):
    """One list of objects, or of texts, which are rows with the one column `text`."""

    def __init__(self, file: BinaryIO, where: str) -> None:
        try:
            values = parse_json(file.read())
        except Unreadable as error:
            raise DataError(f"{where}: {error}.\nFix: write a list of objects, in UTF-8.") from None
        rows = [{"text": value} if isinstance(value, str) else value for value in values]
        self._rows = [require_object(row, f"{where}, row {index}") for index, row in enumerate(rows)]
        self.names = {}
        for row in self._rows:
            self.names |= dict.fromkeys(row)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, row: int) -> Row:
        return self._rows[row]

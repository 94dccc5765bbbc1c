"""Rows of a .jsonl, .csv or .parquet file, streamed: a file larger than memory is read in one pass.

Values are those of the file, as in a run's data (`rl4dlm.data.files`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from rl4dlm.data.files import Row, csv_rows, json_lines
from rl4dlm.errors import DataError

FORMATS = (".jsonl", ".csv", ".parquet")
_PARQUET_ROWS = 1024


class SavedRows:
    """The rows of one file in order, as dicts by column name.

    Iterate over it once. In a CSV file every value is text and an empty cell is None, but for the columns
    `texts`: there it is the empty text, which a CSV file cannot tell from nothing.
    """

    def __init__(self, path: Path, texts: Collection[str] = ()) -> None:
        """Nothing is read yet.

        Args:
            texts: columns of a CSV file in which an empty cell is an empty text.

        Raises:
            DataError: no such file, an unknown kind of file, or an empty one.
        """
        self.path, self._texts = path, frozenset(texts)
        self.share_read = 0.0
        """How much of the file was read, from 0 to 1."""
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "no such file"
            raise DataError(f"{path}: {what}.\nFix: give a file of {', '.join(FORMATS)}.")
        if path.suffix.lower() not in FORMATS:
            raise DataError(
                f"{path}: unknown file type {path.suffix!r}.\nFix: give a file of {', '.join(FORMATS)}."
            )
        if path.stat().st_size == 0:
            raise self._empty()

    def __iter__(self) -> Iterator[Row]:
        """The rows.

        Raises:
            DataError: the file or a row cannot be read, naming the row's index; or there is no row.
        """
        read = {".jsonl": self._jsonl, ".csv": self._csv, ".parquet": self._parquet}
        count = 0
        try:
            for row in read[self.path.suffix.lower()]():
                yield row
                count += 1
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be read: {error.strerror or error}.\nFix: check the file."
            ) from None
        if count == 0:
            raise self._empty()

    def _jsonl(self) -> Iterator[Row]:
        with open(self.path, "rb") as file:
            for start, row in json_lines(file, str(self.path)):
                yield row
                self._note_position(start)

    def _csv(self) -> Iterator[Row]:
        with open(self.path, "rb") as file:
            for row in csv_rows(file, str(self.path)):
                yield {
                    name: cell if cell != "" or name in self._texts else None for name, cell in row.items()
                }
                self._note_position(file.tell())

    def _parquet(self) -> Iterator[Row]:
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                total, done = max(1, file.metadata.num_rows), 0
                for batch in file.iter_batches(_PARQUET_ROWS):
                    yield from batch.to_pylist()
                    done += batch.num_rows
                    self.share_read = done / total
        except pyarrow.ArrowException as error:
            first = (str(error).splitlines() or ["broken"])[0].rstrip(".")
            raise DataError(f"{self.path}: cannot be read: {first}.\nFix: write the file again.") from None

    def _note_position(self, num_bytes: int) -> None:
        self.share_read = min(1.0, num_bytes / self.path.stat().st_size)

    def _empty(self) -> DataError:
        return DataError(f"{self.path}: holds no rows.\nFix: give a file with at least one row.")

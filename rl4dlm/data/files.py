"""JSON lines and CSV as they are written: text stays text, numbers stay exact, and errors name row and line.

Readers that guess types would turn the answer `2023-05-01` into a date, `0140` into 140 and a large integer
into a float, on reading and without a word. Here a value is what the file says it is.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from rl4dlm.errors import DataError
from rl4dlm.recipe.bounded import Unreadable, parse_json, shown

Row = dict[str, Any]

_CSV_FIELD_CHARS = 1 << 27


def json_lines(file: BinaryIO, name: str) -> Iterator[tuple[int, Row]]:
    """The rows of JSON lines in order, each with the byte at which its line starts; blank lines are none.

    Raises:
        DataError: a line is no JSON object; names it by its index among the rows, and by its line.
    """
    index, start = 0, 0
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield start, json_object(line, f"{name}, row {index} (line {number})")
            index += 1
        start += len(line)


def json_object(line: bytes, where: str) -> Row:
    """One line of JSON lines.

    Raises:
        DataError: it is no JSON object.
    """
    try:
        row = parse_json(line.rstrip())
    except Unreadable as error:
        raise DataError(f"{where}: {error}.\nFix: write one JSON object a line, in UTF-8.") from None
    return require_object(row, where)


def require_object(row: Any, where: str) -> Row:
    """Raises DataError for a value that is no JSON object."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: holds a {type(row).__name__}, not an object.\nFix: write JSON objects.")
    return row


def csv_rows(file: BinaryIO, name: str, delimiter: str = ",") -> Iterator[dict[str, str]]:
    """The rows of a CSV file in order; every cell is text, exactly as written.

    Raises:
        DataError: a row has another number of cells than the header, a column's name stands twice, or the
            file is no CSV in UTF-8.
    """
    csv.field_size_limit(_CSV_FIELD_CHARS)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    index = 0
    try:
        names = next(reader, [])
        _require_distinct(names, name)
        for cells in reader:
            if cells:  # a blank line is no row
                yield _row(names, cells, f"{name}, row {index} (line {reader.line_num})")
                index += 1
    except csv.Error as error:
        raise DataError(
            f"{name}, line {reader.line_num}: not CSV: {error}.\nFix: check quotes and commas."
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}, row {index} or soon after: not UTF-8: {error.reason}.\nFix: save the file as UTF-8."
        ) from None
    finally:
        text.detach()


def _row(names: Sequence[str], cells: Sequence[str], where: str) -> dict[str, str]:
    if len(cells) != len(names):
        raise DataError(
            f"{where}: has {len(cells)} cells, and the header has {len(names)}.\n"
            "Fix: quote cells that hold commas or line breaks."
        )
    return dict(zip(names, cells, strict=True))


def _require_distinct(names: Sequence[str], where: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise DataError(
                f"{where}: the column {shown(name)} stands twice in the header.\nFix: rename one of them."
            )

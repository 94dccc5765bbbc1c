"""The tracked files of a run folder: their names, JSON lines that survive a kill, and atomic replacement."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from rl4dlm.errors import CheckpointError, storage_error

METRICS_FILE = "metrics.jsonl"
"""One object per update: `update`, `time_s`, then the metrics."""
EVALUATIONS_FILE = "evaluations.jsonl"
"""One object per evaluation: `update`, `time_s`, `decode` (the sampler's settings), then the metrics."""
SAMPLES_FILE = "samples.jsonl"
"""One object per sampled completion of an evaluation."""
PHASES_FILE = "phases.jsonl"
"""One object per step of a phase that has steps (the warm start): `phase`, `step`, `time_s`, metrics."""
EVENTS_FILE = "events.jsonl"
"""What happened to the run: started, resumed, phase, note, warning, finished, failed, interrupted, or
stopped where it ended without a word."""
RECIPE_FILE = "recipe.yaml"
"""The resolved recipe."""
REPORT_FILE = "report.html"

Row = dict[str, Any]


def plain_number(value: float) -> int | float | None:
    """A metric as JSON has it: int or float; None (null) for a value that is not finite."""
    if isinstance(value, int):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def encode_row(row: Mapping[str, Any]) -> bytes:
    """One JSON line in UTF-8; lone surrogates, which UTF-8 lacks, survive as JSON escapes."""
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def replace_file(path: Path, data: bytes) -> None:
    """Write a whole file so that a reader, or a kill at any moment, sees the old content or the new one.

    Raises:
        StorageError: the disk refuses; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise storage_error(f"{path} cannot be written", error) from error


class JsonLines:
    """An append-only file of JSON objects; each row reaches the operating system before `append` returns."""

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        """
        Args:
            durable: each row reaches the disk, so that no checkpoint written after it outlives it.
        """
        self.path = path
        self._durable = durable
        self._file: FileIO | None = None

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row.

        Raises:
            StorageError: the disk refuses; the file is as it was.
        """
        try:
            if self._file is None:
                self._file = open(self.path, "ab", buffering=0)
            _write_or_undo(self._file, encode_row(row))
            if self._durable:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise storage_error(f"{self.path} cannot be written", error) from error

    def keep(self, wanted: Callable[[Row], bool]) -> list[Row]:
        """Rewrite the file with only the wanted rows, byte for byte, return them; a torn last line goes."""
        self.close()
        rows = _parse_lines(self.path)
        kept = [(line, row) for line, row in rows if wanted(row)]
        data = b"".join(line + b"\n" for line, _ in kept)
        if self.path.exists() and self.path.read_bytes() != data:
            replace_file(self.path, data)
        return [row for _, row in kept]

    def close(self) -> None:
        """Release the file; a later `append` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _write_or_undo(file: FileIO, data: bytes) -> None:
    """Append all of `data`, or, where the disk fills up on the way, nothing of it."""
    start = file.seek(0, os.SEEK_END)
    view = memoryview(data)
    try:
        while view:
            view = view[file.write(view) :]
    except OSError:
        file.truncate(start)
        raise


def tracked_rows(path: Path) -> list[Row]:
    """The rows of a JSON lines file, none where it does not exist. A torn last line is left out.

    Raises:
        CheckpointError: a line before the last one is no JSON object.
    """
    return [row for _, row in _parse_lines(path)]


def _parse_lines(path: Path) -> list[tuple[bytes, Row]]:
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    # A row is complete only with its newline, so what follows the last newline is empty or torn.
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        row = _parse(line)
        if row is None:
            raise CheckpointError(
                f"{path}, line {number}: not a JSON object: {line[:60]!r}.\n"
                "Fix: remove that line, or restore the file from a copy."
            )
        rows.append((line, row))
    return rows


def _parse(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None

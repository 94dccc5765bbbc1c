"""Files of rows that nobody means: rows come out as written, or a DataError says why not."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rl4dlm.data import read_rows
from rl4dlm.errors import DataError

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(TEXT, VALUES, min_size=1, max_size=3), min_size=1, max_size=4)
PIECES = st.sampled_from(
    ["{", "}", "[", "]", '"', ":", ",", "\\", "\n", "\r", "\0", "\ufeff", "1", "a", "\\ud800"]
)


def read(path: Path) -> list[dict[str, Any]] | None:
    try:
        return list(read_rows(str(path)))
    except DataError as error:
        assert str(path) in str(error) and "\nFix: " in str(error)
        return None


@FUZZ
@given(rows=ROWS)
def test_every_row_of_json_comes_back_as_written(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    names = dict.fromkeys(name for row in rows for name in row)
    wanted = [dict.fromkeys(names) | row for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "rows.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    for name in ("rows.jsonl", "rows.json"):
        assert repr(read(tmp_path / name)) == repr(wanted)


@FUZZ
@given(
    table=st.integers(1, 3).flatmap(
        lambda width: st.lists(
            st.lists(st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"]), max_size=8),
                     min_size=width, max_size=width),
            min_size=1, max_size=4,
        )
    )
)  # fmt: skip
def test_every_cell_of_csv_comes_back_as_written(table: list[list[str]], tmp_path: Path) -> None:
    names = [f"column {index}" for index in range(len(table[0]))]
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([names, *table])
    (tmp_path / "rows.csv").write_text(out.getvalue(), encoding="utf-8", newline="")
    assert read(tmp_path / "rows.csv") == [dict(zip(names, cells, strict=True)) for cells in table]


@FUZZ
@given(data=st.binary(max_size=60) | st.lists(PIECES, max_size=40).map(lambda parts: "".join(parts).encode()))
def test_any_bytes_are_rows_or_a_data_error(data: bytes, tmp_path: Path) -> None:
    for name in ("rows.jsonl", "rows.json", "rows.csv"):
        (tmp_path / name).write_bytes(data)
        rows = read(tmp_path / name)
        assert rows is None or all(isinstance(row, dict) for row in rows)

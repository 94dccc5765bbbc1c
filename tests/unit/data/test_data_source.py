"""Reading datasets: formats, splits, and what goes wrong with files."""

from __future__ import annotations

import csv
import json
import logging.handlers
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from rl4dlm.data import read_rows
from rl4dlm.errors import DataError

ROWS = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}, {"a": 3, "b": "z"}]


def fail(path: object, **options: object) -> str:
    with pytest.raises(DataError) as error:
        read_rows(str(path), **options)  # type: ignore[arg-type]
    assert "\nFix: " in str(error.value)
    return str(error.value)


def test_jsonl_json_and_parquet_give_the_same_rows(tmp_path: Path, write_jsonl: Callable) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
    for path in (write_jsonl(ROWS), tmp_path / "rows.json", tmp_path / "rows.parquet"):
        assert list(read_rows(str(path))) == ROWS


def test_csv_values_stay_as_they_are_written(tmp_path: Path) -> None:
    # Type guessing would make these the numbers 140 and 12, a missing value, and 1.5.
    (tmp_path / "rows.csv").write_text(
        '\ufeffPuzzle,Note\n0140,NA\n0012,"1.50\nand more"\n', encoding="utf-8"
    )
    assert list(read_rows(str(tmp_path / "rows.csv"))) == [
        {"Puzzle": "0140", "Note": "NA"},
        {"Puzzle": "0012", "Note": "1.50\nand more"},
    ]


STRANGE = [
    "2023-05-01",
    "2023-05-01T10:00:00Z",
    "10:30",
    "0012",
    "1e5",
    "NaN",
    "null",
    "true",
    "1_000",
    "0x1F",
    "-0",
    " 7 ",
    "1.50",
    "",
    '"quoted"',
    "caf\u00e9 \U0001f600",
]
"""Texts that a reader which guesses types takes for something else."""


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_text_that_looks_like_another_type_stays_text(kind: str, tmp_path: Path, write_jsonl) -> None:
    rows = [{"answer": text, "id": str(index)} for index, text in enumerate(STRANGE)]
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        write_jsonl(rows)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["answer", "id"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        datasets.Dataset.from_list(rows).to_parquet(path)
    assert list(read_rows(str(path))) == rows


@pytest.mark.parametrize("suffix", ["", "folder"])
def test_values_of_json_are_what_the_file_says(suffix: str, tmp_path: Path, write_jsonl: Callable) -> None:
    values = [2**53 + 1, 10**40, -(2**63) - 1, "7", 7, 7.0, True, None, [1, "a", None], {"b": [{}]}, []]
    rows = [{"answer": value, "extra": {f"key{index}": value}} for index, value in enumerate(values)]
    path = write_jsonl(rows, "train.jsonl")
    read = list(read_rows(str(tmp_path) if suffix else path))
    assert read == rows and [type(row["answer"]) for row in read] == [type(value) for value in values]


def test_a_column_that_a_row_lacks_is_none_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"b": 2}\r\n')
    rows = read_rows(str(tmp_path / "rows.jsonl"))
    assert rows.column_names == ["a", "b"]
    assert list(rows) == [{"a": 1, "b": None}, {"a": None, "b": 2}]
    assert rows[1] == {"a": None, "b": 2}


def test_splits_of_json_files_are_joined_and_sliced(tmp_path: Path, write_jsonl: Callable) -> None:
    for name, first in (("train-0", 0), ("train-1", 3), ("test", 6)):
        write_jsonl([{"n": first + i} for i in range(3)], f"{name}.jsonl")
    numbers = [row["n"] for row in read_rows(str(tmp_path), "test[1:]+train[2:5]+test[:-2]")]
    assert numbers == [7, 8, 2, 3, 4, 6]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b"[" * 5000, "nested more than 100 levels"),
        (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "nested more than 100 levels"),
        (b'{"a": ' + b"9" * 5000 + b"}", "more than 4300 digits"),
        (b'{"a": 1e999}', "1e999, which is too large"),
        (b'{"a": 1, "a": 2}', "the key 'a' twice"),
        (b'"text"', "holds a str"),
        (b'{"a": 1} {"a": 2}', "not JSON: Extra data"),
        (b'\xff\xfe{\x00"\x00', "not UTF-8"),
    ],
)
def test_a_hostile_line_is_refused_by_its_row_and_line(line: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 0}\n\n{"a": 0}\n' + line + b'\n{"a": 0}\n')
    message = fail(tmp_path / "rows.jsonl")
    assert "rows.jsonl, row 2 (line 4): " in message and reason in message


def test_a_folder_has_the_splits_of_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "puzzles"
    folder.mkdir()
    (folder / "train.csv").write_text("a\n001\n002\n")
    (folder / "test.csv").write_text("a\n003\n")
    assert list(read_rows(str(folder), "test")) == [{"a": "003"}]
    assert list(read_rows(str(folder), "train[:1]")) == [{"a": "001"}]


def test_a_saved_dataset_folder_is_read_with_slices(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=data, test=data.select([2])).save_to_disk(tmp_path / "both")
    data.save_to_disk(tmp_path / "one")
    assert list(read_rows(str(tmp_path / "both"), "train[1:]")) == ROWS[1:]
    assert list(read_rows(str(tmp_path / "both"), "test")) == ROWS[2:]
    assert list(read_rows(str(tmp_path / "one"))) == ROWS


def test_reading_is_silent_and_leaves_progress_bars_as_they_were(
    write_jsonl: Callable, capfd: pytest.CaptureFixture[str]
) -> None:
    assert not datasets.are_progress_bars_disabled()
    read_rows(write_jsonl(ROWS))
    assert not datasets.are_progress_bars_disabled()
    assert capfd.readouterr() == ("", "")


def test_the_hub_is_not_told_of_local_files(
    tmp_path: Path, write_jsonl: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    monkeypatch.setattr(datasets.load, "get_session", lambda: asked.append("the hub"))
    read_rows(str(write_jsonl(ROWS)))
    assert not asked
    assert datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.load.increase_load_count("json")
    assert asked  # what would have been called


def test_a_missing_file_names_the_near_one(tmp_path: Path, write_jsonl: Callable) -> None:
    write_jsonl(ROWS, "questions.jsonl")
    message = fail(tmp_path / "question.jsonl")
    assert f"data.train = {tmp_path}/question.jsonl: no such file or folder." in message
    assert "Did you mean" in message and "questions.jsonl" in message
    assert "no such file or folder" in fail(tmp_path / "nowhere" / "x.parquet", key="data.eval")


def test_an_unknown_file_type_lists_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_text("x")
    assert ".jsonl, .json, .csv, .parquet" in fail(tmp_path / "rows.xlsx")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    assert "the file is empty" in fail(tmp_path / "rows.jsonl")


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n")
    assert "holds no rows" in fail(tmp_path / "rows.csv")
    (tmp_path / "rows.json").write_text("[]")
    assert "rows.json" in fail(tmp_path / "rows.json")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    assert "doesn't contain any data files" in fail(tmp_path / "void")


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("bad.jsonl", '{"a": 1}\n\n{"a": \n', "row 1 (line 3): not JSON: Expecting value at column 6"),
        ("bad.json", '[{"a": 1}, {"a": }]', "not JSON: Expecting value at column 18"),
        ("bad.json", '[{"a": 1}, 7]', "row 1: holds a int, not an object"),
        ("bad.parquet", "nope", "cannot be read: Parquet"),
        ("bad.csv", "a,b\n1,2\n1,2,3\n", "row 1 (line 3): has 3 cells, and the header has 2"),
        ("bad.csv", "a,b\n1,2\n1\n", "row 1 (line 3): has 1 cells, and the header has 2"),
        ("bad.csv", "a,a\n1,2\n", "the column 'a' stands twice"),
    ],
)
def test_a_broken_file_is_refused_with_the_readers_reason(
    tmp_path: Path, name: str, content: str, cause: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content)
    told = logging.handlers.BufferingHandler(capacity=100)
    logging.getLogger("datasets").addHandler(told)
    message = fail(tmp_path / name)
    logging.getLogger("datasets").removeHandler(told)
    assert cause in message
    assert capfd.readouterr() == ("", "") and not told.buffer  # one message, not two


def test_an_unknown_split_lists_the_splits(write_jsonl: Callable) -> None:
    message = fail(write_jsonl(ROWS), split="test", key="data.eval")
    assert "data.eval_split = 'test'" in message and "train (3 rows)" in message
    assert "data.train_split = 'train[:'" in fail(write_jsonl(ROWS), split="train[:")
    assert "corresponds to no data" in fail(write_jsonl(ROWS), split="train[:0]")


def test_a_subset_of_a_file_is_refused(write_jsonl: Callable) -> None:
    assert "a file has no subsets" in fail(write_jsonl(ROWS), subset="main")


def test_an_unreachable_hub_is_named_with_a_remedy_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("offline mode is enabled")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", offline)
    start = time.monotonic()
    message = fail("someone/questions", key="data.eval")
    assert "hub cannot be reached (offline mode is enabled)" in message
    assert "hf download" in message and "set data.eval to that folder" in message
    assert time.monotonic() - start < 5


def test_a_name_unknown_to_the_hub_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    def unknown(*_: object, **__: object) -> None:
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unknown)
    assert "neither a local file or folder nor a dataset" in fail("someone/questions")


def test_a_dataset_in_the_cache_needs_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: asked.append(1))
    monkeypatch.setattr("datasets.load_dataset_builder", lambda *_, **__: 1 / 0)  # what follows the check
    (datasets.config.HF_DATASETS_CACHE / "someone___questions").mkdir(parents=True)
    assert "cannot be read: division by zero" in fail("someone/questions")
    assert not asked

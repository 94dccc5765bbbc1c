"""Reading datasets: formats, splits, and what goes wrong with files."""

from __future__ import annotations

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


def test_a_folder_has_the_splits_of_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "puzzles"
    folder.mkdir()
    (folder / "train.csv").write_text("a\n001\n002\n")
    (folder / "test.csv").write_text("a\n003\n")
    assert read_rows(str(folder), "test")["a"][:] == ["003"]
    assert read_rows(str(folder), "train[:1]")["a"][:] == ["001"]


def test_a_saved_dataset_folder_is_read_with_slices(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=data, test=data.select([2])).save_to_disk(tmp_path / "both")
    data.save_to_disk(tmp_path / "one")
    assert read_rows(str(tmp_path / "both"), "train[1:]")["a"][:] == [2, 3]
    assert read_rows(str(tmp_path / "both"), "test")["a"][:] == [3]
    assert read_rows(str(tmp_path / "one"))["a"][:] == [1, 2, 3]


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
        ("bad.jsonl", '{"a": 1}\n{"a": \n', "JSON parse error"),
        ("bad.parquet", "nope", "Parquet"),
        ("bad.csv", "a,b\n1,2\n1,2,3\n", "Expected 2 fields in line 3"),
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
    assert "cannot be read" in message and cause in message
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

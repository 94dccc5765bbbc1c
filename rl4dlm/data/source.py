"""Rows of a real dataset through the `datasets` library: hub name, folder, .jsonl, .json, .csv, .parquet.

`datasets` is imported inside the functions: it costs about a second, and procedural tasks do without it.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rl4dlm.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder

FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_HUB_TIMEOUT_S = 4.0


def is_file(path: str) -> bool:
    """Whether a dataset is a single file, which has the one split `train`."""
    return Path(path).is_file()


def read_rows(
    path: str, split: str = "train", subset: str | None = None, *, key: str = "data.train"
) -> Dataset:
    """Open one split of a dataset; rows stay memory-mapped on disk.

    The values of local CSV files are text exactly as written: guessing types would turn `0140` into 140 and
    `NA` into nothing. A folder may be one that `Dataset.save_to_disk` wrote.

    Args:
        path: hub name, local folder or file.
        split: a split or a slice of one, as `datasets` writes it (`train[:1000]`); a file has `train` alone.
        subset: configuration name of a hub dataset or folder.
        key: the recipe key that named `path`, for messages.

    Raises:
        DataError: it is missing, unreachable, unreadable, empty or has no such split.
    """
    where = f"{key} = {path}"
    local = Path(path).exists()
    with _quiet(local):
        try:
            builder = _open_builder(path, subset, where)
            builder.download_and_prepare()
        except DataError:
            raise
        except Exception as error:  # readers raise anything from StopIteration to a driver's own types
            raise DataError(
                f"{where}: cannot be read: {_cause(error)}.\nFix: {_remedy(path, local)}."
            ) from error
        sizes = {name: info.num_examples for name, info in (builder.info.splits or {}).items()}
        if not any(sizes.values()):
            raise DataError(f"{where}: holds no rows.\nFix: point {key} at a dataset with at least one row.")
        try:
            return builder.as_dataset(split=split)
        except (ValueError, KeyError) as error:
            names = ", ".join(f"{name} ({rows} rows)" for name, rows in sizes.items())
            raise DataError(
                f"{where}: {key}_split = {split!r}: {_cause(error)}. Splits there are: {names}.\n"
                f"Fix: set {key}_split to one of them."
            ) from None


def _open_builder(path: str, subset: str | None, where: str) -> DatasetBuilder:
    """The reader of a dataset, which has read nothing yet."""
    from datasets import load_dataset_builder

    place = Path(path)
    if place.is_file():
        if subset is not None:
            raise DataError(
                f"{where}: data.subset = {subset}: a file has no subsets.\nFix: remove data.subset."
            )
        builder = load_dataset_builder(_format_of(place, where), data_files={"train": str(place)})
    elif place.is_dir():
        saved = _saved_splits(place)
        if saved:
            builder = load_dataset_builder("arrow", data_files=saved)
        else:
            builder = load_dataset_builder(str(place.resolve()), name=subset)
    else:
        _require_hub(path, where)
        return load_dataset_builder(path, name=subset)
    return _with_text_columns(builder) if builder.info.builder_name == "csv" else builder


def _format_of(file: Path, where: str) -> str:
    """The reader for a file's suffix; an empty file is refused here, readers only say StopIteration."""
    if file.suffix.lower() not in FORMATS:
        known = ", ".join(FORMATS)
        raise DataError(
            f"{where}: unknown file type {file.suffix!r}.\nFix: use one of {known}, or a folder of them."
        )
    if file.stat().st_size == 0:
        raise DataError(f"{where}: the file is empty.\nFix: write at least one row into it.")
    return FORMATS[file.suffix.lower()]


def _saved_splits(folder: Path) -> dict[str, str] | None:
    """Arrow files by split of a folder that `save_to_disk` wrote; None for any other folder."""
    if (folder / "dataset_dict.json").is_file():
        return {part.parent.name: f"{part.parent}/*.arrow" for part in sorted(folder.glob("*/state.json"))}
    if (folder / "state.json").is_file():
        return {"train": f"{folder}/*.arrow"}
    return None


def _with_text_columns(builder: DatasetBuilder) -> DatasetBuilder:
    """The same CSV files with every column read as text."""
    from datasets import Features, Value, load_dataset_builder

    files = {str(split): list(names) for split, names in builder.config.data_files.items()}
    with open(next(iter(files.values()))[0], encoding="utf-8-sig", newline="") as lines:
        header = next(csv.reader(lines), [])
    features = Features({name: Value("string") for name in header})
    return load_dataset_builder("csv", data_files=files, features=features, keep_default_na=False)


def _require_hub(path: str, where: str) -> None:
    """Refuse what is neither local nor on the hub at once; `datasets` alone would retry for half a minute."""
    place = Path(path)
    if place.suffix.lower() in FORMATS or not _HUB_NAME.fullmatch(path):
        names = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
        near = difflib.get_close_matches(place.name, names, n=1)
        hint = (
            f"Did you mean {place.parent / near[0]}?"
            if near
            else "Relative paths count from the working folder."
        )
        raise DataError(f"{where}: no such file or folder. {hint}\nFix: correct the path.")
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if (datasets.config.HF_DATASETS_CACHE / path.replace("/", "___")).is_dir():
        return
    try:
        HfApi().dataset_info(path, timeout=_HUB_TIMEOUT_S)
    except GatedRepoError:
        raise DataError(
            f"{where}: access is restricted.\nFix: accept its terms, then `hf auth login`."
        ) from None
    except RepositoryNotFoundError:
        raise DataError(
            f"{where}: neither a local file or folder nor a dataset on the Hugging Face hub.\n"
            "Fix: correct the name; for a private dataset, `hf auth login` first."
        ) from None
    except Exception as error:  # transport errors are those of whichever HTTP client the hub library uses
        raise DataError(
            f"{where}: no local file or folder has this name, and the Hugging Face hub cannot be reached "
            f"({_cause(error)}).\n"
            "Fix: download it where there is a network (`hf download NAME --repo-type dataset --local-dir "
            f"FOLDER`) and set {where.partition(' ')[0]} to that folder, or unset HF_HUB_OFFLINE."
        ) from None


def _remedy(path: str, local: bool) -> str:
    if not local:
        return "check data.subset and the dataset's page on the hub"
    return (
        "check that every line is one JSON object" if path.endswith(".jsonl") else "check the file's contents"
    )


def _cause(error: BaseException) -> str:
    """The innermost reason in one line: readers wrap `row 3 is broken` in `an error occurred`."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


@contextmanager
def _quiet(local: bool) -> Iterator[None]:
    """For local files no progress bars, no second account of an error, no request by which the hub counts
    uses; downloads keep their voice."""
    if not local:
        yield
        return
    import datasets

    bars, verbosity = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    counts = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counts
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()

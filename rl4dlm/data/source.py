"""Rows of a real dataset: hub name, folder, .jsonl, .json, .csv, .parquet.

The `datasets` library finds files, splits and hub datasets, and reads tables. JSON and CSV are read here, as
they are written: `datasets` guesses types. It is imported inside the functions, since it costs about a second
and procedural tasks do without it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from rl4dlm.data.files import csv_rows
from rl4dlm.data.table import ArrowRows, JsonRows, Rows, open_json
from rl4dlm.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder

FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_HUB_TIMEOUT_S = 4.0
_CSV_ROWS = 10_000


def is_data_file(path: str) -> bool:
    """Whether a dataset is a single file, which has the one split `train`."""
    return Path(path).is_file()


def read_rows(path: str, split: str = "train", subset: str | None = None, *, key: str = "data.train") -> Rows:
    """Open one split of a dataset; nothing larger than a .json list or a CSV file is kept in memory.

    The values of JSON and CSV files are those of the file: text stays text, `0140` is not 140, `2023-05-01`
    no date, and integers of any size are exact. A folder may be one that `Dataset.save_to_disk` wrote.

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
            splits = _open_splits(path, subset, where)
        except DataError:
            raise
        except Exception as error:  # readers raise anything from StopIteration to a driver's own types
            raise DataError(f"{where}: cannot be read: {_cause(error)}.\nFix: {_remedy(local)}.") from error
        if not any(len(rows) for rows in splits.values()):
            raise DataError(f"{where}: holds no rows.\nFix: point {key} at a dataset with at least one row.")
        try:
            return _take(splits, split)
        except (ValueError, KeyError) as error:
            names = ", ".join(f"{name} ({len(rows)} rows)" for name, rows in splits.items())
            raise DataError(
                f"{where}: {key}_split = {split!r}: {_cause(error)}. Splits there are: {names}.\n"
                f"Fix: set {key}_split to one of them."
            ) from None


Splits = Mapping[str, "Dataset | JsonRows"]


def _take(splits: Splits, split: str) -> Rows:
    """A split or a slice, in the notation of `datasets`."""
    from datasets import ReadInstruction, concatenate_datasets

    sizes = {name: len(rows) for name, rows in splits.items()}
    parts = ReadInstruction.from_spec(split).to_absolute(sizes)
    if not any(part.from_ < part.to for part in parts):
        raise ValueError("it corresponds to no data")
    taken = [splits[part.splitname].select(range(part.from_, part.to)) for part in parts]
    json = [rows for rows in taken if isinstance(rows, JsonRows)]
    return JsonRows.joined(json) if json else ArrowRows(concatenate_datasets(taken))


def _open_splits(path: str, subset: str | None, where: str) -> Splits:
    """All splits of a dataset by name."""
    from datasets import load_dataset_builder

    place = Path(path)
    if place.is_file():
        return {"train": _open_file(place, subset, where)}
    if place.is_dir():
        saved = _saved_splits(place)
        if saved:
            builder = load_dataset_builder("arrow", data_files=saved)
        else:
            builder = load_dataset_builder(str(place.resolve()), name=subset)
    else:
        _require_hub(path, where)
        builder = load_dataset_builder(path, name=subset)
    return _splits_of(builder, where)


def _open_file(place: Path, subset: str | None, where: str) -> Dataset | JsonRows:
    from datasets import load_dataset_builder

    if subset is not None:
        raise DataError(f"{where}: data.subset = {subset}: a file has no subsets.\nFix: remove data.subset.")
    kind = _format_of(place, where)
    if kind == "json":
        return open_json([place], where)
    if kind == "csv":
        return _csv_table([place], where, ",")
    builder = load_dataset_builder(kind, data_files={"train": str(place)})
    return _splits_of(builder, where)["train"]


def _splits_of(builder: DatasetBuilder, where: str) -> Splits:
    """The splits that a reader of `datasets` has found; JSON and CSV files are read as they are written."""
    kind, config = builder.info.builder_name, builder.config
    if kind == "json" and config.field is None:
        return {name: open_json(files, where) for name, files in _fetched(builder).items()}
    if kind == "csv":
        delimiter = config.delimiter or config.sep
        return {name: _csv_table(files, where, delimiter) for name, files in _fetched(builder).items()}
    builder.download_and_prepare()
    return {str(name): builder.as_dataset(split=name) for name in builder.info.splits or {}}


def _fetched(builder: DatasetBuilder) -> dict[str, list[Path]]:
    """The files of each split on this machine: those of the hub downloaded, compressed ones unpacked."""
    from datasets import DownloadManager

    manager = DownloadManager(dataset_name=builder.dataset_name)
    files = manager.download_and_extract(builder.config.data_files)
    return {str(split): [Path(file) for file in manager.iter_files(names)] for split, names in files.items()}


def _csv_table(paths: Sequence[Path], where: str, delimiter: str) -> Dataset:
    """CSV files one after the other, every column as text."""
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    tables = []
    for path in paths:
        here = where if len(paths) == 1 else f"{where}, {path.name}"
        with open(path, "rb") as file:
            rows = csv_rows(file, here, delimiter)
            while batch := list(islice(rows, _CSV_ROWS)):
                schema = pa.schema([(name, pa.string()) for name in batch[0]])
                tables.append(pa.Table.from_pylist(batch, schema=schema))
    return Dataset(InMemoryTable(pa.concat_tables(tables))) if tables else Dataset.from_dict({})


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


def _remedy(local: bool) -> str:
    return "check the file's contents" if local else "check data.subset and the dataset's page on the hub"


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

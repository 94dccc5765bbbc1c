"""Plain training texts, for a tokenizer that is made before any prompt can be encoded."""

from __future__ import annotations

from collections.abc import Iterator

from rl4dlm.data.columns import map_columns
from rl4dlm.data.pairs import pair_columns
from rl4dlm.data.source import read_rows
from rl4dlm.data.tasks import open_task
from rl4dlm.errors import DataError
from rl4dlm.recipe.sections import DataConfig
from rl4dlm.recipe.supervised import SFTDataConfig

_TASK_EXAMPLES = 2000


def training_texts(data: DataConfig, seed: int, *, held_out: int = 0) -> Iterator[str]:
    """Prompts and answers of the training rows, without templates; of a procedural task 2000 demonstrations.

    Args:
        held_out: rows at the end of `data.train` that are kept for evaluation when `data.eval` is not set.

    Raises:
        DataError: the dataset cannot be read, or a column is missing.
    """
    if data.task is not None:
        task = open_task(data.task, seed)
        for index in range(_TASK_EXAMPLES):
            yield from task.demonstration(index)
        return
    assert data.train is not None
    where = f"data.train = {data.train}"
    rows = read_rows(data.train, data.train_split, data.subset)
    columns = map_columns(rows.column_names, data, where)
    last = len(rows) if data.eval is not None else max(0, len(rows) - held_out)
    for index, row in rows.scan(range(last)):
        prompt, others = columns.read(row, f"{where}, row {index}")
        for value in (prompt, others.get("answer")):
            yield from _texts(value)


def example_texts(data: SFTDataConfig, seed: int, *, held_out: int = 0) -> Iterator[str]:
    """Prompts and completions of the training rows, without templates; of a task as `training_texts`.

    Raises:
        DataError: the dataset cannot be read, or holds token ids instead of texts.
    """
    if data.task is not None:
        yield from training_texts(data, seed)
        return
    assert data.train is not None
    where = f"data.train = {data.train}"
    rows = read_rows(data.train, data.train_split, data.subset)
    columns = pair_columns(rows.column_names, data, where)
    if columns.kind == "recorded":
        raise DataError(
            f"{where}: recorded rollouts hold the token ids of another tokenizer.\n"
            "Fix: set model.path to the model that drew them, in place of model.init."
        )
    last = len(rows) if data.eval is not None else max(0, len(rows) - held_out)
    for index, row in rows.scan(range(last)):
        for value in columns.read(row, f"{where}, row {index}", as_text=data.prompt_template is not None):
            yield from _texts(value)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):  # chat messages
        yield from (str(message["content"]) for message in value)

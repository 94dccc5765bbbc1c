"""Plain training texts, for a tokenizer that is made before any prompt can be encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rl4dlm.data.columns import map_columns
from rl4dlm.data.messages import as_prompt, is_messages
from rl4dlm.data.pairs import pair_columns
from rl4dlm.data.preferences import COLUMNS, explicit_prompts
from rl4dlm.data.source import read_rows
from rl4dlm.data.tasks import open_task
from rl4dlm.errors import DataError
from rl4dlm.recipe.sections import DataConfig
from rl4dlm.recipe.supervised import SFTDataConfig

_TASK_EXAMPLES = 2000

Values = Callable[[Mapping[str, Any], str], tuple[Any, ...]]
"""The values of a row that hold texts."""


def training_texts(data: DataConfig, seed: int, *, held_out: int = 0) -> Iterator[str]:
    """Prompts and answers (for fine-tuning completions) of the training rows, without templates.

    Of a procedural task 2000 demonstrations.

    Args:
        held_out: rows at the end of `data.train` that are kept for evaluation when `data.eval` is not set.

    Raises:
        DataError: the dataset cannot be read, a column is missing, or it holds token ids instead of texts.
    """
    if data.task is not None:
        task = open_task(data.task, seed)
        for index in range(_TASK_EXAMPLES):
            yield from task.demonstration(index)
        return
    assert data.train is not None
    where = f"data.train = {data.train}"
    rows = explicit_prompts(read_rows(data.train, data.train_split, data.subset), where)
    last = len(rows) if data.eval is not None else max(0, len(rows) - held_out)
    values = _values_of(data, rows.column_names, where)
    for index, row in rows.scan(range(last)):
        for value in values(row, f"{where}, row {index}"):
            yield from _texts(value)


def _values_of(data: DataConfig, names: list[str], where: str) -> Values:
    """What a row of this dataset says."""
    if not isinstance(data, SFTDataConfig):
        columns = map_columns(names, data, where)

        def of_prompt(row: Mapping[str, Any], place: str) -> tuple[Any, ...]:
            prompt, others = columns.read(row, place)
            answers = (others.get(name) for name in ("answer", *COLUMNS))
            return as_prompt(prompt, as_text=True, where=place), *answers

        return of_prompt
    pairs = pair_columns(names, data, where)
    if pairs.kind == "recorded":
        raise DataError(
            f"{where}: recorded rollouts hold the token ids of another tokenizer.\n"
            "Fix: set model.path to the model that drew them, in place of model.init."
        )
    if pairs.kind == "texts":
        return lambda row, place: (pairs.text(row, place),)

    def of_pair(row: Mapping[str, Any], place: str) -> tuple[Any, ...]:
        prompt, answer = pairs.read(row, place, as_text=data.prompt_template is not None)
        return prompt, [answer]

    return of_pair


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif is_messages(value):
        for message in value:  # type: ignore[attr-defined]
            yield from (part for name, part in message.items() if name != "role" and isinstance(part, str))

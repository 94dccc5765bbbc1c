"""Rows of a named task as prompts: found in a folder, a file or on the hub, put into the protocol's words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl4dlm.benchmarks.table import BENCHMARKS, Benchmark, Source
from rl4dlm.data import EVAL_UID, TextFormat, open_renderer, read_rows
from rl4dlm.errors import DataError, RecipeError
from rl4dlm.recipe.sections import DataConfig
from rl4dlm.types import Prompt


@dataclass(frozen=True)
class TaskChoice:
    """A named task, and where the user says that its rows lie.

    Example: `TaskChoice(BENCHMARKS["gsm8k"], file=None)`.
    """

    benchmark: Benchmark
    file: str | None = None
    """Local file, folder or hub name instead of the task's own."""


def choose_tasks(text: str) -> tuple[TaskChoice, ...]:
    """`gsm8k,countdown=my/rows.jsonl` as choices, in this order.

    Raises:
        RecipeError: no such task, or one is named twice.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise RecipeError(f"--tasks names no task.\nFix: use some of {', '.join(BENCHMARKS)}.")
    choices: list[TaskChoice] = []
    for part in parts:
        name, equals, file = part.partition("=")
        if name not in BENCHMARKS:
            near = difflib.get_close_matches(name, BENCHMARKS, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise RecipeError(f"--tasks: there is no task {name!r}.{hint}\nFix: use {', '.join(BENCHMARKS)}.")
        if equals and not file:
            raise RecipeError(f"--tasks: {part!r} names no file.\nFix: write {name}=FILE, or {name} alone.")
        if name in [choice.benchmark.name for choice in choices]:
            raise RecipeError(f"--tasks names {name} twice.\nFix: name it once.")
        choices.append(TaskChoice(BENCHMARKS[name], file or None))
    return tuple(choices)


@dataclass(frozen=True)
class Place:
    """One split of a task, found."""

    path: str
    """Local file, folder, or hub name."""
    split: str
    """In the notation of `datasets`."""
    subset: str | None
    source: Source


def find_rows(choice: TaskChoice, split: str, data_dir: Path | None) -> Place:
    """Where the rows of a split are read from: the user's file, a file of `data_dir`, else the hub.

    Raises:
        DataError: the task has no such split, or its file is missing and it is not on the hub.
    """
    task = choice.benchmark
    if split not in task.sources:
        raise DataError(
            f"task {task.name} has no split {split!r}.\nFix: use --split {' or '.join(task.sources)}."
        )
    source = task.sources[split]
    if choice.file is not None:
        return Place(choice.file, "train" if Path(choice.file).is_file() else source.hub_split, None, source)
    if data_dir is not None:
        if not data_dir.is_dir():
            raise DataError(f"--data-dir {data_dir}: no such folder.\nFix: correct the path.")
        for name in source.files:
            if (data_dir / name).is_file():
                return Place(str(data_dir / name), "train", None, source)
    if data_dir is None and source.hub is not None:
        return Place(source.hub, source.hub_split, source.subset, source)
    where = f"not in {data_dir}" if data_dir is not None else "not on the hub"
    raise DataError(
        f"task {task.name}, split {split}: its file {' or '.join(source.files)} is {where}.\n"
        f"Fix: put it there, name its folder with --data-dir, or write --tasks {task.name}=FILE."
    )


def task_prompts(
    choice: TaskChoice,
    place: Place,
    *,
    texts: TextFormat,
    limit: int | None,
    max_prompt_tokens: int,
) -> list[Prompt]:
    """The first `limit` prompts of a split (None: all), instruction, chat template and prefill applied.

    `Prompt.uid` is `EVAL_UID` + the row's index in the file, so that seeds do not depend on the limit.

    Args:
        texts: how texts become ids.
        max_prompt_tokens: what the model's positions leave beside the completion.

    Raises:
        DataError: the rows cannot be read, or one has no value that is needed or is too long; names it.
    """
    task = choice.benchmark
    where = f"task {task.name}: {place.path}"
    rows = read_rows(place.path, place.split, place.subset, key=f"task {task.name}")
    _require_columns(task, rows.column_names, where)
    renderer = open_renderer(DataConfig(train=place.path), texts)
    prompts: list[Prompt] = []
    for index, row in _wanted(rows, place.source):
        if limit is not None and len(prompts) >= limit:
            break
        here = f"{where}, row {index}"
        question = _question(task, row, here)
        # Without a chat template a line break keeps the prefill apart from the question.
        text = renderer.text(f"{task.instruction}\n\n{question}", {}, here)
        text += task.prefill if renderer.chat else f"\n{task.prefill}"
        ids = renderer.encode(text, here)
        if len(ids) > max_prompt_tokens:
            raise DataError(
                f"{here}: the prompt has {len(ids)} tokens, and the model has room for {max_prompt_tokens} "
                "beside the completion.\nFix: lower --length, or use a model with more positions."
            )
        prompts.append(Prompt(EVAL_UID + index, question, text, ids, task.columns(row)))
    if not prompts:
        raise DataError(f"{where}: no row belongs to this split.\nFix: give the whole file.")
    return prompts


def _wanted(rows: Iterable[Mapping[str, Any]], source: Source) -> Iterable[tuple[int, Mapping[str, Any]]]:
    wanted = source.wanted
    return ((index, row) for index, row in enumerate(rows) if wanted is None or wanted(row))


def _require_columns(task: Benchmark, names: Sequence[str], where: str) -> None:
    if any(set(columns) <= set(names) for columns in task.needs):
        return
    needed = " or ".join(", ".join(columns) for columns in task.needs)
    raise DataError(
        f"{where}: the task needs the columns {needed}. Columns there are: {', '.join(names)}.\n"
        "Fix: rename the columns, or give another file."
    )


def _question(task: Benchmark, row: Mapping[str, Any], where: str) -> str:
    """The question of a row whose needed values are all there."""
    columns = next(names for names in task.needs if set(names) <= row.keys())
    empty = [name for name in columns if row[name] is None]
    if empty:
        raise DataError(f"{where}: column `{empty[0]}` is empty.\nFix: fill or remove the row.")
    try:
        return task.question(row)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {error}.\nFix: correct the row.") from None

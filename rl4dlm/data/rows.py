"""Rows of a dataset as prompts: columns taken apart, templates applied, tokens counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rl4dlm.data.columns import ColumnMap, map_columns
from rl4dlm.data.messages import Messages, as_prompt
from rl4dlm.data.preferences import explicit_prompts
from rl4dlm.data.render import Ids, Renderer
from rl4dlm.data.source import read_rows
from rl4dlm.data.table import Rows
from rl4dlm.errors import DataError
from rl4dlm.recipe.sections import DataConfig
from rl4dlm.types import Prompt


@dataclass(frozen=True)
class Usable:
    """Which rows make prompts, and what was found on the way."""

    rows: np.ndarray
    """int64: indices of rows, ascending."""
    num_overlong: int
    longest: int
    """Tokens of the longest prompt seen; 0 where no row was."""


@dataclass(frozen=True)
class PromptRows:
    """One split of a dataset, read as prompts."""

    dataset: Rows
    columns: ColumnMap
    renderer: Renderer
    max_length: int
    """Tokens of a prompt at most."""
    overlong: Literal["drop", "truncate", "error"]
    where: str
    """Recipe key and path, for messages."""

    def __len__(self) -> int:
        return len(self.dataset)

    def usable(self, rows: range, limit: int | None = None) -> Usable:
        """Read, render and count the tokens of `rows` in order, until `limit` of them are usable.

        Every row that a run may draw passes through here before it starts: errors show up then.

        Raises:
            DataError: a row cannot be used, is too long under `overlong: error`, or no row is left.
        """
        kept: list[int] = []
        num_overlong = longest = 0
        for index, row in self._read(rows):
            length = len(self._render(row, index)[2])
            longest = max(longest, length)
            num_overlong += length > self.max_length
            if length > self.max_length and self.overlong == "error":
                raise self._too_long(index, length)
            if length <= self.max_length or self.overlong == "truncate":
                kept.append(index)
            if len(kept) == limit:
                break
        if not kept:
            raise DataError(
                f"{self.where}: every prompt is longer than data.max_prompt_length = {self.max_length} "
                f"tokens (the longest has {longest}).\n"
                "Fix: raise data.max_prompt_length, or set data.overlong: truncate."
            )
        return Usable(np.array(kept, dtype=np.int64), num_overlong, longest)

    def prompts(self, rows: Sequence[int], first_uid: int = 0) -> list[Prompt]:
        """Rows by index as prompts, with uid `first_uid` + index; too long ones are cut on the left."""
        return [self._prompt(self.dataset[index], index, first_uid + index) for index in rows]

    def _prompt(self, row: Mapping[str, Any], index: int, uid: int) -> Prompt:
        given, text, ids, columns = self._render(row, index)
        if len(ids) > self.max_length:
            ids = ids[-self.max_length :]
            text = self.renderer.texts.tokenizer.decode(list(ids))
        return Prompt(uid, given, text, ids, columns)

    def _render(self, row: Mapping[str, Any], index: int) -> tuple[str | Messages, str, Ids, dict[str, Any]]:
        """The prompt as given, what the model reads as text and ids, and the columns for reward functions."""
        where = f"{self.where}, row {index}"
        value, columns = self.columns.read(row, where)
        given = as_prompt(value, as_text=self.renderer.template is not None, where=where)
        return given, *self.renderer.prompt(given, row, where), columns

    def _read(self, rows: range) -> Iterator[tuple[int, dict[str, Any]]]:
        """Index and row, with only the columns that decide text and answer."""
        wanted = {self.columns.prompt, self.columns.answer or "", *self.renderer.columns}
        wanted |= {name.partition(".")[0] for name in wanted}
        return self.dataset.scan(rows, wanted)

    def _too_long(self, index: int, length: int) -> DataError:
        return DataError(
            f"{self.where}, row {index}: the prompt has {length} tokens, "
            f"data.max_prompt_length = {self.max_length}.\n"
            "Fix: raise data.max_prompt_length, or set data.overlong to drop or truncate."
        )


def open_rows(data: DataConfig, path: str, split: str, key: str, renderer: Renderer) -> PromptRows:
    """Open one split and decide its columns.

    Args:
        data: the recipe's section.
        path: hub name, folder or file.
        split: in the notation of `datasets`.
        key: the recipe key that named `path`, for messages.
        renderer: makes texts and ids of prompts.

    Raises:
        DataError: the dataset cannot be read, or a column is missing.
    """
    where = f"{key} = {path}"
    dataset = open_split(data, path, split, key, renderer)
    columns = map_columns(dataset.column_names, data, where)
    return PromptRows(dataset, columns, renderer, data.max_prompt_length, data.overlong, where)


def open_split(data: DataConfig, path: str, split: str, key: str, renderer: Renderer) -> Rows:
    """The rows of one split, preferences with explicit prompts; see `open_rows`.

    Raises:
        DataError: the dataset cannot be read, or lacks a column that the prompt template names.
    """
    where = f"{key} = {path}"
    dataset = explicit_prompts(read_rows(path, split, data.subset, key=key), where)
    renderer.check_columns(dataset.column_names, where)
    return dataset

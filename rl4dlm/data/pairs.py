"""Rows of a dataset as a prompt and the completion that should follow it, whatever form they have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl4dlm.data.columns import CONVENTIONS, NOT_HANDED_ON, map_columns
from rl4dlm.data.messages import Message, Messages, as_answer, as_prompt, split_conversation
from rl4dlm.errors import DataError
from rl4dlm.recipe.supervised import SFTDataConfig

_PROMPTS = ("prompt", "question", "problem", "instruction")
_RECORDED = ("prompt_ids", "completion_ids")


@dataclass(frozen=True)
class PairColumns:
    """Where a dataset keeps prompts and completions.

    Example: `PairColumns("pairs", "question", "answer", ("question", "answer"))`.
    """

    kind: str
    """`recorded` (token ids of rollouts), `messages`, `pairs` or `texts`."""
    prompt: str | None
    completion: str
    names: tuple[str, ...]
    """All columns of the dataset."""
    answer: str | None = None
    """Column that reward functions get as `answer`; None: the completion."""

    @property
    def sentence(self) -> str:
        """What was detected, for people."""
        if self.kind == "recorded":
            return "recorded rollouts: token ids as they are"
        if self.kind == "messages":
            return f"conversations in `{self.completion}`: the last message is the completion"
        if self.kind == "texts":
            return f"texts in `{self.completion}`, without prompts"
        return f"prompt from `{self.prompt}`, completion from `{self.completion}`"

    def read(self, row: Mapping[str, Any], where: str, *, as_text: bool) -> tuple[str | Messages, Message]:
        """Prompt and completion of a row of pairs or messages.

        Args:
            as_text: a prompt template will wrap the prompt.

        Raises:
            DataError: one of them is empty, or of no known form.
        """
        value = row[self.completion]
        if self.kind == "messages":
            return split_conversation(value, self.completion, where)
        assert self.prompt is not None
        if row[self.prompt] in (None, "", []):
            raise DataError(
                f"{where}: the prompt in column `{self.prompt}` is empty.\nFix: fill or remove the row."
            )
        prompt = as_prompt(row[self.prompt], as_text=as_text, where=where)
        return prompt, as_answer(value, self.completion, where)

    def text(self, row: Mapping[str, Any], where: str) -> str:
        """The text of a row without a prompt.

        Raises:
            DataError: it is empty or no text.
        """
        return _text(row[self.completion], self.completion, where)

    def handed_on(self, row: Mapping[str, Any], completion: Message) -> dict[str, Any]:
        """The columns for reward functions, `answer` among them."""
        columns = {name: value for name, value in row.items() if name not in NOT_HANDED_ON}
        return {**columns, "answer": completion["content"] if self.answer is None else row[self.answer]}


def pair_columns(names: Sequence[str], data: SFTDataConfig, where: str) -> PairColumns:
    """Which columns are meant: those that the recipe names, a convention, else detection.

    Raises:
        DataError: a column is not there, or none of the known forms fits.
    """
    found = _named(names, data, where) or _detected(names)
    if found is None:
        known = "prompt_ids and completion_ids; messages; prompt and completion; question and answer; text"
        raise DataError(
            f"{where}: no known form of examples fits ({known}). Columns there are: {', '.join(names)}.\n"
            "Fix: set data.prompt_column and data.completion_column."
        )
    kind, prompt, completion = found
    for name, key in ((prompt, "data.prompt_column"), (completion, "data.completion_column")):
        if name is not None and name not in names:
            raise DataError(
                f"{where}: no column `{name}`. Columns there are: {', '.join(names)}.\nFix: correct {key}."
            )
    given = data.answer_column
    if given is not None and given not in names:
        raise DataError(
            f"{where}: no column `{given}`. Columns there are: {', '.join(names)}.\n"
            "Fix: correct data.answer_column."
        )
    usual = next((name for name in CONVENTIONS["trl"].answers if name in names and name != completion), None)
    return PairColumns(kind, prompt, completion, tuple(names), given or usual)


Found = tuple[str, str | None, str]


def _named(names: Sequence[str], data: SFTDataConfig, where: str) -> Found | None:
    """What the recipe says about columns; None: nothing."""
    if data.completion_column is not None:
        prompt = data.prompt_column or next((name for name in _PROMPTS if name in names), None)
        return ("texts" if prompt is None else "pairs", prompt, data.completion_column)
    if data.columns != "auto":
        columns = map_columns(names, data, where)
        return "pairs", columns.prompt, columns.answer or "completion"
    if data.prompt_column is not None:
        return "pairs", data.prompt_column, data.answer_column or "completion"
    return None


def _detected(names: Sequence[str]) -> Found | None:
    if all(name in names for name in _RECORDED):
        return "recorded", *_RECORDED
    for conversation in ("messages", "conversations"):
        if conversation in names:
            return "messages", None, conversation
    for prompt, completion in (("prompt", "completion"), ("question", "answer")):
        if prompt in names and completion in names:
            return "pairs", prompt, completion
    return ("texts", None, "text") if "text" in names else None


def _text(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str) or not value:
        state = "is empty" if value in (None, "", []) else f"is of type {type(value).__name__}, not text"
        raise DataError(f"{where}: the text in column `{column}` {state}.\nFix: fill or remove the row.")
    return value

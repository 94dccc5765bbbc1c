"""Recorded preferences: rows with a chosen and a rejected completion, in TRL's formats.

With an explicit prompt, or with the prompt as what both conversations begin with (`extract_prompt`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from rl4dlm.data.files import Row
from rl4dlm.data.messages import Message, as_answer, as_messages, is_messages, text_or_messages
from rl4dlm.data.render import Ids, Renderer
from rl4dlm.data.table import Rows
from rl4dlm.errors import DataError
from rl4dlm.types import Pair, Prompt

COLUMNS = ("chosen", "rejected")


class PreferenceRows(Rows):
    """Rows with `chosen` and `rejected`, brought into one form: an explicit prompt and the two answers."""

    def __init__(self, rows: Rows, where: str) -> None:
        self._rows, self._where = rows, where
        self.column_names = list(dict.fromkeys(["prompt", *rows.column_names]))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return _explicit(self._rows[index], f"{self._where}, row {index}")

    def scan(self, rows: range, columns: Collection[str] | None = None) -> Iterator[tuple[int, Row]]:
        wanted = None if columns is None else {*columns, "prompt", *COLUMNS}
        for index, row in self._rows.scan(rows, wanted):
            yield index, _explicit(row, f"{self._where}, row {index}")


def explicit_prompts(rows: Rows, where: str) -> Rows:
    """Rows of preferences with an explicit prompt; any other rows as they are."""
    return PreferenceRows(rows, where) if set(COLUMNS) <= set(rows.column_names) else rows


def _explicit(row: Row, where: str) -> Row:
    """A row with prompt, chosen and rejected apart.

    Raises:
        DataError: the two completions are no preference.
    """
    from trl.data_utils import extract_prompt, is_conversational

    values = {name: _decoded(row.get(name), name, where) for name in ("prompt", *COLUMNS)}
    for name in COLUMNS:
        if values[name] in (None, "", []) or not isinstance(values[name], str | list):
            raise DataError(
                f"{where}: column `{name}` is neither text nor a list of chat messages that ends with the "
                "assistant's.\nFix: correct or remove the row."
            )
    prompt, chosen, rejected = values.values()
    whole = all(is_conversational({name: values[name]}) for name in COLUMNS)
    if prompt is None or (whole and not is_conversational({"prompt": prompt}) and len(chosen) > 1):
        if chosen == rejected:
            raise DataError(f"{where}: `chosen` and `rejected` are equal.\nFix: remove the row.")
        values = extract_prompt({"chosen": chosen, "rejected": rejected})
        if not values["prompt"]:
            raise DataError(
                f"{where}: there is no prompt, and `chosen` and `rejected` begin differently.\n"
                "Fix: give the row a `prompt`."
            )
    elif isinstance(prompt, list):
        values |= {name: _rest(values[name], prompt) for name in COLUMNS}
    return {**row, **values}


def _decoded(value: Any, name: str, where: str) -> Any:
    value = text_or_messages(value, where, what=name)
    return as_messages(value, where, what=name) if is_messages(value) else value


def _rest(value: Any, prompt: list[Message]) -> Any:
    """What follows the prompt in a conversation that repeats it."""
    repeats = isinstance(value, list) and value[: len(prompt)] == prompt
    return value[len(prompt) :] if repeats else value


def preference_pairs(
    prompts: Sequence[Prompt],
    renderer: Renderer,
    *,
    eos_id: int,
    canvas_length: int,
    max_prompt_length: int,
    overlong: Literal["drop", "truncate", "error"],
) -> list[Pair]:
    """The pairs of some rows, completions filled with end-of-text to the canvas.

    Args:
        prompts: rows of the dataset; `columns` holds `chosen` and `rejected`, each a text or the assistant's
            message.
        renderer: that of the prompts; a chat template closes both answers as it does for fine-tuning.
        eos_id: ends a completion that no end of turn closes, and fills the canvas.
        canvas_length: tokens.
        max_prompt_length: tokens; longer prompts are cut on the left.
        overlong: what happens to a completion that does not fit: the pair is left out, the completion is cut
            on the right, or an error.

    Returns:
        In the order of the prompts; fewer where pairs were left out.

    Raises:
        DataError: a row has no completions, or they are neither text nor messages, or too long.
    """
    pairs = []
    for prompt in prompts:
        where = f"data.train, row {prompt.uid}"
        better, worse = (_answer(prompt, name, where) for name in COLUMNS)
        asked, chosen, rejected = renderer.preference(prompt.prompt, better, worse, prompt.columns, where)
        longest = max(len(chosen), len(rejected))
        if longest > canvas_length and overlong == "error":
            raise DataError(
                f"{where}: a completion has {longest} tokens, "
                f"rollout.max_completion_length = {canvas_length}.\n"
                "Fix: raise rollout.max_completion_length, or set data.overlong to drop or truncate."
            )
        if longest <= canvas_length or overlong == "truncate":
            good, bad = (_canvas(ids, canvas_length, eos_id) for ids in (chosen, rejected))
            good_end, bad_end = (_end(canvas, {eos_id, *renderer.texts.stop_ids}) for canvas in (good, bad))
            asked_ids: np.ndarray = np.array(asked[-max_prompt_length:], dtype=np.int32)
            pairs.append(Pair(prompt.uid, asked_ids, good, bad, good_end, bad_end))
    return pairs


def _canvas(ids: Ids, length: int, eos_id: int) -> np.ndarray:
    """int32 `[length]`: a completion and end-of-text after it."""
    canvas: np.ndarray = np.full(length, eos_id, dtype=np.int32)
    canvas[: len(ids)] = ids[:length]
    return canvas


def _end(canvas: np.ndarray, stop_ids: set[int]) -> int:
    """Tokens up to and including the first that ends the text, else all."""
    stops = np.flatnonzero(np.isin(canvas, list(stop_ids)))
    return int(stops[0]) + 1 if len(stops) else len(canvas)


def _answer(prompt: Prompt, name: str, where: str) -> Message:
    """The completion in a column."""
    if name not in prompt.columns:
        listed = ", ".join(f"`{column}`" for column in prompt.columns) or "none besides the prompt"
        raise DataError(
            f"{where}: no column `{name}`; columns there are: {listed}.\n"
            "Fix: give data.train the columns `prompt`, `chosen` and `rejected`."
        )
    return as_answer(prompt.columns[name], name, where)

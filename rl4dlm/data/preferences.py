"""Recorded preferences: rows with a chosen and a rejected completion (TRL's explicit-prompt format)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from rl4dlm.errors import DataError
from rl4dlm.types import Pair, Prompt

COLUMNS = ("chosen", "rejected")


def preference_pairs(
    prompts: Sequence[Prompt],
    encode: Callable[[str], Sequence[int]],
    *,
    eos_id: int,
    canvas_length: int,
    overlong: Literal["drop", "truncate", "error"],
) -> list[Pair]:
    """The pairs of some rows, completions filled with end-of-text to the canvas.

    Args:
        prompts: rows of the dataset; `columns` holds `chosen` and `rejected`, each a text, or chat messages
            that end with the assistant's.
        encode: text -> ids without special tokens, the same as for prompts.
        eos_id: ends a completion and fills the canvas after it.
        canvas_length: tokens.
        overlong: what happens to a completion that does not fit: the pair is left out, the completion is cut
            on the right, or an error.

    Returns:
        In the order of the prompts; fewer where pairs were left out.

    Raises:
        DataError: a row has no completions, or they are neither text nor messages, or too long.
    """
    pairs = []
    for prompt in prompts:
        ids = [tuple(encode(_text(prompt, name))) for name in COLUMNS]
        longest = max(len(part) for part in ids)
        if longest > canvas_length and overlong == "error":
            raise DataError(
                f"data.train, row {prompt.uid}: a completion has {longest} tokens, "
                f"rollout.max_completion_length = {canvas_length}.\n"
                "Fix: raise rollout.max_completion_length, or set data.overlong to drop or truncate."
            )
        if longest <= canvas_length or overlong == "truncate":
            pairs.append(_pair(prompt, ids[0][:canvas_length], ids[1][:canvas_length], eos_id, canvas_length))
    return pairs


def _pair(
    prompt: Prompt, chosen: Sequence[int], rejected: Sequence[int], eos_id: int, canvas_length: int
) -> Pair:
    canvases: np.ndarray = np.full((2, canvas_length), eos_id, dtype=np.int32)
    for canvas, ids in zip(canvases, (chosen, rejected), strict=True):
        canvas[: len(ids)] = ids
    return Pair(
        uid=prompt.uid,
        prompt_ids=np.array(prompt.token_ids, dtype=np.int32),
        chosen_ids=canvases[0],
        rejected_ids=canvases[1],
        chosen_len=min(len(chosen) + 1, canvas_length),
        rejected_len=min(len(rejected) + 1, canvas_length),
    )


def _text(prompt: Prompt, name: str) -> str:
    """The completion in a column."""
    where = f"data.train, row {prompt.uid}"
    if name not in prompt.columns:
        listed = ", ".join(f"`{column}`" for column in prompt.columns) or "none besides the prompt"
        raise DataError(
            f"{where}: no column `{name}`; columns there are: {listed}.\n"
            "Fix: give data.train the columns `prompt`, `chosen` and `rejected`."
        )
    value: Any = prompt.columns[name]
    if isinstance(value, str):
        return value
    last = value[-1] if isinstance(value, list) and value else None
    if isinstance(last, Mapping) and last.get("role") == "assistant" and isinstance(last.get("content"), str):
        return str(last["content"])
    raise DataError(
        f"{where}: column `{name}` is neither text nor a list of chat messages that ends with the "
        "assistant's.\nFix: mend the row."
    )

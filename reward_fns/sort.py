"""Sorting digits: how much of the completion agrees with the answer.

`sort` gives the share of right positions, `sort_exact` all or nothing. Full marks, 1.0, mean in both that
the completion, spaces around it aside, is the answer and nothing else: surplus characters count as wrong
positions.

Column `answer`: the sorted digits as text. A row where it is None belongs to another task and gets None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

RANGE = (0.0, 1.0)
EXAMPLES = [
    {"prompt": "872744=", "completion": "244778", "columns": {"answer": "244778"}},
    {"prompt": "31=", "completion": "13", "columns": {"answer": "13"}},
    {"prompt": "500921=", "completion": "001259", "columns": {"answer": "001259"}},
]
GOLD = ("answer",)


def sort(
    prompts: list[Any],
    completions: list[Any],
    answer: list[Any],
    log_metric: Callable[[str, float], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Share of right positions, out of the longer of answer and completion.

    Logs `sort/either_direction`, the share of completions sorted ascending or descending: beside the accuracy
    it tells skill from convention.

    Example: completion `2447` for answer `244778` has 4 of 6 positions right.
    """
    if log_metric is not None:
        log_metric("sort/either_direction", _either_direction(completions, answer))
    return [
        _score(done, right, row, exact=False) for row, (done, right) in enumerate(_pairs(completions, answer))
    ]


def sort_exact(
    prompts: list[Any], completions: list[Any], answer: list[Any], **columns: Any
) -> list[float | None]:
    """1.0 where the completion is the answer, else 0.0."""
    return [
        _score(done, right, row, exact=True) for row, (done, right) in enumerate(_pairs(completions, answer))
    ]


def _either_direction(completions: list[Any], answer: list[Any]) -> float:
    """Share of completions that are the answer or its reverse, of those whose row has one."""
    known = [
        (_text(done).strip(), str(right)) for done, right in _pairs(completions, answer) if right is not None
    ]
    return sum(text in (right, right[::-1]) for text, right in known) / max(1, len(known))


def _pairs(completions: list[Any], answer: list[Any]) -> zip[tuple[Any, Any]]:
    return zip(completions, answer, strict=True)


def _score(completion: Any, answer: Any, row: int, exact: bool) -> float | None:
    if answer is None:
        return None
    right = str(answer).strip()
    if not right:
        raise ValueError(f"row {row}: column answer is empty")
    text = _text(completion).strip()
    if exact:
        return float(text == right)
    return sum(a == b for a, b in zip(text, right, strict=False)) / max(len(text), len(right))


def _text(completion: Any) -> str:
    """The text of a completion, which is a string or a list of chat messages."""
    if not isinstance(completion, str):
        completion = completion[-1].get("content") if completion else ""
    if isinstance(completion, list):
        completion = "".join(str(part.get("text") or "") for part in completion)
    return completion or ""

"""Length: the completion is neither too short nor too long, whatever it says.

Full marks, 1.0: its length lies between `min_length` and `max_length`. Beyond either it falls in a straight
line and is 0.0 `buffer` further on, so that a bit too long costs a bit (the soft punishment of overlong text
of DAPO, arXiv:2503.14476, Eq. (13), plus 1: the difference cancels in a group's advantages). For a target of
n set both bounds to n.

Settings (`kwargs` in the recipe):
    min_length: 20 unless said otherwise; a blank completion gets 0.0 even where this is 0.
    max_length: 200 unless said otherwise.
    buffer: 50 unless said otherwise; 0 makes it all or nothing.
    unit: "words" (runs of anything but white space) or "characters" (spaces around the text aside).

In words, a text with a run of more than 200 characters without white space gets 0.0: it is no prose.
"""

from __future__ import annotations

from typing import Any

RANGE = (0.0, 1.0)
EXAMPLES = [
    {
        "prompt": "Why is the sky blue?",
        "completion": "Air scatters short waves of light far more than long ones, so blue light reaches our "
        "eyes from every side.",
        "columns": {},
    },
    {
        "prompt": "Why do leaves turn red?",
        "completion": "In autumn a tree takes back its green pigment, and the yellow and red ones which "
        "remain become visible at last.",
        "columns": {},
    },
    {
        "prompt": "What does a thermostat do?",
        "completion": "It measures how warm a room is and turns the heating on or off so that this hardly "
        "ever changes.",
        "columns": {},
    },
]
GOLD = ()

UNITS = ("words", "characters")
MAX_WORD_CHARS = 200


def length(
    prompts: list[Any],
    completions: list[Any],
    min_length: int = 20,
    max_length: int = 200,
    buffer: int = 50,
    unit: str = "words",
    **columns: Any,
) -> list[float | None]:
    """1.0 for a length within the bounds, falling to 0.0 over `buffer` outside of them."""
    _check_settings(min_length=min_length, max_length=max_length, buffer=buffer, unit=unit)
    sizes = [size(_text(completion), unit) for completion in completions]
    return [_score(length, min_length, max_length, buffer) for length in sizes]


def size(text: str, unit: str) -> int:
    """Length of a text in words or characters; 0 where its words are none."""
    if unit == "characters":
        return len(text.strip())
    words = text.split()
    return len(words) if max(map(len, words), default=0) <= MAX_WORD_CHARS else 0


def _score(length: int, min_length: int, max_length: int, buffer: int) -> float:
    beyond = max(min_length - length, length - max_length, 0)
    if beyond == 0:
        return float(length > 0)
    return max(0.0, 1 - beyond / buffer) if buffer and length else 0.0


def _check_settings(
    min_length: int = 20, max_length: int = 200, buffer: int = 50, unit: str = "words"
) -> None:
    if unit not in UNITS:
        raise ValueError(f"unit = {unit!r} is none of {', '.join(UNITS)}")
    if not 0 <= min_length <= max_length or max_length == 0 or buffer < 0:
        raise ValueError(
            f"min_length = {min_length}, max_length = {max_length}, buffer = {buffer}: the bounds must "
            "be in order, and none negative"
        )


PREPARE = _check_settings


def _text(completion: Any) -> str:
    """The text of a completion, which is a string or a list of chat messages."""
    if not isinstance(completion, str):
        completion = completion[-1].get("content") if completion else ""
    if isinstance(completion, list):
        completion = "".join(str(part.get("text") or "") for part in completion)
    return completion or ""

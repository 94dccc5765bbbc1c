"""Format: the completion has the asked-for layout, whatever it says.

Full marks, 1.0: it keeps every rule that the settings ask for. Else 0.0.

Settings (`kwargs` in the recipe):
    tags: names separated by commas, "reasoning,answer" unless said otherwise; "" asks for none. Every tag
        occurs as exactly one opening and one closing tag, pairs in the given order and not nested, each with
        something between them.
    pattern: text in which `*` stands for any text, for example `<think>*</think>*\\boxed{*}`. It is matched
        against the whole completion, spaces around it aside. Deliberately no regular expression: a completion
        can make one run for hours, while this is one search per piece from left to right.
    boxed: true asks for exactly one `\\boxed{...}`, closed and not blank.
    min_chars, max_chars: length in characters, spaces around the text aside.
    max_repetition: largest share, 0 to 1, of the runs of four words that occurred before in the text;
        0.2 lets prose pass and stops a loop. Text of fewer than four words repeats nothing.

What the prompt opened belongs to the layout: the last message where that is the assistant's, or the tag or
box that a text prompt ends on (`<think>`). Tags, pattern and box are looked for in it and the completion
together; lengths and repetition are the completion's. Completions longer than 100,000 characters get 0.0.

The reader of prompts is in `reward_answers` beside this file, which has to lie there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if str(Path(__file__).parent) not in sys.path:
    sys.path.append(
        str(Path(__file__).parent)
    )  # where a path names this file, its folder is on no search path

from reward_answers import places  # noqa: E402

RANGE = (0.0, 1.0)
EXAMPLES = [
    {
        "prompt": "What is 2+2?",
        "completion": "<reasoning>\nTwo and two.\n</reasoning>\n<answer>\n4\n</answer>",
        "columns": {},
    },
    {"prompt": "Why?", "completion": "<reasoning>So.</reasoning><answer>Because.</answer>", "columns": {}},
]

GOLD = ()

MAX_CHARS = 100_000
RUN = 4
"""Words in a run whose repetition counts."""


def format(
    prompts: list[Any],
    completions: list[Any],
    tags: str = "reasoning,answer",
    pattern: str | None = None,
    boxed: bool = False,
    min_chars: int | None = None,
    max_chars: int | None = None,
    max_repetition: float | None = None,
    **columns: Any,
) -> list[float | None]:
    """1.0 where the completion has the layout that the settings ask for, else 0.0."""
    rules = _rules(tags, pattern, boxed, min_chars, max_chars, max_repetition)
    pairs = zip(places.turns(prompts, completions), map(places.text_of, completions), strict=True)
    return [float(len(text) <= MAX_CHARS and all(rule(turn, text) for rule in rules)) for turn, text in pairs]


def _rules(
    tags: str = "reasoning,answer",
    pattern: str | None = None,
    boxed: bool = False,
    min_chars: int | None = None,
    max_chars: int | None = None,
    max_repetition: float | None = None,
) -> list[Callable[[str, str], bool]]:
    """The rules that are asked for, cheap ones first: of the turn, and of the completion, which ends it."""
    names = [name.strip() for name in tags.split(",") if name.strip()]
    if max_repetition is not None and not 0 <= max_repetition <= 1:
        raise ValueError(f"max_repetition = {max_repetition} is no share between 0 and 1")
    if min_chars is not None and max_chars is not None and min_chars > max_chars:
        raise ValueError(f"min_chars = {min_chars} is more than max_chars = {max_chars}")
    asked: list[tuple[bool, Callable[[str, str], bool]]] = [
        (min_chars is not None, lambda turn, text: len(text.strip()) >= (min_chars or 0)),
        (max_chars is not None, lambda turn, text: len(text.strip()) <= (max_chars or 0)),
        (bool(names), lambda turn, text: has_tags(turn, names)),
        (boxed, lambda turn, text: has_one_box(turn)),
        (bool(pattern), lambda turn, text: matches(turn.strip(), pattern or "")),
        (max_repetition is not None, lambda turn, text: repetition(text) <= (max_repetition or 0)),
    ]
    rules = [rule for wanted, rule in asked if wanted]
    if not rules:
        raise ValueError("the settings ask for nothing: set tags, pattern, boxed, a length or max_repetition")
    return rules


PREPARE = _rules


def has_one_box(text: str) -> bool:
    r"""There is one `\boxed{`, it is closed, and its content is not blank."""
    start = text.find("\\boxed{")
    if start < 0 or text.count("\\boxed{") != 1:
        return False
    depth, begin = 1, start + len("\\boxed{")
    for brace in re.finditer(r"\\.|[{}]", text[begin:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return bool(text[begin : begin + brace.start()].strip())
    return False


def repetition(text: str) -> float:
    """Share of the runs of four words that occurred before in the text; 0.0 for fewer than four words.

    Example: 1 2 3 4 1 2 3 4 has five runs, of which the last one repeats the first: 0.2.
    """
    words = text.split()
    runs = [tuple(words[start : start + RUN]) for start in range(len(words) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def has_tags(text: str, names: list[str]) -> bool:
    """Each tag opens once and closes once, pairs follow each other in order, none is blank inside."""
    position = 0
    for name in names:
        opening, closing = f"<{name}>", f"</{name}>"
        start = text.find(opening, position)
        end = text.find(closing, start)
        if start < 0 or end < 0 or text.count(opening) != 1 or text.count(closing) != 1:
            return False
        if not text[start + len(opening) : end].strip():
            return False
        position = end + len(closing)
    return True


def matches(text: str, pattern: str) -> bool:
    """The whole text fits a pattern in which `*` stands for any text, also none."""
    first, *rest = pattern.split("*")
    if not rest:
        return text == first
    if not text.startswith(first):
        return False
    *middle, last = rest
    position = len(first)
    for piece in middle:
        found = text.find(piece, position)
        if found < 0:
            return False
        position = found + len(piece)
    return len(text) - len(last) >= position and text.endswith(last)

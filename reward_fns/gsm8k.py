r"""GSM8K: the completion's final number equals the reference's, compared exactly.

Full marks, 1.0: the numbers are equal as fractions (18, 18.0, $18, 18.00 and 36/2 are the same). 0.0:
another number, or none.

The final number of a completion is looked for in this order: the last `\boxed{...}` that is closed, the last
`<answer>...</answer>`, what follows the last `####`, what follows "the answer is", the last number of the
text. In the first three it is the value of what stands there (`2\frac{1}{2}`, `x = 20 - 2 = 18 eggs`), else
the number after the last `=`, the first one there. A text that opens a box or an `<answer>` and leaves it
open or without a number has given none: a number elsewhere in it does not count. A dollar or percent sign
and a unit are ignored. What the prompt opened for the completion is read with it.

How numbers are read is in `reward_answers` beside this file, which has to lie there: mixed numbers,
fractions, thousands separators, powers of ten, `1.5 million`.

Column `answer` (or `ground_truth`): a number, or GSM8K's solution text that ends in `#### value`. A
reference without a number is refused by its row.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

if str(Path(__file__).parent) not in sys.path:
    sys.path.append(
        str(Path(__file__).parent)
    )  # where a path names this file, its folder is on no search path

from reward_answers import places  # noqa: E402
from reward_answers.numbers import Number, numbers_in  # noqa: E402
from reward_answers.same import constant_in, gives_several  # noqa: E402

RANGE = (0.0, 1.0)
EXAMPLES = [
    {
        "prompt": "Natalia sold clips to 48 friends in April and to half as many in May. How many in all?",
        "completion": "Natalia sold 48/2 = 24 clips in May, 48+24 = 72 altogether.\n#### 72",
        "columns": {"answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n#### 72"},
    },
    {
        "prompt": "A house costs $80,000 and gains $50,000. What is it worth?",
        "completion": "<reasoning>80000 + 50000</reasoning>\n<answer>\n\\boxed{\\$130{,}000.00}\n</answer>",
        "columns": {"answer": "130,000"},
    },
    {"prompt": "What is 5 - 8?", "completion": "The result is -3.", "columns": {"ground_truth": -3.0}},
    {"prompt": "What is half of 7?", "completion": "\\boxed{\\frac{7}{2}}", "columns": {"answer": "3.5"}},
]

_TAIL = 4000
_ANOTHER = re.compile(r"\s*(?:[-\u2013\u2014]|or|and|to)\s*[$]?[0-9]", re.IGNORECASE)
"""A second number that is joined to a first one."""


def gsm8k(
    prompts: list[Any],
    completions: list[Any],
    answer: list[Any] | None = None,
    ground_truth: list[Any] | None = None,
    **columns: Any,
) -> list[float | None]:
    """1.0 where the completion's final number equals the reference's, else 0.0; None without a reference."""
    if answer is None and ground_truth is None:
        raise ValueError("needs the column answer or ground_truth")
    nothing = [None] * len(completions)
    rows = zip(places.turns(prompts, completions), answer or nothing, ground_truth or nothing, strict=True)
    return [
        _score(text, right if right is not None else other, row)
        for row, (text, right, other) in enumerate(rows)
    ]


def _gold(columns: Mapping[str, Any]) -> str | None:
    """How a model would state a row's answer: a sentence, and the number behind `####`."""
    right = columns.get("answer") if columns.get("answer") is not None else columns.get("ground_truth")
    if right is None:
        return None
    number = reference(right)
    return f"That makes {number.value} in all.\n#### {number.value}"


GOLD = _gold


def _score(text: str, right: Any, row: int) -> float | None:
    if right is None:
        return None
    wanted, found = reference(right, f"row {row}: "), final_number(text)
    return float(found is not None and found.value == wanted.value)


def final_number(text: str) -> Number | None:
    """The number that a completion ends on, exactly; None where there is none."""
    for place in (
        places.boxed(text),
        places.between(text, "<answer>", "</answer>"),
        places.after(text, "####"),
    ):
        found = None if place is None else _number_of(places.without_markdown(place[:_TAIL]))
        if found is not None:
            return found
    if places.opens_a_place(text):
        return None
    phrase = places.behind_phrase(text[-_TAIL:])
    if phrase is not None and _hedges(phrase):
        return None
    stated = numbers_in(phrase)[:1] if phrase is not None else []
    found_there = stated or numbers_in(text[-_TAIL:])[-1:]
    return found_there[0] if found_there else None


def _hedges(phrase: str) -> bool:
    """Whether the first number of a statement is one of two: `18-20`, `18 or 20`, `18 and 20`."""
    first, *others = numbers_in(phrase)[:2] or [None]
    if first is None or not others or abs(first.value) == abs(others[0].value):
        return False
    return _ANOTHER.match(phrase.partition(first.text)[2]) is not None


def _number_of(place: str) -> Number | None:
    """The value of an answer, else the first number behind its last sign of equality."""
    value = constant_in(place)
    if value is not None or gives_several(place):
        return value
    found = numbers_in(place.rpartition("=")[2])
    return found[0] if found else None


def reference(right: Any, where: str = "") -> Number:
    """The number that a row asks for; a numeric column may come in scientific notation.

    Raises:
        ValueError: it holds none.
    """
    if isinstance(right, int | float) and not isinstance(right, bool) and math.isfinite(right):
        return Number(Fraction(str(right)))
    number = final_number(right) if isinstance(right, str) else None
    if number is None:
        raise ValueError(f"{where}answer {str(right)[-80:]!r} holds no number")
    return number

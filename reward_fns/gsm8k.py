r"""GSM8K: the completion's final number equals the reference's, compared exactly.

Full marks, 1.0: the numbers are equal as fractions (18, 18.0, $18, 18.00 and 36/2 are the same). 0.0:
another number, or none.

The final number of a completion is looked for in this order: the last `\boxed{...}` that is closed, the last
`<answer>...</answer>`, what follows the last `####`, the last number of the text. In the first three the
number after the last `=` counts, the first one there. A text that opens a box or an `<answer>` and leaves it
open or without a number has given none: a number elsewhere in it does not count. A thousands comma, a dollar
or percent sign and a unit are ignored. Numbers have at most 40 characters.

Column `answer` (or `ground_truth`): a number, or GSM8K's solution text that ends in `#### value`.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

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

GOLD = ("answer", "ground_truth")

MAX_DIGITS = 40
_TAIL = 4000
_BOX_TAIL = 20_000
_BRACES = re.compile(r"\\boxed\s{0,3}\{|\\.|[{}]", re.DOTALL)
_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER = re.compile(
    rf"(?<![0-9.,])(?P<top>(?:(?<![0-9A-Za-z)}}])-\s?\$?)?(?:{_WHOLE}))(?:\s?/\s?(?P<bottom>[0-9]+))?"
)
_FRACTION = re.compile(r"\\[dt]?frac\{([0-9,.]{1,40})\}\{([0-9,.]{1,40})\}")


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
    rows = zip(completions, answer or nothing, ground_truth or nothing, strict=True)
    return [
        _score(_text(done), right if right is not None else other, row)
        for row, (done, right, other) in enumerate(rows)
    ]


def _score(completion: str, reference: Any, row: int) -> float | None:
    if reference is None:
        return None
    return float(final_number(completion) == _reference(reference, row))


def final_number(text: str) -> Fraction | None:
    """The number that a completion ends on, exactly; None where there is none."""
    for place in (_boxed(text), _between(text, "<answer>", "</answer>"), _after(text, "####")):
        if place is not None:
            found = _numbers(place.rpartition("=")[2][:_TAIL])
            if found:
                return found[0]
    if "\\boxed" in text or "<answer>" in text:
        return None
    found = _numbers(text[-_TAIL:])
    return found[-1] if found else None


def _reference(answer: Any, row: int) -> Fraction:
    """The number that a row asks for; a numeric column may come in scientific notation."""
    if isinstance(answer, int | float) and math.isfinite(answer):
        return Fraction(str(answer))
    number = final_number(str(answer))
    if number is None:
        raise ValueError(f"row {row}: answer {str(answer)[-80:]!r} holds no number")
    return number


def _numbers(text: str) -> list[Fraction]:
    """All numbers of a text from left to right."""
    text = (
        text.replace("{,}", ",").replace("\\$", "$").replace("\\,", "").replace("−", "-").replace("-$", "-")
    )
    text = _FRACTION.sub(r"\1/\2", text)
    numbers = []
    for match in _NUMBER.finditer(text):
        top, bottom = match["top"], match["bottom"] or "1"
        if len(top) <= MAX_DIGITS and len(bottom) <= MAX_DIGITS and int(bottom):
            numbers.append(Fraction(re.sub(r"[,$\s]", "", top)) / int(bottom))
    return numbers


def _boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` that is closed, the innermost of nested ones."""
    text = text[-_BOX_TAIL:]
    open_braces: list[int | None] = []  # where the content of a box begins, None for another brace
    last: tuple[int, int] | None = None
    for match in _BRACES.finditer(text):
        if match[0].startswith("\\boxed"):
            open_braces.append(match.end())
        elif match[0] == "{":
            open_braces.append(None)
        elif match[0] == "}" and open_braces:
            start = open_braces.pop()
            if start is not None and (last is None or start > last[0]):
                last = (start, match.start())
    return text[slice(*last)] if last is not None else None


def _between(text: str, opening: str, closing: str) -> str | None:
    end = text.rfind(closing)
    start = text.rfind(opening, 0, max(end, 0))
    return text[start + len(opening) : end] if start >= 0 else None


def _after(text: str, mark: str) -> str | None:
    start = text.rfind(mark)
    return text[start + len(mark) :] if start >= 0 else None


def _text(completion: Any) -> str:
    """The text of a completion, which is a string or a list of chat messages."""
    if not isinstance(completion, str):
        completion = completion[-1].get("content") if completion else ""
    if isinstance(completion, list):
        completion = "".join(str(part.get("text") or "") for part in completion)
    return completion or ""

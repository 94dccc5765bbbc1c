r"""Math: the completion's final answer equals the reference, by value where the texts differ.

Full marks, 1.0: the two answers are the same text up to spacing, or mean the same number, expression, set,
interval, matrix, equation or time of day. 0.0: anything else. There is no partial credit.

Where the answer of a completion is looked for, the first of these that holds something:

    1. the last `\boxed{...}` that is closed, or `\boxed 2` without braces
    2. the last `<answer>...</answer>`, or what the sentence in it states
    3. what follows "the answer is", else the last number, where the text opens neither a box nor an
       `<answer>`: one left open or empty has given no answer, and the number before it is not it
    4. the whole completion where it is the reference, letter by letter, spaces aside

What the prompt opened for the completion (a tag, a box, the beginning of an assistant's message) is read
with it.

Column `answer`, else `ground_truth`, else `solution`: LaTeX, a number, a few words, or a worked solution,
whose answer is its box, what follows `####` or "the answer is", or its last number. A reference that states
no answer is refused by its row.

How numbers and expressions are read and compared is in `reward_answers` beside this file, which has to lie
there. Values are compared exactly: two decimals are the same only where they are equal, and a decimal of
six or more digits stands for a fraction or root that it writes, rounded or cut (0.333333 for 1/3). Text that
is no mathematics is compared as text. Length, depth and the size of numbers are bounded, and nothing is
evaluated as code.
"""

from __future__ import annotations

import contextlib
import json
import math as arithmetic
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if str(Path(__file__).parent) not in sys.path:
    sys.path.append(
        str(Path(__file__).parent)
    )  # where a path names this file, its folder is on no search path

from reward_answers import places, statements, values  # noqa: E402
from reward_answers.numbers import numbers_in  # noqa: E402
from reward_answers.same import plain_text, same, same_choice  # noqa: E402

RANGE = (0.0, 1.0)
EXAMPLES = [
    {
        "prompt": "Solve $x^2 = 2x$ for the larger root.",
        "completion": "<reasoning>x = 0 or x = 2</reasoning>\n<answer>\n\\boxed{x = 2}\n</answer>",
        "columns": {"answer": "2"},
    },
    {
        "prompt": "Find the height of an equilateral triangle of side 1.",
        "completion": "It is \\boxed{\\sqrt{3}/2}.",
        "columns": {"ground_truth": "\\frac{\\sqrt{3}}{2}"},
    },
    {
        "prompt": "Where is $1/x$ defined?",
        "completion": "<answer>$(-\\infty,0)\\cup(0,\\infty)$</answer>",
        "columns": {"answer": "(-\\infty, 0) \\cup (0, \\infty)"},
    },
    {
        "prompt": "Expand $(x+1)^2$.",
        "completion": "\\boxed{1 + 2x + x^2}",
        "columns": {"solution": "We find $(x+1)(x+1)$, that is $\\boxed{x^2 + 2x + 1}$."},
    },
    {"prompt": "What is 6 times 7?", "completion": "The product is 42.", "columns": {"answer": 42}},
]

_COLUMNS = ("answer", "ground_truth", "solution")
_MAX_BARE = 200


def math(
    prompts: list[Any],
    completions: list[Any],
    answer: list[Any] | None = None,
    ground_truth: list[Any] | None = None,
    solution: list[Any] | None = None,
    **columns: Any,
) -> list[float | None]:
    """1.0 where the completion's final answer equals the reference, else 0.0; None without a reference."""
    given = [column for column in (answer, ground_truth, solution) if column is not None]
    if not given:
        raise ValueError("needs the column answer, ground_truth or solution")
    scores: list[float | None] = []
    for row, text in enumerate(places.turns(prompts, completions)):
        right = next((column[row] for column in given if column[row] is not None), None)
        bare = places.text_of(completions[row])
        scores.append(None if right is None else _score(text, bare, reference(right, f"row {row}: ")))
    return scores


def _gold(columns: Mapping[str, Any]) -> str | None:
    """How a model would state a row's answer: in a box at the end of a sentence."""
    right = next((columns[name] for name in _COLUMNS if columns.get(name) is not None), None)
    return None if right is None else f"So the answer is $\\boxed{{{reference(right)}}}$."


GOLD = _gold


def _prepare() -> None:
    """Import mpmath, which an answer must not pay for."""
    values.prepare()


PREPARE = _prepare


def _score(text: str, bare: str, right: str) -> float:
    if any(same(found, right) or same_choice(found, right) for found in final_answers(text)):
        return 1.0
    is_short = len(bare) <= 2 * len(right) + _MAX_BARE
    return float(is_short and plain_text(bare) == plain_text(right))


def reference(right: Any, where: str = "") -> str:
    """The answer that a row asks for.

    Raises:
        ValueError: it states none that can be read.
    """
    right = _only_item(right)
    if isinstance(right, int | float) and not isinstance(right, bool) and arithmetic.isfinite(right):
        return str(right)
    text = statements.reference_of(right) if isinstance(right, str) else None
    if text is None:
        raise ValueError(
            f"{where}the reference {str(right)[-80:]!r} states no answer that can be read: no closed box, no "
            '"the answer is", no number at its end'
        )
    return text


def _only_item(right: Any) -> Any:
    """The item of a list of one, or of its JSON text, as OlympiadBench holds answers; else what is given."""
    if isinstance(right, str) and right.lstrip().startswith('["'):
        with contextlib.suppress(ValueError):
            right = json.loads(right)
    return right[0] if isinstance(right, list | tuple) and len(right) == 1 else right


def final_answers(text: str) -> list[str]:
    """What a completion gives as its answer, by the chain above: a text, or a sentence and what it states."""
    text = text[-places.TAIL :]
    boxed = places.boxed(text)
    if boxed is not None and not statements.is_blank(boxed):
        return [boxed]
    tagged = places.between(text, "<answer>", "</answer>")
    if tagged is not None and not statements.is_blank(tagged):
        return [tagged, *statements.stated(tagged)]
    if places.opens_a_place(text):
        return []
    phrase = places.behind_phrase(text)
    if phrase is not None and statements.stated(text) != []:
        return statements.stated(text)
    return [number.text for number in numbers_in(text)[-1:]]

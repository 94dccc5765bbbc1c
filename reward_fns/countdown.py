r"""Countdown: reach a target with given numbers, each used exactly once, by + - * / and parentheses.

Full marks, 1.0: the expression uses exactly the given numbers and its exact value is the target. 0.1: it
uses exactly the numbers but misses the target (the partial credit of d1, arXiv:2504.12216). 0.0: anything
else.

The expression is the content of the last `<answer>...</answer>`, inside it or without it the last
`\boxed{...}`, or else the whole completion. `= value` after it is ignored, and `\times`, `\cdot`, `\div`,
dollar signs are understood. It is parsed here by recursive descent over ASCII digits and never evaluated as
code; values are exact fractions. There is no power, and length and depth are bounded, so that no text takes
noticeable time.

Columns: `numbers` and `target`; or d1's `input` ("n1,n2,n3") and `output`; or `ground_truth` ([numbers,
target]).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

EXAMPLES = [
    {
        "prompt": "3,5,8,2,6=8",
        "completion": "3+5+2-8+6",
        "columns": {"numbers": [3, 5, 8, 2, 6], "target": 8},
    },
    {
        "prompt": "1,5,5,5=24",
        "completion": "(5-1/5)*5=24",
        "columns": {"numbers": [1, 5, 5, 5], "target": 24},
    },
    {
        "prompt": "Numbers: [49, 55, 53], target: 51",
        "completion": "<reasoning>49 - 53 + 55</reasoning>\n<answer>\n\\boxed{49 - 53 + 55}\n</answer>",
        "columns": {"input": "49,55,53", "output": "51"},
    },
    {
        "prompt": "Numbers: [4, 6], target: 24",
        "completion": "\\boxed{4 \\times 6}",
        "columns": {"ground_truth": [[4, 6], 24]},
    },
]

MAX_CHARS = 200
MAX_DEPTH = 20
PARTIAL_CREDIT = 0.1

_TOKEN = re.compile(r"\s*([0-9]{1,9}(?![0-9])|[-+*/()])")
_SPELLINGS = {
    "\\times": "*",
    "\\cdot": "*",
    "\\div": "/",
    "\\left": "",
    "\\right": "",
    "×": "*",
    "÷": "/",
    "−": "-",
    "$": "",
}


class _Malformed(Exception):
    """The text is no arithmetic expression."""


def countdown(
    prompts: list[Any],
    completions: list[Any],
    numbers: list[Any] | None = None,
    target: list[Any] | None = None,
    input: list[Any] | None = None,
    output: list[Any] | None = None,
    ground_truth: list[Any] | None = None,
    **columns: Any,
) -> list[float | None]:
    """1.0 where the target is reached, 0.1 where only the numbers are right, else 0.0; None without task."""
    pairs = [(n, t) for n, t in ((numbers, target), (input, output)) if n is not None and t is not None]
    if not pairs and ground_truth is None:
        raise ValueError("needs the columns numbers and target, or input and output, or ground_truth")
    scores: list[float | None] = []
    for row, completion in enumerate(completions):
        tasks = [(givens[row], goals[row]) for givens, goals in pairs if givens[row] is not None]
        task = tasks[0] if tasks else ground_truth[row] if ground_truth is not None else None
        scores.append(None if task is None else _score(_text(completion), *_task(task, row)))
    return scores


def _gold(columns: Mapping[str, Any]) -> str | None:
    """Column `answer` where it holds an expression; elsewhere it is the target."""
    answer = columns.get("answer")
    is_expression = isinstance(answer, str) and re.search(r"[0-9)]\s*[-+*/]", answer)
    return answer if is_expression else None


GOLD = _gold


def _task(task: Any, row: int) -> tuple[Counter[int], Fraction]:
    """The numbers with their counts and the target of a row."""
    try:
        given, goal = task
        parts = given.split(",") if isinstance(given, str) else list(given)
        return Counter(int(part) for part in parts), Fraction(str(goal).strip())
    except (TypeError, ValueError, ZeroDivisionError):
        raise ValueError(f"row {row}: {task!r} is not (numbers, target)") from None


def _score(completion: str, numbers: Counter[int], target: Fraction) -> float:
    try:
        tokens = _tokens(_expression(completion))
        if Counter(int(token) for token in tokens if token.isdigit()) != numbers:
            return 0.0
        value = _value(tokens)
    except (_Malformed, ZeroDivisionError):
        return 0.0
    return 1.0 if value == target else PARTIAL_CREDIT


def _expression(completion: str) -> str:
    """The part of a completion that claims to be the expression."""
    text = completion
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    if start >= 0:
        text = text[start + len("<answer>") : end]
    boxed = text.rfind("\\boxed{")
    if boxed >= 0:
        text = text[boxed + len("\\boxed{") :]
        text = text[: text.find("}")] if "}" in text else text
    text = text.strip()
    if len(text) > MAX_CHARS:
        raise _Malformed
    for spelling, plain in _SPELLINGS.items():
        text = text.replace(spelling, plain)
    return text.partition("=")[0].strip()


def _tokens(text: str) -> list[str]:
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _Malformed
        tokens.append(match.group(1))
        position = match.end()
    return tokens


def _value(tokens: list[str]) -> Fraction:
    """Value of a whole expression: `sum := product (('+'|'-') product)*` and so on."""
    value, position = _sum(tokens, 0, 0)
    if position != len(tokens):
        raise _Malformed
    return value


def _sum(tokens: list[str], position: int, depth: int) -> tuple[Fraction, int]:
    value, position = _product(tokens, position, depth)
    while position < len(tokens) and tokens[position] in "+-":
        sign = 1 if tokens[position] == "+" else -1
        term, position = _product(tokens, position + 1, depth)
        value += sign * term
    return value, position


def _product(tokens: list[str], position: int, depth: int) -> tuple[Fraction, int]:
    value, position = _factor(tokens, position, depth)
    while position < len(tokens) and tokens[position] in "*/":
        operator = tokens[position]
        factor, position = _factor(tokens, position + 1, depth)
        value = value * factor if operator == "*" else value / factor
    return value, position


def _factor(tokens: list[str], position: int, depth: int) -> tuple[Fraction, int]:
    """A number, a parenthesis, or either of them with a sign."""
    if position >= len(tokens) or depth > MAX_DEPTH:
        raise _Malformed
    token = tokens[position]
    if token.isdigit():
        return Fraction(int(token)), position + 1
    if token in "+-":
        value, position = _factor(tokens, position + 1, depth + 1)
        return (value if token == "+" else -value), position
    if token != "(":
        raise _Malformed
    value, position = _sum(tokens, position + 1, depth + 1)
    if position >= len(tokens) or tokens[position] != ")":
        raise _Malformed
    return value, position + 1


def _text(completion: Any) -> str:
    """The text of a completion, which is a string or a list of chat messages."""
    if not isinstance(completion, str):
        completion = completion[-1].get("content") if completion else ""
    if isinstance(completion, list):
        completion = "".join(str(part.get("text") or "") for part in completion)
    return completion or ""

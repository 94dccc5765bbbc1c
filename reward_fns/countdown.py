r"""Countdown: reach a target with given numbers, each used exactly once, by + - * / and parentheses.

Full marks, 1.0: the expression uses exactly the given numbers and its exact value is the target. 0.1: it
uses exactly the numbers but misses the target (the partial credit of d1, arXiv:2504.12216). 0.0: anything
else.

The expression is the content of the last `<answer>...</answer>`, inside it or without it the last box, or
else the whole completion. `= value` after it is ignored; LaTeX (`\times`, `\div`, `\frac{a}{b}`) is
understood. It is parsed by the grammar of `reward_answers` beside this file, which has to lie there, and
never evaluated as code; values are exact fractions. There is no power and no product without a sign, and
length and depth are bounded, so that no text takes noticeable time. What the prompt opened for the
completion is read with it.

Columns, the first of these that a row has: `numbers` and `target`; `nums` and `target` (the hub's
Countdown-Tasks-3to4); d1's `input` ("n1,n2,n3") and `output`; `ground_truth`, `reward_model.ground_truth` or
`answer`, each of them [numbers, target] or {"numbers": ..., "target": ...} (verl, TinyZero), as
JSON text too. A row of at most four numbers with which its target cannot be reached has no gold answer and is
refused before a run.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

if str(Path(__file__).parent) not in sys.path:
    sys.path.append(
        str(Path(__file__).parent)
    )  # where a path names this file, its folder is on no search path

from reward_answers import places  # noqa: E402
from reward_answers.grammar import Node, parse  # noqa: E402
from reward_answers.tokens import Unreadable, tokens_of  # noqa: E402

RANGE = (0.0, 1.0)
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
    {
        "prompt": "Numbers: [44, 19, 35], target: 98",
        "completion": "<answer>(44 + 19) + 35 = 98</answer>",
        "columns": {"ground_truth": {"target": 98, "numbers": [44, 19, 35]}},
    },
]

MAX_CHARS = 200
MAX_DIGITS = 9
MAX_SOLVED = 4
"""Numbers of a row for which a gold answer is searched."""
PARTIAL_CREDIT = 0.1
_PAIRS = (("numbers", "target"), ("nums", "target"), ("input", "output"))
_WHOLE = ("ground_truth", "reward_model", "answer")

Task = tuple[Counter[int], Fraction]


def countdown(
    prompts: list[Any],
    completions: list[Any],
    numbers: list[Any] | None = None,
    target: list[Any] | None = None,
    nums: list[Any] | None = None,
    input: list[Any] | None = None,
    output: list[Any] | None = None,
    ground_truth: list[Any] | None = None,
    **columns: Any,
) -> list[float | None]:
    """1.0 where the target is reached, 0.1 where only the numbers are right, else 0.0; None without task."""
    named = {"numbers": numbers, "target": target, "nums": nums, "input": input, "output": output}
    named |= {
        "ground_truth": ground_truth,
        **{name: columns.get(name) for name in ("reward_model", "answer")},
    }
    given = {name: values for name, values in named.items() if values is not None}
    if not _has_task(given):
        raise ValueError("needs the columns numbers and target, or input and output, or ground_truth")
    scores: list[float | None] = []
    for row, text in enumerate(places.turns(prompts, completions)):
        task = task_of({name: values[row] for name, values in given.items()}, f"row {row}: ")
        scores.append(None if task is None else _score(text, *task))
    return scores


def _has_task(given: Mapping[str, list[Any]]) -> bool:
    if any(set(pair) <= given.keys() for pair in _PAIRS) or {"ground_truth", "reward_model"} & given.keys():
        return True
    return any(isinstance(_decoded(value), list | Mapping) for value in given.get("answer", ()))


def task_of(columns: Mapping[str, Any], where: str = "") -> Task | None:
    """The numbers with their counts, and the target, of a row; None where it has none.

    Raises:
        ValueError: it has something else.
    """
    for names in _PAIRS:
        pair = [columns.get(name) for name in names]
        if pair[0] is not None and pair[1] is not None:
            return _task(tuple(pair), where)
    for name in _WHOLE:
        whole = columns.get(name)
        if name == "reward_model":
            decoded = _decoded(whole)
            whole = decoded.get("ground_truth") if isinstance(decoded, Mapping) else None
        if whole is not None and (name != "answer" or isinstance(_decoded(whole), list | Mapping)):
            return _task(whole, where)
    return None


def _task(task: Any, where: str) -> Task:
    try:
        whole = _decoded(task)
        if isinstance(whole, Mapping):
            whole = (whole["numbers"] if "numbers" in whole else whole["nums"], whole["target"])
        given, goal = whole
        parts = _decoded(given)
        parts = re.split(r"[\s,]+", parts.strip()) if isinstance(parts, str) else list(parts)
        return Counter(_whole_number(part) for part in parts), Fraction(str(goal).strip())
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise ValueError(f"{where}{task!r} is not (numbers, target)") from None


def _whole_number(part: Any) -> int:
    value = Fraction(str(part).strip())
    if value.denominator != 1 or isinstance(part, bool):
        raise ValueError(f"{part!r} is no whole number")
    return int(value)


def _decoded(value: Any) -> Any:
    """What a JSON text of a list or object stands for; anything else as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _score(completion: str, numbers: Counter[int], target: Fraction) -> float:
    try:
        for expression in _expressions(completion):
            used: Counter[int] = Counter()
            value = _value(expression, used)
            if used == numbers:
                return 1.0 if value == target else PARTIAL_CREDIT
    except (Unreadable, ZeroDivisionError):
        pass
    return 0.0


def _expressions(completion: str) -> tuple[Node, ...]:
    """The part of a completion that claims to be the expression, and nothing that follows its `=`.

    Raises:
        Unreadable: it is no expression.
    """
    tagged = places.between(completion, "<answer>", "</answer>")
    text = completion if tagged is None else tagged
    boxed = places.boxed(text)
    text = (text if boxed is None else boxed).strip()
    text = places.without_markdown(text[: 2 * MAX_CHARS]).strip()
    if len(text) > MAX_CHARS or "\\boxed" in text:
        raise Unreadable("too long, or a box that is left open")
    node = parse(tokens_of(text.partition("=")[0]))
    return (node,)


def _value(node: Node, used: Counter[int]) -> Fraction:
    """Value of an expression of whole numbers, which are counted in `used`.

    Raises:
        Unreadable: it holds more than + - * / and parentheses.
    """
    if node.kind == "number" and node.number is not None:
        text = node.number.text
        if not text.isdigit() or len(text) > MAX_DIGITS:
            raise Unreadable(f"{text!r} is no whole number as it was given")
        used[int(text)] += 1
        return node.number.value
    parts = [_value(part, used) for part in node.parts] if node.kind in _ALLOWED else []
    if not parts:
        raise Unreadable(f"a {node.kind}")
    if node.kind == "sum":
        return sum(parts[1:], parts[0])
    if node.kind == "minus":
        return -parts[0]
    return parts[0] * parts[1] if node.kind == "times" else parts[0] / parts[1]


_ALLOWED = ("sum", "minus", "times", "over")


def _gold(columns: Mapping[str, Any]) -> str | None:
    """A completion that reaches the target: column `answer` where it holds an expression, else one found by
    search; None where the numbers are too many for it.

    Raises:
        ValueError: the target cannot be reached.
    """
    answer = columns.get("answer")
    if isinstance(answer, str) and re.search(r"[0-9)]\s*[-+*/]", answer) and _decoded(answer) is answer:
        return f"<answer>{answer}</answer>"
    task = task_of(columns)
    if task is None or task[0].total() > MAX_SOLVED:
        return None
    numbers, target = task
    found = next(_reached([(Fraction(n), str(n)) for n in numbers.elements()], target), None)
    if found is None:
        raise ValueError(f"no expression of the numbers {sorted(numbers.elements())} has the value {target}")
    return f"<answer>{found}</answer>"


GOLD = _gold


def _reached(items: list[tuple[Fraction, str]], target: Fraction) -> Iterator[str]:
    """Expressions that use all items once and have the target as value."""
    if len(items) == 1 and items[0][0] == target:
        yield items[0][1]
    for i, (a, left) in enumerate(items):
        for j, (b, right) in enumerate(items):
            if i == j:
                continue
            rest = [item for place, item in enumerate(items) if place not in (i, j)]
            made = [(a - b, f"({left} - {right})")] + ([(a / b, f"({left} / {right})")] if b else [])
            if i < j:
                made += [(a + b, f"({left} + {right})"), (a * b, f"({left} * {right})")]
            for value in made:
                yield from _reached([*rest, value], target)

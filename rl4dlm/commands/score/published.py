r"""What the published evaluation makes of a completion, so that a row that differs can say why.

Source: d1 (arXiv:2504.12216) reads text with fixed patterns and compares numbers or strings. Our rewards read
more: a thousands comma, an equation in the box, answers that mean the same. `published` follows its rules, so
that both figures stand side by side and every difference has a reason: what the published reader read.

    gsm8k    the first number in the first `\boxed{}` with content, without commas; else the last number in
             the first `<answer>`
    math     the last `\boxed{}`, else the first `<answer>`, compared as normalised strings (the comparison of
             MATH, arXiv:2103.03874)
    sudoku   16 characters in or near `<answer>`, the share of empty cells that agree with the solution
    countdown  the last `\boxed{}`, else the first `<answer>`, else the text; there the left side of the first
               equation, if any. Its numbers are those given, and its value in floats is the target
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rl4dlm.commands.score.columns import SavedSample

_MAX_CHARS = 10_000
"""Its patterns take quadratic time; 512 tokens are some 2,000 characters."""
_BOXED = re.compile(r"\\boxed\{(.*?)\}")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_NUMBER = re.compile(r"-?\d+\.?\d*")
_GRIDS = (
    re.compile(r"<answer>.*?```\s*([\d\s]+)```", re.DOTALL),
    re.compile(r"<answer>(.*?)(?:<\|eot_id\|>|<\|endoftext\|>|</answer>)", re.DOTALL),
    re.compile(r"</answer>\s*(.*?)(?:<\|eot_id\|>|<\|endoftext\|>|$)", re.DOTALL),
    re.compile(r"(\d{16})\s*</answer>"),
    re.compile(r"\b(\d{16})\b"),
)


@dataclass(frozen=True)
class Published:
    """A published verdict."""

    score: float
    read: str
    """What the published reader took for the answer; empty: nothing."""

    def explain(self, reference: Any) -> str:
        """Why its score differs from another's."""
        what = f"reads {self.read[:80]!r}" if self.read else "finds no answer"
        return f"the published evaluation {what} and gives {self.score:g}; the reference is {reference!r:.80}"


def published(reward: str, sample: SavedSample) -> Published | None:
    """The published verdict; None for a reward without one, or a text too long to be read by patterns."""
    reader = _READERS.get(reward)
    if reader is None or len(sample.completion) > _MAX_CHARS:
        return None
    return reader(sample.completion, sample.columns)


def _gsm8k(text: str, columns: Mapping[str, Any]) -> Published | None:
    found = _gsm8k_number(text)
    try:
        right = found is not None and found == float(columns["answer"])
    except (TypeError, ValueError):
        # A reference that its file could not hold: no answer equals it.
        right = False
    return Published(float(right), "" if found is None else f"{found:g}")


def _gsm8k_number(text: str) -> float | None:
    for content in _BOXED.findall(text):
        numbers = _NUMBER.findall(content)
        if numbers and content.strip(" ."):
            return _as_float(content) or float(numbers[0])
    answer = _ANSWER.search(text)
    numbers = _NUMBER.findall(answer.group(1)) if answer else []
    return float(numbers[-1]) if numbers else None


def _as_float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _math(text: str, columns: Mapping[str, Any]) -> Published | None:
    answer = _last_box(text)
    if not answer:
        between = _ANSWER.search(text)
        answer = between.group(1).strip() if between else None
    if answer is None or columns["answer"] is None:
        return Published(0.0, answer or "")
    return Published(float(_plain_latex(answer) == _plain_latex(str(columns["answer"]))), answer)


def _last_box(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return None


_DROPPED = ("\n", "\\!", "\\left", "\\right", "^{\\circ}", "^\\circ", "\\$", "\\%", "%")


def _plain_latex(text: str) -> str:
    """A LaTeX answer in the one spelling that MATH's comparison gives it."""
    text = text.replace("\\\\", "\\").replace("tfrac", "frac").replace("dfrac", "frac")
    for dropped in _DROPPED:
        text = text.replace(dropped, "")
    text = text.partition("\\text{ ")[0].replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = f"0{text}"
    name, equals, value = text.partition("=")
    if equals and len(name) <= 2 and "=" not in value:
        text = value
    text = re.sub(r"\\sqrt(?!\{)(.)", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac(?!\{)(.)(?!\{)(.)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac(?!\{)(.)(?=\{)", r"\\frac{\1}", text)
    text = "\\frac{1}{2}" if text == "0.5" else text
    return re.sub(r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}", text)


def _sudoku(text: str, columns: Mapping[str, Any]) -> Published | None:
    puzzle = columns.get("puzzle", columns.get("Puzzle"))
    solution = columns.get("solution", columns.get("Solution"))
    if puzzle is None or solution is None or len(str(puzzle)) != 16:
        return None
    matches = (pattern.search(text) for pattern in _GRIDS)
    found = next((match.group(1).strip() for match in matches if match and match.group(1).strip()), "")
    grid = re.sub(r"\s", "", found)[:16]
    empty = [cell for cell, digit in enumerate(str(puzzle)) if digit in "0."]
    right = sum(grid[cell : cell + 1] == str(solution)[cell : cell + 1] for cell in empty)
    return Published(right / max(1, len(empty)), grid)


_EQUATION = re.compile(r"([0-9+\-*/() ]+)=[0-9. ]+")
_MAX_EXPRESSION = 200
_SIGNS = {"\\div": "/", "\\times": "*", "\\cdot": "*"}
_OPERATORS: Mapping[type, Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


def _countdown(text: str, columns: Mapping[str, Any]) -> Published | None:
    try:
        numbers, target = columns["ground_truth"]
        wanted, goal = sorted(int(number) for number in numbers), float(target)
    except (KeyError, TypeError, ValueError):
        return None
    expression = _countdown_expression(text)
    used = sorted(int(number) for number in re.findall(r"[0-9]+", expression[:_MAX_EXPRESSION]))
    value = _value(expression) if used == wanted else None
    return Published(float(value is not None and abs(value - goal) < 1e-5), expression)


def _countdown_expression(text: str) -> str:
    found = _last_box(text)
    if found is None:
        between = _ANSWER.search(text)
        found = between.group(1).strip() if between else text
    for spelling, sign in _SIGNS.items():
        found = found.replace(spelling, sign)
    equation = _EQUATION.search(found)
    return (equation.group(1) if equation else found).strip()


def _value(expression: str) -> float | None:
    """Value of a short arithmetic expression; None where it is none."""
    if len(expression) > _MAX_EXPRESSION or not re.fullmatch(r"[0-9+\-*/().\s]+", expression):
        return None
    try:
        return _reckoned(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def _reckoned(node: ast.expr) -> float:
    """Value of a parsed expression.

    Raises:
        ValueError: it holds more than numbers, signs and the four operations.
        ArithmeticError: it divides by zero.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    parts = [node.operand] if isinstance(node, ast.UnaryOp) else []
    parts = [node.left, node.right] if isinstance(node, ast.BinOp) else parts
    apply = _OPERATORS.get(type(getattr(node, "op", None)))
    if apply is None or not parts:
        raise ValueError(f"no arithmetic: {type(node).__name__}")
    return apply(*map(_reckoned, parts))


_READERS: Mapping[str, Callable[[str, Mapping[str, Any]], Published | None]] = {
    "countdown": _countdown,
    "gsm8k": _gsm8k,
    "math": _math,
    "sudoku": _sudoku,
}

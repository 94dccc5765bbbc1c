r"""Math: the completion's final answer equals the reference, symbolically where the texts differ.

Full marks, 1.0: the two answers are the same text up to spacing, or math-verify (needed, imported with the
first call) holds them for the same number, expression, set, interval, matrix or equation. 0.0: anything
else. There is no partial credit.

Where the answer of a completion is looked for, the first of these that holds something:

    1. the last `\boxed{...}` that is closed
    2. the last `<answer>...</answer>`
    3. the last number, where the text opens neither a box nor an `<answer>`: one left open or empty has given
       no answer, and the number before it is not it
    4. the whole completion where it is the reference, letter by letter, spaces aside

Column `answer`, else `ground_truth`, else `solution`: LaTeX, a number, or a solution text with a box.

math-verify's own time limits are alarms, which work in a main thread only; they are off. Instead text is
parsed only if it is short, made of known commands, balanced, flat, and without towers of powers or
factorials of factorials, and parsing and comparing may make a fixed number of Python calls (about a second).
What exceeds that can only be right as text. Nothing is evaluated as code: math-verify's reader of bare
expressions, which does so, is not used.
"""

from __future__ import annotations

import functools
import logging
import re
import sys
from collections.abc import Callable
from math import prod
from typing import Any

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

GOLD = ("answer", "ground_truth", "solution")

MAX_CHARS = 200
MAX_DIGITS = 30
MAX_DEPTH = 10
MAX_POWER = 3000
"""Bound on the product of nested exponents of plain numbers."""
MAX_SYMBOLIC_POWER = 30
"""The same where letters, roots or functions occur, which comparing may expand."""
MAX_LETTERS = 40
MAX_COUNTED = 100
"""Largest number under a factorial or in a binomial."""
MAX_CALLS = 400_000
"""Python calls that reading and comparing two answers may make."""
_TAIL = 20_000

_COMMANDS = frozenset(
    """frac dfrac tfrac cfrac sqrt pi cdot times div pm mp le leq ge geq lt gt ne neq infty cup cap in left
    right begin end text textbf mathrm mathbf mathit mbox circ degree angle triangle sin cos tan cot sec csc
    arcsin arccos arctan log ln alpha beta gamma delta theta lambda mu phi omega sigma rho tau quad qquad
    emptyset varnothing mathbb binom dbinom displaystyle setminus overline lfloor rfloor lceil rceil
    approx""".split()
)
_ARITHMETIC = frozenset(("frac", "dfrac", "tfrac", "cdot", "times", "div", "left", "right"))
_WORDS = re.compile(r"\\(?:text|mbox|mathrm|textbf|begin|end)\s?\{[^{}\\^]*\}")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_SPELLINGS = {"−": "-", "×": "\\times ", "·": "\\cdot ", "÷": "\\div ", "π": "\\pi ", "∞": "\\infty "}
_SPELLINGS |= {"°": "^\\circ ", "√": "\\sqrt ", "≤": "\\le ", "≥": "\\ge ", "±": "\\pm ", "∪": "\\cup "}
_MATH_MARKS = re.compile(r"(?<!\\)\$|\\[()\[\]](?![a-z])|<\|[a-z_]{1,20}\|>")
_SPACING = re.compile(r"\\[!,;: ]|\\left(?![a-z])|\\right(?![a-z])|[\s$]|\{\}")
_NUMBER = re.compile(r"(?<![\w.,])-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,30})(?:\.[0-9]{1,30})?(?![0-9])")
_POWERS = re.compile(r"\^|\*\*|[-+=,;&<>{}()\[\]]")
_ENDS_TERM = frozenset("-+=,;&<>")
_TOKEN = re.compile(r"[-+\s]*(?:\\[A-Za-z]+|[0-9.]+|[A-Za-z]|[{(])")
_BINOMIAL = re.compile(r"\\d?binom\s?\{([0-9]+)\}\s?\{([0-9]+)\}")
_WARM_UP = (
    ("1 + 2x + x^2", "(x+1)^2"),
    ("\\frac{\\sqrt{12}}{2}", "\\sqrt{3}"),
    ("2\\sin x\\cos x", "\\sin(2x)"),
    ("(3, \\pi/2]", "\\left(3,\\frac{\\pi}{2}\\right)"),
    ("\\{1,2\\}", "\\{2,1\\}"),
    ("y=2x+3", "2x+3=y"),
)
_BRACES = re.compile(r"\\boxed\s{0,3}\{|\\.|[{}]", re.DOTALL)


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
    for row, completion in enumerate(completions):
        right = next((column[row] for column in given if column[row] is not None), None)
        scores.append(None if right is None else _score(_text(completion), _reference(right, row)))
    return scores


def _score(completion: str, reference: str) -> float:
    found = final_answer(completion)
    if found is not None and same(found, reference):
        return 1.0
    bare = len(completion) <= 2 * len(reference) + MAX_CHARS and _plain(completion) == _plain(reference)
    return float(bare)


def _reference(right: Any, row: int) -> str:
    text = str(right)
    boxed = _boxed(text)
    text = (boxed if boxed is not None else text).strip()
    if not _plain(text):
        raise ValueError(f"row {row}: reference {str(right)[-80:]!r} holds no answer")
    return text


def final_answer(text: str) -> str | None:
    """What a completion gives as its answer, by the chain above; None where it gives none."""
    text = text[-_TAIL:]
    for place in (_boxed(text), _between(text, "<answer>", "</answer>")):
        if place is not None and place.strip(" .\n\t$"):
            return place
    if "\\boxed" in text or "<answer>" in text:
        return None
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def same(answer: str, reference: str) -> bool:
    """Two answers are the same text up to spacing, or mean the same."""
    if _plain(answer) == _plain(reference):
        return bool(_plain(answer))
    answer, reference = _prepared(answer), _prepared(reference)
    if not (is_bounded(answer) and is_bounded(reference)):
        return False
    return bool(_within_budget(lambda: _means_same(answer, reference)))


def is_bounded(text: str) -> bool:
    """Reading the text as LaTeX can neither take long nor need much memory."""
    if not 0 < len(text) <= MAX_CHARS or not text.isascii() or not text.isprintable():
        return False
    if re.search(rf"[0-9]{{{MAX_DIGITS + 1}}}", text) or not _COMMANDS.issuperset(_names(text)):
        return False
    power = largest_power(text)
    # Letters in a row are a product: forty x are a power too.
    letters = len(re.findall(r"[A-Za-z]", _COMMAND.sub("", _WORDS.sub("", text))))
    symbolic = letters > 0 or not _ARITHMETIC.issuperset(_names(text))
    limit = MAX_SYMBOLIC_POWER if symbolic else MAX_POWER
    return power is not None and power <= limit and letters <= MAX_LETTERS and _counts_little(text)


def largest_power(text: str) -> int | None:
    """Bound on the product of exponents that are applied to each other; None for a tower, or unbalanced text.

    Example: `((x^2)^3)^4 + y^5` gives 24.
    """
    term, highest = 1, 1  # product of the exponents in the current term; largest of the current group
    outside: list[tuple[int, int]] = []  # the same of the groups around it
    for match in _POWERS.finditer(text):
        symbol = match[0]
        if symbol in "{([":
            outside.append((term, highest))
            term = highest = 1
        elif symbol in "})]":
            if not outside:
                return None
            inside = highest
            term, highest = outside.pop()
            term = max(term, inside)
        elif symbol in _ENDS_TERM:
            term = 1
        else:
            exponent = _exponent(text, match.end())
            term *= exponent or MAX_POWER + 1
        highest = max(highest, term)
        if len(outside) > MAX_DEPTH or highest > MAX_POWER:
            return None
    return highest if not outside else None


def _exponent(text: str, start: int) -> int | None:
    """Product of the numbers in the exponent that begins at `start`; None where it holds a power itself."""
    token = _TOKEN.match(text, start)
    if token is None:
        return None
    end = token.end()
    depth = 1 if token[0][-1] in "{(" else 0
    while end < len(text) and (depth or (text[end] == "{" and "\\" in token[0])):
        depth += {"{": 1, "(": 1, "}": -1, ")": -1}.get(text[end], 0)
        end += 1
    group = text[start:end]
    if any(mark in group for mark in "^!*") or re.match(r"\s*(?:\^|!|\*\*)", text[end:]):
        return None
    return prod(max(1, min(int(number), MAX_POWER + 1)) for number in re.findall(r"[0-9]+", group))


def _counts_little(text: str) -> bool:
    """Factorials are of small numbers or single letters, not of each other; binomials of small numbers."""
    if re.search(r"![\s]*!", text) or re.search(r"[^0-9A-Za-z\s\\]\s*!", text):
        return False
    counted = re.findall(r"([0-9]+)\s*!", text)
    binomials = _BINOMIAL.findall(text)
    counted += [number for pair in binomials for number in pair]
    return len(binomials) == text.count("binom") and all(int(number) <= MAX_COUNTED for number in counted)


def _names(text: str) -> list[str]:
    return _COMMAND.findall(text)


def _prepared(text: str) -> str:
    """Without the marks around math, in ASCII where a symbol has a usual command."""
    if len(text) > 2 * MAX_CHARS:
        return ""
    for symbol, command in _SPELLINGS.items():
        text = text.replace(symbol, command)
    text = _MATH_MARKS.sub(" ", text).replace("\\!", "").replace("\\boxed", "")
    return " ".join(text.split()).removesuffix(".").strip()


def _plain(text: str) -> str:
    """A text for comparison letter by letter: spacing and size commands gone."""
    text = text.replace("dfrac", "frac").replace("tfrac", "frac").replace("{,}", ",")
    return _SPACING.sub("", text.replace("\\$", "")).removesuffix(".")


def _means_same(answer: str, reference: str) -> bool:
    from math_verify import verify

    parsed = _parsed(answer)
    return bool(parsed) and verify(list(_parsed(reference)), list(parsed), timeout_seconds=None)


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> tuple[Any, ...]:
    """What math-verify reads in an answer: an expression and the text itself."""
    from math_verify import LatexExtractionConfig, parse

    settings = [LatexExtractionConfig(boxed_match_priority=0)]
    return tuple(parse(f"\\boxed{{{text}}}", settings, parsing_timeout=None))


@functools.cache
def _prepare() -> None:
    """Import math-verify, keep it quiet, and have it fill its tables, which an answer must not pay for."""
    import math_verify  # noqa: F401

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    for answer, reference in _WARM_UP:
        _means_same(answer, reference)


PREPARE = _prepare


class _OutOfBudget(BaseException):
    """Too many calls; no `except Exception` of a library may swallow it."""


def _within_budget(work: Callable[[], Any]) -> Any:
    """Result of `work`, None where it makes more than `MAX_CALLS` Python calls or fails.

    Counting calls gives one verdict on an idle and on a busy machine, in any thread.
    """
    left = MAX_CALLS

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal left
        left -= event == "call"
        if left < 0:
            raise _OutOfBudget

    _prepare()
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        return work()
    except (_OutOfBudget, Exception):
        return None
    finally:
        sys.setprofile(before)


def _boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` that is closed, the innermost of nested ones."""
    text = text[-_TAIL:]
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


def _text(completion: Any) -> str:
    """The text of a completion, which is a string or a list of chat messages."""
    if not isinstance(completion, str):
        completion = completion[-1].get("content") if completion else ""
    if isinstance(completion, list):
        completion = "".join(str(part.get("text") or "") for part in completion)
    return completion or ""

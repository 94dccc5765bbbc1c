"""Hostile text against every built-in reward: bounded time, no exception, never full marks.

A reward is called here as a reward process calls it, with chunks and alone; `llm_judge` and `reward_model`
need a judge or a model and are tried in their own files.
"""

from __future__ import annotations

import importlib.util
import math
import os
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rl4dlm.recipe import shipped_folder
from rl4dlm.reward import list_rewards
from rl4dlm.reward.selftest import HOSTILE

FOLDER = shipped_folder("reward_fns")
NEEDS_SETTINGS = {"llm_judge", "reward_model"}
NAMES = [
    info.name
    for info in list_rewards()
    if Path(info.path).parent == FOLDER and info.name.partition(":")[0] not in NEEDS_SETTINGS
]
PURE = [name for name in NAMES if name.partition(":")[0] != "code"]
"""Those that start no process."""
MAX_S = 1.5
"""Bound on the processor time of one call with one completion, seconds; a slow machine's allowance in it."""

MEGABYTE = 1 << 20


def load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"hostile_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # As a reward process does: slow imports belong to loading.
    if file.stem not in NEEDS_SETTINGS and hasattr(module, "PREPARE"):
        module.PREPARE()
    return module


MODULES = {file.stem: load(file) for file in sorted(FOLDER.glob("*.py"))}


def score(name: str, texts: list[str], columns: dict[str, Any], prompt: Any = "p") -> list[float | None]:
    module, _, function = name.partition(":")
    repeated = {key: [value] * len(texts) for key, value in columns.items()}
    return getattr(MODULES[module], function or module)(
        prompts=[prompt] * len(texts), completions=texts, **repeated
    )


def seconds() -> float:
    """Processor time of this process and of the children it waited for."""
    times = os.times()
    return sum(times[:4])


def boxed(text: str) -> str:
    return f"<reasoning>so</reasoning><answer>\\boxed{{{text}}}</answer>"


TOWERS = {
    "nine to the nine": "9^{9^{9^{9}}}",
    "powers of powers": "(((9^{99})^{99})^{99})^{99}",
    "signed tower": "9^-9^-9^9",
    "python tower": "9**9**9**9",
    "hidden in a fraction": "\\frac{9^{99}}{1}^{99}",
    "factorial of a factorial": "((99!)!)!",
    "many factorials": "9!!!!!!!!",
    "huge factorial": "99999999!",
    "huge binomial": "\\binom{999999999}{499999999}",
    "binomial of a factorial": "\\binom{x}{99!}",
    "huge polynomial": "(x+y+z+w)^{2999}",
    "product of letters": "xyzw" * 40,
    "exponent of 30 digits": "2^{" + "9" * 30 + "}",
    "huge decimal exponent": "1e999999999",
    "long digits": "7" * 190,
    "sum": "\\sum_{k=1}^{10^{9}} k^{k}",
    "product": "\\prod_{k=1}^{99999} k!",
    "integral": "\\int_0^1 \\int_0^1 e^{\\sin(x^y)} dx dy",
    "nested roots": "\\sqrt{1+" * 9 + "1" + "}" * 9,
    "nested sines": "\\sin(\\cos(" * 5 + "1" + "))" * 5,
    "mixed functions": "\\arctan(\\sqrt{\\tan(\\frac{\\pi}{7})})+\\sqrt[5]{\\sin(3)^{7}+\\sqrt{5}}",
    "polynomial of long powers": "+".join(f"(x+{k})^{{300}}" for k in range(20)),
    "powers of letters": "x^{4000}+y^{4000}+z^{4000}",
    "many letters": "+".join(f"{a}^{{90}}" for a in "abcdfghjklmn"),
    "mixed roots": "+".join(f"\\sqrt[{k}]{{{k}x+\\sqrt{{y}}}}" for k in range(2, 12)),
    "roots of roots": "\\sqrt{2+\\sqrt{3+\\sqrt{5+\\sqrt{7+\\sqrt{11}}}}}+\\arctan(\\ln(31))^{\\pi}",
    "signs": "\\pm1" * 12,
    "a list of signs": ",".join(["\\pm\\sqrt{x}"] * 25),
    "a long list": ",".join(f"\\sqrt{{{k}}}" for k in range(30)),
    "a long union": "\\cup".join(f"({k},{k}.5)" for k in range(25)),
    "a long matrix": "\\begin{pmatrix}" + "&".join(["\\sin1"] * 30) + "\\end{pmatrix}",
    "logarithms": "\\log_{\\log_2 3}{\\log_5 7}+" * 9 + "1",
    "equation without a solution": "x^2+\\sin(x)^{5}=\\cos(x)^{7}+\\sqrt{x}",
    "matrix power": "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}^{999}",
}
"""Short texts that are expensive to compute with."""

SHAPES = {
    "zero division": "1/0",
    "zero division in LaTeX": "\\frac{1}{0}-\\frac{0}{0}",
    "infinity minus infinity": "\\infty-\\infty",
    "zero to zero": "0^0",
    "tangent at its pole": "\\tan(90^\\circ)",
    "braces without an end": "{" * 150,
    "braces without a begin": "}" * 150,
    "fractions of nothing": "\\frac" * 35,
    "left without right": "\\left(" * 25,
    "environments": "\\begin{matrix}" * 12,
    "dollars": "$" * 150,
    "bars": "|" * 150,
    "commas": "," * 150,
    "relations": "=<>" * 50,
    "backslashes": "\\" * 150,
    "percent": "%" * 150,
    "nested parentheses": "(" * 80 + "1" + ")" * 80,
    "arabic digits": "١٢٣",
    "full-width digits": "１８",
    "superscripts and fractions": "²³½¾",
    "roman and circled": "Ⅷ④",
    "NUL": "1\x000",
    "half a pair": "\ud8001\udfff",
    "right to left": "\u202e81\u202c",
    "combining marks": "1" + "\u0301" * 150,
    "code": "__import__('os').system('true')",
    "format slots": "{0.__class__} %s %(x)d {answer}",
}
"""Short texts that are malformed, or not what they look like."""

HUGE = {
    "braces": "{}" * (MEGABYTE // 2),
    "boxes in boxes": "\\boxed{" * (MEGABYTE // 8) + "1" + "}" * (MEGABYTE // 8),
    "boxes in a row": "\\boxed{1/0}" * (MEGABYTE // 11),
    "tags in a row": "<answer></answer>" * (MEGABYTE // 17),
    "tags that overlap": "<answer><reasoning></answer></reasoning>" * (MEGABYTE // 40),
    "closing tags": "</answer>" * (MEGABYTE // 9),
    "words": "a " * (MEGABYTE // 2),
    "numbers": "1,234.5 " * (MEGABYTE // 8),
    "fractions": "1/" * (MEGABYTE // 2),
    "minus signs": "\\boxed{" + "-" * MEGABYTE + "1}",
    "digits in an answer": "<answer>" + "9" * MEGABYTE + "</answer>",
    "digits in a box": "\\boxed{" + "9" * MEGABYTE + "}",
    "marks": "#### " * (MEGABYTE // 5),
    "spaces": "<answer>" + " " * MEGABYTE + "</answer>",
    "new lines": "\n" * MEGABYTE,
    "emoji": "\U0001f600" * (MEGABYTE // 4),
    "fences": "```python\n" * (MEGABYTE // 10),
    "commas between digits": "1," * (MEGABYTE // 2),
    "exponents": "9^" * (MEGABYTE // 2),
}
"""A megabyte each."""

SHORT = {**TOWERS, **SHAPES}
EVERYTHING = {
    **{f"listed: {name}": text for name, text in HOSTILE.items()},
    **{f"bare: {name}": text for name, text in SHORT.items()},
    **{f"boxed: {name}": boxed(text) for name, text in SHORT.items()},
    **{f"huge: {name}": text for name, text in HUGE.items()},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "math")) for name in PURE]
)
def test_no_hostile_text_takes_a_second_raises_or_earns_full_marks(name):
    for example in MODULES[name.partition(":")[0]].EXAMPLES:
        for label, text in EVERYTHING.items():
            if name == "format" and label.startswith("boxed"):
                continue  # it is what the layout asks for
            start = seconds()
            (value,) = score(name, [text], example["columns"], example["prompt"])
            taken = seconds() - start
            assert taken < MAX_S, f"{label}: {taken:.2f} s"
            assert value is not None and 0.0 <= value < 1.0, f"{label}: {value}"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NAMES) - set(PURE)))
def test_hostile_text_in_the_jail_takes_bounded_time_and_earns_nothing(name):
    texts = list({**HOSTILE, **{label: text[:200_000] for label, text in HUGE.items()}}.values())
    for example in MODULES[name.partition(":")[0]].EXAMPLES:
        start = time.monotonic()
        values = score(name, texts, example["columns"], example["prompt"])
        assert time.monotonic() - start < 1.0 * len(texts)
        assert all(value is not None and 0.0 <= value < 1.0 for value in values)


@pytest.mark.parametrize("name", PURE)
def test_chat_messages_without_text_are_empty_text(name):
    for completion in ([], [{"role": "assistant", "content": None}], [{"role": "assistant", "content": []}]):
        for example in MODULES[name.partition(":")[0]].EXAMPLES:
            (value,) = score(name, [completion], example["columns"])
            assert value is not None and 0.0 <= value < 1.0


def test_off_the_main_thread_math_works_and_is_bounded_too():
    found: list[list[float | None]] = []
    texts = ["\\boxed{\\frac{2}{4}}", *map(boxed, TOWERS.values())]
    thread = threading.Thread(target=lambda: found.append(score("math", texts, {"answer": "0.5"})))
    start = seconds()
    thread.start()
    thread.join(60)
    assert found == [[1.0] + [0.0] * len(TOWERS)]
    assert seconds() - start < MAX_S * len(TOWERS)


def test_math_gives_up_after_so_much_work_whatever_the_clock_says(monkeypatch):
    module = MODULES["math"]
    completion, reference = ["\\boxed{1 + 2x + x^2}"], {"answer": "(x+1)^2"}
    assert score("math", completion, reference) == [1.0]
    monkeypatch.setattr(module.values, "MAX_WORK", 50)
    assert score("math", completion, reference) == [0.0]


FRAGMENTS = [
    "<answer>",
    "</answer>",
    "<reasoning>",
    "</reasoning>",
    "\\boxed{",
    "\\frac{",
    "\\sqrt",
    "\\left",
    "\\begin{pmatrix}",
    "\\text{",
    "{",
    "}",
    "####",
    "=",
    "(",
    ")",
    "[",
    "]",
    "^",
    "**",
    "!",
    "$",
    "\\\\",
    *"+-*/ \n0123456789.,%xyi",
    "٣",
    "\x00",
    "\ud800",
]
ANYTHING = st.text(st.characters(exclude_categories=()), max_size=200)
PIECES = st.lists(st.sampled_from(FRAGMENTS), max_size=60).map("".join)
TEXT = st.one_of(ANYTHING, PIECES, PIECES.map(boxed))


@pytest.mark.parametrize("name", PURE)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXT)
def test_any_text_gets_a_score_in_bounded_time(name, text):
    for example in MODULES[name.partition(":")[0]].EXAMPLES:
        start = seconds()
        (value,) = score(name, [text], example["columns"])
        assert value is not None and math.isfinite(value) and 0.0 <= value <= 1.0
        assert seconds() - start < MAX_S


@settings(max_examples=150, deadline=None)
@given(text=PIECES)
def test_text_that_lacks_the_answer_s_digits_never_earns_full_marks(text):
    # 4157 is prime: no fraction, sum or unit of these pieces states it without its digits by chance.
    text = text.replace("4", "3")
    assert score("gsm8k", [text], {"answer": "4157"}) == [0.0]
    assert score("math", [text], {"answer": "\\frac{4157}{4}"}) == [0.0]
    assert score("countdown", [text], {"numbers": [41, 57], "target": 98}) == [0.0]

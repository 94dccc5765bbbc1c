"""Promises of every shipped reward function: gold answers score 1, and saved completions what was published.

Hostile text has a file of its own: test_hostile_text.py.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl4dlm.recipe import shipped_folder
from rl4dlm.reward import list_rewards

FILES = sorted(shipped_folder("reward_fns").glob("*.py"))
SHARED = sorted((shipped_folder("reward_fns") / "reward_answers").glob("*.py"))
DATA = Path(__file__).parents[3] / "shared" / "data"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        f"shipped_{name}", shipped_folder("reward_fns") / f"{name}.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODULES = {file.stem: load(file.stem) for file in FILES}
BUILT_IN = [info.name for info in list_rewards() if Path(info.path).parent == shipped_folder("reward_fns")]
NEEDS_SETTINGS = {"llm_judge", "reward_model"}
"""They have tests of their own: test_llm_judge.py, test_reward_model.py."""
ALONE = [name for name in BUILT_IN if name.partition(":")[0] not in NEEDS_SETTINGS]
IMPORTED_WITHIN = {"values": {"mpmath"}, "reward_model": {"torch", "transformers"}}
"""What is needed beyond the standard library, and imported only where it is used."""


def call(name: str, completions: list[Any], columns: dict[str, Any], **kwargs: Any) -> list[float | None]:
    """Score completions of one row."""
    module, _, function = name.partition(":")
    repeated = {key: [value] * len(completions) for key, value in columns.items()}
    score = getattr(MODULES[module], function or module)
    return score(prompts=["p"] * len(completions), completions=completions, **repeated, **kwargs)


def examples(name: str) -> list[dict[str, Any]]:
    return MODULES[name.partition(":")[0]].EXAMPLES


@pytest.mark.parametrize("file", [*FILES, *SHARED], ids=lambda file: file.stem)
def test_it_needs_little_and_evaluates_nothing(file):
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        allowed = set() if node in tree.body else IMPORTED_WITHIN.get(file.stem, set())
        allowed |= {*sys.stdlib_module_names, "reward_answers"}
        assert all(name.partition(".")[0] in allowed for name in names), names
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec", "compile", "__import__", "print"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_says_what_earns_full_marks(file):
    assert "Full marks, 1.0" in (ast.get_docstring(ast.parse(file.read_text())) or "")


def test_every_built_in_is_tried_here_or_needs_settings():
    assert {*(name.partition(":")[0] for name in ALONE), *NEEDS_SETTINGS} == {file.stem for file in FILES}
    assert all(examples(name) for name in BUILT_IN)


@pytest.mark.parametrize("name", ALONE)
def test_gold_answers_score_one_as_text_and_as_chat_message(name):
    for example in examples(name):
        chat = [{"role": "assistant", "content": example["completion"]}]
        parts = [{"role": "assistant", "content": [{"type": "text", "text": example["completion"]}]}]
        assert call(name, [example["completion"], chat, parts], example["columns"]) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_a_file_declares_as_gold_is_a_column_or_a_function_of_a_row(name):
    gold = getattr(MODULES[name.partition(":")[0]], "GOLD", ())
    assert callable(gold) or (isinstance(gold, tuple) and all(isinstance(column, str) for column in gold))


FRAGMENTS = [*"<answer>", "0", "1", "7", "9", "\n", " ", "٣", "\x00"]
TEXT = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join))


@given(text=TEXT)
@settings(max_examples=60, deadline=None)
def test_only_the_answer_itself_is_sorted_exactly(text):
    partial, exact = (
        call("sort", [text], {"answer": "0179"}),
        call("sort:sort_exact", [text], {"answer": "0179"}),
    )
    assert (partial == [1.0]) == (exact == [1.0]) == (text.strip() == "0179")


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("2447", 4 / 6),
        ("244787", 4 / 6),
        ("2447789", 6 / 7),
        ("", 0.0),
        (" 244778\n", 1.0),
        ("２44778", 5 / 6),
    ],
)
def test_sort_gives_the_share_of_right_positions(completion, score):
    assert call("sort", [completion], {"answer": "244778"}) == [pytest.approx(score)]


def test_sort_logs_how_many_completions_are_sorted_in_either_direction():
    logged = {}
    MODULES["sort"].sort(
        ["p"] * 4, ["124", "421", "142", "1"], ["124"] * 3 + [None], log_metric=logged.__setitem__
    )
    assert logged == {"sort/either_direction": pytest.approx(2 / 3)}


def test_sort_says_none_for_another_task_s_row_and_names_an_empty_one():
    assert MODULES["sort"].sort(prompts=["p"] * 2, completions=["1", "1"], answer=[None, "1"]) == [None, 1.0]
    with pytest.raises(ValueError, match="row 1: column answer is empty"):
        MODULES["sort"].sort(prompts=["p"] * 2, completions=["1", "1"], answer=["1", " "])


COUNTDOWN = {"numbers": [3, 5, 8, 2], "target": 24}


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("(8-5)*(3*2)-3+3", 0.0),  # 3 three times
        ("8*3*(5-2)/3", 0.0),  # 3 twice
        ("(5+2-3)*8", 0.1),  # 32
        ("3*(5*2-8)", 0.1),  # 6
        ("8*(5-2)*3", 0.1),  # 72
        ("8*3/(5-2*2)", 0.0),
        ("3*8*(5-2)", 0.1),
        ("(8+5-2)*3", 0.1),
        ("8*(3+5*0+2)", 0.0),  # 0 is not there
        ("5*2*3-8", 0.1),  # 22
        ("8*5-3*2", 0.1),  # 34
        ("(5-3)*(8+2)", 0.1),  # 20
        ("5*3+8+2", 0.1),  # 25
        ("5-3+2*8", 0.1),  # 18
        ("2*5+3*8", 0.1),  # 34
        ("(3*5-8)*2", 0.1),  # 14
        ("2*(3*5)-8", 0.1),  # 22
        ("2*8+3+5", 1.0),
        ("2 * 8 + 3 + 5 = 24", 1.0),
        ("2*8+3+5=99", 1.0),  # what follows = is ignored
        ("<answer>2*8+3+5</answer>", 1.0),
        ("I try 1+1. <answer>\n$2 \\times 8 + 3 + 5$\n</answer> Done.", 1.0),
        ("so \\boxed{(2\\cdot8)+(3+5)}.", 1.0),
        ("--(2×8)+3−-5", 1.0),
        ("2**8+3+5", 0.0),
        ("28+35", 0.0),  # digits may not be joined
        ("2 8+3+5", 0.0),
        ("2//8+3+5", 0.0),
        ("2/(8-3-5)", 0.0),
        ("2*8+3+5)", 0.0),
        ("(2*8+3+5", 0.0),
        ("2*8+3+", 0.0),
        ("abs(2*8+3+5)", 0.0),
        ("٢*8+3+5", 0.0),
        ("2*8+3+5" + " " * 300 + "#", 0.0),
        ("+".join(["1"] * 150), 0.0),
    ],
)
def test_countdown_parses_exactly_what_it_should(completion, score):
    assert call("countdown", [completion], COUNTDOWN) == [score]


def test_countdown_divides_exactly():
    # 1/3*3 is 1 exactly, and 5/2 reaches the target 2.5.
    assert call("countdown", ["1/3*3"], {"numbers": [1, 3, 3], "target": 1}) == [1.0]
    assert call("countdown", ["5/2"], {"input": "5,2", "output": "2.5"}) == [1.0]
    assert call("countdown", ["1/3"], {"ground_truth": [[1, 3], 0.3333333333333333]}) == [0.1]


@pytest.mark.parametrize(
    "columns",
    [
        {"ground_truth": {"target": 31, "numbers": [7, 4, 3]}},
        {"ground_truth": '{"target": 31, "numbers": [7, 4, 3]}'},
        {"ground_truth": "[[7, 4, 3], 31]"},
        {"answer": {"target": 31, "numbers": [7, 4, 3]}},
        {"reward_model": {"style": "rule", "ground_truth": {"target": 31, "numbers": [7, 4, 3]}}},
        {"reward_model": '{"style": "rule", "ground_truth": {"target": 31, "numbers": [7, 4, 3]}}'},
        {"nums": [7, 4, 3], "target": 31},
        {"numbers": "[7, 4, 3]", "target": "31"},
        {"input": "7 4 3", "output": 31.0},
    ],
)
def test_countdown_takes_the_task_in_every_published_form(columns):
    right, near = "<answer>7 * 4 + 3 = 31</answer>", "<answer>7 + 4 + 3</answer>"
    assert call("countdown", [right, near, "31"], columns) == [1.0, 0.1, 0.0]
    assert MODULES["countdown"].GOLD(columns) == "<answer>(3 + (7 * 4))</answer>"


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("\\boxed{\\frac{24}{2} + 9}", 1.0),
        ("<answer>\\left(24 \\div 2\\right) + 9</answer>", 1.0),
        ("<answer>**24/2+9**</answer>", 1.0),
        ("<answer>`24/2+9`</answer>", 1.0),
        ("2$4/2+9", 0.0),  # signs are not taken out from between digits
        ("2\\left4/2+9", 0.0),
        ("9+24\\frac{2}{1}", 0.0),
        ("(24/2)9", 0.0),
        ("24.0/2+9", 0.0),
        ("24%/2+9", 0.0),
    ],
)
def test_countdown_parses_latex_and_joins_nothing(completion, score):
    assert call("countdown", [completion], {"numbers": [24, 2, 9], "target": 21}) == [score]


def test_countdown_says_what_a_row_lacks():
    with pytest.raises(ValueError, match="needs the columns numbers and target"):
        call("countdown", ["1"], {"answer": "1"})
    with pytest.raises(ValueError, match=r"row 0: \('a,b', 3\) is not \(numbers, target\)"):
        call("countdown", ["1"], {"input": "a,b", "output": 3})
    assert call("countdown", ["1"], {"numbers": None, "target": None}) == [None]
    assert call("countdown", ["1+2"], {"numbers": [1, 2], "target": 3, "ground_truth": 3.0}) == [1.0]


SUDOKU = {"puzzle": "3102200002100320", "solution": "3142243142131324"}  # 8 cells are empty


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("3142243142131324", 1.0),
        ("3142\n2431\n4213\n1324", 1.0),
        ("first 1111222233334444, no: 3142243142131324.", 1.0),
        ("<answer>3 1 4 2 | 2 4 3 1 | 4 2 1 3 | 1 3 2 4</answer>", 1.0),
        ("3142243142131321", 7 / 8),  # the last cell, an empty one, is wrong
        ("1142243142131324", 7 / 8),  # all empty cells right, but a given was changed
        ("<answer>31422431421313244</answer>", 7 / 8),  # and too many digits
        ("<answer>3142</answer>", 1 / 8),  # the rest is missing
        ("<answer>Row 1: 3 1 4 2\nRow 2: 2 4 3 1\nRow 3: 4 2 1 3\nRow 4: 1 3 2 4</answer>", 1.0),
        ("3102200002100320", 0.0),  # the puzzle again
        ("３１４２２４３１４２１３１３２４", 0.0),
        ("31422431421313240000", 7 / 8),
    ],
)
def test_sudoku_gives_the_share_of_empty_cells(completion, score):
    assert call("sudoku", [completion], SUDOKU) == [score]


def test_sudoku_accepts_any_valid_grid_of_a_puzzle_with_several_solutions():
    # Rows 1 and 2 of this grid may be swapped where nothing in them is given.
    grid, other = "1234341221434321", "3412123421434321"
    columns = {"puzzle": "0000000021434321", "solution": grid}
    assert call("sudoku", [grid, other, "1234123421434321"], columns) == [1.0, 1.0, 0.5]


def test_sudoku_refuses_a_row_that_is_no_puzzle():
    with pytest.raises(ValueError, match="row 0: puzzle '123' is not 16 or 81 digits"):
        call("sudoku", ["1"], {"puzzle": "123", "solution": "123"})
    with pytest.raises(ValueError, match="does not fit the puzzle"):
        call("sudoku", ["1"], {"puzzle": SUDOKU["puzzle"], "solution": "12"})


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("18", 1.0),
        ("The answer is $18.00.", 1.0),
        ("5 and 18", 1.0),
        ("18 and 5", 0.0),
        ("#### 18\nthat is 5 more", 1.0),
        ("\\boxed{18} and 5", 1.0),
        ("\\boxed{5} then \\boxed{x = 20 - 2 = 18\\text{ eggs}}", 1.0),
        ("\\boxed{\\dfrac{36}{2}}", 1.0),
        ("36/2", 1.0),
        ("\\boxed{18} <answer>5</answer>", 1.0),
        ("<answer>18 eggs</answer> 5", 1.0),
        ("\\boxed{} <answer>18</answer>", 1.0),
        ("\\boxed{} <answer>none</answer> 18", 0.0),  # what was meant as the answer is none
        ("so 18. \\boxed{...}", 0.0),
        ("so \\boxed{18", 0.0),  # may have been cut off: 180?
        ("<answer>18", 0.0),
        ("\\boxed{18} or \\boxed{", 1.0),
        ("\\boxed{5 \\boxed{18}}", 1.0),
        ("18%", 1.0),
        ("-18", 0.0),
        ("20-18", 1.0),  # a minus between numbers is no sign
        ("1,8", 0.0),
        ("18.5", 0.0),
        ("1e18", 0.0),
        ("eighteen", 0.0),
        ("18/0", 0.0),
        # A number is read as a whole, and nothing is joined or left out.
        ("\\boxed{17\\frac{2}{2}}", 0.0),
        ("\\boxed{1\\frac{8}{1}}", 0.0),
        ("\\boxed{20-2}", 1.0),
        ("18 1/2", 0.0),
        ("<answer>18 3/4 cups</answer>", 0.0),
        ("18 thousand", 0.0),
        ("18:30", 0.0),
        ("\\boxed{18 : 30}", 0.0),
        ("\\boxed{18\\text{ or }20}", 0.0),
        ("<answer>18, 20</answer>", 0.0),
        ("18/3/2024", 0.0),
        ("18x", 0.0),
        ("x18", 0.0),
        ("1 8", 0.0),
        ("**$18**", 1.0),
        ("`18`", 1.0),
        ("The answer is 18, so 5 are left.", 1.0),
        ("1.8 \\times 10^{1}", 1.0),
        ("1.8e1", 1.0),
        ("20 - 18", 1.0),
        ("- 18 eggs", 1.0),
        ("It fell to -18", 0.0),
        ("The answer is 18-20.", 0.0),
        ("The answer is 18 or 20", 0.0),
        ("The answer is 18 \u2013 20 eggs", 0.0),
        ("The answer is 18 and 20.", 0.0),
        ("The answer is 18 eggs, because 20 - 2 = 18.", 1.0),
        ("The answer is 18, not 20.", 1.0),
    ],
)
def test_gsm8k_finds_the_final_number(completion, score):
    assert call("gsm8k", [completion], {"answer": "9 * 2 = <<9*2=18>>18\n#### 18"}) == [score]


@pytest.mark.parametrize(
    ("reference", "completion"),
    [
        (1234567, "1,234,567"),
        ("-3", "so -$3"),
        (0.1, "0.10"),
        (1e-05, "0.00001"),
        ("1,000", "\\boxed{1{,}000}"),
        ("3.75", "\\boxed{3\\frac{3}{4}}"),
        ("3.75", "<answer>3 3/4 hours</answer>"),
        ("3.75", "It takes 3 3/4."),
        ("3.75", "3¾"),
        ("2500000", "$2.5 million"),
        ("-4", "-\\frac{8}{2}"),
        ("45000", "**$45,000**"),
        ("#### -6", "It drops to -6"),
        ("19", "19, all told, so"),
    ],
)
def test_gsm8k_compares_numbers_exactly(reference, completion):
    assert call("gsm8k", [completion, "7"], {"answer": reference}) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("completion", "kwargs", "score"),
    [
        ("<reasoning>a</reasoning><answer>b</answer>", {}, 1.0),
        ("<answer>b</answer><reasoning>a</reasoning>", {}, 0.0),
        ("<reasoning>a<answer>b</answer></reasoning>", {}, 0.0),
        ("<reasoning>a</reasoning><answer>b</answer><answer>c</answer>", {}, 0.0),
        ("<reasoning>a</reasoning><answer> </answer>", {}, 0.0),
        ("<reasoning>a</reasoning><answer>b", {}, 0.0),
        ("<think>x</think>", {"tags": "think"}, 1.0),
        ("Say: x. So \\boxed{3}", {"tags": "", "pattern": "Say:*\\boxed{*}"}, 1.0),
        ("Say: x. So \\boxed{3} and", {"tags": "", "pattern": "Say:*\\boxed{*}"}, 0.0),
        ("ab", {"tags": "", "pattern": "ab*b"}, 0.0),  # pieces may not share characters
        ("abb", {"tags": "", "pattern": "ab*b"}, 1.0),
        ("exactly", {"tags": "", "pattern": "exactly"}, 1.0),
    ],
)
def test_format_checks_tags_and_pattern(completion, kwargs, score):
    assert call("format", [completion], {}, **kwargs) == [score]


def test_format_cannot_be_made_to_burn_time_by_a_pattern_of_many_stars():
    start = time.process_time()
    assert call("format", ["a" * 90_000], {}, tags="", pattern="a*" * 50 + "b") == [0.0]
    assert time.process_time() - start < 0.5


def rows_of(name: str) -> list[dict[str, Any]]:
    file = DATA / name
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_countdown_agrees_with_the_published_score_of_saved_completions():
    rows = rows_of("llada8b_generations_countdown_len128.jsonl")
    truths = [row["ground_truth"] for row in rows]
    texts = [row["generation"] for row in rows]
    scores = MODULES["countdown"].countdown(prompts=texts, completions=texts, ground_truth=truths)
    # Published: 20.7 %, 53 of 256; one more here.
    assert sum(score == 1.0 for score in scores) == 54


def test_sudoku_agrees_with_the_published_score_of_saved_completions():
    rows = rows_of("llada8b_generations_sudoku_len128.jsonl")
    texts = [row["generation"] for row in rows]
    puzzles = [row["question"].split(":")[1].strip() for row in rows]
    truths = [row["ground_truth"] for row in rows]
    scores = MODULES["sudoku"].sudoku(prompts=texts, completions=texts, puzzle=puzzles, solution=truths)
    # Published: 11.7 % of the empty cells.
    assert sum(scores) / len(scores) == pytest.approx(0.117, abs=0.0006)


def test_gsm8k_agrees_with_the_published_score_of_saved_completions():
    rows = rows_of("llada8b_generations_gsm8k_len128.jsonl")
    texts = [row["generation"] for row in rows]
    truths = [row["ground_truth"] for row in rows]
    scores = MODULES["gsm8k"].gsm8k(prompts=texts, completions=texts, ground_truth=truths)
    # Published: 69.3 %, 783 of 1130. docs/rewards.md names the kinds of the six more. Two have no reference.
    assert sum(score or 0.0 for score in scores) == 789
    assert scores.count(None) == 2


@pytest.mark.slow
def test_math_agrees_with_the_published_score_of_saved_completions():
    rows = rows_of("llada8b_generations_math500_len128.jsonl")
    texts = [row["generation"] for row in rows]
    truths = [row["ground_truth"] for row in rows]
    scores = MODULES["math"].math(prompts=texts, completions=texts, ground_truth=truths)
    # Published: 26.0 %, 130 of 500. docs/rewards.md names the kinds of the 16 more.
    assert sum(scores) == 146


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["{}", "${}$", "\\boxed{{{}}}", "<answer>${}$.</answer>"])
def test_math_accepts_every_reference_answer(layout):
    answers = [row["answer"] for row in rows_of("math500.jsonl")]
    completions = [layout.format(answer) for answer in answers]
    assert set(MODULES["math"].math(prompts=answers, completions=completions, answer=answers)) == {1.0}


@pytest.mark.parametrize("name", ["gsm8k_train.jsonl", "gsm8k_test.jsonl"])
def test_gsm8k_accepts_every_reference_solution(name):
    rows = rows_of(name)
    answers = [row["answer"] for row in rows]
    assert set(MODULES["gsm8k"].gsm8k(prompts=answers, completions=answers, answer=answers)) == {1.0}

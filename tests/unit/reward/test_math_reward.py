"""The math reward: where the answer is looked for, what counts as equal, which references are refused."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import pytest

from rl4dlm.recipe import shipped_folder


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("shipped_math", shipped_folder("reward_fns") / "math.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MATH = load()


def score(completion: str, answer: Any) -> float | None:
    return MATH.math(["p"], [completion], answer=[answer])[0]


@pytest.mark.parametrize(
    ("completion", "found"),
    [
        ("\\boxed{1} \\boxed{2} <answer>3</answer> 4", ["2"]),
        ("\\boxed{\\frac{1}{2}} and \\boxed{3", ["\\frac{1}{2}"]),
        ("\\boxed{x = \\boxed{5}}", ["5"]),
        ("\\boxed {\\{1,2\\}}", ["\\{1,2\\}"]),
        ("so $\\boxed 7$.", ["7"]),
        ("so \\boxed 7.", ["7"]),
        ("so $\\boxed\\frac{3}{8}$", ["\\frac{3}{8}"]),
        ("\\boxed{3} is less than \\boxed 12, so", ["12"]),
        ("\\fbox{9}", ["9"]),
        ("\\boxed{} <answer> 3 </answer> 4", [" 3 "]),
        ("\\boxed{...}<answer>3</answer>", ["3"]),
        ("<answer>2</answer> no, <answer>3</answer>", ["3"]),
        ("<answer>We need 3 pots.</answer>", ["We need 3 pots.", "3"]),
        ("<answer>Of 9 pots we need 3.</answer>", ["Of 9 pots we need 3."]),
        ("<answer>C. 12</answer>", ["C. 12", "C", "12"]),
        ("<answer>Option C</answer>", ["Option C", "C"]),
        ("<answer>5 or 12</answer>", ["5 or 12"]),
        ("<answer>not 12</answer>", ["not 12"]),
        ("The answer is $\\frac{\\sqrt3}{2}$, since 4 > 3.", ["$\\frac{\\sqrt3}{2}$"]),
        ("from 1 to 1,234.5 dollars.", ["1,234.5"]),
        ("It took 3 1/4 hours.", ["3 1/4"]),
        ("It is -3.", ["-3"]),
        ("20-18", ["18"]),
        ("\\boxed{} 4", []),
        ("<answer>4", []),
        ("\\boxed{4", []),
        ("x4", []),
        ("no number", []),
    ],
)
def test_the_answer_is_a_closed_box_else_a_tag_else_a_phrase_else_the_last_number(completion, found):
    assert MATH.final_answers(completion) == found


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("\\frac{1}{2}", "0.5"),
        ("3/6", "\\dfrac12"),
        ("\\frac{\\sqrt{12}}{2}", "\\sqrt{3}"),
        ("x = 5", "5"),
        ("2+3=5", "5"),
        ("1{,}000", "1000"),
        ("58,500", "58500"),
        ("36\\text{ dollars}", "\\$36"),
        ("90^\\circ", "90"),
        ("50\\%", "50"),
        ("1 + 2x + x^2", "(x+1)^2"),
        ("y=2x+3", "2x+3=y"),
        ("\\{2,1\\}", "\\{1,2\\}"),
        ("(-\\infty,2)\\cup(3,\\infty)", "(-\\infty, 2) \\cup (3, \\infty)"),
        ("\\left(3,\\frac{\\pi}{2}\\right)", "(3, \\pi/2)"),
        ("\\begin{pmatrix} 1/5 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 0.2 \\\\ 2 \\end{pmatrix}"),
        ("2\\sin x\\cos x", "\\sin(2x)"),
        ("\\text{(C)}", "C"),
        ("√2", "\\sqrt{2}"),
        ("π/2", "\\frac{\\pi}{2}"),
        ("$7$.", "7"),
        ("5!", "120"),
        ("\\binom{5}{2}", "10"),
        ("2^{1000}", "2^{1000}"),
        ("2^{10}", "1024"),
        # A decimal that writes a fraction or a root, rounded or cut, with six digits or more.
        ("0.428571", "3/7"),
        ("0.714286", "5/7"),
        ("1.73205", "\\sqrt{3}"),
        ("2.71828", "e"),
        # One notation for another.
        ("y³", "y^3"),
        ("¾", "\\frac{3}{4}"),
        ("3¾", "3.75"),
        ("t ≤ 4", "t \\leq 4"),
        ("2 3/8", "19/8"),
        ("-1\\frac{1}{3}", "-\\frac{4}{3}"),
        ("4.5e-7", "4.5 \\times 10^{-7}"),
        ("4.5×10⁻⁷", "4.5 \\cdot 10^{-7}"),
        ("12 500", "12{,}500"),
        ("0.5%", "\\frac{1}{200}"),
        ("5:45 \\text{ p.m.}", "17:45"),
        ("5 PM", "5:00 \\text{ PM}"),
        ("3:6", "1:2"),
        ("312_4", "54_{10}"),
        ("3121", "3121_5"),
        ("\\textbf{(D)}", "D"),
        ("Oblong", "\\text{oblong}"),
        ("7 \\text{ hr}", "7\\text{ hours}"),
        ("12 square meters", "12\\text{ m}^2"),
        ("\\pm 4", "-4, 4"),
        ("t = 2 \\text{ or } t = 9", "2, 9"),
        ("\\{1 \\pm \\sqrt{2}\\}", "1+\\sqrt{2},1-\\sqrt{2}"),
        ("x \\ge 4", "[4, \\infty)"),
        ("-1 < x \\le 6", "x \\in (-1, 6]"),
        ("\\mathbb{R} \\setminus \\{3\\}", "(-\\infty,3)\\cup(3,\\infty)"),
        ("3x - 6y = 9", "x - 2y = 3"),
        ("\\begin{bmatrix}2\\\\5\\\\\\end{bmatrix}", "(\\begin{pmatrix}2\\\\5\\end{pmatrix})"),
        ("\\sin 60^\\circ", "\\frac{\\sqrt{3}}{2}"),
        ("\\log_3 81", "4"),
        ("\\sqrt[3]{-27}", "-3"),
        ("e^{i\\pi}", "-1"),
        ("\\frac{1}{12!}", "\\frac{1}{479001600}"),
        ("The answer is 31.", "31"),
        ("2.5 million", "2500000"),
        ("**31**", "31"),
        ("`31`", "31"),
    ],
)
def test_what_means_the_same_is_the_same(answer, reference):
    assert score(f"\\boxed{{{answer}}}", reference) == 1.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("2", "3"),
        ("0.33", "1/3"),
        ("x", "y"),
        ("x^2+1", "x^2+2"),
        ("(1,2)", "[1,2]"),
        ("(2,1)", "(1,2)"),
        ("1,2", "1"),
        ("\\{1,2,3\\}", "\\{1,2\\}"),
        ("5 \\text{ or } 7", "5"),
        ("x>5", "x<5"),
        ("A", "B"),
        ("\\pm 3", "3"),
        ("-7", "7"),
        ("7", "-7"),
        ("1/0", "1"),
        ("\\infty", "1"),
        ("٧", "7"),
        ("７", "7"),
        ("{7", "7"),
        ("9^{9^9}", "9^{9^{8}}"),
        ("", "0"),
        ("\\text{}", "0"),
        # Close is not equal where both sides are exact.
        ("0.0000003", "0.0000004"),
        ("0.7654321", "0.7654322"),
        ("0.765432", "0.7654322"),
        ("1.00000001", "1"),
        ("2.998 \\times 10^{-30}", "9.11 \\times 10^{-31}"),
        ("\\frac{1}{3^{70}}", "\\frac{1}{3^{71}}"),
        ("\\frac{\\sqrt{2}}{30!}", "\\frac{\\sqrt{2}}{29!}"),
        ("\\sqrt{5}+10^{-60}", "\\sqrt{5}"),
        ("3^{900}", "3^{900}+1"),
        ("10^{-8}y", "10^{-9}y"),
        ("0.428572", "3/7"),
        ("22/7", "\\pi"),
        # Neighbours are not joined.
        ("3 1/4", "31/4"),
        ("7 3", "73"),
        ("a^2", "a2"),
        # What stands around a number counts, and the order of letters.
        ("17_8", "17_9"),
        ("31", "111_5"),
        ("5:45 \\text{ PM}", "5:45 \\text{ AM}"),
        ("12:05 AM", "12:05 PM"),
        ("3:6", "6:3"),
        ("6 \\text{ m}", "6 \\text{ km}"),
        ("6 \\text{ m}", "6 \\text{ m}^2"),
        ("at least 6", "6"),
        ("6 or more", "6"),
        ("bca", "cab"),
        ("\\text{east}", "\\text{seat}"),
        ("t = 6", "u = 6"),
        ("\\sqrt{y^2}", "y"),
        ("5!!", "120!"),
        ("4{10}", "40"),
    ],
)
def test_what_differs_is_not(answer, reference):
    assert score(f"\\boxed{{{answer}}}", reference) == 0.0


def test_an_answer_that_is_not_read_is_right_as_text():
    assert score("\\boxed{\\int_0^1  x \\, dx}", "\\int_0^1 x dx") == 1.0
    assert score("\\boxed{9^{9^{9}}}", "9^{9^{9}}") == 1.0


def test_the_reference_comes_from_answer_then_ground_truth_then_solution():
    solution = "We add: $1+1=\\boxed{2}$, which is less than 3."
    call = MATH.math
    assert call(["p"], ["\\boxed{2}"], solution=[solution]) == [1.0]
    assert call(["p"], ["\\boxed{2}"], answer=[3], ground_truth=[2], solution=[solution]) == [0.0]
    assert call(["p"], ["\\boxed{2}"], answer=[None], ground_truth=[2.0]) == [1.0]
    assert call(["p"] * 2, ["2", "2"], answer=[None, 2]) == [None, 1.0]
    assert call(["p"], [solution], solution=[solution]) == [1.0]


def test_a_completion_that_is_the_reference_itself_is_right_without_a_box():
    assert score("16 \\sqrt{3}", "16\\sqrt{3}") == 1.0
    assert score("16 \\sqrt{3} or so", "16\\sqrt{3}") == 0.0


@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        ("The two roots are 3 and 8; the larger one is $\\boxed 8$.", "8", "3"),
        ("#### 12", "12", "1"),
        ("(4 points) First $a = 3$.\nThen $3 \\cdot 4 = 12$.\nTherefore, the answer is: 12.", "12", "4"),
        ("Each has 3 legs.\nThere are 5 of them.\nAltogether $3 \\cdot 5 = 15$ legs.", "15", "5"),
        ("Adding up gives 40.\nHalf of it is 20.", "20", "40"),
        ("Answer: $\\frac{5}{6}$", "\\frac{5}{6}", "6"),
        ("So <answer> 2.5 </answer>", "2 1/2", "5"),
        ("all of them", "All of them", "them"),
        ("Adding up gives 20.", "20", "2"),
        ("We get 3 from 4 and thus 7.", "7", "3"),
        ("It has $15.", "15", "1"),
        ("The correct option is B.", "B", "A"),
        ("Every number above 2 that is even", "every number above 2 that is even", "2"),
        ("There is no such number.", "There is no such number", "no"),
        ("Line 2", "line 2", "2"),
        (1e-05, "0.00001", "1"),
    ],
)
def test_a_reference_states_its_answer(reference, right, wrong):
    assert score(f"So it is $\\boxed{{{right}}}$.", reference) == 1.0
    assert score(f"So it is $\\boxed{{{wrong}}}$.", reference) == 0.0


@pytest.mark.parametrize(
    "reference",
    [
        "  ",
        "\\boxed{}",
        "It is \\boxed{180",
        "We argue by contradiction. Suppose that it holds. Then nothing does, which cannot be.",
        "...",
        True,
        float("nan"),
        ["5", "6"],
        {"value": 5},
    ],
)
def test_a_reference_that_states_no_answer_is_refused_by_its_row(reference):
    with pytest.raises(ValueError, match=r"row 1: the reference .* states no answer that can be read"):
        MATH.math(["p"] * 2, ["1", "1"], answer=["1", reference])
    with pytest.raises(ValueError, match="states no answer"):
        MATH.GOLD({"answer": reference})


def test_the_gold_completion_is_the_answer_as_a_model_would_write_it():
    solution = "Add $2$ and $3$.\nTherefore, the answer is: 5."
    assert MATH.GOLD({"solution": solution}) == "So the answer is $\\boxed{5}$."
    assert MATH.GOLD({"other": 1}) is None


def test_a_row_without_a_reference_column_is_refused():
    with pytest.raises(ValueError, match="needs the column answer, ground_truth or solution"):
        MATH.math(["p"], ["1"])


def test_what_the_prompt_opened_is_read_with_the_completion():
    prompt = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "It is 5? <answer>"}]
    assert MATH.math([prompt, "2+2 \\boxed{"], ["4</answer> not 5", "4} not 5"], answer=[4, 4]) == [1.0, 1.0]


@pytest.mark.parametrize("reference", [["17"], '["17"]', (17,)])
def test_a_list_of_one_answer_is_this_answer(reference):
    assert MATH.math(["q"] * 2, ["\\boxed{17}", "\\boxed{1}"], answer=[reference] * 2) == [1.0, 0.0]

"""A run refuses a reward that does not recognise its gold answers, and none that has no gold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rl4dlm.errors import DataError, PluginError
from rl4dlm.recipe.sections import RewardConfig
from rl4dlm.reward.batch import Scorable
from rl4dlm.reward.pool import RewardPool
from rl4dlm.reward.selftest import selftest
from rl4dlm.types import Prompt


def check(function: str | Path, columns: dict[str, Any]) -> list[float | None]:
    with RewardPool(RewardConfig(functions=[str(function)])) as rewards:
        (values,) = rewards.check([Prompt(7, "p", "p", (), columns)]).values()
    return values


def written(folder: Path, body: str, head: str = "") -> Path:
    file = folder / "mine.py"
    file.write_text(f"{head}\ndef mine(completions, answer, **columns):\n    {body}\n")
    return file


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("sort", {"answer": "13"}),
        ("gsm8k", {"answer": "1 + 2 = <<1+2=3>>3\n#### 3"}),
        ("gsm8k", {"ground_truth": 3.0}),
        ("math", {"answer": "16 \\sqrt{3}"}),
        ("math", {"solution": "Then $x = \\boxed{\\frac{1}{2}}$."}),
        ("sudoku", {"Puzzle": "3102200002100320", "Solution": "3142243142131324"}),
        ("countdown", {"numbers": [1, 2], "target": 3, "answer": "1+2"}),
        ("countdown", {"input": "1,2", "output": "3"}),
        ("countdown", {"input": "1,2", "output": "3", "answer": "3"}),  # data.answer_column: output
        ("countdown", {"nums": [6, 6, 5, 5], "target": 24}),
        ("math", {"answer": "First $3 + 4 = 7$.\nThen 8 more are 15."}),
        ("math", {"answer": "1 1/4"}),
        ("gsm8k", {"answer": "2 1/2"}),
        ("gsm8k", {"answer": -0.125}),
    ],
)
def test_gold_answers_of_the_built_in_rewards_earn_full_marks(name, columns):
    assert check(name, columns) == [1.0]


@pytest.mark.parametrize(
    ("name", "columns", "value"),
    [
        ("countdown", {"input": "1,2,3,4,5", "output": "3"}, 0.0),  # too many numbers to search
        ("format", {"answer": "3"}, 0.0),
        ("length", {"answer": "3"}, 0.0),
        ("gsm8k", {"answer": None}, None),
    ],
)
def test_a_row_without_gold_is_only_tried(name, columns, value):
    assert check(name, columns) == [value]


def test_gold_that_earns_less_is_refused_with_function_row_and_value():
    columns = {"numbers": [1, 2], "target": 4, "answer": "1+2"}
    with pytest.raises(
        PluginError,
        match=r"(?s)gives the gold answer of row 7 0\.1 instead of 1: '<answer>1\+2</answer>'.*Fix:",
    ):
        check("countdown", columns)
    with pytest.raises(PluginError, match=r"sudoku gives the gold answer of row 7 0\.875 instead of 1"):
        check("sudoku", {"puzzle": "3102200002100320", "solution": "3142243142131321"})


UNREADABLE = [
    ("math", {"answer": "It is \\boxed{180"}, "states no answer that can be read"),
    (
        "math",
        {"solution": "Suppose it holds. Then nothing does, which cannot be. So it does not."},
        "no closed",
    ),
    ("gsm8k", {"answer": "She has some.\n#### none"}, "holds no number"),
    ("countdown", {"numbers": [2, 2], "target": 9}, "no expression of the numbers .2, 2. has the value 9"),
    ("countdown", {"ground_truth": {"target": 9}}, "is not .numbers, target."),
]


@pytest.mark.parametrize(("name", "columns", "told"), UNREADABLE)
def test_a_reference_that_no_completion_can_equal_is_refused_by_its_row(name, columns, told):
    with pytest.raises(DataError, match=rf"(?s)row 7: reward function {name}: .*{told}.*Fix: "):
        check(name, columns)
    with RewardPool(RewardConfig(functions=[name])) as rewards:
        with pytest.raises(DataError, match=rf"data.train, row 8: reward function {name}: .*{told}"):
            rewards.check_references([("data.train, row 7", {}), ("data.train, row 8", columns)])


def test_the_self_test_reads_the_references_of_rows_that_it_does_not_try():
    rows = [{"problem": f"{i}", "answer": str(i)} for i in range(40)] + [
        {"problem": "q", "answer": "\\boxed{}"}
    ]
    with pytest.raises(DataError, match="row 40: reward function math: .* states no answer"):
        selftest("math", rows)


def test_a_worked_solution_is_not_its_own_gold_answer():
    solution = "(3 points) Each half has $\\frac{9}{2}$.\nTwice that is 9. Therefore, the answer is: 9."
    report = selftest(
        "math", [{"problem": "p", "solution": solution.replace("9", str(i))} for i in (9, 8, 7)]
    )
    assert report.passed
    with RewardPool(RewardConfig(functions=["math"])) as rewards:
        texts = ("\\boxed{9}", "\\boxed{3}")
        scores = rewards.score([[Scorable("p", text, {"solution": solution}) for text in texts]])
    assert list(scores.reward) == [1.0, 0.0]


def test_a_plug_in_may_declare_columns_one_column_or_a_function(tmp_path):
    body = "return [float(text == 'right') for text in completions]"
    row = {"answer": "x", "best": "right", "worst": "wrong"}
    assert check(written(tmp_path, body, "GOLD = ('missing', 'best')"), row) == [1.0]
    assert check(written(tmp_path, body, "GOLD = 'best'"), row) == [1.0]
    assert check(written(tmp_path, body, "GOLD = lambda columns: columns['best']"), row) == [1.0]
    assert check(written(tmp_path, body, "GOLD = ()"), row) == [0.0]
    with pytest.raises(PluginError, match="gives the gold answer of row 7 0 instead of 1: 'wrong'"):
        check(written(tmp_path, body, "GOLD = ('worst',)"), row)
    with pytest.raises(PluginError, match="GOLD cannot be read: .*int"):
        check(written(tmp_path, body, "GOLD = 3"), row)


@pytest.mark.parametrize(
    "body",
    [
        "return [0.0] * len(completions)",
        "return [0.5] * len(completions)",
        "return [float(text == '') for text in completions]",
        "return [float(text == 'something else') for text in completions]",
    ],
)
def test_a_function_that_prefers_no_form_of_the_answer_to_empty_text_is_refused(tmp_path, body):
    with pytest.raises(PluginError, match=r"(?s)the reference answer of row 7, '13', at most .*GOLD = \(\)"):
        check(written(tmp_path, body), {"answer": "13"})


@pytest.mark.parametrize(
    "body",
    [
        "return [float(text == right) for text, right in zip(completions, answer)]",
        "return [float(f'<answer>{right}</answer>' in text) for text, right in zip(completions, answer)]",
        "return [float(f'boxed{{{right}}}' in text) for text, right in zip(completions, answer)]",
        "return [float(text == '#### ' + right) for text, right in zip(completions, answer)]",
        "return [-float(text != right) for text, right in zip(completions, answer)]",
        "return [None] * len(completions)",
    ],
    ids=["bare", "tags", "box", "marks", "penalty", "none"],
)
def test_one_that_recognises_the_answer_in_some_form_is_accepted(tmp_path, body):
    check(written(tmp_path, body), {"answer": "13"})


def test_a_function_that_does_not_name_the_answer_is_not_judged_by_it(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def mine(completions, **columns):\n    return [0.0] * len(completions)\n")
    assert check(file, {"answer": "13"}) == [0.0]


def test_what_prepare_raises_refuses_the_run_before_any_score(tmp_path):
    head = "def PREPARE(**settings):\n    raise OSError('no model here')\n"
    with pytest.raises(
        PluginError, match=r"(?s)cannot be prepared: OSError: no model here \(.*mine.py:2\).*Fix"
    ):
        check(written(tmp_path, "return [1.0]", head), {"answer": "13"})


def test_the_self_test_takes_gold_from_rows_as_the_run_does():
    rows = [{"Puzzle": "3102200002100320", "Solution": "3142243142131324"}]
    report = selftest("sudoku", rows)
    assert [check.passed for check in report.checks if check.name.startswith("gold")] == [True]
    report = selftest("countdown", [{"input": "1,2,3,4,5", "output": "15", "answer": "15"}])
    assert [check.passed for check in report.checks if check.name.startswith("gold")] == [None]

"""`rl4dlm rewards test`: which columns of the rows are meant, and one line for what was found many times."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rl4dlm.commands import rewards
from rl4dlm.errors import DataError, RecipeError

SEEN = """
import json

def seen(prompts, completions, **columns):
    with open(__file__ + ".seen", "a") as file:
        truth = columns.get("ground_truth", [None])
        file.write(json.dumps([prompts[0], columns["answer"][0], truth[0]]) + "\\n")
    return [float(c == str(a)) for c, a in zip(completions, columns["answer"])]
"""


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tried(name: str, data: Path | None, **columns: str) -> tuple[bool, str]:
    console = Console(file=io.StringIO(), width=200)
    passed = rewards.test_reward(name, data, console=console, columns=rewards.RowColumns(**columns))
    return passed, console.file.getvalue()


@pytest.mark.parametrize(
    ("columns", "seen"),
    [
        # As data.answer_column: the function gets it as `answer`, whatever the row calls so.
        ({"prompt": "task", "answer": "result"}, ["one and one", "2", None]),
        # As --target-column of `rl4dlm score`: the row's own `answer` stays.
        ({"prompt": "task", "target": "result"}, ["one and one", "two", "2"]),
        ({"answer": "result"}, ["not this one", "2", None]),
    ],
)
def test_prompt_and_reference_are_taken_from_the_columns_that_are_named(
    tmp_path: Path, columns: dict[str, str], seen: list[Any]
) -> None:
    reward = tmp_path / "seen.py"
    reward.write_text(SEEN)
    rows = [
        {"question": "not this one", "task": "one and one", "answer": "two", "result": "2"},
        {"question": "not this one", "task": "one and two", "answer": "three", "result": "3"},
    ]
    tried(str(reward), write(tmp_path / "rows.jsonl", rows), **columns)
    first = (tmp_path / "seen.py.seen").read_text().splitlines()[0]
    assert json.loads(first) == seen


def test_a_built_in_reward_finds_its_own_columns_in_the_target(tmp_path: Path) -> None:
    rows = [{"ask": "0102200002100320", "full": "3142243142131324", "completion": "3142243142131324"}]
    rows.append({"ask": "0100200002100320", "full": "3142243142131324", "completion": "3142243142131324"})
    passed, shown = tried("sudoku", write(tmp_path / "rows.jsonl", rows), prompt="ask", target="full")
    assert "2 of 2 got 1" in shown, shown


def test_a_column_that_is_not_there_is_named_with_the_option(tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", [{"q": "a", "a": "1"}])
    with pytest.raises(
        DataError, match=r"row 0: no column `b`\. Columns there are: `q`, `a`(?s:.)*--answer-column"
    ):
        tried("gsm8k", data, answer="b")
    with pytest.raises(RecipeError, match="columns are named, and there are no rows"):
        tried("gsm8k", None, answer="b")


def test_what_many_texts_have_in_common_is_one_line(tmp_path: Path) -> None:
    reward = tmp_path / "needs.py"
    reward.write_text("def needs(completions, numbers): return [0.0] * len(completions)\n")
    passed, shown = tried(str(reward), write(tmp_path / "rows.jsonl", [{"question": "a"}, {"question": "b"}]))
    assert not passed
    assert shown.count("needs numbers, which the rows do not have") == 1
    assert "hostile text: 17 of 17" in shown

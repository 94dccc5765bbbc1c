"""Column conventions: detected, forced, overridden, and what is missing."""

from __future__ import annotations

import pytest

from rl4dlm.data import map_columns
from rl4dlm.errors import DataError
from rl4dlm.recipe.sections import DataConfig


def config(**fields: str) -> DataConfig:
    return DataConfig(train="rows.jsonl", **fields)


VERL_ROW = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": "1+1?"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"index": 7},
}


@pytest.mark.parametrize(
    ("row", "convention", "prompt", "answer"),
    [
        ({"prompt": "1+1?", "answer": "2"}, "trl", "1+1?", "2"),
        ({"prompt": "1+1?", "solution": "2"}, "trl", "1+1?", "2"),
        ({"problem": "1+1?", "solution": "2"}, "open-r1", "1+1?", "2"),
        # OpenR1-Math has the final answer beside the worked solution.
        ({"problem": "1+1?", "solution": "add", "answer": "2"}, "open-r1", "1+1?", "2"),
        ({"question": "1+1?", "answer": "add\n#### 2"}, "gsm8k", "1+1?", "add\n#### 2"),
        (VERL_ROW, "verl", VERL_ROW["prompt"], "2"),
    ],
)
def test_each_convention_is_detected_and_read(
    row: dict, convention: str, prompt: object, answer: str
) -> None:
    columns = map_columns(list(row), config(), "rows.jsonl")
    assert columns.convention == convention
    value, given = columns.read(row, "row 0")
    assert (value, given["answer"]) == (prompt, answer)
    # All other columns reach the rewards as they are.
    for name, content in row.items():
        if name not in ("prompt", "answer"):
            assert given[name] == content
    assert "prompt" not in given


def test_verls_object_may_be_json_text_as_in_csv() -> None:
    held = '{"style": "rule", "ground_truth": {"target": 31, "numbers": [7, 4, 3]}}'
    columns = map_columns(list(VERL_ROW), config(), "rows.csv")
    _, given = columns.read(VERL_ROW | {"reward_model": held}, "row 0")
    assert given["answer"] == given["ground_truth"] == {"target": 31, "numbers": [7, 4, 3]}
    with pytest.raises(DataError, match="holds a str"):
        columns.read(VERL_ROW | {"reward_model": "{no object"}, "row 0")


def test_the_sentence_says_convention_and_mapping() -> None:
    sentence = map_columns(["question", "answer", "level"], config(), "x").sentence
    assert sentence == (
        "gsm8k columns: prompt from `question`, `answer` from `answer`; "
        "other columns for reward functions: `question`, `level`"
    )


def test_trl_rows_need_no_answer() -> None:
    columns = map_columns(["prompt", "test"], config(), "x")
    assert columns.read({"prompt": "p", "test": "t"}, "row 0") == ("p", {"test": "t"})
    assert "no reference answer" in columns.sentence


def test_verl_rows_always_carry_what_compute_score_takes() -> None:
    row = {"prompt": "p", "reward_model": {"ground_truth": {"target": 3}}}
    _, given = map_columns(list(row), config(), "x").read(row, "row 0")
    assert given["ground_truth"] == given["answer"] == {"target": 3}
    assert given["data_source"] is None and given["extra_info"] is None


def test_a_forced_convention_wins_over_detection() -> None:
    names = ["prompt", "question", "answer"]
    assert map_columns(names, config(), "x").prompt == "prompt"
    assert map_columns(names, config(columns="gsm8k"), "x").prompt == "question"


def test_named_columns_override_the_convention() -> None:
    row = {"question": "q", "answer": "a", "hint": "h", "final": "f"}
    columns = map_columns(list(row), config(prompt_column="hint", answer_column="final"), "x")
    prompt, given = columns.read(row, "row 0")
    assert prompt == "h" and given == {"question": "q", "answer": "f", "hint": "h", "final": "f"}
    assert map_columns(list(row), config(prompt_column="hint"), "x").answer == "answer"
    only_answer = map_columns(list(row), config(answer_column="final"), "x")
    assert (only_answer.prompt, only_answer.answer) == ("question", "final")


def test_an_answer_column_makes_up_for_the_one_that_the_convention_lacks() -> None:
    columns = map_columns(["question", "final"], config(answer_column="final"), "x")
    assert (columns.prompt, columns.answer) == ("question", "final")


def test_a_nested_field_may_be_named() -> None:
    row = {"text": "q", "meta": {"gold": 3}}
    columns = map_columns(list(row), config(prompt_column="text", answer_column="meta.gold"), "x")
    assert columns.read(row, "row 0")[1]["answer"] == 3


def test_names_that_the_rollout_gives_are_not_handed_on() -> None:
    row = {
        "prompt": "p",
        "prompts": "x",
        "completion": "c",
        "completions": "d",
        "completion_ids": [1],
        "k": 1,
    }
    assert map_columns(list(row), config(), "x").read(row, "row 0")[1] == {"k": 1}


def test_columns_that_fit_no_convention_are_listed_with_the_remedy() -> None:
    with pytest.raises(DataError) as error:
        map_columns(["input", "output"], config(), "data.train = rows.jsonl")
    message = str(error.value)
    assert message.startswith("data.train = rows.jsonl: no column convention fits")
    assert "Columns there are: `input`, `output`" in message
    assert "Fix: set data.prompt_column and data.answer_column" in message


@pytest.mark.parametrize(
    ("fields", "wanted", "key"),
    [
        ({"columns": "gsm8k"}, "question", "data.prompt_column"),
        ({"columns": "open-r1", "prompt_column": "input"}, "answer", "data.answer_column"),
        ({"columns": "verl", "prompt_column": "input"}, "reward_model.ground_truth", "data.answer_column"),
        ({"prompt_column": "inptu"}, "inptu", "data.prompt_column"),
        ({"prompt_column": "input", "answer_column": "outputs"}, "outputs", "data.answer_column"),
    ],
)
def test_a_missing_column_is_named_with_those_there_are(fields: dict, wanted: str, key: str) -> None:
    with pytest.raises(DataError) as error:
        map_columns(["input", "output"], config(**fields), "rows.jsonl")
    message = str(error.value)
    assert f"rows.jsonl: no column `{wanted}`" in message
    assert "Columns there are: `input`, `output`" in message
    assert f"Fix: set {key}" in message
    if wanted in ("inptu", "outputs"):
        assert "Did you mean" in message


@pytest.mark.parametrize("value", [None, "", []])
def test_an_empty_prompt_is_an_error_with_its_row(value: object) -> None:
    columns = map_columns(["prompt"], config(), "x")
    with pytest.raises(DataError, match="row 5: the prompt in column `prompt` is empty"):
        columns.read({"prompt": value}, "row 5")


@pytest.mark.parametrize(
    ("reward_model", "shown"), [({"style": "rule"}, "fields `style`"), (None, "a NoneType"), ("2", "a str")]
)
def test_a_verl_row_without_ground_truth_is_an_error_with_its_row(reward_model: object, shown: str) -> None:
    columns = map_columns(["prompt", "reward_model"], config(), "x")
    with pytest.raises(DataError, match=f"row 5: `reward_model.ground_truth` is missing.*{shown}"):
        columns.read({"prompt": "p", "reward_model": reward_model}, "row 5")

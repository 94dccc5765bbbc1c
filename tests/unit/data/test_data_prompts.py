"""The stream of prompts: what a run draws, holds out, drops, cuts and reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from data_helpers import CharTokenizer

from rl4dlm.data import EVAL_UID, demonstrations, open_task
from rl4dlm.errors import DataError
from rl4dlm.recipe.sections import CountdownTask, SortTask
from rl4dlm.types import Prompt


def questions(num: int) -> list[dict]:
    return [{"question": f"q{index:02d}", "answer": f"a{index}", "level": index} for index in range(num)]


@pytest.fixture
def train(write_jsonl: Callable[..., str]) -> str:
    return write_jsonl(questions(12))


def test_a_row_becomes_a_prompt_with_its_columns(train: str, open_source: Callable) -> None:
    source = open_source(train=train, shuffle=False)
    assert source.batch(0, 2)[1] == Prompt(
        uid=1,
        prompt="q01",
        text="q01",
        token_ids=(ord("q"), ord("0"), ord("1")),
        columns={"question": "q01", "answer": "a1", "level": 1},
    )


def test_the_last_rows_are_held_out_and_never_drawn(train: str, open_source: Callable) -> None:
    source = open_source(train=train, num_eval=3)
    assert [prompt.prompt for prompt in source.eval_prompts()] == ["q09", "q10", "q11"]
    assert [prompt.uid for prompt in source.eval_prompts()] == [EVAL_UID + 9, EVAL_UID + 10, EVAL_UID + 11]
    assert source.num_train == 9
    drawn = {prompt.prompt for update in range(20) for prompt in source.batch(update, 4)}
    assert drawn == {f"q{index:02d}" for index in range(9)}


def test_epochs_draw_every_row_once_before_any_repeats(train: str, open_source: Callable) -> None:
    source = open_source(train=train)  # 10 training rows in batches of 4
    drawn = [prompt.uid for update in range(10) for prompt in source.batch(update, 4)]
    for epoch in range(4):
        assert sorted(drawn[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert drawn[:10] != drawn[10:20]
    assert all(len(set(drawn[at : at + 4])) == 4 for at in range(0, 40, 4))


def test_a_batch_is_a_function_of_seed_and_update(train: str, open_source: Callable) -> None:
    source = open_source(train=train, seed=5)
    through = [source.batch(update, 4) for update in range(8)]
    resumed = open_source(train=train, seed=5)
    assert [resumed.batch(update, 4) for update in (6, 7)] == through[6:]
    assert through != [open_source(train=train, seed=6).batch(update, 4) for update in range(8)]


def test_eval_prompts_are_the_first_rows_of_the_eval_file(
    train: str, write_jsonl: Callable, open_source: Callable
) -> None:
    held_out = write_jsonl([{"question": f"e{index}", "answer": "x"} for index in range(5)], "eval.jsonl")
    source = open_source(
        train=train, eval=held_out, num_eval=3
    )  # eval_split stays `test`: a file has one split
    assert source.num_train == 12
    assert [(prompt.uid, prompt.prompt) for prompt in source.eval_prompts()] == [
        (EVAL_UID, "e0"),
        (EVAL_UID + 1, "e1"),
        (EVAL_UID + 2, "e2"),
    ]
    assert len(source.eval_prompts(1)) == 1
    sliced = open_source(train=train, eval=held_out, eval_split="test[3:]", num_eval=9)
    assert [prompt.prompt for prompt in sliced.eval_prompts()] == ["e3", "e4"]
    assert any("fewer prompts than eval.num_prompts = 9" in note for note in sliced.notes)


def test_an_eval_file_without_the_asked_split_is_an_error(train: str, open_source: Callable) -> None:
    with pytest.raises(DataError, match=r"data\.eval = .*data\.eval_split = 'validation'"):
        open_source(train=train, eval=train, eval_split="validation")


def test_evaluating_on_training_rows_is_said(train: str, open_source: Callable) -> None:
    notes = open_source(train=train, eval=train, eval_split="train").notes
    assert any("training may see evaluation rows" in note for note in notes)


def test_a_dataset_smaller_than_the_evaluation_is_an_error(train: str, open_source: Callable) -> None:
    with pytest.raises(DataError, match=r"has 12 rows, and eval\.num_prompts = 12 .*\nFix: lower"):
        open_source(train=train, num_eval=12)


def test_a_batch_larger_than_the_dataset_is_an_error(train: str, open_source: Callable) -> None:
    with pytest.raises(DataError, match=r"10 usable training prompts.*prompts_per_update = 11"):
        open_source(train=train).batch(0, 11)


def test_notes_say_columns_template_and_evaluation(
    train: str, open_source: Callable, chat_tokenizer: CharTokenizer
) -> None:
    assert open_source(train=train).notes == [
        "prompts: no chat template is applied",
        f"data.train = {train}: 12 rows; gsm8k columns: prompt from `question`, `answer` from `answer`; "
        "other columns for reward functions: `question`, `level`",
        "evaluation: 2 prompts, held out from the end of data.train",
    ]
    assert "chat template is applied" in open_source(tokenizer=chat_tokenizer, train=train).notes[0]


@pytest.fixture
def mixed_lengths(write_jsonl: Callable[..., str]) -> str:
    """Prompts of 1, 2, ..., 12 characters."""
    return write_jsonl([{"prompt": "abcdefghijkl"[:length]} for length in range(1, 13)], "mixed.jsonl")


def test_long_prompts_are_dropped_and_counted(
    mixed_lengths: str, write_jsonl: Callable, open_source: Callable
) -> None:
    source = open_source(train=mixed_lengths, max_prompt_length=11, num_eval=2)
    assert source.num_train == 10 and [prompt.prompt for prompt in source.eval_prompts()] == ["abcdefghijk"]
    falling = write_jsonl(
        [{"prompt": "abcdefghijkl"[:length]} for length in range(12, 0, -1)], "falling.jsonl"
    )
    source = open_source(train=falling, max_prompt_length=4, eval=mixed_lengths, num_eval=2)
    assert source.num_train == 4
    assert {prompt.uid for prompt in source.batch(0, 4)} == {8, 9, 10, 11}
    assert (
        "training: 8 prompts are longer than data.max_prompt_length = 4 tokens and were dropped "
        "(the longest has 12)"
    ) in source.notes


def test_long_prompts_are_cut_on_the_left(mixed_lengths: str, open_source: Callable) -> None:
    source = open_source(train=mixed_lengths, max_prompt_length=4, overlong="truncate", shuffle=False)
    assert source.num_train == 10
    prompts = source.batch(0, 10)
    assert prompts[3].token_ids == tuple(map(ord, "abcd"))
    assert prompts[9].token_ids == tuple(map(ord, "ghij"))
    assert prompts[9].text.replace(" ", "") == "ghij" and prompts[9].prompt == "abcdefghij"
    assert any("6 prompts" in note and "cut on the left" in note for note in source.notes)


def test_a_long_prompt_can_be_an_error_naming_the_row(mixed_lengths: str, open_source: Callable) -> None:
    with pytest.raises(DataError, match=r"row 4: the prompt has 5 tokens, data.max_prompt_length = 4"):
        open_source(train=mixed_lengths, max_prompt_length=4, overlong="error")


def test_dropping_every_prompt_is_an_error(train: str, open_source: Callable) -> None:
    with pytest.raises(DataError, match=r"every prompt is longer .* = 2 tokens \(the longest has 3\)"):
        open_source(train=train, max_prompt_length=2)


def test_length_counts_the_chat_template(
    mixed_lengths: str, open_source: Callable, chat_tokenizer: CharTokenizer
) -> None:
    # <user></user><assistant> is 6 + 7 + 11 = 24 characters.
    source = open_source(
        tokenizer=chat_tokenizer, train=mixed_lengths, max_prompt_length=27, eval=mixed_lengths
    )
    assert source.num_train == 3


def test_a_template_uses_other_columns(train: str, open_source: Callable) -> None:
    source = open_source(train=train, prompt_template="{level}: {prompt} ({{}})", shuffle=False)
    assert source.batch(0, 1)[0].text == "0: q00 ({})"
    with pytest.raises(DataError, match="'levle'"):
        open_source(train=train, prompt_template="{levle}: {prompt}")


@pytest.mark.parametrize("bad", [{"prompt": None}, {"prompt": ""}, {"prompt": [{"role": "user"}]}])
def test_a_bad_row_is_found_when_the_source_is_opened(
    bad: dict, write_jsonl: Callable, open_source: Callable
) -> None:
    good = (
        {"prompt": [{"role": "user", "content": "hi"}]}
        if isinstance(bad["prompt"], list)
        else {"prompt": "a"}
    )
    path = write_jsonl([good] * 5 + [bad] + [good] * 6)
    for overlong in ("drop", "truncate"):
        with pytest.raises(DataError, match="row 5"):
            open_source(train=path, overlong=overlong)


def test_verl_parquet_rows_reach_the_stream(
    tmp_path: Path, open_source: Callable, chat_tokenizer: CharTokenizer
) -> None:
    import datasets

    rows = [
        {
            "data_source": "sums",
            "prompt": [{"role": "user", "content": f"{index}+1?"}],
            "reward_model": {"style": "rule", "ground_truth": str(index + 1)},
            "extra_info": {"index": index},
        }
        for index in range(4)
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "verl.parquet")
    source = open_source(tokenizer=chat_tokenizer, train=str(tmp_path / "verl.parquet"), shuffle=False)
    prompt = source.batch(0, 2)[1]
    assert prompt.text == "<user>1+1?</user><assistant>"
    assert prompt.prompt == [{"role": "user", "content": "1+1?"}]
    assert prompt.columns["answer"] == prompt.columns["ground_truth"] == "2"
    assert prompt.columns["data_source"] == "sums" and prompt.columns["extra_info"] == {"index": 1}


def test_a_verl_row_without_ground_truth_is_found_when_the_source_is_opened(
    write_jsonl: Callable, open_source: Callable
) -> None:
    rows = [{"prompt": "p", "reward_model": {"ground_truth": "1"}}] * 3 + [
        {"prompt": "p", "reward_model": None}
    ]
    with pytest.raises(DataError, match="row 3: `reward_model.ground_truth` is missing"):
        open_source(train=write_jsonl(rows), num_eval=1)


def test_a_task_streams_its_training_instances(open_source: Callable) -> None:
    task = open_task(SortTask(), 4)
    source = open_source(task=SortTask(), seed=4, num_eval=5)
    assert source.num_train is None
    assert [p.prompt for p in source.batch(3, 4)] == [task.instance("train", i).prompt for i in range(12, 16)]
    assert [p.uid for p in source.batch(3, 4)] == [12, 13, 14, 15]
    assert [p.prompt for p in source.eval_prompts()] == [task.instance("eval", i).prompt for i in range(5)]
    assert len(source.eval_prompts(9)) == 9
    first = source.batch(0, 1)[0]
    assert first.columns["answer"] == "".join(sorted(first.prompt[:-1]))
    assert first.token_ids == tuple(map(ord, first.prompt))
    assert any("share no digit multiset" in note for note in source.notes)


def test_a_task_prompt_that_is_too_long_is_an_error_before_the_run(open_source: Callable) -> None:
    with pytest.raises(DataError, match=r"has 7 tokens, data.max_prompt_length = 6.\nFix: raise"):
        open_source(task=SortTask(num_digits=6), max_prompt_length=6)


def test_a_task_that_cannot_fill_the_evaluation_is_an_error_before_the_run(open_source: Callable) -> None:
    with pytest.raises(DataError, match="distinct eval instances"):
        open_source(task=SortTask(num_digits=2), num_eval=100)


def test_demonstrations_read_like_the_prompts_of_the_run(
    open_source: Callable, chat_tokenizer: CharTokenizer
) -> None:
    source = open_source(tokenizer=chat_tokenizer, task=CountdownTask(), prompt_template="Reach {prompt}")
    examples = demonstrations(
        open_task(CountdownTask(), 0),
        source.renderer,
        completion_length=30,
        indices=range(3),
    )
    assert [tuple(e.prompt_ids.tolist()) for e in examples] == [p.token_ids for p in source.batch(0, 3)]


def test_real_gsm8k_countdown_and_sudoku_files_open(shared_data: Path, open_source: Callable) -> None:
    gsm8k = open_source(
        train=str(shared_data / "gsm8k_train.jsonl"),
        eval=str(shared_data / "gsm8k_test.jsonl"),
        max_prompt_length=1000,
        num_eval=64,
    )
    assert gsm8k.num_train == 7473 and len(gsm8k.eval_prompts()) == 64
    assert "#### " in gsm8k.batch(0, 1)[0].columns["answer"]

    countdown = open_source(
        train=str(shared_data / "countdown_cd3_test.jsonl"),
        prompt_column="input",
        answer_column="output",
        prompt_template="Numbers: {input}\nTarget: {output}",
        shuffle=False,
    )
    first = countdown.batch(0, 1)[0]
    assert first.text == "Numbers: 30,100,93\nTarget: 23"
    assert first.columns == {"input": "30,100,93", "output": "23", "answer": "23"}

    sudoku = open_source(
        train=str(shared_data / "sudoku_4x4_test.csv"),
        prompt_column="Puzzle",
        answer_column="Solution",
        shuffle=False,
    )
    rows = sudoku.batch(0, 498)
    assert all(len(row.prompt) == 16 == len(row.columns["answer"]) for row in rows)
    assert rows[1].prompt == "0140432014020000"

"""Examples of fine-tuning: every form of rows, what is held out, what is cut or left out, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import CharTokenizer

from rl4dlm.data import EVAL_UID, Example, ExampleSource, Reading, open_examples, training_texts
from rl4dlm.errors import DataError
from rl4dlm.recipe.sections import SortTask
from rl4dlm.recipe.supervised import SFTDataConfig
from rl4dlm.types import EOS_FILLER, SAMPLED, DenoiserSpec

# Ids of CharTokenizer are code points; `>` ends a turn of its chat template.
SPEC = DenoiserSpec(
    mask_id=999, pad_id=0, eos_id=7, stop_ids=(7, ord(">")), vocab_size=1000, forbidden_ids=(999,)
)


def reading(tokenizer: CharTokenizer, **changes: Any) -> Reading:
    base = Reading(
        texts=tokenizer.texts(),
        spec=SPEC,
        canvas=30,
        seed=0,
        num_eval=1,
    )
    return replace(base, **changes)


@pytest.fixture
def open_(plain_tokenizer: CharTokenizer) -> Callable[..., ExampleSource]:
    def open_source(
        tokenizer: CharTokenizer = plain_tokenizer, settings: dict[str, Any] | None = None, **fields: Any
    ) -> ExampleSource:
        return open_examples(SFTDataConfig(**fields), reading(tokenizer, **(settings or {})))

    return open_source


def texts(example: Example) -> tuple[str, str]:
    return tuple("".join(map(chr, ids)) for ids in (example.prompt_ids, example.completion_ids))  # type: ignore[return-value]


PAIRS = [{"prompt": f"{i}+1=", "completion": f"{i + 1}", "level": i} for i in range(5)]


def test_pairs_are_read_in_a_seeded_order_and_the_last_row_is_held_out(open_, write_jsonl):
    source = open_(train=write_jsonl(PAIRS))
    assert source.num_train == 4
    assert [texts(e) for e in source.held_out()] == [("4+1=", "5")]
    epoch = [texts(e) for e in source.batch(0, 2) + source.batch(1, 2)]
    assert sorted(epoch) == [(f"{i}+1=", f"{i + 1}") for i in range(4)]
    again = open_(train=write_jsonl(PAIRS))
    assert [texts(e) for e in again.batch(1, 2)] == epoch[2:]
    assert [texts(e) for e in open_(train=write_jsonl(PAIRS), shuffle=False).batch(0, 2)] == [
        ("0+1=", "1"),
        ("1+1=", "2"),
    ]


def test_evaluation_prompts_carry_the_columns_that_rewards_need(open_, write_jsonl):
    (prompt,) = open_(train=write_jsonl(PAIRS)).eval_prompts()
    assert (prompt.uid, prompt.text, prompt.token_ids) == (EVAL_UID + 4, "4+1=", tuple(map(ord, "4+1=")))
    assert prompt.columns == {"level": 4, "answer": "5"}


def test_rows_that_share_a_prompt_with_held_out_ones_are_not_trained(open_, write_jsonl):
    source = open_(train=write_jsonl([*PAIRS, {"prompt": "0+1=", "completion": "one", "level": 9}]))
    assert [texts(e) for e in source.held_out()] == [("0+1=", "one")]
    assert source.num_train == 4 and ("0+1=", "1") not in [texts(e) for e in source.batch(0, 4)]


def test_an_own_evaluation_file_holds_nothing_out(open_, write_jsonl):
    source = open_(train=write_jsonl(PAIRS), eval=write_jsonl(PAIRS[:2], "eval.jsonl"))
    assert source.num_train == 5 and [texts(e) for e in source.held_out()] == [("0+1=", "1")]


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        ({"question": "q?", "answer": "a"}, {}),
        ({"x": "q?", "y": "a"}, {"prompt_column": "x", "completion_column": "y"}),
        ({"problem": "q?", "solution": "a"}, {"columns": "open-r1"}),
        ({"instruction": "q?", "output": "a"}, {"completion_column": "output"}),
        ({"prompt": [{"role": "user", "content": "q?"}], "completion": "a"}, {}),
        (
            {
                "prompt": [{"role": "user", "content": "q?"}],
                "completion": [{"role": "assistant", "content": "a"}],
            },
            {},
        ),
        ({"messages": [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "a"}]}, {}),
    ],
)
def test_every_form_of_a_pair_reads_the_same(open_, write_jsonl, row, fields):
    source = open_(train=write_jsonl([row]), eval=write_jsonl([row], "eval.jsonl"), **fields)
    (example,) = source.batch(0, 1)
    assert texts(example) == ("q?", "a") and example.ended and example.filled
    assert source.eval_prompts()[0].columns["answer"] == "a"


def test_a_chat_template_closes_the_answer_up_to_its_stop_token(open_, write_jsonl, chat_tokenizer):
    row = {
        "messages": [
            {"role": "user", "content": "1?"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "3?"},
            {"role": "assistant", "content": "4"},
        ]
    }
    path = write_jsonl([row])
    (example,) = open_(chat_tokenizer, train=path, eval=path, system_prompt="be").batch(0, 1)
    assert texts(example) == (
        "<system>be</system><user>1?</user><assistant>2</assistant><user>3?</user><assistant>",
        "4</assistant>",
    )


def test_what_a_template_writes_after_the_turn_is_not_learned(open_, write_jsonl, chat_tokenizer):
    trailing = CharTokenizer(chat_tokenizer.hf.chat_template.replace("{% endfor %}", "~{% endfor %}"))
    path = write_jsonl(PAIRS)
    (example,) = open_(trailing, train=path, shuffle=False).batch(0, 1)
    assert texts(example) == ("<user>0+1=</user>~<assistant>", "1</assistant>")


def test_a_template_that_rewrites_the_prompt_before_an_answer_is_refused(open_, write_jsonl):
    fickle = CharTokenizer("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(DataError, match=r"row 0: .*writes the prompt differently.*\nFix: set model.chat"):
        open_(fickle, train=write_jsonl(PAIRS))


def test_texts_come_in_windows_of_the_canvas_whose_first_token_is_given(open_, write_jsonl):
    path = write_jsonl([{"text": "abcdefgh"}, {"text": "xyz"}])
    source = open_(train=path, eval=path, shuffle=False, settings={"canvas": 3})
    examples = source.batch(0, source.num_train)
    assert [texts(e) for e in examples] == [("a", "bcd"), ("d", "efg"), ("g", "h"), ("x", "yz")]
    assert [e.ended for e in examples] == [False, False, True, True] and not any(e.filled for e in examples)
    with pytest.raises(DataError, match="no prompts to sample"):
        source.eval_prompts()


def test_a_task_gives_demonstrations_or_right_answers(open_):
    gold = open_(task=SortTask(num_digits=3), task_answers="gold")
    for example in [*gold.batch(3, 5), *gold.held_out()]:
        prompt, completion = texts(example)
        assert completion == "".join(sorted(prompt.removesuffix("=")))
    shown = open_(task=SortTask(num_digits=3)).batch(0, 40)
    assert any(texts(e)[1] != "".join(sorted(texts(e)[0][:-1])) for e in shown)
    assert gold.num_train is None and gold.held_out()[0].uid >= EVAL_UID


# --- Recorded rollouts ---


def rollouts(folder: Path, **changes: Any) -> str:
    """Three recorded rollouts: one that stopped early, one that filled its canvas, one of another prompt."""
    columns: dict[str, Any] = {
        "prompt_ids": [[1, 2], [1, 2], [3]],
        "completion_ids": [[5, 7, 7, 7], [5, 6, 5, 6], [6, 7, 7, 7]],
        "completion_len": [2, 4, 2],
        "step_map": [[1, 0, 2, 2], [0, 1, 2, 3], [0, 1, 2, 2]],
        "kind": [[SAMPLED, SAMPLED, EOS_FILLER, EOS_FILLER], [SAMPLED] * 4, [SAMPLED, SAMPLED, 3, 3]],
        "reward": [1.0, float("nan"), 0.5],
        "prompt": [json.dumps("p")] * 3,
        "prompt_text": ["p"] * 3,
        "prompt_columns": [json.dumps({"answer": "5"})] * 3,
    }
    columns |= changes
    folder.mkdir(exist_ok=True)
    pq.write_table(
        pa.table({k: v for k, v in columns.items() if v is not None}), folder / "update_000001.parquet"
    )
    return str(folder)


def test_rollouts_are_learned_as_recorded_up_to_their_end(open_, tmp_path):
    path = rollouts(tmp_path / "rollouts")
    source = open_(train=path, eval=path, eval_split="train", shuffle=False, settings={"num_eval": 3})
    examples = source.batch(0, 3)
    assert [e.completion_ids.tolist() for e in examples] == [[5, 7], [5, 6, 5, 6], [6, 7]]
    assert [e.ended for e in examples] == [True, False, True] and examples[0].step_map is None
    assert source.eval_prompts()[2].token_ids == (3,) and source.eval_prompts()[0].columns == {"answer": "5"}


def test_a_trace_is_the_whole_canvas_with_the_sampled_positions_steps(open_, tmp_path):
    path = rollouts(tmp_path / "rollouts")
    source = open_(train=path, eval=path, eval_split="train", shuffle=False, settings={"traced": True})
    first, second, _ = source.batch(0, 3)
    assert first.completion_ids.tolist() == [5, 7, 7, 7] and not first.ended
    assert first.step_map is not None and first.step_map.tolist() == [1, 0, -1, -1]
    assert second.step_map is not None and second.step_map.tolist() == [0, 1, 2, 3]
    (measured,) = source.held_out()
    assert measured.completion_ids.tolist() == [5, 7] and measured.ended and measured.step_map is None


def test_only_rollouts_with_enough_reward_are_learned(open_, tmp_path):
    path = rollouts(tmp_path / "rollouts")
    source = open_(train=path, eval=path, eval_split="train", min_reward=1.0)
    assert source.num_train == 1 and source.batch(0, 1)[0].completion_ids.tolist() == [5, 7]
    assert any("2 rows have a reward below" in note for note in source.notes)
    with pytest.raises(DataError, match="no row can be used: 0 are too long, 3 have too low a reward"):
        open_(train=path, min_reward=2.0)


def test_a_given_step_map_may_cover_end_of_text(open_, write_jsonl):
    path = write_jsonl([{"prompt": "p", "completion": "ab", "step_map": [1, 0, 2]}])
    (example,) = open_(train=path, eval=path, settings={"traced": True}).batch(0, 1)
    assert example.completion_ids.tolist() == [ord("a"), ord("b"), 7]
    assert example.step_map is not None and example.step_map.tolist() == [1, 0, 2]


# --- Lengths ---


@pytest.mark.parametrize(("overlong", "expected"), [("drop", []), ("truncate", [("56=", "12345")])])
def test_long_rows_are_dropped_or_cut(open_, write_jsonl, overlong, expected):
    rows = [{"prompt": "123456=", "completion": "1234567"}, {"prompt": "0=", "completion": "0"}]
    path = write_jsonl(rows)
    source = open_(
        train=path,
        eval=path,
        overlong=overlong,
        max_prompt_length=3,
        shuffle=False,
        settings={"canvas": 5},
    )
    examples = source.batch(0, source.num_train)
    assert [texts(e) for e in examples] == [*expected, ("0=", "0")]
    assert examples[-1].ended and (len(examples) == 1 or not examples[0].ended)
    assert any("1 rows are longer" in note for note in source.notes)


def test_texts_of_examples_are_prompts_and_completions(write_jsonl):
    data = SFTDataConfig(train=write_jsonl(PAIRS))
    assert list(training_texts(data, 0, held_out=4)) == ["0+1=", "1"]


# --- Refusals ---


@pytest.mark.parametrize(
    ("rows", "fields", "told"),
    [
        (
            [{"a": "b"}],
            {},
            "no known form of examples fits .*Fix: set data.prompt_column and data.completion",
        ),
        (
            [{"prompt": "q"}],
            {"prompt_column": "prompt"},
            "no column `completion`.*Fix: correct data.completion",
        ),
        ([{"prompt": "q", "completion": "a"}], {"answer_column": "x"}, "no column `x`.*data.answer_column"),
        ([{"prompt": "q", "completion": ""}], {}, "row 0: the completion in column `completion` is empty"),
        ([{"prompt": "", "completion": "a"}], {}, "row 0: the prompt in column `prompt` is empty"),
        ([{"prompt": "q", "completion": 3}], {}, "is of type int, not text"),
        ([{"messages": [{"role": "user", "content": "q"}]}], {}, "does not end with an answer"),
        (
            [{"prompt": "q", "completion": [{"role": "user", "content": "q"}]}],
            {},
            "not one message of the assistant",
        ),
        (
            [{"prompt": "qqqq", "completion": "a"}],
            {"max_prompt_length": 2, "overlong": "error"},
            "4 and 1 tok",
        ),
        ([{"prompt": "q", "completion": "a"}], {"min_reward": 1.0}, "needs a column `reward`"),
        ([{"prompt": "q", "completion": "a", "reward": "x"}], {"min_reward": 1.0}, "'x' is not a number"),
        ([{"prompt": "q", "completion": "a"}], {}, "1 usable examples, and eval.num_prompts = 1 of them"),
    ],
)
def test_a_mistake_is_named_with_its_row_and_remedy(open_, write_jsonl, rows, fields, told):
    with pytest.raises(DataError, match=f"(?s){told}") as caught:
        open_(train=write_jsonl(rows), **fields)
    assert "\nFix: " in str(caught.value)


def test_a_trace_without_steps_or_with_too_many_is_refused(open_, write_jsonl, tmp_path):
    traced = {"traced": True}
    with pytest.raises(DataError, match="type = trace needs a column `step_map`"):
        open_(train=write_jsonl(PAIRS), settings=traced)
    bad = write_jsonl([{"prompt": "p", "completion": "ab", "step_map": [1]}], "bad.jsonl")
    with pytest.raises(DataError, match="`step_map` has 1 entries for the completion's 2 tokens"):
        open_(train=bad, settings=traced)
    short = rollouts(tmp_path / "short", step_map=[[0], [0], [0]])
    with pytest.raises(DataError, match="`step_map` has 1 entries for 4 tokens of completion_ids"):
        open_(train=short, settings=traced)


def test_a_batch_larger_than_the_data_is_refused(open_, write_jsonl):
    with pytest.raises(DataError, match="4 usable training examples, .*sft.batch_size = 5"):
        open_(train=write_jsonl(PAIRS)).batch(0, 5)


def test_ids_are_int32(open_, write_jsonl):
    (example,) = open_(train=write_jsonl(PAIRS)).held_out()
    assert example.prompt_ids.dtype == example.completion_ids.dtype == np.int32

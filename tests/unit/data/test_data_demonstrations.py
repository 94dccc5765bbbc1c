"""Demonstrations as token ids."""

from __future__ import annotations

import numpy as np
import pytest
from data_helpers import CharTokenizer

from rl4dlm.data import Renderer, demonstrations, open_task
from rl4dlm.errors import DataError
from rl4dlm.recipe.sections import CountdownTask, SortTask


def test_examples_are_prompt_and_answer_as_ids(plain_tokenizer: CharTokenizer) -> None:
    task = open_task(SortTask(num_digits=3), 0)
    examples = demonstrations(
        task, Renderer(plain_tokenizer.texts()), completion_length=5, indices=range(10, 14)
    )
    for example, index in zip(examples, range(10, 14), strict=True):
        prompt, answer = task.demonstration(index)
        assert example.prompt_ids.tolist() == [*map(ord, prompt)] and example.prompt_ids.dtype == np.int32
        assert example.completion_ids.tolist() == [*map(ord, answer)]
        assert example.uid == index and example.ended


def test_held_out_demonstrations_belong_to_held_out_instances_and_gold_ones_are_right(
    plain_tokenizer: CharTokenizer,
) -> None:
    task = open_task(SortTask(num_digits=3), 0)
    renderer = Renderer(plain_tokenizer.texts())
    shown = [
        demonstrations(task, renderer, completion_length=3, indices=range(40), split="eval", gold=gold)
        for gold in (False, True)
    ]
    for example, gold, index in zip(*shown, range(40), strict=True):
        instance = task.instance("eval", index)
        assert example.uid == gold.uid == instance.uid
        assert example.prompt_ids.tolist() == gold.prompt_ids.tolist() == [*map(ord, instance.prompt)]
        assert gold.completion_ids.tolist() == [*map(ord, instance.answer)]
    wrong = [e.completion_ids.tolist() != g.completion_ids.tolist() for e, g in zip(*shown, strict=True)]
    assert 8 <= sum(wrong) <= 32  # half are descending


def test_an_answer_may_fill_the_canvas_exactly(plain_tokenizer: CharTokenizer) -> None:
    task = open_task(SortTask(num_digits=3), 0)
    examples = demonstrations(task, Renderer(plain_tokenizer.texts()), completion_length=3, indices=range(2))
    assert [len(example.completion_ids) for example in examples] == [3, 3]


def test_an_answer_longer_than_the_canvas_is_refused_with_its_length(plain_tokenizer: CharTokenizer) -> None:
    task = open_task(CountdownTask(), 0)  # 4 digits and 3 operators: 7 characters
    with pytest.raises(DataError, match=r"max_completion_length = 6 .*has 7 tokens.\nFix: raise .* to 7"):
        demonstrations(task, Renderer(plain_tokenizer.texts()), completion_length=6, indices=range(2))


def test_a_chat_template_wraps_prompts_and_closes_answers(chat_tokenizer: CharTokenizer) -> None:
    task = open_task(SortTask(num_digits=3), 0)
    renderer = Renderer(chat_tokenizer.texts())
    (example,) = demonstrations(task, renderer, completion_length=20, indices=range(1))
    prompt, answer = task.demonstration(0)
    assert example.prompt_ids.tolist() == [*map(ord, f"<user>{prompt}</user><assistant>")]
    assert example.completion_ids.tolist() == [*map(ord, f"{answer}</assistant>")]

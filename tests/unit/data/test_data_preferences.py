"""Recorded preferences: what a row's two completions become, and what is refused."""

from __future__ import annotations

import pytest

from rl4dlm.data import preference_pairs
from rl4dlm.errors import DataError
from rl4dlm.types import Prompt

EOS = 0


def encode(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def prompt(uid: int = 7, **columns) -> Prompt:
    return Prompt(uid, "q", "q", (3, 4), columns)


def pairs(*prompts: Prompt, overlong: str = "drop"):
    return preference_pairs(prompts, encode, eos_id=EOS, canvas_length=4, overlong=overlong)


def test_completions_are_filled_with_end_of_text_and_their_length_counts_the_first():
    (pair,) = pairs(prompt(chosen="ab", rejected="abcd"))
    assert pair.chosen_ids.tolist() == [97, 98, EOS, EOS] and pair.chosen_len == 3
    assert pair.rejected_ids.tolist() == [97, 98, 99, 100] and pair.rejected_len == 4
    assert (pair.uid, pair.prompt_ids.tolist()) == (7, [3, 4])


def test_of_chat_messages_the_last_is_the_completion():
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (pair,) = pairs(prompt(chosen=chat, rejected=[{"role": "assistant", "content": "b"}]))
    assert pair.chosen_ids[0] == 97 and pair.rejected_ids[0] == 98


def test_what_does_not_fit_is_dropped_cut_or_refused_as_the_recipe_says():
    rows = prompt(1, chosen="a", rejected="abcde"), prompt(2, chosen="a", rejected="b")
    assert [pair.uid for pair in pairs(*rows)] == [2]
    assert pairs(*rows, overlong="truncate")[0].rejected_ids.tolist() == [97, 98, 99, 100]
    with pytest.raises(
        DataError, match="row 1: a completion has 5 tokens, rollout.max_completion_length = 4"
    ):
        pairs(*rows, overlong="error")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"chosen": "a", "answer": "1"},
            "row 7: no column `rejected`; columns there are: `chosen`, `answer`",
        ),
        ({}, "row 7: no column `chosen`; columns there are: none besides the prompt"),
        ({"chosen": 3, "rejected": "b"}, "column `chosen` is neither text nor"),
        ({"chosen": [{"role": "user", "content": "q"}], "rejected": "b"}, "ends with the assistant's"),
        ({"chosen": "a", "rejected": []}, "column `rejected` is neither text nor"),
    ],
)
def test_a_row_that_is_no_preference_is_named_with_the_remedy(columns, message):
    with pytest.raises(DataError, match=message) as caught:
        pairs(prompt(**columns))
    assert "\nFix: " in str(caught.value)

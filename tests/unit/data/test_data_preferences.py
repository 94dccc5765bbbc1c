"""Recorded preferences: what a row's two completions become, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from data_helpers import MASK, CharTokenizer

from rl4dlm.data import PromptSource, preference_pairs
from rl4dlm.errors import DataError
from rl4dlm.types import Pair

EOS = 7
ASKED = [{"role": "user", "content": "q"}]


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture
def pairs(open_source: Callable[..., PromptSource], write_jsonl: Callable[..., str], plain_tokenizer):
    """Opens rows as a run would, and makes their pairs."""

    def make(
        *rows: dict[str, Any],
        tokenizer: CharTokenizer = plain_tokenizer,
        overlong: str = "drop",
        canvas: int = 4,
    ) -> list[Pair]:
        source = open_source(tokenizer, train=write_jsonl([*rows, rows[0]]), num_eval=1, shuffle=False)
        return preference_pairs(
            source.batch(0, len(rows)),
            source.renderer,
            eos_id=EOS,
            canvas_length=canvas,
            max_prompt_length=40,
            overlong=overlong,  # type: ignore[arg-type]
        )

    return make


def text(ids: Any) -> str:
    return "".join(chr(token) for token in ids if token != EOS)


def test_completions_are_filled_with_end_of_text_and_their_length_counts_the_first(pairs) -> None:
    (pair,) = pairs({"prompt": "q", "chosen": "ab", "rejected": "abcd"})
    assert pair.chosen_ids.tolist() == [97, 98, EOS, EOS] and pair.chosen_len == 3
    assert pair.rejected_ids.tolist() == [97, 98, 99, 100] and pair.rejected_len == 4
    assert (pair.uid, pair.prompt_ids.tolist()) == (0, [ord("q")])


FORMS = {
    "explicit": {"prompt": ASKED, "chosen": [said("yes")], "rejected": [said("no")]},
    "implicit": {"chosen": [*ASKED, said("yes")], "rejected": [*ASKED, said("no")]},
    "prompt as text beside whole conversations": {
        "prompt": "q",
        "chosen": [*ASKED, said("yes")],
        "rejected": [*ASKED, said("no")],
    },
    "whole conversations beside the prompt": {
        "prompt": ASKED,
        "chosen": [*ASKED, said("yes")],
        "rejected": [*ASKED, said("no")],
    },
    "texts": {"prompt": "q", "chosen": "yes", "rejected": "no"},
    "answers as text": {"prompt": ASKED, "chosen": "yes", "rejected": "no"},
    "JSON text": {
        "prompt": json.dumps(ASKED),
        "chosen": json.dumps([said("yes")]),
        "rejected": json.dumps([said("no")]),
    },
    "ShareGPT": {
        "chosen": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "yes"}],
        "rejected": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "no"}],
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_row_gives_what_trl_and_fine_tuning_give(
    form: str, pairs, chat_tokenizer: CharTokenizer
) -> None:
    from trl.data_utils import apply_chat_template

    wanted = apply_chat_template(FORMS["explicit"], chat_tokenizer.hf)
    (pair,) = pairs(FORMS[form], tokenizer=chat_tokenizer, canvas=40)
    assert text(pair.prompt_ids) == wanted["prompt"]
    assert text(pair.chosen_ids) == wanted["chosen"] == "yes</assistant>"
    assert text(pair.rejected_ids) == wanted["rejected"]
    # The template's end of turn ends the text: end-of-text behind it is no part of the answer.
    assert (pair.chosen_len, pair.rejected_len) == (len("yes</assistant>"), len("no</assistant>"))


def test_a_prompt_of_several_turns_is_what_both_begin_with(pairs, chat_tokenizer: CharTokenizer) -> None:
    turns = [*ASKED, said("a"), {"role": "user", "content": "r"}]
    (pair,) = pairs(
        {"chosen": [*turns, said("b")], "rejected": [*turns, said("c")]}, tokenizer=chat_tokenizer, canvas=20
    )
    assert text(pair.prompt_ids).endswith("<user>r</user><assistant>")
    assert text(pair.chosen_ids) == "b</assistant>"


def test_what_does_not_fit_is_dropped_cut_or_refused_as_the_recipe_says(pairs) -> None:
    rows = (
        {"prompt": "p", "chosen": "a", "rejected": "abcde"},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
    )
    assert [pair.uid for pair in pairs(*rows)] == [1]
    assert pairs(*rows, overlong="truncate")[0].rejected_ids.tolist() == [97, 98, 99, 100]
    with pytest.raises(
        DataError, match="row 0: a completion has 5 tokens, rollout.max_completion_length = 4"
    ):
        pairs(*rows, overlong="error")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "chosen": "a", "answer": "1"}, "no column `rejected`; columns there are: "),
        ({"prompt": "q", "answer": "1"}, "row 0: no column `chosen`; columns there are: `answer`"),
        ({"prompt": "q", "chosen": 3, "rejected": "b"}, "row 0: column `chosen` is neither text nor"),
        ({"prompt": "q", "chosen": "a", "rejected": []}, "row 0: column `rejected` is neither text nor"),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, "row 0: column `rejected` is neither text nor"),
        ({"prompt": "q", "chosen": [*ASKED], "rejected": "b"}, "is not one message of the assistant"),
        ({"chosen": [said("a")], "rejected": [said("b")]}, "begin differently"),
        ({"chosen": [*ASKED, said("a")], "rejected": [*ASKED, said("a")]}, "are equal"),
        ({"prompt": "q", "chosen": f"a{MASK}", "rejected": "b"}, "row 0: the text spells the mask"),
        ({"prompt": f"q{MASK}", "chosen": "a", "rejected": "b"}, "row 0: the text spells the mask"),
        ({"prompt": "q", "chosen": "a", "rejected": '[{"role": "assistant"'}, "begins like chat messages"),
    ],
)
def test_a_row_that_is_no_preference_is_named_with_the_remedy(
    row: dict[str, Any], message: str, pairs
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        pairs(row)
    assert "\nFix: " in str(caught.value)

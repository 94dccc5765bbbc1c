"""Conversations: every field and setting that a chat template reads reaches it, and nothing is lost in
silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from data_helpers import CHATML, MASK, CharTokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rl4dlm.data import PromptSource, Reading, open_examples
from rl4dlm.data.messages import as_answer, as_prompt, split_conversation
from rl4dlm.data.render import Renderer, TextFormat
from rl4dlm.errors import DataError
from rl4dlm.recipe.supervised import SFTDataConfig
from rl4dlm.types import DenoiserSpec

# As Qwen3's: thoughts of the last answer are shown, those of earlier turns are not.
THINKING = (
    "{% if tools %}[tools {{ tools | length }}]{% endif %}"
    "{% for m in messages %}<{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}>"
    "{% if m.role == 'assistant' and loop.last %}"
    "<think>{{ m.reasoning_content if m.reasoning_content is defined else '' }}</think>{% endif %}"
    "{{ m.content }}"
    "{% if m.tool_calls %}{% for call in m.tool_calls %}[{{ call.function.name }}]{% endfor %}{% endif %}"
    "</{{ m.role }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)
USER = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4", "reasoning_content": "two and two"}
SPEC = DenoiserSpec(999, 0, 7, (7, ord(">")), 1000, (999,))


@pytest.fixture(scope="module")
def thinking() -> CharTokenizer:
    return CharTokenizer(THINKING)


def render(tokenizer: CharTokenizer, **options: Any) -> Renderer:
    return Renderer(tokenizer.texts(**options))


def test_thoughts_reach_a_template_that_reads_them(thinking: CharTokenizer) -> None:
    asked, written = render(thinking).pair([USER], ANSWER, {}, "row 0")
    assert asked == "<user>2+2?</user>\n<assistant>"
    assert written == "<think>two and two</think>4</assistant>\n"


def test_rendering_is_trls(thinking: CharTokenizer) -> None:
    from trl.data_utils import apply_chat_template

    wanted = apply_chat_template({"prompt": [USER], "completion": [ANSWER]}, thinking.hf)
    assert render(thinking).pair([USER], ANSWER, {}, "row 0") == (wanted["prompt"], wanted["completion"])
    prompt = [{"role": "system", "content": "s"}, USER, ANSWER, USER]
    assert (
        render(thinking).text(prompt, {}, "row 0")
        == apply_chat_template({"prompt": prompt}, thinking.hf)["prompt"]
    )


def test_thoughts_of_earlier_turns_are_the_templates_to_leave_out(thinking: CharTokenizer) -> None:
    made = render(thinking)
    assert "two and two" not in made.text([USER, ANSWER, USER], {}, "row 0")
    assert made.remarks() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reasoning_content", "thought"),
        ("thinking", "thought"),
        ("tool_calls", [{"function": {"name": "f"}}]),
        ("images", ["a.png"]),
        ("weight", 0),
    ],
)
@pytest.mark.parametrize("template", [CHATML, None])
def test_a_field_with_meaning_that_nothing_reads_is_refused(
    field: str, value: Any, template: str | None
) -> None:
    answer = {"role": "assistant", "content": "4", field: value}
    with pytest.raises(
        DataError, match=rf"row 3: message 0 of the completion \(assistant\) has `{field}`, and .*\nFix: "
    ):
        render(CharTokenizer(template)).pair([USER], answer, {}, "row 3")


@pytest.mark.parametrize("message", [{**USER, "images": ["a.png"]}, {**USER, "tool_call_id": "1"}])
def test_a_prompts_field_that_nothing_reads_is_refused(message: Any, thinking: CharTokenizer) -> None:
    with pytest.raises(DataError, match=r"row 3: message 0 of the prompt \(user\) has "):
        render(thinking).text([message], {}, "row 3")


def test_a_field_without_meaning_is_named_once(chat_tokenizer: CharTokenizer) -> None:
    made = render(chat_tokenizer)
    for index in range(3):
        made.text([{**USER, "name": "Ann", "id": 7}], {}, f"row {index}")
    remarks = made.remarks()
    assert len(remarks) == 2 and all("first: row 0" in remark for remark in remarks)
    assert "`name` of messages is left out" in remarks[0] and "`id` of messages" in remarks[1]


def test_a_field_that_the_template_reads_is_named_nowhere(thinking: CharTokenizer) -> None:
    made = render(thinking)
    assert made.text([{**USER, "name": "Ann"}], {}, "row 0").startswith("<user Ann>")
    calls = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add"}}]}
    prompt = as_prompt(
        [USER, {**calls, "content": None}, {"role": "tool", "content": "4"}], as_text=False, where="r"
    )
    assert "<assistant>[add]</assistant>" in made.text(prompt, {}, "row 0")
    assert made.remarks() == []


@pytest.mark.parametrize("value", ["", None, [], {}])
def test_an_empty_field_is_no_loss(value: Any, chat_tokenizer: CharTokenizer) -> None:
    (message,) = as_prompt([{**USER, "tool_calls": value, "weight": 1}], as_text=False, where="row 0")
    assert render(chat_tokenizer).text([message], {}, "row 0") == "<user>2+2?</user><assistant>"


# --- settings of the template ---


def test_settings_of_the_recipe_reach_the_template(thinking: CharTokenizer) -> None:
    made = render(thinking, template_kwargs={"enable_thinking": False})
    assert made.text("2+2?", {}, "row 0") == "<user>2+2?</user>\n<assistant><think></think>"
    asked, written = made.pair("2+2?", {"role": "assistant", "content": "4"}, {}, "row 0")
    assert (asked, written) == ("<user>2+2?</user>\n<assistant><think></think>", "4</assistant>\n")


def test_a_rows_settings_and_tools_reach_the_template_too(thinking: CharTokenizer) -> None:
    made = render(thinking, template_kwargs={"enable_thinking": True})
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    row = {"chat_template_kwargs": {"enable_thinking": False}, "tools": tools}
    wanted = "[tools 1]<user>2+2?</user>\n<assistant><think></think>"
    assert made.text("2+2?", row, "row 0") == wanted
    assert made.text("2+2?", {name: json.dumps(value) for name, value in row.items()}, "row 0") == wanted


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("enable_thinkin", "Did you mean `enable_thinking`"),
        ("messages", "does not read `messages` from a user"),
    ],
)
def test_a_setting_that_the_template_does_not_read_is_refused(
    name: str, told: str, thinking: CharTokenizer
) -> None:
    with pytest.raises(DataError, match=rf"model\.chat_template_kwargs: .*{told}.*\nFix: "):
        render(thinking, template_kwargs={name: False})
    with pytest.raises(DataError, match="row 2: chat_template_kwargs"):
        render(thinking).text("q", {"chat_template_kwargs": {name: 1}}, "row 2")


def test_a_setting_without_a_template_is_refused(
    plain_tokenizer: CharTokenizer, thinking: CharTokenizer
) -> None:
    with pytest.raises(DataError, match="needs a chat template, and the tokenizer has none"):
        render(plain_tokenizer, template_kwargs={"enable_thinking": False})
    with pytest.raises(DataError, match="needs a chat template, and model.chat_template is none"):
        render(thinking, chat_template="none", template_kwargs={"enable_thinking": False})


def test_tools_that_no_template_reads_are_named_once(chat_tokenizer: CharTokenizer) -> None:
    made = render(chat_tokenizer)
    made.text("q", {"tools": [{"name": "f"}]}, "row 0")
    assert made.remarks() == ["column `tools`: the chat template reads none (first: row 0)"]


# --- where the prompt ends ---


def test_an_opening_that_answers_lack_is_left_to_them_and_named() -> None:
    opens = CharTokenizer(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
        "{% if add_generation_prompt %}<assistant><think>{% endif %}"
    )
    made = render(opens)
    asked, written = made.pair([USER], {"role": "assistant", "content": "4"}, {}, "row 0")
    assert (asked, written) == ("<user>2+2?</user><assistant>", "4</assistant>")
    assert "'<think>'" in made.remarks()[0]


def test_a_template_that_writes_the_question_differently_before_an_answer_is_refused() -> None:
    rewrites = CharTokenizer(
        "{% for m in messages %}<{{ m.role }}{{ messages | length }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    with pytest.raises(DataError, match="row 1: .* writes the prompt differently before an answer"):
        render(rewrites).pair([USER], {"role": "assistant", "content": "4"}, {}, "row 1")


# --- messages stored as text ---

STORED = {
    "list": json.dumps([USER]),
    "spaced": "  " + json.dumps([USER], indent=1),
    "one message": json.dumps(USER),
    "wrapped": json.dumps({"messages": [USER]}),
    "ShareGPT": json.dumps([{"from": "human", "value": "2+2?"}]),
    "wrapped ShareGPT": json.dumps({"conversations": [{"from": "human", "value": "2+2?"}]}),
}


@pytest.mark.parametrize("form", STORED)
def test_messages_stored_as_json_text_are_messages(form: str) -> None:
    assert as_prompt(STORED[form], as_text=False, where="row 0") == [USER]


@pytest.mark.parametrize(
    "text",
    [
        "[{'role': 'user', 'content': 'hi'}]",
        '[{"role": "user", "content": "hi"}',
        '[{"role": "user"}]',
        '{"messages": "hi"}',
        '{"messages": []}',
        '[{"role": "user", "content": [{"type": "image"}]}]',
    ],
)
def test_a_text_that_begins_like_messages_and_is_none_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="row 4: .*\nFix: "):
        as_prompt(text, as_text=False, where="row 4")


@pytest.mark.parametrize(
    "text", ["[1, 2]", '{"a": 1}', '["role"]', "role: user", "{role}", "[{]", '"role"', ""]
)
def test_other_texts_stay_texts(text: str) -> None:
    assert as_prompt(text, as_text=False, where="row 0") == text


def test_answers_and_conversations_are_decoded_too() -> None:
    assert as_answer(json.dumps([ANSWER]), "completion", "row 0") == ANSWER
    assert as_answer("4", "completion", "row 0") == {"role": "assistant", "content": "4"}
    assert split_conversation(json.dumps([USER, ANSWER]), "messages", "row 0") == ([USER], ANSWER)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "messages", "a"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(value=VALUES, as_text=st.booleans())
def test_any_value_is_a_prompt_or_a_data_error(value: Any, as_text: bool) -> None:
    for stored in (value, json.dumps(value)):
        for read in (
            lambda stored=stored: as_prompt(stored, as_text=as_text, where="row 0"),
            lambda stored=stored: as_answer(stored, "completion", "row 0"),
            lambda stored=stored: split_conversation(stored, "messages", "row 0"),
        ):
            try:
                assert read() is not None
            except DataError as error:
                assert "row 0: " in str(error) and "\nFix: " in str(error)


# --- one renderer for all ---


def test_prompts_examples_and_evaluation_read_the_same(
    thinking: CharTokenizer, write_jsonl: Callable[..., str]
) -> None:
    rows = [
        {"prompt": json.dumps([{"role": "user", "content": f"{i}+1?"}]), "completion": str(i + 1)}
        for i in range(4)
    ]
    path = write_jsonl(rows)
    texts = thinking.texts(template_kwargs={"enable_thinking": False})
    reading = Reading(texts=texts, spec=SPEC, canvas=60, seed=0, num_eval=1)
    examples = open_examples(SFTDataConfig(train=path, shuffle=False), reading)
    from rl4dlm.data import open_prompts
    from rl4dlm.recipe.sections import DataConfig

    prompts = open_prompts(DataConfig(train=path, shuffle=False), texts, seed=0, num_eval=1)
    learned = [tuple(example.prompt_ids.tolist()) for example in examples.batch(0, 3)]
    assert learned == [prompt.token_ids for prompt in prompts.batch(0, 3)]
    assert examples.eval_prompts()[0].token_ids == prompts.eval_prompts(1)[0].token_ids
    assert "".join(map(chr, learned[0])) == "<user>0+1?</user>\n<assistant><think></think>"
    assert prompts.batch(0, 1)[0].prompt == [{"role": "user", "content": "0+1?"}]


# --- control tokens ---


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"prompt": f"a{MASK}", "completion": "b"}, "pairs"),
        ({"prompt": "a", "completion": f"b{MASK}"}, "pairs"),
        ({"messages": [USER, {"role": "assistant", "content": MASK}]}, "messages"),
        (
            {"messages": [{"role": "user", "content": MASK}, {"role": "assistant", "content": "a"}]},
            "messages",
        ),
        ({"text": f"a{MASK}"}, "texts"),
    ],
)
def test_a_row_of_fine_tuning_that_spells_the_mask_is_refused_by_index(
    row: dict[str, Any], form: str, write_jsonl: Callable[..., str], chat_tokenizer: CharTokenizer
) -> None:
    good = json.loads(json.dumps(row, ensure_ascii=False).replace(MASK, "x"))
    reading = Reading(texts=chat_tokenizer.texts(), spec=SPEC, canvas=60, seed=0, num_eval=1)
    with pytest.raises(DataError, match="row 2: the text spells the mask token .*\nFix: "):
        open_examples(SFTDataConfig(train=write_jsonl([good, good, row, good])), reading)


@pytest.mark.parametrize("ids", [[999], [-1], [1000], [2**40], [[1]], ["a"], None])
@pytest.mark.parametrize("column", ["prompt_ids", "completion_ids"])
def test_recorded_ids_that_the_model_cannot_read_are_refused_by_index(
    column: str, ids: Any, write_jsonl: Callable[..., str], plain_tokenizer: CharTokenizer
) -> None:
    good = {"prompt_ids": [65], "completion_ids": [66, 67]}
    reading = Reading(texts=plain_tokenizer.texts(), spec=SPEC, canvas=60, seed=0, num_eval=1)
    with pytest.raises(DataError, match=f"row 1: `{column}` .*\nFix: "):
        open_examples(SFTDataConfig(train=write_jsonl([good, {**good, column: ids}, good])), reading)


def test_a_prompt_that_spells_the_mask_is_refused_by_index(
    open_source: Callable[..., PromptSource], write_jsonl: Callable[..., str]
) -> None:
    rows = [{"prompt": "a"}, {"prompt": f"b{MASK}"}, {"prompt": "c"}, {"prompt": "d"}]
    with pytest.raises(DataError, match="row 1: the text spells the mask token"):
        open_source(train=write_jsonl(rows), num_eval=1)
    with pytest.raises(DataError, match="row 3: the text spells the mask token"):
        open_source(train=write_jsonl([*rows[:1], *rows[2:], rows[1]]), num_eval=1)
    with pytest.raises(DataError, match="spells the mask token"):
        open_source(train=write_jsonl(rows[:1] * 4), num_eval=1, prompt_template="{prompt}" + MASK)


def test_other_control_tokens_keep_their_meaning_and_are_named_once() -> None:
    from rl4dlm.models import build_bpe_tokenizer, encode

    tokenizer = build_bpe_tokenizer(["words"], 300, chat_template=True)
    made = Renderer(TextFormat(tokenizer, lambda text: encode(tokenizer, text)))
    for index, text in enumerate(["no", "a <|eot_id|> b", "<|endoftext|>"]):
        made.prompt(text, {}, f"row {index}")
    (remark,) = made.remarks()
    assert remark.startswith("2 texts spell control tokens") and "'<|eot_id|>' in row 1" in remark
    ids = made.prompt("a <|eot_id|> b", {}, "row 1")[1]
    assert ids.count(tokenizer.convert_tokens_to_ids("<|eot_id|>")) == 2  # the row's own, and the template's


def test_parts_that_are_all_text_are_one_text() -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "2+2?"}]
    asked = [{"role": "user", "content": parts}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "4"}]}
    assert as_prompt(asked, as_text=False, where="row 3")[0]["content"] == "What is 2+2?"
    assert as_answer([answer], "completion", "row 3")["content"] == "4"
    before, last = split_conversation([*asked, answer], "messages", "row 3")
    assert (before[0]["content"], last["content"]) == ("What is 2+2?", "4")


@pytest.mark.parametrize(
    "part", [{"type": "image", "image": "a.png"}, {"type": "text", "text": None}, "text", 3]
)
def test_parts_that_are_no_text_are_refused_by_row_and_message(part: object) -> None:
    asked = [USER, {"role": "user", "content": [{"type": "text", "text": "Look: "}, part]}]
    with pytest.raises(DataError, match=r"row 3: message 1 of the prompt has parts that are no text: \w+"):
        as_prompt(asked, as_text=False, where="row 3")

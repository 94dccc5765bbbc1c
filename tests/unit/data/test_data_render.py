"""Prompt template, system prompt, chat template."""

from __future__ import annotations

import pytest
from data_helpers import CharTokenizer

from rl4dlm.data.messages import as_prompt
from rl4dlm.data.render import Renderer, open_renderer
from rl4dlm.data.template import PromptTemplate
from rl4dlm.errors import DataError
from rl4dlm.recipe.sections import DataConfig

USER = {"role": "user", "content": "2+2?"}


def renderer(tokenizer: CharTokenizer, chat_template: str = "auto", **fields: str) -> Renderer:
    return open_renderer(DataConfig(train="x", **fields), tokenizer.texts(chat_template=chat_template))


def test_values_are_inserted_as_they_are_and_never_parsed() -> None:
    template = PromptTemplate.parse("{{{prompt}}} -> {target}; {prompt}")
    values = {"prompt": "{target} {0.__class__} {", "target": 7}
    assert template.fill(values, "row 0") == "{{target} {0.__class__} {} -> 7; {target} {0.__class__} {"


@pytest.mark.parametrize(
    "text",
    ["{prompt", "prompt}", "\\boxed{} {prompt}", "{prompt:>9}", "{prompt!r}", "no field", "", "{{prompt}}"],
)
def test_a_template_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"data\.prompt_template = .*\nFix: .*doubled"):
        PromptTemplate.parse(text)


@pytest.mark.parametrize("field", ["x", "prompt.__class__", "prompt[0]"])
def test_a_template_naming_an_unknown_column_is_an_error(plain_tokenizer: CharTokenizer, field: str) -> None:
    made = renderer(plain_tokenizer, prompt_template=f"{{prompt}} {{{field}}}")
    with pytest.raises(DataError) as error:
        made.check_columns(["answer"], "rows.jsonl")
    assert repr(field) in str(error.value) and "There are: prompt, answer" in str(error.value)
    with pytest.raises(DataError, match="no such column"):
        made.text("q", {"answer": "a"}, "row 0")


def test_a_template_column_that_is_empty_is_an_error_with_its_row(plain_tokenizer: CharTokenizer) -> None:
    made = renderer(plain_tokenizer, prompt_template="{prompt} {target}")
    with pytest.raises(DataError, match="row 4: column `target`"):
        made.text("q", {"target": None}, "row 4")


def test_prompt_in_a_template_is_the_mapped_prompt_not_a_column_of_that_name(
    plain_tokenizer: CharTokenizer,
) -> None:
    made = renderer(plain_tokenizer, prompt_template="[{prompt}]")
    assert made.text("mapped", {"prompt": "another"}, "row 0") == "[mapped]"


def test_text_becomes_one_user_message_under_a_chat_template(chat_tokenizer: CharTokenizer) -> None:
    assert renderer(chat_tokenizer).text("2+2?", {}, "row 0") == "<user>2+2?</user><assistant>"


def test_template_and_system_prompt_go_inside_the_chat_template(chat_tokenizer: CharTokenizer) -> None:
    made = renderer(chat_tokenizer, prompt_template="Q: {prompt}", system_prompt="Be brief.")
    assert made.text("2+2?", {}, "row 0") == "<system>Be brief.</system><user>Q: 2+2?</user><assistant>"


def test_chat_messages_are_used_as_they_are(chat_tokenizer: CharTokenizer) -> None:
    messages = [{"role": "system", "content": "s"}, USER]
    assert renderer(chat_tokenizer).text(messages, {}, "row 0") == (
        "<system>s</system><user>2+2?</user><assistant>"
    )
    assert messages == [{"role": "system", "content": "s"}, USER]


def test_a_conversation_that_ends_with_the_assistant_is_continued(chat_tokenizer: CharTokenizer) -> None:
    messages = [USER, {"role": "assistant", "content": "The answer is"}]
    text = renderer(chat_tokenizer).text(messages, {}, "row 0")
    assert text == "<user>2+2?</user><assistant>The answer is"


def test_chat_template_none_uses_prompts_as_they_are(chat_tokenizer: CharTokenizer) -> None:
    made = renderer(chat_tokenizer, "none")
    assert made.text("2+2?", {}, "row 0") == "2+2?"
    assert made.text([USER], {}, "row 0") == "2+2?"


def test_a_conversation_without_a_chat_template_is_an_error(plain_tokenizer: CharTokenizer) -> None:
    for messages in ([USER, USER], [{"role": "system", "content": "s"}]):
        with pytest.raises(DataError, match="row 3: the prompt has . chat messages, and no chat template"):
            renderer(plain_tokenizer).text(messages, {}, "row 3")


def test_a_failing_chat_template_is_an_error_with_row_and_reason(chat_tokenizer: CharTokenizer) -> None:
    with pytest.raises(DataError, match="row 3: the tokenizer's chat template fails: no tools here"):
        renderer(chat_tokenizer).text([{"role": "tool", "content": "x"}], {}, "row 3")


def test_a_system_prompt_needs_a_chat_template(
    plain_tokenizer: CharTokenizer, chat_tokenizer: CharTokenizer
) -> None:
    with pytest.raises(DataError, match="the tokenizer has none"):
        renderer(plain_tokenizer, system_prompt="s")
    with pytest.raises(DataError, match="model.chat_template is none"):
        renderer(chat_tokenizer, "none", system_prompt="s")


def test_a_second_system_message_is_an_error(chat_tokenizer: CharTokenizer) -> None:
    made = renderer(chat_tokenizer, system_prompt="mine")
    with pytest.raises(DataError, match="row 3: .*system message of its own"):
        made.text([{"role": "system", "content": "theirs"}, USER], {}, "row 3")


def test_a_prompt_template_does_not_wrap_chat_messages(chat_tokenizer: CharTokenizer) -> None:
    with pytest.raises(DataError, match="row 3: .*chat messages, and data.prompt_template wraps text"):
        renderer(chat_tokenizer, prompt_template="Q: {prompt}").text([USER], {}, "row 3")


def test_messages_lose_the_empty_fields_that_columnar_files_add() -> None:
    value = [{"role": "user", "content": "hi", "name": None}]
    assert as_prompt(value, as_text=False, where="row 0") == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("value", [7, [3, 4], {"a": 1}, ["text"]])
def test_other_values_are_text_only_under_a_template(value: object) -> None:
    assert as_prompt(value, as_text=True, where="row 0") == str(value)
    with pytest.raises(DataError, match="row 0: the prompt is of type"):
        as_prompt(value, as_text=False, where="row 0")


def test_a_part_that_is_no_text_is_an_error_that_names_its_kind() -> None:
    image = {"role": "user", "content": [{"type": "image"}]}
    with pytest.raises(DataError, match="row 0: message 1 of the prompt has parts that are no text: image"):
        as_prompt([USER, image], as_text=False, where="row 0")


@pytest.mark.parametrize("message", [{"role": "user"}, {"content": "x"}, {}])
def test_a_malformed_message_is_an_error_with_its_place(message: dict) -> None:
    with pytest.raises(DataError, match="row 0: message 1 of the prompt lacks"):
        as_prompt([USER, message], as_text=False, where="row 0")

"""The rewards that look at form: length with its soft bounds, format with boxes, lengths and repetition."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from rl4dlm.recipe import shipped_folder


def load(name: str) -> ModuleType:
    file = shipped_folder("reward_fns") / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"shipped_{name}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LENGTH, FORMAT = load("length"), load("format")


@pytest.mark.parametrize(
    ("words", "score"),
    # Bounds 10 and 20, falling to nothing over 8 words.
    [
        (0, 0.0),
        (1, 0.0),
        (2, 0.0),
        (6, 0.5),
        (9, 7 / 8),
        (10, 1.0),
        (20, 1.0),
        (21, 7 / 8),
        (28, 0.0),
        (99, 0.0),
    ],
)
def test_length_falls_in_a_straight_line_beyond_its_bounds(words, score):
    settings = {"min_length": 10, "max_length": 20, "buffer": 8}
    assert LENGTH.length(["p"], ["word " * words], **settings) == [pytest.approx(score)]


def test_length_in_characters_and_without_a_buffer():
    settings = {"unit": "characters", "min_length": 0, "max_length": 3, "buffer": 0}
    assert LENGTH.length(["p"] * 4, [" abc\n", "abcd", "a", "  "], **settings) == [1.0, 0.0, 1.0, 0.0]


def test_a_target_is_both_bounds():
    settings = {"min_length": 4, "max_length": 4, "buffer": 2}
    texts = ["a " * count for count in range(2, 7)]
    assert LENGTH.length(["p"] * 5, texts, **settings) == [0.0, 0.5, 1.0, 0.5, 0.0]


def test_text_without_spaces_is_no_words():
    assert LENGTH.size("a" * 200 + " b", "words") == 2
    assert LENGTH.size("a" * 201 + " b", "words") == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unit": "tokens"}, "unit = 'tokens' is none of words, characters"),
        ({"min_length": 5, "max_length": 4}, "the bounds must be in order"),
        ({"buffer": -1}, "none negative"),
    ],
)
def test_length_names_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        LENGTH.length(["p"], ["x"], **settings)
    with pytest.raises(ValueError, match=message):
        LENGTH.PREPARE(**settings)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("so \\boxed{3}", 1.0),
        ("\\boxed{\\frac{1}{2}} is it", 1.0),
        ("\\boxed{\\}}", 1.0),
        ("\\boxed{3} \\boxed{3}", 0.0),
        ("\\boxed{ }", 0.0),
        ("\\boxed{3", 0.0),
        ("\\boxed{\\frac{1}{2}", 0.0),
        ("3", 0.0),
    ],
)
def test_format_asks_for_one_box(text, score):
    assert FORMAT.format(["p"], [text], tags="", boxed=True) == [score]


def test_format_bounds_the_length_in_characters():
    texts = ["ab", " abc ", "abcd", "abcde"]
    assert FORMAT.format(["p"] * 4, texts, tags="", min_chars=3, max_chars=4) == [0.0, 1.0, 1.0, 0.0]


def test_repetition_is_the_share_of_runs_of_four_words_that_were_there_before():
    assert FORMAT.repetition("1 2 3 4 1 2 3 4") == pytest.approx(1 / 5)
    assert FORMAT.repetition("to be or not to be") == 0.0
    assert FORMAT.repetition("the " * 103) == pytest.approx(1 - 1 / 100)
    assert FORMAT.repetition("a a a") == 0.0
    looped = "so it is 4. " * 20
    assert FORMAT.format(["p"] * 2, [looped, "so it is 4"], tags="", max_repetition=0.2) == [0.0, 1.0]


CHAT = [{"role": "user", "content": "Why?"}]


@pytest.mark.parametrize(
    ("prompt", "score"),
    [
        ([*CHAT, {"role": "assistant", "content": "<think>\n"}], 1.0),
        ([*CHAT, {"role": "assistant", "content": "Well. <think>First,"}], 1.0),
        ([*CHAT, {"role": "assistant", "content": [{"type": "text", "text": "<think>"}]}], 1.0),
        ("Q: Why?\nA: Let me think.\n<think>\n", 1.0),
        (CHAT, 0.0),
        ([{"role": "assistant", "content": "<think>"}, *CHAT], 0.0),
        ("Put your thoughts in <think> tags.", 0.0),
        ("Why?", 0.0),
    ],
)
def test_format_sees_what_the_prompt_opened(prompt, score):
    settings = {"tags": "think,answer"}
    pattern = {"tags": "", "pattern": "*<think>*</think>*"}
    rest, whole = "it is so.</think><answer>So.</answer>", "<think>so</think><answer>So.</answer>"
    assert FORMAT.format([prompt], [rest], **settings) == [score]
    assert FORMAT.format([prompt], [rest], **pattern) == [score]
    assert FORMAT.format([prompt], [whole], **settings) == [1.0 - score]  # opened twice, or once


def test_lengths_and_repetition_are_the_completion_s_alone():
    prompt = [*CHAT, {"role": "assistant", "content": "so it is " * 9}]
    assert FORMAT.format([prompt] * 2, ["abcde", "a"], tags="", max_chars=5, max_repetition=0.0) == [1.0, 1.0]
    assert FORMAT.format([prompt] * 2, ["abcde", "a"], tags="", min_chars=3) == [1.0, 0.0]


def test_all_rules_must_hold_at_once():
    settings = {"tags": "answer", "boxed": True, "max_chars": 40}
    texts = [
        "<answer>\\boxed{1}</answer>",
        "<answer>1</answer>",
        "\\boxed{1}",
        "<answer>\\boxed{1}</answer>" + "x" * 40,
    ]
    assert FORMAT.format(["p"] * 4, texts, **settings) == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tags": ""}, "the settings ask for nothing"),
        ({"max_repetition": 2}, "max_repetition = 2 is no share"),
        ({"min_chars": 2, "max_chars": 1}, "min_chars = 2 is more than max_chars = 1"),
    ],
)
def test_format_names_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        FORMAT.format(["p"], ["x"], **settings)
    with pytest.raises(ValueError, match=message):
        FORMAT.PREPARE(**settings)

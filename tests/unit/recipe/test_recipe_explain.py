"""What the schema refuses is said in the user's words: their key, their value, one finding per mistake."""

from __future__ import annotations

import re
from typing import Any

import pytest

from rl4dlm.errors import RecipeError
from rl4dlm.recipe.aliases import ALIASES, NO_KEY
from rl4dlm.recipe.explain import all_keys
from rl4dlm.recipe.loader import check
from rl4dlm.recipe.root import Recipe


def refusal(values: dict[str, Any], **changes: Any) -> list[str]:
    """The findings for a recipe with some keys changed (`reward__functions=...`), each as one text."""
    for dotted, value in changes.items():
        *path, leaf = dotted.split("__")
        section = values
        for part in path:
            section = section.setdefault(part, {})
        section[leaf] = value
    with pytest.raises(RecipeError) as caught:
        check(values, where="mine.yaml")
    return re.split(r"\n(?=mine\.yaml: )", str(caught.value))


# Changes to the quick start, and the whole message.
MISTAKES = [
    (
        {"reward__functions": [{"path": "sort", "nme": "x"}]},
        "unknown key reward.functions.0.nme.\nFix: did you mean reward.functions.0.name?",
    ),
    (
        {"reward__functions": [{"name": "x"}]},
        "reward.functions.0.path is missing.\nFix: add it; `rl4dlm recipes show quickstart` is an example.",
    ),
    (
        {"reward__functions": ["sort", 3]},
        "reward.functions.1 = 3 is not text in quotes or a mapping of keys to values.\n"
        "Fix: make it text in quotes or a mapping of keys to values.",
    ),
    (
        {"reward__functions": [{"path": 3}]},
        "reward.functions.0.path = 3 is not text in quotes.\nFix: make it text in quotes.",
    ),
    (
        {"reward__functions": [{"path": "sort", "kwargs": {"str": [1]}}]},
        "reward.functions.0.kwargs.str = [1] is not text in quotes or a valid integer or a valid number or a "
        "valid boolean.\n"
        "Fix: make it text in quotes or a valid integer or a valid number or a valid boolean.",
    ),
    (
        {"reward__functions": []},
        "reward.functions = [] is not a list of 1 or more.\nFix: make it a list of 1 or more.",
    ),
    (
        {"data__task": {"name": "srt"}},
        "data.task.name = 'srt' is not one of 'sort', 'countdown', 'sudoku4'.\nFix: did you mean sort?",
    ),
    (
        {"data__task": {"num_digits": 3}},
        "data.task.name is missing.\nFix: add it; `rl4dlm recipes show quickstart` is an example.",
    ),
    (
        {"data__task": {"name": "sort", "num_digit": 3}},
        "unknown key data.task.num_digit.\nFix: did you mean data.task.num_digits?",
    ),
    (
        {"data__task": {"name": "countdown", "num_digits": 3}},
        "unknown key data.task.num_digits.\n"
        "Fix: keys that may stand here: name, num_numbers, max_number, max_target, operators.",
    ),
    (
        {"data__task": {"name": "sort", "sort": 3}},
        "unknown key data.task.sort.\nFix: keys that may stand here: name, num_digits.",
    ),
    (
        {"trainer__lora": {"lora_alfa": 1}},
        "unknown key trainer.lora.lora_alfa.\nFix: did you mean trainer.lora.lora_alpha?",
    ),
    ({"trainer__adam_betas": [0.9]}, "trainer.adam_betas.1 is missing.\nFix: add it."),
    (
        {"trainer__zero_stage": 7},
        "trainer.zero_stage = 7 is not 0, 1, 2 or 3.\nFix: make it 0, 1, 2 or 3; the default is 1.",
    ),
    (
        {"algorithm": {"type": "gdpo", "estimator": "sdmd"}},
        "algorithm.estimator = 'sdmd' is not 'sdmc', 'double_mc' or 'stratified'.\nFix: did you mean sdmc?",
    ),
    (
        {"rollout__block_length": "x"},
        "rollout.block_length = 'x' is not a valid integer.\n"
        "Fix: make it a valid integer; the default is 32.",
    ),
    (
        {"trainer__max_steps": 1.5},
        "trainer.max_steps = 1.5 is not a valid integer.\nFix: make it a valid integer; the default is 100.",
    ),
    (
        {"trainer__learning_rate": float("nan")},
        "trainer.learning_rate = nan is not a finite number.\n"
        "Fix: make it a finite number; the default is 1e-06.",
    ),
    (
        {"rollout": None},
        "rollout is empty, not a mapping of keys to values.\nFix: make it a mapping of keys to values.",
    ),
    (
        {"run__name": 7},
        'run.name = 7 is not text in quotes.\nFix: make it text in quotes; the default is "run".',
    ),
    (
        {"trainer.max_steps": 3},
        "unknown key trainer.max_steps.\n"
        "Fix: dotted keys are for the command line; in a file, write trainer: {max_steps: ...}.",
    ),
    (
        {"rollout__blok_length": 8},
        "unknown key rollout.blok_length.\nFix: did you mean rollout.block_length?",
    ),
    ({"trainer__slots": 8}, "unknown key trainer.slots.\nFix: did you mean rollout.slots?"),
    (
        {"trainer__lr": 1e-4},
        "unknown key trainer.lr.\nFix: lr is verl's name; here it is trainer.learning_rate.",
    ),
    (
        {"rollout__use_vllm": True},
        "unknown key rollout.use_vllm.\n"
        "Fix: remove TRL's use_vllm: completions are denoised, by rollout.engine.",
    ),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES, ids=[message[:50] for _, message in MISTAKES])
def test_one_mistake_gives_one_message_in_the_users_words(
    change: dict[str, Any], message: str, quickstart: dict[str, Any]
) -> None:
    assert refusal(quickstart, **change) == [f"mine.yaml: {message}"]


def test_every_mistake_is_reported_at_once(quickstart: dict[str, Any]) -> None:
    found = refusal(quickstart, trainer__max_step=3, rollout__slots=0, reward__functions=[3])
    assert len(found) == 3


def test_no_message_holds_names_from_inside_the_schema(quickstart: dict[str, Any]) -> None:
    classes = {"Config", "RewardFunction", "SortTask", "LoraSettings", "TokenizerInit", "tagged-union"}
    everything_wrong = {section: 3 for section in Recipe.model_fields}
    told = "\n".join(refusal(everything_wrong) + refusal(quickstart, reward__functions=[{"nme": 1}, 2]))
    assert not [name for name in classes if name in told]
    assert ".str" not in told and "pydantic" not in told


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_points_to_keys_that_exist(alias: str) -> None:
    toolkit, ours = ALIASES[alias]
    named = re.findall(r"[a-z]\w*(?:\.\w+)+", ours)
    assert toolkit in ("TRL", "d1", "verl", "OpenRLHF", "dLLM-RL")
    assert named or ours.startswith(NO_KEY)
    assert not set(named) - set(all_keys())


@pytest.mark.parametrize("alias", ALIASES)
def test_a_foreign_name_at_the_top_is_answered_with_our_key(alias: str, quickstart: dict[str, Any]) -> None:
    (message,) = refusal(quickstart, **{alias: 1})
    toolkit, ours = ALIASES[alias]
    assert message.startswith(f"mine.yaml: unknown key {alias}.\nFix: ")
    assert toolkit in message and ours.removeprefix(NO_KEY) in message


def test_all_keys_reach_into_optional_sections_and_unions() -> None:
    expected = {"trainer.lora.r", "data.task.num_numbers", "data.task.min_empty", "reward.functions.path"}
    assert expected <= set(all_keys())

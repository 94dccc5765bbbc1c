"""Bad input to `rl4dlm sft`: one message that says what, where and how to fix it; exit status 2; nothing
started, nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_bad_input import BOTH, good_model, model, place, refused  # noqa: F401

from rl4dlm.models import build_char_tokenizer, create, save
from rl4dlm.recipe.sections import ModelInit

INIT = ModelInit(d_model=16, n_layers=1, n_heads=2, mlp_hidden_size=16, max_sequence_length=64)
PAIRS = ["model.init.tokenizer.type=byte_bpe", "data.task=null", "data.task_answers=demonstrations"]
PAIRS += ["data.train=rows.jsonl", "eval.num_prompts=2", "sft.batch_size=4", "reward=null"]
GOOD = [{"prompt": f"{i}=", "completion": str(i)} for i in range(8)]
# Whatever the folder holds, its tokenizer is the character one of the tiny models.
FOLDER = ["model.init=null", "model.path=model"]


def write(file: Path, rows: list[dict[str, object]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@BOTH
@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["sft.objectiv=1"], ["unknown key sft.objectiv", "Fix: did you mean sft.objective"]),
        (["sft.batch_size=0"], ["sft.batch_size = 0", "greater than 0", "Fix: "]),
        (["sft.objective.type=block"], ["type = block", "llada attends", "Fix: use random_mask"]),
        (["sft.objective={type: ar}"], ["type = ar", "predicts the position itself", "Fix: use random_mask"]),
        (["sft.objective={type: trace}"], ["type = trace", "data.task has none", "Fix: set data.train"]),
        (["sft.fill=block"], ["sft.fill = block", "llada has none", "Fix: use canvas"]),
        (["rollout.max_completion_length=5", "rollout.block_length=5", "rollout.diffusion_steps=5"],
         ["max_completion_length = 5 is too short", "has 6 tokens", "Fix: raise"]),
        (["reward.functions=[sortt]"], ["sortt", "Did you mean sort?"]),
        (["step=3"], ["step=3", "Fix: add --resume"]),
        (["--resume"], ["holds no run to resume", "Fix: "]),
    ],
)  # fmt: skip
def test_a_wrong_setting(dry: list[str], overrides: list[str], told: list[str], refused) -> None:  # noqa: F811
    refused("sft", *dry, "sft/tiny_sort", *overrides, told=told)


def test_the_other_commands_recipe(refused) -> None:  # noqa: F811
    refused("sft", "quickstart", told=["quickstart", "no section sft", "`rl4dlm train`", "Fix: "])
    refused("train", "sft/tiny_sort", told=["sft/tiny_sort", "section sft", "`rl4dlm sft`", "Fix: "])
    refused("eval", "sft/tiny_sort", told=["sft/tiny_sort", "section sft", "Fix: "])


@BOTH
def test_an_objective_for_full_attention_on_a_model_that_attends_in_blocks(
    dry: list[str],
    place: Path,  # noqa: F811
    refused,  # noqa: F811
) -> None:
    tokenizer = build_char_tokenizer("0123456789=")
    sdar = create(INIT, tokenizer, seed=0, family="sdar", block_length=4)
    save(sdar, place / "model", tokenizer)
    told = ["random_mask is for full attention", "sdar attends in blocks of 4", "Fix: set sft.objective.type"]
    refused("sft", *dry, "sft/tiny_sort", *FOLDER, told=told)
    grown = "sft.objective={type: block, growth: [1, 8]}"
    told = ["ends with blocks of 8 tokens", "blocks of 4", "Fix: make them equal"]
    refused("sft", *dry, "sft/tiny_sort", *FOLDER, grown, told=told)


@BOTH
@pytest.mark.parametrize(
    ("rows", "overrides", "told"),
    [
        (
            [{"a": "b"}] * 8,
            [],
            ["data.train = rows.jsonl", "no known form", "a.", "Fix: set data.prompt_column"],
        ),
        ([*GOOD[:7], {"prompt": "x", "completion": ""}], [], ["row 7", "is empty", "Fix: fill or remove"]),
        (GOOD, ["data.completion_column=answr"], ["no column `answr`", "prompt, completion", "Fix: correct"]),
        (GOOD, ["sft.batch_size=7"], ["6 usable training examples", "sft.batch_size = 7", "Fix: lower"]),
        (GOOD, ["eval.num_prompts=8"], ["8 usable examples", "eval.num_prompts = 8", "Fix: lower"]),
        (GOOD, ["data.min_reward=1"], ["data.min_reward needs a column `reward`", "Fix: use a run"]),
        (GOOD, ["sft.objective={type: trace}"], ["trace needs a column `step_map`", "Fix: use a run"]),
    ],
)
def test_data_that_cannot_be_learned(
    dry: list[str],
    rows: list[dict[str, object]],
    overrides: list[str],
    told: list[str],
    place: Path,  # noqa: F811
    refused,  # noqa: F811
) -> None:
    write(place / "rows.jsonl", rows)
    refused("sft", *dry, "sft/tiny_sort", *PAIRS, *overrides, told=told)


def test_a_prompt_and_canvas_longer_than_the_model(place: Path, model: Path, refused) -> None:  # noqa: F811
    told = ["exceed the model's 64 positions", "Fix: lower them to 64"]
    refused("sft", "sft/tiny_sort", *FOLDER, "rollout.max_completion_length=64", "reward=null", told=told)

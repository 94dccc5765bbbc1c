"""Recipes of fine-tuning: which root they have, what they refuse, how objectives are layered."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl4dlm.errors import RecipeError
from rl4dlm.recipe import Recipe, SFTRecipe, dump_resolved, load_recipe
from rl4dlm.recipe.objectives import BlockObjective, RandomMaskObjective, default_objective
from rl4dlm.recipe.rules import SFT_RULES

NAME = "sft/tiny_sort"
DATASET = ["data.task=null", "data.train=rows.jsonl", "data.task_answers=demonstrations"]

# Rule, overrides of the tiny recipe that break it, the key named, and something of the remedy.
BROKEN = [
    ("one_model_source", ["model.path=here"], "model.path", "exactly one"),
    ("one_data_source", ["data.train=rows.jsonl"], "data.task", "exactly one"),
    ("char_tokenizer_has_characters", DATASET, "model.init.tokenizer.type", "byte_bpe"),
    ("a_model_from_scratch_is_as_long_as_it_is_made", ["model.max_length=9"], "model.max_length", "init.max"),
    ("a_model_from_scratch_has_its_own_mask", ["model.mask_token=<mask>"], "model.mask_token", "leave it"),
    ("quantised_weights_stay_as_they_are", ["model.quantization=4bit"], "model.quantization", "trainer.lora"),
    (
        "experts_can_be_chosen",
        ["model.family=llada_moe", "model.init.num_experts_per_tok=99"],
        "num_experts_per_tok = 99",
        "or less",
    ),
    ("blocks_fit_the_family", ["model.family=sdar"], "model.block_length", "published: 4"),
    (
        "lengths_fit_the_model",
        ["model.init.max_sequence_length=8"],
        "model.init.max_sequence_length",
        "raise",
    ),
    ("offload_needs_sharding", ["trainer.offload_optimizer=true", "trainer.zero_stage=0"], "offload", "1, 2"),
    ("placement_fits", ["cluster.rollout_resource=sampler"], "cluster.rollout_resource", "separate"),
    ("a_worker_uses_one_gpu", ["cluster.gpus_per_trainer=8"], "cluster.gpus_per_trainer = 8", "set it to 1"),
    (
        "one_process_does_one_thing_at_a_time",
        ["cluster.backend=local", "cluster.num_trainers=2"],
        "cluster.num_trainers = 2",
        "cluster.num_trainers=1",
    ),
    ("warmup_ends", ["trainer.warmup_steps=400"], "trainer.warmup_steps", "a tenth"),
    ("sampling_fits", ["rollout.block_length=3"], "rollout.block_length", "1 or 2 or 4"),
    ("sampling_fits", ["rollout.threshold=0.5"], "rollout.threshold = 0.5", "remove it"),
    ("sampling_fits", ["reward.reward_weights=[1, 2]"], "reward.reward_weights", "one weight per"),
    (
        "fine_tuning_draws_nothing_ahead",
        ["cluster.schedule=one_step_off"],
        "cluster.schedule = one_step_off",
        "cluster.schedule=sync",
    ),
    ("steps_have_rows", ["cluster.num_trainers=129"], "cluster.num_trainers", "128 ranks or less"),
    ("steps_have_rows", ["trainer.num_minibatches=2"], "trainer.num_minibatches", "sft.batch_size"),
    (
        "objective_fits_itself",
        ["sft.objective.min_rate=0.9", "sft.objective.max_rate=0.1"],
        "min_rate",
        "swap",
    ),
    (
        "objective_fits_itself",
        ["sft.objective={type: block, half_life: 0.1}"],
        "sft.objective.half_life",
        "mask_rule: count",
    ),
    ("objective_fits_itself", ["sft.objective={type: block, growth: [4, 1]}"], "growth", "sort it"),
    ("objective_fits_itself", ["sft.objective={type: block, growth: [0, 1]}"], "growth", "sort it"),
    (
        "objective_fits_itself",
        ["sft.objective={type: block, growth: [1, 4], block_length: 8}"],
        "growth ends at 4",
        "make them equal",
    ),
    ("answers_have_a_source", [*DATASET[:2], "model.init.tokenizer.type=byte_bpe"], "task_answers", "leave"),
    (
        "answers_have_a_source",
        ["sft.objective={type: trace}"],
        "sft.objective.type = trace",
        "rollouts folder",
    ),
]


@pytest.mark.parametrize(("rule", "overrides", "key", "remedy"), BROKEN)
def test_a_rule_names_key_value_and_remedy(rule: str, overrides: list[str], key: str, remedy: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(NAME, overrides)
    problem, fix = str(caught.value).splitlines()
    assert key in problem and remedy in fix.removeprefix("Fix: ")


def test_every_rule_is_broken_by_some_case_and_each_case_breaks_its_own_alone() -> None:
    assert {rule for rule, *_ in BROKEN} == {rule.__name__ for rule in SFT_RULES}
    for name, overrides, _, _ in BROKEN:
        load_recipe(NAME, overrides, [rule for rule in SFT_RULES if rule.__name__ != name])


def test_a_section_sft_makes_the_recipe() -> None:
    assert isinstance(load_recipe(NAME), SFTRecipe) and isinstance(load_recipe("quickstart"), Recipe)
    assert load_recipe(NAME).method == "sft, random_mask"
    assert load_recipe(NAME, ["sft.objective=null"]).method == "sft"


def test_without_a_reward_the_samplers_settings_do_not_matter() -> None:
    assert load_recipe(NAME, ["reward=null", "rollout.block_length=3"]).reward is None


def test_another_objective_starts_afresh() -> None:
    recipe = load_recipe(NAME, ["sft.objective.mask_rule=bernoulli", "sft.objective.cart=0.3"])
    assert recipe.sft.objective == RandomMaskObjective(mask_rule="bernoulli", cart=0.3)
    other = load_recipe(NAME, ["sft.objective={type: block, block_length: 4}"])
    assert other.sft.objective == BlockObjective(block_length=4)  # no `cart`, no `mask_rule` left over


def test_the_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    recipe = load_recipe(NAME, ["sft.objective={type: block, growth: [1, 2]}"])
    dump_resolved(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("overrides", "problem", "fix"),
    [
        (["algorithm.type=gdpo"], "unknown key algorithm", "for `rl4dlm sft` and has no algorithm"),
        (["sft.objectiv.type=block"], "unknown key sft.objectiv", "did you mean sft.objective?"),
        (["sft.objective.type=blok"], "= 'blok' is not", "did you mean block?"),
        (
            ["sft.objective.xyzzy=4"],
            "unknown key sft.objective.xyzzy",
            "keys that may stand here",
        ),
        (["data.completion_colum=x"], "unknown key data.completion_colum", "data.completion_column?"),
        (["sft.num_train_epochs=3"], "unknown key sft.num_train_epochs", "trainer.max_steps"),
        (["model=null"], "model is empty", "mapping"),
    ],
)
def test_a_mistake_is_said_in_the_users_words(overrides: list[str], problem: str, fix: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(NAME, overrides)
    first, last = str(caught.value).splitlines()[:2]
    assert problem in first and fix in last, str(caught.value)


def test_the_default_objective_is_that_of_the_attention() -> None:
    assert default_objective("full") == RandomMaskObjective()
    assert default_objective("block_causal") == BlockObjective()

"""Recipes for supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rl4dlm.recipe.objectives import BlockObjective, Noise
from rl4dlm.recipe.rules.backend import one_process_does_one_thing_at_a_time
from rl4dlm.recipe.rules.base import SFT_RULES, Finding, sft_rule
from rl4dlm.recipe.rules.model import (
    a_model_from_scratch_has_its_own_mask,
    a_model_from_scratch_is_as_long_as_it_is_made,
    blocks_fit_the_family,
    char_tokenizer_has_characters,
    experts_can_be_chosen,
    one_data_source,
    one_model_source,
    quantised_weights_stay_as_they_are,
)
from rl4dlm.recipe.rules.running import (
    a_worker_uses_one_gpu,
    every_reward_has_a_weight,
    offload_needs_sharding,
    placement_fits,
    warmup_ends,
)
from rl4dlm.recipe.rules.sampling import (
    SAMPLER_RULES,
    graphs_are_recorded_on_a_gpu,
    lengths_fit_the_model,
)

if TYPE_CHECKING:
    from rl4dlm.recipe import SFTRecipe


@sft_rule
def sampling_fits(recipe: SFTRecipe) -> Iterator[Finding]:
    """Where evaluations sample, the sampler's and the rewards' rules hold as in reinforcement learning."""
    if recipe.reward is not None:
        for check in SAMPLER_RULES:
            yield from check(recipe)
        yield from graphs_are_recorded_on_a_gpu(recipe)
        yield from every_reward_has_a_weight(recipe)


@sft_rule
def fine_tuning_draws_nothing_ahead(recipe: SFTRecipe) -> Iterator[Finding]:
    if recipe.cluster.schedule != "sync":
        yield (
            "cluster.schedule",
            f"cluster.schedule = {recipe.cluster.schedule}, and fine-tuning samples nothing for a step",
            "set cluster.schedule=sync",
        )


@sft_rule
def steps_have_rows(recipe: SFTRecipe) -> Iterator[Finding]:
    if recipe.cluster.num_trainers > recipe.sft.batch_size:
        yield (
            "cluster.num_trainers",
            f"cluster.num_trainers = {recipe.cluster.num_trainers} ranks share sft.batch_size = "
            f"{recipe.sft.batch_size} rows per optimizer step",
            f"use {recipe.sft.batch_size} ranks or less, or a larger sft.batch_size",
        )
    if recipe.trainer.num_minibatches > 1:
        yield (
            "trainer.num_minibatches",
            f"trainer.num_minibatches = {recipe.trainer.num_minibatches} splits batches of rollouts, and "
            "fine-tuning takes one optimizer step per batch",
            "leave it out and set sft.batch_size",
        )


@sft_rule
def objective_fits_itself(recipe: SFTRecipe) -> Iterator[Finding]:
    """Settings of the objective that contradict each other or the canvas."""
    objective, key = recipe.sft.objective, "sft.objective"
    if objective is None:
        return
    if isinstance(objective, Noise) and objective.min_rate > objective.max_rate:
        rates = f"{key}.min_rate = {objective.min_rate:g} exceeds {key}.max_rate = {objective.max_rate:g}"
        yield f"{key}.min_rate", rates, "swap them"
    if not isinstance(objective, BlockObjective):
        return
    if objective.half_life is not None and objective.mask_rule != "count":
        yield (
            f"{key}.half_life",
            f"{key}.half_life = {objective.half_life:g} chooses which of k positions are hidden, and "
            f"{key}.mask_rule is {objective.mask_rule}",
            f"set {key}.mask_rule: count",
        )
    growth = objective.growth
    if growth is not None and (min(growth) < 1 or growth != sorted(growth)):
        yield (
            f"{key}.growth",
            f"{key}.growth = {growth} does not grow from 1 or more",
            "sort it, as in [1, 2, 4]",
        )
    elif growth is not None and objective.block_length not in (None, growth[-1]):
        yield (
            f"{key}.growth",
            f"{key}.growth ends at {growth[-1]}, and {key}.block_length = {objective.block_length}",
            "make them equal, or leave block_length out",
        )


@sft_rule
def answers_have_a_source(recipe: SFTRecipe) -> Iterator[Finding]:
    if recipe.data.task is None and recipe.data.task_answers != "demonstrations":
        yield (
            "data.task_answers",
            f"data.task_answers = {recipe.data.task_answers} is about a procedural task, and data.task is "
            "not set",
            "leave it out",
        )
    if recipe.data.task is not None and recipe.sft.objective is not None:
        if recipe.sft.objective.type == "trace":
            yield (
                "sft.objective.type",
                "sft.objective.type = trace needs rows with a step_map, and data.task has none",
                "set data.train to a run's rollouts folder",
            )


SFT_RULES += [
    one_model_source,
    a_model_from_scratch_has_its_own_mask,
    a_model_from_scratch_is_as_long_as_it_is_made,
    quantised_weights_stay_as_they_are,
    blocks_fit_the_family,
    experts_can_be_chosen,
    one_data_source,
    char_tokenizer_has_characters,
    lengths_fit_the_model,
    offload_needs_sharding,
    placement_fits,
    a_worker_uses_one_gpu,
    one_process_does_one_thing_at_a_time,
    warmup_ends,
]

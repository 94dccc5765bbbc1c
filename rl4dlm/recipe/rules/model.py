"""Model and data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rl4dlm.recipe.rules.base import Finding, divisors_near, rule

if TYPE_CHECKING:
    from rl4dlm.recipe import Recipe


@rule
def one_model_source(recipe: Recipe) -> Iterator[Finding]:
    if (recipe.model.path is None) == (recipe.model.init is None):
        state = "both are set" if recipe.model.path is not None else "neither is set"
        yield "model.path", f"model.path and model.init: {state}", "set exactly one of them"
    init = recipe.model.init
    if init is not None and init.d_model % (2 * init.n_heads):
        yield (
            "model.init.n_heads",
            f"model.init.d_model = {init.d_model} is not a multiple of 2 x model.init.n_heads = "
            f"{2 * init.n_heads}",
            f"use {divisors_near(init.n_heads, init.d_model // 2)} heads",
        )
    if init is not None and init.n_kv_heads is not None and init.n_heads % init.n_kv_heads:
        yield (
            "model.init.n_kv_heads",
            f"model.init.n_kv_heads = {init.n_kv_heads} does not divide model.init.n_heads = {init.n_heads}",
            f"use {divisors_near(init.n_kv_heads, init.n_heads)}",
        )


@rule
def a_model_from_scratch_is_as_long_as_it_is_made(recipe: Recipe) -> Iterator[Finding]:
    if recipe.model.init is not None and recipe.model.max_length is not None:
        yield (
            "model.max_length",
            f"model.max_length = {recipe.model.max_length} scales the positions of a model that exists, and "
            "model.init makes one",
            "set model.init.max_sequence_length instead",
        )


@rule
def a_model_from_scratch_has_its_own_mask(recipe: Recipe) -> Iterator[Finding]:
    if recipe.model.init is not None and recipe.model.mask_token is not None:
        yield (
            "model.mask_token",
            f"model.mask_token = {recipe.model.mask_token} names the mask of a model that exists, and "
            "model.init makes one with its own",
            "leave it out",
        )


@rule
def quantised_weights_stay_as_they_are(recipe: Recipe) -> Iterator[Finding]:
    quantization = recipe.model.quantization
    frozen = getattr(recipe, "algorithm", None) is not None and recipe.algorithm.freezes_model
    if quantization == "none" or frozen:
        return
    if recipe.trainer.lora is None:
        yield (
            "model.quantization",
            f"model.quantization = {quantization}: quantised weights cannot be trained, and trainer.lora is "
            "not set",
            "set trainer.lora={r: 128}, or model.quantization=none",
        )
    if recipe.trainer.zero_stage == 3:
        yield (
            "trainer.zero_stage",
            f"trainer.zero_stage = 3 cannot partition weights in model.quantization = {quantization}",
            "set trainer.zero_stage=2: adapters are small",
        )


@rule
def blocks_fit_the_family(recipe: Recipe) -> Iterator[Finding]:
    model = recipe.model
    published = {"sdar": 4, "llada2": 32, "bd3lm": 4}
    if model.family in published and model.init is not None and model.block_length is None:
        yield (
            "model.block_length",
            f"model.family = {model.family} attends in blocks, and model.block_length is not set",
            f"set it (published: {published[model.family]})",
        )
    full = ("auto", "llada", "llada_moe", "dream", "mdlm")
    if model.block_length is not None and model.family in full and model.init is not None:
        yield (
            "model.block_length",
            f"model.block_length = {model.block_length}, but model.family = {model.family} attends to the "
            "whole sequence",
            "leave it out, or use a family that attends in blocks: sdar, llada2, bd3lm, a2d",
        )


@rule
def experts_can_be_chosen(recipe: Recipe) -> Iterator[Finding]:
    init, family = recipe.model.init, recipe.model.family
    if init is None or family not in ("llada_moe", "llada2"):
        return
    if family == "llada2" and (init.num_experts % 2 or init.num_experts < 4):
        yield (
            "model.init.num_experts",
            f"model.init.num_experts = {init.num_experts}: llada2 chooses from two groups of two or more",
            "use an even number of at least 4",
        )
    most = init.num_experts // 2 if family == "llada2" else init.num_experts
    if init.num_experts_per_tok > most:
        yield (
            "model.init.num_experts_per_tok",
            f"model.init.num_experts_per_tok = {init.num_experts_per_tok} exceeds the {most} experts that "
            f"{family} chooses from",
            f"use {most} or less, or more experts",
        )


@rule
def one_data_source(recipe: Recipe) -> Iterator[Finding]:
    if (recipe.data.task is None) == (recipe.data.train is None):
        state = "both are set" if recipe.data.train is not None else "neither is set"
        yield "data.task", f"data.task and data.train: {state}", "set exactly one of them"
    task = recipe.data.task
    if task is not None and task.name == "sudoku4" and task.min_empty > task.max_empty:
        yield (
            "data.task.min_empty",
            f"data.task.min_empty = {task.min_empty} exceeds data.task.max_empty = {task.max_empty}",
            "swap or equal them",
        )


@rule
def char_tokenizer_has_characters(recipe: Recipe) -> Iterator[Finding]:
    init = recipe.model.init
    if init is not None and init.tokenizer.type == "char" and recipe.data.task is None:
        yield (
            "model.init.tokenizer.type",
            "model.init.tokenizer.type = char needs a procedural task's characters, and data.task is not set",
            "use type: byte_bpe with a dataset",
        )

"""Sampling: canvas, blocks, samplers, lengths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rl4dlm.recipe.rollout_section import RolloutConfig
from rl4dlm.recipe.rules.base import Finding, Rule, divisors_near, rule
from rl4dlm.recipe.samplers import CACHES, SAMPLERS, own_settings, readers, samplers_that

if TYPE_CHECKING:
    from rl4dlm.recipe.root import AnyRecipe, Recipe


@rule
def blocks_divide_the_canvas(recipe: Recipe) -> Iterator[Finding]:
    yield from _unfit_blocks(recipe, "rollout.block_length", recipe.rollout.block_length)
    for block in recipe.rollout.block_lengths or ():
        yield from _unfit_blocks(recipe, "rollout.block_lengths", block)
    tried = recipe.data.over_denoising
    for block in (tried.block_lengths or ()) if tried is not None else ():
        yield from _unfit_blocks(recipe, "data.over_denoising.block_lengths", block)


def _unfit_blocks(recipe: Recipe, key: str, block: int) -> Iterator[Finding]:
    """What does not fit about blocks of some length, set by `key`."""
    length, steps = recipe.rollout.max_completion_length, recipe.rollout.diffusion_steps
    if length % block:
        yield (
            key,
            f"{key} = {block} does not divide rollout.max_completion_length = {length}",
            f"use a divisor such as {divisors_near(block, length)}",
        )
        return
    blocks = length // block
    if steps % blocks:
        near = sorted({max(blocks, steps // blocks * blocks), (steps // blocks + 1) * blocks})
        yield (
            "rollout.diffusion_steps",
            f"rollout.diffusion_steps = {steps} cannot be shared equally by {blocks} blocks "
            f"(rollout.max_completion_length / {key})",
            f"use a multiple of {blocks} such as {' or '.join(map(str, near))}",
        )
    elif steps > length and key == "rollout.block_length":
        yield (
            "rollout.diffusion_steps",
            f"rollout.diffusion_steps = {steps} exceeds rollout.max_completion_length = {length}: "
            "a step commits at least one token",
            f"use {length} or less",
        )


@rule
def confidences_are_weights(recipe: Recipe) -> Iterator[Finding]:
    algorithm, remasking = recipe.algorithm, recipe.rollout.remasking
    facts = SAMPLERS[remasking]
    by_entropy = recipe.rollout.rcr_confidence == "neg_entropy"
    if algorithm.weighs_by_confidence and (by_entropy or not facts.has_probabilities):
        named = "rcr_confidence = neg_entropy" if by_entropy else f"remasking = {remasking}"
        yield (
            "rollout.remasking",
            f"rollout.{named} has confidences that are no probabilities, and "
            "algorithm.token_weights = confidence weighs predictions by them",
            "set algorithm.token_weights: uniform, or use low_confidence or rcr",
        )


@rule
def predictions_belong_to_states(recipe: Recipe) -> Iterator[Finding]:
    if recipe.rollout.record_predictions and not recipe.rollout.record_states:
        yield (
            "rollout.record_predictions",
            "rollout.record_predictions = true, and rollout.record_states = false keeps no trajectories",
            "set rollout.record_states: true",
        )


@rule
def groups_have_company(recipe: Recipe) -> Iterator[Finding]:
    if recipe.rollout.num_generations < 2 and recipe.algorithm.samples_rollouts:
        yield (
            "rollout.num_generations",
            f"rollout.num_generations = {recipe.rollout.num_generations}: {recipe.algorithm.type} compares "
            "the completions of one prompt, and a group of one has advantage 0",
            "use at least 2 (published: 6 to 16)",
        )


@rule
def sampler_settings_are_read(recipe: Recipe) -> Iterator[Finding]:
    rollout = recipe.rollout
    for key in own_settings():
        value = getattr(rollout, key)
        if value != RolloutConfig.model_fields[key].default and rollout.remasking not in readers(key):
            yield (
                f"rollout.{key}",
                f"rollout.{key} = {value} is not read by rollout.remasking = {rollout.remasking}",
                f"remove it, or use {' or '.join(readers(key))}",
            )


@rule
def a_policy_decides(recipe: Recipe) -> Iterator[Finding]:
    rollout, method = recipe.rollout, getattr(recipe, "algorithm", None)
    trained = method is not None and method.freezes_model  # it says what to set itself
    if "policy" in SAMPLERS[rollout.remasking].settings and not rollout.policy and not trained:
        yield (
            "rollout.policy",
            f"rollout.remasking = {rollout.remasking} asks a policy, and rollout.policy is not set",
            "name a folder that holds one, or a registered policy",
        )


@rule
def early_commits_look_somewhere(recipe: Recipe) -> Iterator[Finding]:
    rollout = recipe.rollout
    region, length, kind = rollout.answer_region, rollout.max_completion_length, rollout.early_commit
    if kind == "prophet" and not (region is not None and 0 <= region[0] < region[1] <= length):
        yield (
            "rollout.answer_region",
            f"rollout.answer_region = {region}: prophet looks at the place of the answer on the canvas",
            f"give two positions within 0 and {length}, or use sched_cosine",
        )
    if kind != "prophet" and region is not None:
        yield (
            "rollout.answer_region",
            f"rollout.answer_region = {list(region)} is read by rollout.early_commit = prophet only",
            "remove it",
        )
    for key in ("early_commit_high", "early_commit_low"):
        value = getattr(rollout, key)
        if kind == "none" and value != RolloutConfig.model_fields[key].default:
            yield (
                f"rollout.{key}",
                f"rollout.{key} = {value} is not read without rollout.early_commit",
                "remove it, or set rollout.early_commit",
            )


@rule
def an_accepted_end_stays(recipe: Recipe) -> Iterator[Finding]:
    rollout = recipe.rollout
    if rollout.eos_policy == "accepted_eos" and SAMPLERS[rollout.remasking].revises:
        yield (
            "rollout.eos_policy",
            f"rollout.eos_policy = accepted_eos acts on tokens that rollout.remasking = {rollout.remasking} "
            "may remask",
            "use block_eos",
        )


@rule
def drafts_can_be_made(recipe: Recipe) -> Iterator[Finding]:
    rollout = recipe.rollout
    if rollout.draft_steps == 0:
        return
    drafted = f"rollout.draft_steps = {rollout.draft_steps}"
    static = SAMPLERS[rollout.remasking].is_static and rollout.early_commit == "none"
    if not static:
        yield (
            "rollout.draft_steps",
            f"{drafted} drafts steps that are known beforehand, and rollout.remasking = {rollout.remasking} "
            "with these settings is not of that kind",
            f"set it to 0, or use {samplers_that(lambda facts: facts.is_static)} without early commit",
        )
    if rollout.cfg_scale > 0 or _records(recipe):
        yield (
            "rollout.draft_steps",
            f"{drafted} does not go with guidance or recorded predictions",
            "set it to 0",
        )


@rule
def caches_fit_the_sampler(recipe: Recipe) -> Iterator[Finding]:
    for problem, remedy in _unfit_cache(recipe.rollout, records=_records(recipe)):
        yield "rollout.cache", problem, remedy


def _unfit_cache(rollout: RolloutConfig, *, records: bool) -> Iterator[tuple[str, str]]:
    """Why a cache does not go with the other settings of a sampler."""
    facts, named = SAMPLERS[rollout.remasking], f"rollout.cache = {rollout.cache}"
    refreshed = f"rollout.cache_refresh = {rollout.cache_refresh}"
    if rollout.cache == "none":
        if rollout.cache_refresh:
            yield f"{refreshed} is not read by rollout.cache = none", "remove it"
        return
    plan = CACHES[rollout.cache]
    if rollout.cfg_scale > 0 or rollout.draft_steps > 0 or records:
        yield (
            f"{named} does not go with guidance, drafts or recorded predictions, which need forwards of "
            "their own or logits everywhere",
            "set rollout.cache to none",
        )
    if facts.revises:
        yield (
            f"{named} holds finished blocks, and rollout.remasking = {rollout.remasking} remasks "
            "their tokens",
            "set rollout.cache to none",
        )
    elif plan.needs_order and not facts.knows_order:
        yield (
            f"{named} needs to know which positions come next before the forward, and rollout.remasking = "
            f"{rollout.remasking} finds out by it",
            f"use {samplers_that(lambda facts: facts.knows_order)}",
        )
    if rollout.early_commit != "none" and not plan.feeds_later_blocks:
        yield (
            f"{named} computes the active block only, and rollout.early_commit = {rollout.early_commit} "
            "looks at all masks",
            "set one of them to none",
        )
    if rollout.cache_refresh and plan.exact:
        yield f"{refreshed}: {named} is exact and never refreshed", "remove it"


SAMPLER_RULES: tuple[Rule, ...] = (
    blocks_divide_the_canvas,
    sampler_settings_are_read,
    a_policy_decides,
    early_commits_look_somewhere,
    an_accepted_end_stays,
    drafts_can_be_made,
    caches_fit_the_sampler,
)
"""What must hold wherever a recipe is sampled, also without a method: `rl4dlm sample`, fine-tuning."""


def unfit_for_model(
    cache: str, block_length: int, attention: str, trained_block: int | None
) -> Iterator[Finding]:
    """What does not fit between a sampler and an opened model.

    Args:
        cache: name of the cache plan, or `none`.
        block_length: tokens that the sampler denoises together.
        attention: the model's: `full` or `block_causal`.
        trained_block: block length that a block-causal model was made for.
    """
    if attention != "full" and trained_block is not None and block_length % trained_block:
        yield (
            "rollout.block_length",
            f"rollout.block_length = {block_length} does not fit a block-causal model with blocks of "
            f"{trained_block}",
            f"use {trained_block}, or a multiple of it to enlarge the model's blocks",
        )
    if cache != "none" and CACHES[cache].attention != attention:
        fitting = ["none", *(name for name, plan in CACHES.items() if plan.attention == attention)]
        yield (
            "rollout.cache",
            f"rollout.cache = {cache} is for {CACHES[cache].attention} attention, and the model's is "
            f"{attention}",
            f"use {' or '.join(fitting)}",
        )


def _records(recipe: AnyRecipe) -> bool:
    """Whether samplers record predictions: because the recipe says so, or because its method needs them."""
    method = getattr(recipe, "algorithm", None)
    return recipe.rollout.record_predictions or (method is not None and method.needs_predictions)


@rule
def something_to_explore(recipe: Recipe) -> Iterator[Finding]:
    rollout = recipe.rollout
    chance = SAMPLERS[rollout.remasking].explores or rollout.order_temperature > 0
    if recipe.algorithm.samples_rollouts and rollout.temperature == 0 and not chance:
        yield (
            "rollout.temperature",
            "rollout.temperature = 0: all completions of a group are identical and every advantage is 0",
            "use 0.6 to 1.0",
        )


@rule
def lengths_fit_the_model(recipe: Recipe) -> Iterator[Finding]:
    init = recipe.model.init
    need = recipe.rollout.max_completion_length + 1
    if init is not None and need > init.max_sequence_length:
        yield (
            "model.init.max_sequence_length",
            f"model.init.max_sequence_length = {init.max_sequence_length} leaves no room for a prompt beside "
            f"rollout.max_completion_length = {recipe.rollout.max_completion_length}",
            "raise the one or lower the other",
        )


@rule
def graphs_are_recorded_on_a_gpu(recipe: Recipe) -> Iterator[Finding]:
    gpus, engine = recipe.cluster.gpus_per_rollout_worker, recipe.rollout.engine
    quantization = recipe.model.quantization
    for unfit, what in (
        (not gpus, "cluster.gpus_per_rollout_worker = 0: there is no GPU to record for"),
        (engine != "builtin", f"rollout.engine = {engine}: it runs the model itself"),
        (quantization != "none", f"model.quantization = {quantization}: its kernels cannot be relied on"),
    ):
        if recipe.rollout.cuda_graphs and unfit:
            yield (
                "rollout.cuda_graphs",
                f"rollout.cuda_graphs = true and {what}",
                f"set rollout.cuda_graphs=false, or change {what.partition(' = ')[0]}",
            )

"""Sampling: canvas, blocks, samplers, lengths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rl4dlm.recipe.rules.base import Finding, divisors_near, rule

if TYPE_CHECKING:
    from rl4dlm.recipe import Recipe


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


# Samplers whose confidence in a position is no probability.
_NO_PROBABILITY = (
    "random",
    "ar",
    "neg_entropy",
    "dream_origin",
    "dream_entropy",
    "entropy_bound",
    "entropy_bound_cumsum",
    "entropy_threshold",
)


@rule
def confidences_are_weights(recipe: Recipe) -> Iterator[Finding]:
    algorithm, remasking = recipe.algorithm, recipe.rollout.remasking
    weighs = algorithm.type == "mdpo" and algorithm.token_weights == "confidence"
    if weighs and remasking in _NO_PROBABILITY:
        yield (
            "rollout.remasking",
            f"rollout.remasking = {remasking} has confidences that are no probabilities, and "
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


# Which samplers read a setting that is not for all of them.
_READERS = {
    "threshold": ("dynamic", "threshold", "top_dynamic", "top_threshold"),
    "factor": ("factor", "top_factor"),
    "entropy_budget": ("entropy_bound", "entropy_bound_cumsum", "entropy_threshold"),
    "order_temperature": (
        "low_confidence",
        "top_probability",
        "margin",
        "neg_entropy",
        "dream_maskgit_plus",
        "dream_topk_margin",
        "dream_entropy",
    ),
    "rcr_update": ("rcr",),
    "policy": ("learned",),
    "policy_sharpness": ("learned",),
}


@rule
def sampler_settings_are_read(recipe: Recipe) -> Iterator[Finding]:
    rollout = recipe.rollout
    for key, readers in _READERS.items():
        value = getattr(rollout, key)
        if value != type(rollout).model_fields[key].default and rollout.remasking not in readers:
            yield (
                f"rollout.{key}",
                f"rollout.{key} = {value} is not read by rollout.remasking = {rollout.remasking}",
                f"remove it, or use {' or '.join(readers)}",
            )


@rule
def something_to_explore(recipe: Recipe) -> Iterator[Finding]:
    rollout = recipe.rollout
    chance = rollout.remasking in ("random", "dream_origin", "learned") or rollout.order_temperature > 0
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

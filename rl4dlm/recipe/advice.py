"""What is allowed and unwise: findings of the same form as rules, told as warnings before a run starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rl4dlm.recipe.rules import Finding
from rl4dlm.recipe.samplers import SAMPLERS

if TYPE_CHECKING:
    from rl4dlm.recipe import Recipe, SFTRecipe

Advice = Callable[["Recipe"], Iterator[Finding]]
ADVICE: list[Advice] = []


def advice(check: Advice) -> Advice:
    """Register a piece of advice."""
    ADVICE.append(check)
    return check


def warnings_of(recipe: Recipe) -> list[str]:
    """All warnings about a recipe, each with its remedy."""
    return [f"{problem}.\nBetter: {remedy}." for check in ADVICE for _, problem, remedy in check(recipe)]


def sft_warnings_of(recipe: SFTRecipe, attention: str) -> list[str]:
    """The same about a recipe of fine-tuning, for a model whose attention is `full` or `block_causal`."""
    found = (*_canvas_is_learned(recipe, attention), *_draws_come_from_seeds(recipe))
    return [f"{problem}.\nBetter: {remedy}." for _, problem, remedy in found]


def _canvas_is_learned(recipe: SFTRecipe, attention: str) -> Iterator[Finding]:
    if attention == "full" and recipe.sft.fill == "none":
        yield (
            "sft.fill",
            "sft.fill = none: a model with full attention decodes a whole canvas, and does not learn to fill "
            "what follows its answer",
            "use canvas or batch where the model is to be sampled",
        )


def _draws_come_from_seeds(recipe: SFTRecipe) -> Iterator[Finding]:
    lora = recipe.trainer.lora
    if lora is not None and lora.lora_dropout > 0:
        yield (
            "trainer.lora.lora_dropout",
            f"trainer.lora.lora_dropout = {lora.lora_dropout:g} draws from torch's generator, so that a "
            "resumed run is not bit-equal to one that went through",
            "leave it at 0 where that matters",
        )


@advice
def trajectories_follow_the_law(recipe: Recipe) -> Iterator[Finding]:
    rollout = recipe.rollout
    biased = rollout.temperature > 0 and SAMPLERS[rollout.remasking].draws_first
    if recipe.algorithm.scores_trajectories and biased:
        yield (
            "rollout.remasking",
            f"rollout.remasking = {rollout.remasking} draws a token everywhere and keeps the likeliest, so "
            f"the trajectory likelihoods of {recipe.algorithm.type} are not those of its actions (released "
            "TraceRL does the same)",
            "set rollout.remasking to top_probability or random, whose law is exact",
        )


@advice
def trajectories_know_the_whole_vocabulary(recipe: Recipe) -> Iterator[Finding]:
    rollout = recipe.rollout
    cut = [f"rollout.top_p = {rollout.top_p}"] if rollout.top_p < 1 else []
    cut += [f"rollout.top_k = {rollout.top_k}"] if rollout.top_k > 0 else []
    if recipe.algorithm.scores_trajectories and rollout.temperature > 0 and cut:
        yield (
            "rollout.top_p" if rollout.top_p < 1 else "rollout.top_k",
            f"{' and '.join(cut)}: what the cut leaves is not recorded, so the likelihoods of "
            f"{recipe.algorithm.type} are those of an uncut sampler",
            "set rollout.top_p to 1 and rollout.top_k to 0, and lower rollout.temperature",
        )


@advice
def trajectories_are_not_guided(recipe: Recipe) -> Iterator[Finding]:
    scale, algorithm = recipe.rollout.cfg_scale, recipe.algorithm
    if algorithm.scores_trajectories and scale > 0:
        yield (
            "rollout.cfg_scale",
            f"rollout.cfg_scale = {scale:g}: tokens are drawn from guided logits, and {algorithm.type} takes "
            "likelihoods and ratios of its trajectories without guidance, a policy that drew none of them",
            "set rollout.cfg_scale to 0 while training; samples of the result may be guided",
        )


@advice
def compared_estimates_have_no_dropout(recipe: Recipe) -> Iterator[Finding]:
    lora, algorithm = recipe.trainer.lora, recipe.algorithm
    dropout = 0.0 if lora is None else lora.lora_dropout
    if dropout > 0 and algorithm.compares_estimates(recipe.trainer.num_minibatches):
        yield (
            "trainer.lora.lora_dropout",
            f"trainer.lora.lora_dropout = {dropout:g} acts on current log-probabilities and not on the old, "
            f"recorded or reference ones that {algorithm.type} compares them with: ratios and KL differ from "
            "1 and 0 where no weight has moved",
            "set trainer.lora.lora_dropout to 0 (TRL: disable_dropout_in_model)",
        )


@advice
def older_rollouts_are_weighed(recipe: Recipe) -> Iterator[Finding]:
    algorithm, schedule = recipe.algorithm, recipe.cluster.schedule
    if schedule == "sync" or algorithm.corrects_staleness:
        return
    can = "importance_correction" in type(algorithm).model_fields
    yield (
        "cluster.schedule",
        f"cluster.schedule = {schedule}: rollouts are one update older than the weights that learn from "
        f"them, and {algorithm.type} takes them for its own",
        "set algorithm.importance_correction=truncated"
        if can
        else "keep the learning rate low, watch replay/logprob_abs_diff, or set cluster.schedule=sync",
    )


@advice
def what_overlaps_has_devices_of_its_own(recipe: Recipe) -> Iterator[Finding]:
    cluster = recipe.cluster
    shared = cluster.gpus_per_trainer and cluster.gpus_per_rollout_worker and cluster.placement == "colocated"
    if cluster.schedule != "sync" and shared:
        yield (
            "cluster.schedule",
            f"cluster.schedule = {cluster.schedule} with colocated workers: sampling and updating wait for "
            "the same GPUs",
            "set cluster.placement=separate",
        )

"""Methods and their settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rl4dlm.recipe.algorithms import UnmaskingPolicyConfig
from rl4dlm.recipe.rules.base import Finding, rule

if TYPE_CHECKING:
    from rl4dlm.recipe import Recipe


@rule
def clip_range_is_a_range(recipe: Recipe) -> Iterator[Finding]:
    epsilon = getattr(recipe.algorithm, "epsilon", 0.0)
    if epsilon >= 1:
        yield (
            "algorithm.epsilon",
            f"algorithm.epsilon = {epsilon}: the lower clip 1 - epsilon must stay above 0",
            "use a value below 1 (GDPO: 0.5); epsilon_high may be larger",
        )


@rule
def a_reference_that_follows_is_kept(recipe: Recipe) -> Iterator[Finding]:
    algorithm = recipe.algorithm
    if not algorithm.reference_follows:
        return
    if not algorithm.keeps_reference:
        yield (
            "algorithm.sync_ref_model",
            "algorithm.sync_ref_model = true with algorithm.beta = 0: no reference policy is kept",
            "set algorithm.beta above 0, or algorithm.sync_ref_model=false",
        )
    if recipe.trainer.lora is not None:
        yield (
            "algorithm.sync_ref_model",
            "algorithm.sync_ref_model = true with trainer.lora: the reference is the base model, which stays "
            "as it is",
            "set algorithm.sync_ref_model=false, or train all weights",
        )


@rule
def rates_are_a_range(recipe: Recipe) -> Iterator[Finding]:
    algorithm = recipe.algorithm
    if algorithm.type == "coupled_grpo" and algorithm.min_rate > algorithm.max_rate:
        yield (
            "algorithm.min_rate",
            f"algorithm.min_rate = {algorithm.min_rate} exceeds algorithm.max_rate = {algorithm.max_rate}",
            "swap or equal them",
        )


@rule
def a_block_is_chosen_where_scores_are_restricted_to_it(recipe: Recipe) -> Iterator[Finding]:
    algorithm = recipe.algorithm
    if algorithm.type == "spg" and algorithm.restrict_to_block and algorithm.mask_scheme != "block_random":
        yield (
            "algorithm.restrict_to_block",
            f"algorithm.restrict_to_block is not read by algorithm.mask_scheme = {algorithm.mask_scheme}",
            "remove it, or use mask_scheme: block_random",
        )


@rule
def process_rewards_need_values(recipe: Recipe) -> Iterator[Finding]:
    algorithm = recipe.algorithm
    if algorithm.type == "tracerl" and algorithm.process_chunk is not None and algorithm.value is None:
        yield (
            "algorithm.process_chunk",
            f"algorithm.process_chunk = {algorithm.process_chunk} places rewards along the trace, and "
            "without algorithm.value no value model turns them into advantages",
            "add algorithm.value (an empty mapping takes its defaults), or leave process_chunk out",
        )


@rule
def recorded_pairs_are_somewhere(recipe: Recipe) -> Iterator[Finding]:
    if not recipe.algorithm.samples_rollouts and recipe.data.train is None:
        yield (
            "algorithm.pairs",
            "algorithm.pairs = offline needs recorded pairs, and data.train is not set",
            "set data.train to rows with `prompt`, `chosen` and `rejected`, or algorithm.pairs: online",
        )


@rule
def just_grpo_reads_from_left_to_right(recipe: Recipe) -> Iterator[Finding]:
    rollout = recipe.rollout
    if recipe.algorithm.type != "just_grpo":
        return
    if rollout.remasking != "ar" and rollout.block_length > 1:
        yield (
            "rollout.remasking",
            f"rollout.remasking = {rollout.remasking}: just_grpo trains in the order of reading",
            "set rollout.remasking to ar (or rollout.block_length to 1)",
        )
    if rollout.diffusion_steps != rollout.max_completion_length:
        yield (
            "rollout.diffusion_steps",
            f"rollout.diffusion_steps = {rollout.diffusion_steps} commits several tokens per step, and "
            "just_grpo wants each given all before it",
            f"set it to {rollout.max_completion_length}, rollout.max_completion_length",
        )


@rule
def a_ratio_against_the_rollout_is_corrected_already(recipe: Recipe) -> Iterator[Finding]:
    algorithm = recipe.algorithm
    if (
        algorithm.type == "agrpo"
        and algorithm.ratio_against == "rollout"
        and algorithm.importance_correction != "none"
    ):
        yield (
            "algorithm.importance_correction",
            f"algorithm.importance_correction = {algorithm.importance_correction} beside "
            "algorithm.ratio_against = rollout counts the distance to the sampler twice",
            "set algorithm.importance_correction to none, or algorithm.ratio_against to update",
        )


@rule
def blocks_can_be_enlarged(recipe: Recipe) -> Iterator[Finding]:
    enlarge, rollout = getattr(recipe.algorithm, "enlarge", None), recipe.rollout
    if enlarge is None:
        return
    own, longer, key = rollout.block_length, enlarge.block_length, "algorithm.enlarge.block_length"
    blocks = rollout.max_completion_length // longer
    if longer % own or rollout.max_completion_length % longer or rollout.diffusion_steps % max(1, blocks):
        yield (
            key,
            f"{key} = {longer} must be a multiple of rollout.block_length = {own}, divide "
            f"rollout.max_completion_length = {rollout.max_completion_length}, and its blocks must share "
            f"rollout.diffusion_steps = {rollout.diffusion_steps} equally",
            f"use {2 * own}, with lengths and steps that are multiples of it",
        )
    if recipe.algorithm.importance_correction != "none":
        yield (
            "algorithm.importance_correction",
            f"algorithm.importance_correction = {recipe.algorithm.importance_correction} replays rollouts "
            "with the blocks that drew them, and algorithm.enlarge trains with others",
            "set it to none",
        )


@rule
def trajectories_are_kept(recipe: Recipe) -> Iterator[Finding]:
    if recipe.algorithm.scores_trajectories and recipe.rollout.remasking in ("rcr", "saber"):
        yield (
            "rollout.remasking",
            f"rollout.remasking = {recipe.rollout.remasking} takes tokens back, and {recipe.algorithm.type} "
            "scores each token in the one state that it was drawn in",
            "use top_probability or low_confidence, or a method of predictions such as mdpo",
        )


@rule
def ranges_are_ranges(recipe: Recipe) -> Iterator[Finding]:
    accuracy = getattr(recipe.algorithm, "accuracy_range", None)
    if accuracy is not None and accuracy[0] > accuracy[1]:
        yield (
            "algorithm.accuracy_range",
            f"algorithm.accuracy_range = {list(accuracy)}: no mean reward lies in it",
            "give the lower end first, e.g. [0.2, 0.8]",
        )


@rule
def an_unmasking_policy_is_trained_alone(recipe: Recipe) -> Iterator[Finding]:
    """Everything that only a trained language model, or only another sampler, would read."""
    rollout, trainer, algorithm = recipe.rollout, recipe.trainer, recipe.algorithm
    if not isinstance(algorithm, UnmaskingPolicyConfig):
        if rollout.policy == "new":
            yield (
                "rollout.policy",
                f"rollout.policy = new is an untrained network, which {algorithm.type} does not train",
                "name the folder of a trained one, or use algorithm.type = unmasking_policy",
            )
        return
    fresh = UnmaskingPolicyConfig()
    changed = (algorithm.tau, algorithm.initial_bias) != (fresh.tau, fresh.initial_bias)
    small = "unmasking_policy trains a network of 300 thousand parameters beside a frozen language model"
    for wrong, key, problem, remedy in (
        (
            rollout.remasking != "learned" or not rollout.policy,
            "rollout.remasking",
            f"rollout.remasking = {rollout.remasking} with rollout.policy = {rollout.policy!r}: "
            "unmasking_policy has no policy to train",
            "set rollout.remasking to learned and rollout.policy to new",
        ),
        (
            changed and rollout.policy != "new",
            "rollout.policy",
            "algorithm.tau and algorithm.initial_bias are for rollout.policy = new, and a trained network "
            "brings its own",
            "leave them out",
        ),
        (
            rollout.early_commit != "none",
            "rollout.early_commit",
            f"rollout.early_commit = {rollout.early_commit} commits without asking the policy",
            "set it to none",
        ),
        (
            rollout.engine != "builtin",
            "rollout.engine",
            f"rollout.engine = {rollout.engine} records no decisions of a policy",
            "set it to builtin",
        ),
        (trainer.lora is not None, "trainer.lora", f"trainer.lora is set: {small}", "leave it out"),
        (
            trainer.gradient_checkpointing,
            "trainer.gradient_checkpointing",
            f"trainer.gradient_checkpointing = true: {small}",
            "set it to false",
        ),
        (
            trainer.zero_stage == 3,
            "trainer.zero_stage",
            f"trainer.zero_stage = 3: {small}",
            "use 0, 1 or 2",
        ),
    ):
        if wrong:
            yield key, problem, remedy

"""Rewards, updates, workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rl4dlm.recipe.rules.base import Finding, rule

if TYPE_CHECKING:
    from rl4dlm.recipe import Recipe


@rule
def every_reward_has_a_weight(recipe: Recipe) -> Iterator[Finding]:
    weights, functions = recipe.reward.reward_weights, recipe.reward.functions
    if weights is not None and len(weights) != len(functions):
        yield (
            "reward.reward_weights",
            f"reward.reward_weights has {len(weights)} entries for {len(functions)} reward.functions",
            "give one weight per function",
        )


@rule
def minibatches_hold_groups(recipe: Recipe) -> Iterator[Finding]:
    if recipe.trainer.num_minibatches > recipe.rollout.prompts_per_update:
        yield (
            "trainer.num_minibatches",
            f"trainer.num_minibatches = {recipe.trainer.num_minibatches} exceeds "
            f"rollout.prompts_per_update = {recipe.rollout.prompts_per_update}: "
            "a minibatch holds whole groups",
            f"use {recipe.rollout.prompts_per_update} or less",
        )


@rule
def ranks_have_work(recipe: Recipe) -> Iterator[Finding]:
    rollout = recipe.rollout
    of_prompt = recipe.algorithm.rows_per_prompt(rollout)
    rows = rollout.prompts_per_update * of_prompt // recipe.trainer.num_minibatches
    if recipe.cluster.num_trainers > rows:
        yield (
            "cluster.num_trainers",
            f"cluster.num_trainers = {recipe.cluster.num_trainers} ranks share {rows} rows per "
            "optimizer step",
            f"use {rows} ranks or less, or more rollout.prompts_per_update",
        )


@rule
def offload_needs_sharding(recipe: Recipe) -> Iterator[Finding]:
    if recipe.trainer.offload_optimizer and recipe.trainer.zero_stage == 0:
        yield (
            "trainer.offload_optimizer",
            "trainer.offload_optimizer needs ZeRO, and trainer.zero_stage = 0",
            "set trainer.zero_stage to 1, 2 or 3",
        )


@rule
def warm_start_has_demonstrations(recipe: Recipe) -> Iterator[Finding]:
    if recipe.warm_start is not None and recipe.data.task is None:
        yield (
            "warm_start",
            "warm_start trains on a procedural task's demonstrations, and data.task is not set",
            "remove warm_start, or fine-tune the model beforehand",
        )
    if recipe.warm_start is not None and recipe.trainer.lora is not None:
        yield (
            "warm_start",
            "warm_start trains all weights, and trainer.lora is set",
            "remove one of them",
        )


@rule
def placement_fits(recipe: Recipe) -> Iterator[Finding]:
    cluster = recipe.cluster
    if cluster.placement == "colocated" and cluster.rollout_resource != cluster.trainer_resource:
        yield (
            "cluster.rollout_resource",
            "cluster.rollout_resource differs from cluster.trainer_resource, "
            "but colocated workers share nodes",
            "set cluster.placement: separate",
        )
    shared = cluster.gpus_per_trainer + cluster.gpus_per_rollout_worker
    if (
        cluster.placement == "colocated"
        and cluster.gpus_per_trainer
        and shared > 1
        and cluster.gpus_per_rollout_worker
    ):
        yield (
            "cluster.gpus_per_rollout_worker",
            f"colocated workers share one GPU: cluster.gpus_per_trainer = {cluster.gpus_per_trainer:g} and "
            f"cluster.gpus_per_rollout_worker = {cluster.gpus_per_rollout_worker:g} exceed 1",
            "use fractions such as 0.6 and 0.4, or placement: separate",
        )


@rule
def a_worker_uses_one_gpu(recipe: Recipe) -> Iterator[Finding]:
    for key in ("gpus_per_trainer", "gpus_per_rollout_worker"):
        value = getattr(recipe.cluster, key)
        if value > 1:
            yield (
                f"cluster.{key}",
                f"cluster.{key} = {value:g}: a worker uses one device",
                "set it to 1 and raise the number of workers",
            )


@rule
def what_is_drawn_ahead_is_sampled(recipe: Recipe) -> Iterator[Finding]:
    if recipe.cluster.schedule != "sync" and not recipe.algorithm.samples_rollouts:
        yield (
            "cluster.schedule",
            f"cluster.schedule = {recipe.cluster.schedule}, and {recipe.algorithm.type} samples nothing for "
            "an update",
            "set cluster.schedule=sync",
        )


@rule
def warmup_ends(recipe: Recipe) -> Iterator[Finding]:
    if recipe.trainer.warmup_steps >= recipe.trainer.max_steps and recipe.trainer.max_steps > 1:
        yield (
            "trainer.warmup_steps",
            f"trainer.warmup_steps = {recipe.trainer.warmup_steps} is not below "
            f"trainer.max_steps = {recipe.trainer.max_steps}",
            "warm up over a tenth of the run or less",
        )

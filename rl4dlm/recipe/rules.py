"""Rules that tie recipe sections together, one small function each.

A rule yields `(key, problem, remedy)` for whatever it finds; `key` is the dotted key the user should look at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rl4dlm.recipe import Recipe

Finding = tuple[str, str, str]
Rule = Callable[["Recipe"], Iterator[Finding]]
RULES: list[Rule] = []


def rule(check: Rule) -> Rule:
    """Register a rule; all of them run after the schema has passed."""
    RULES.append(check)
    return check


def divisors_near(value: int, total: int, most: int = 3) -> str:
    """The divisors of `total` nearest to `value`, as text."""
    divisors = [d for d in range(1, total + 1) if total % d == 0]
    nearest = sorted(sorted(divisors, key=lambda d: abs(d - value))[:most])
    return " or ".join(map(str, nearest))


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


@rule
def blocks_divide_the_canvas(recipe: Recipe) -> Iterator[Finding]:
    rollout = recipe.rollout
    length, block, steps = rollout.max_completion_length, rollout.block_length, rollout.diffusion_steps
    if length % block:
        yield (
            "rollout.block_length",
            f"rollout.block_length = {block} does not divide rollout.max_completion_length = {length}",
            f"use a divisor such as {divisors_near(block, length)}",
        )
        return
    blocks = length // block
    if steps % blocks:
        near = sorted({max(blocks, steps // blocks * blocks), (steps // blocks + 1) * blocks})
        yield (
            "rollout.diffusion_steps",
            f"rollout.diffusion_steps = {steps} cannot be shared equally by {blocks} blocks "
            f"(rollout.max_completion_length / rollout.block_length)",
            f"use a multiple of {blocks} such as {' or '.join(map(str, near))}",
        )
    elif steps > length:
        yield (
            "rollout.diffusion_steps",
            f"rollout.diffusion_steps = {steps} exceeds rollout.max_completion_length = {length}: "
            "a step commits at least one token",
            f"use {length} or less",
        )


@rule
def groups_have_company(recipe: Recipe) -> Iterator[Finding]:
    if recipe.rollout.num_generations < 2:
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
    random_order = rollout.remasking in ("random", "dream_origin") or rollout.order_temperature > 0
    if rollout.temperature == 0 and not random_order:
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
    rows = (
        recipe.rollout.prompts_per_update * recipe.rollout.num_generations // recipe.trainer.num_minibatches
    )
    if recipe.cluster.num_trainers > rows:
        yield (
            "cluster.num_trainers",
            f"cluster.num_trainers = {recipe.cluster.num_trainers} ranks share {rows} completions per "
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
def clip_range_is_a_range(recipe: Recipe) -> Iterator[Finding]:
    if recipe.algorithm.epsilon >= 1:
        yield (
            "algorithm.epsilon",
            f"algorithm.epsilon = {recipe.algorithm.epsilon}: the lower clip 1 - epsilon must stay above 0",
            "use a value below 1 (GDPO: 0.5); epsilon_high may be larger",
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

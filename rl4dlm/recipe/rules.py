"""Rules that tie recipe sections together, one small function each.

A rule yields `(key, problem, remedy)` for whatever it finds; `key` is the dotted key the user should look at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rl4dlm.recipe.algorithms import UnmaskingPolicyConfig

if TYPE_CHECKING:
    from rl4dlm.recipe import Recipe, SFTRecipe

Finding = tuple[str, str, str]
Rule = Callable[[Any], Iterator[Finding]]
RULES: list[Rule] = []
SFT_RULES: list[Rule] = []
"""Those of a recipe for supervised fine-tuning."""


def rule(check: Rule) -> Rule:
    """Register a rule; all of them run after the schema has passed."""
    RULES.append(check)
    return check


def sft_rule(check: Rule) -> Rule:
    """Register a rule of recipes for supervised fine-tuning."""
    SFT_RULES.append(check)
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


@rule
def warmup_ends(recipe: Recipe) -> Iterator[Finding]:
    if recipe.trainer.warmup_steps >= recipe.trainer.max_steps and recipe.trainer.max_steps > 1:
        yield (
            "trainer.warmup_steps",
            f"trainer.warmup_steps = {recipe.trainer.warmup_steps} is not below "
            f"trainer.max_steps = {recipe.trainer.max_steps}",
            "warm up over a tenth of the run or less",
        )


@sft_rule
def sampling_fits(recipe: SFTRecipe) -> Iterator[Finding]:
    """Where evaluations sample, the sampler's and the rewards' rules hold as in reinforcement learning."""
    if recipe.reward is not None:
        yield from blocks_divide_the_canvas(recipe)
        yield from sampler_settings_are_read(recipe)
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
    low, high = getattr(objective, "min_rate", 0.0), getattr(objective, "max_rate", 1.0)
    if low > high:
        yield f"{key}.min_rate", f"{key}.min_rate = {low:g} exceeds {key}.max_rate = {high:g}", "swap them"
    if getattr(objective, "half_life", None) is not None and objective.mask_rule != "count":
        yield (
            f"{key}.half_life",
            f"{key}.half_life = {objective.half_life:g} chooses which of k positions are hidden, and "
            f"{key}.mask_rule is {objective.mask_rule}",
            f"set {key}.mask_rule: count",
        )
    growth = getattr(objective, "growth", None)
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
    warmup_ends,
]

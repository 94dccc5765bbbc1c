"""What a recipe will cost, by arithmetic: memory per process, disk, forwards per step."""

from __future__ import annotations

from dataclasses import dataclass

from rl4dlm.models import ModelFacts
from rl4dlm.recipe import Recipe

GIB = 2**30


@dataclass(frozen=True)
class Cost:
    """Bytes and forwards; an estimate, of the order of what the run will show."""

    trainer: dict[str, float]
    """Bytes on one rank's device, by what they hold."""
    trainer_host: float
    """Bytes of optimizer state in host memory, under offloading."""
    rollout: dict[str, float]
    """Bytes on one rollout worker's device."""
    disk: dict[str, float]
    """Bytes on disk over the run."""
    forwards: dict[str, float]
    """Sequence forwards (one row, one pass) per update, by stage."""


def cost_of(recipe: Recipe, facts: ModelFacts, prompt_tokens: int) -> Cost:
    """Estimate what a recipe costs.

    Args:
        facts: the model's sizes.
        prompt_tokens: tokens of a typical prompt.
    """
    return Cost(
        trainer=_trainer_bytes(recipe, facts, prompt_tokens),
        trainer_host=_optimizer_bytes(recipe, facts) if recipe.trainer.offload_optimizer else 0.0,
        rollout=_rollout_bytes(recipe, facts, prompt_tokens),
        disk=_disk_bytes(recipe, facts, prompt_tokens),
        forwards=_forwards(recipe),
    )


def trainable_parameters(recipe: Recipe, facts: ModelFacts) -> int:
    """All parameters, or those of the adapters: r x (in + out) on attention and MLP projections."""
    lora = recipe.trainer.lora
    if lora is None:
        return facts.num_parameters
    d, kv = facts.hidden_size, facts.hidden_size * facts.num_kv_heads // facts.num_heads
    per_layer = 2 * (d + d) + 2 * (d + kv) + 3 * (d + facts.mlp_size)
    return lora.r * per_layer * facts.num_layers


def _dtype_bytes(recipe: Recipe) -> int:
    return 2 if recipe.trainer.bf16 else 4


def _sharded(recipe: Recipe, size: float, from_stage: int) -> float:
    """A rank's share of something that ZeRO shards from a stage on."""
    return size / recipe.cluster.num_trainers if recipe.trainer.zero_stage >= from_stage else size


def _optimizer_bytes(recipe: Recipe, facts: ModelFacts) -> float:
    """Adam's two moments in float32, and float32 master weights beside bfloat16 ones."""
    per_parameter = 12 if recipe.trainer.bf16 else 8
    return _sharded(recipe, per_parameter * trainable_parameters(recipe, facts), 1)


def _activation_bytes(recipe: Recipe, facts: ModelFacts, tokens: float) -> float:
    """What the backward pass keeps: about 10 hidden and 4 MLP vectors per token and layer, or one with
    checkpointing (plus one layer in full)."""
    size = _dtype_bytes(recipe)
    layer = tokens * (10 * facts.hidden_size + 4 * facts.mlp_size) * size
    if recipe.trainer.gradient_checkpointing:
        return layer + tokens * facts.hidden_size * size * facts.num_layers
    return layer * facts.num_layers


def _trainer_bytes(recipe: Recipe, facts: ModelFacts, prompt_tokens: int) -> dict[str, float]:
    size, trainable = _dtype_bytes(recipe), trainable_parameters(recipe, facts)
    frozen = facts.num_parameters if recipe.trainer.lora is not None else 0
    canvas = recipe.rollout.max_completion_length
    length = prompt_tokens + canvas
    tokens = max(length, min(recipe.trainer.micro_batch_tokens, _update_rows(recipe) * length))
    needs_reference = recipe.algorithm.keeps_reference and recipe.trainer.lora is None
    logit_rows = min(tokens * canvas / length, 1024)
    return {
        "weights": _sharded(recipe, (trainable + frozen) * size, 3),
        "gradients": _sharded(recipe, trainable * size, 2),
        "optimizer": 0.0 if recipe.trainer.offload_optimizer else _optimizer_bytes(recipe, facts),
        "reference": _sharded(recipe, facts.num_parameters * size, 3) if needs_reference else 0.0,
        "activations": _activation_bytes(recipe, facts, tokens),
        "logits": 3 * logit_rows * facts.vocab_size * 4,
    }


def _rollout_bytes(recipe: Recipe, facts: ModelFacts, prompt_tokens: int) -> dict[str, float]:
    rollout, size = recipe.rollout, _dtype_bytes(recipe)
    tokens = rollout.slots * (prompt_tokens + rollout.max_completion_length)
    widest = 4 * facts.hidden_size + 3 * facts.mlp_size
    return {
        "weights": facts.num_parameters * size,
        "activations": tokens * widest * size,
        "logits": 2 * rollout.slots * rollout.block_length * facts.vocab_size * 4,
        "KV cache": 0.0,
    }


def _disk_bytes(recipe: Recipe, facts: ModelFacts, prompt_tokens: int) -> dict[str, float]:
    trainer, size = recipe.trainer, _dtype_bytes(recipe)
    trainable = trainable_parameters(recipe, facts)
    optimizer = (12 if trainer.bf16 else 8) * trainable
    one = optimizer + 2 * trainable * size
    rows = recipe.rollout.prompts_per_update * recipe.rollout.num_generations
    rows *= recipe.algorithm.samples_rollouts
    files = trainer.max_steps // recipe.tracking.rollouts_every if recipe.tracking.rollouts_every else 0
    return {
        f"checkpoints ({trainer.save_total_limit} kept)": (trainer.save_total_limit + 1) * one,
        "exported model": facts.num_parameters * size,
        "rollouts": files * rows * (20.0 * recipe.rollout.max_completion_length + 4.0 * prompt_tokens),
    }


def _update_rows(recipe: Recipe) -> float:
    """Corrupted sequences per rank and optimizer step."""
    algorithm, rollout = recipe.algorithm, recipe.rollout
    rows = rollout.prompts_per_update * rollout.num_generations * algorithm.states_per_completion(rollout)
    return rows / recipe.cluster.num_trainers / recipe.trainer.num_minibatches


def _forwards(recipe: Recipe) -> dict[str, float]:
    algorithm, rollout = recipe.algorithm, recipe.rollout
    completions = rollout.prompts_per_update * rollout.num_generations
    states = completions * algorithm.states_per_completion(rollout) * algorithm.num_iterations
    single = algorithm.num_iterations == 1 and recipe.trainer.num_minibatches == 1
    return {
        "rollout": float(completions * rollout.diffusion_steps) if algorithm.samples_rollouts else 0.0,
        "old": float(states) if algorithm.has_ratios and not single else 0.0,
        "reference": float(states) if algorithm.keeps_reference else 0.0,
        "update (forward and backward)": float(states),
    }

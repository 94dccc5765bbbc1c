"""What a recipe will cost, by arithmetic: memory per process, disk, forwards per step."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rl4dlm.models import ModelFacts, UnmaskNet
from rl4dlm.recipe import AnyRecipe, Recipe, SFTRecipe
from rl4dlm.recipe.samplers import SAMPLERS
from rl4dlm.recipe.sections import RolloutConfig

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
    trained = _policy_facts(facts) if recipe.algorithm.freezes_model else facts
    return Cost(
        trainer=_trainer_bytes(recipe, trained, prompt_tokens),
        trainer_host=_optimizer_bytes(recipe, trained) if recipe.trainer.offload_optimizer else 0.0,
        rollout=_rollout_bytes(recipe, facts, prompt_tokens),
        disk=_disk_bytes(recipe, trained, prompt_tokens),
        forwards=_forwards(recipe),
    )


def _policy_facts(model: ModelFacts) -> ModelFacts:
    """The sizes of what is trained beside a frozen model."""
    net = UnmaskNet()
    return replace(
        model,
        num_parameters=sum(parameter.numel() for parameter in net.parameters()),
        hidden_size=net.config.hidden,
        mlp_size=net.config.mlp,
        num_layers=1,
        vocab_size=1,
        num_quantisable=0,
    )


def sft_cost_of(recipe: SFTRecipe, facts: ModelFacts, row_tokens: int, trained_tokens: int) -> Cost:
    """Estimate what a fine-tuning recipe costs.

    Args:
        facts: the model's sizes.
        row_tokens: tokens that the model reads for a long row (block-causal models: its copy included).
        trained_tokens: completion tokens of that row.
    """
    rows = recipe.sft.batch_size / recipe.cluster.num_trainers
    tokens = max(row_tokens, min(recipe.trainer.micro_batch_tokens, rows * row_tokens))
    scored = tokens * trained_tokens / row_tokens
    offloaded = _optimizer_bytes(recipe, facts) if recipe.trainer.offload_optimizer else 0.0
    sampling = {} if recipe.reward is None else _rollout_bytes(recipe, facts, row_tokens - trained_tokens)
    return Cost(
        trainer=_rank_bytes(recipe, facts, tokens=tokens, logit_rows=scored, needs_reference=False),
        trainer_host=offloaded,
        rollout=sampling,
        disk=_kept_bytes(recipe, facts),
        forwards={"update (forward and backward)": float(recipe.sft.batch_size)},
    )


def trainable_parameters(recipe: AnyRecipe, facts: ModelFacts) -> int:
    """All parameters, or those of the adapters on the family's default projections."""
    lora = recipe.trainer.lora
    return facts.num_parameters if lora is None else lora.r * facts.adapted_width


def _dtype_bytes(recipe: AnyRecipe) -> int:
    return 2 if recipe.trainer.bf16 else 4


_QUANTISED_BYTES = {"8bit": 1.0, "4bit": 0.516}
"""Per parameter; NF4 with double quantisation adds 0.127 bits for its scales."""


def _weight_bytes(recipe: AnyRecipe, facts: ModelFacts) -> float:
    """Of the model without adapters; projections are smaller under `model.quantization`."""
    size = _dtype_bytes(recipe)
    small = _QUANTISED_BYTES.get(recipe.model.quantization, size)
    return facts.num_quantisable * small + (facts.num_parameters - facts.num_quantisable) * size


def _sharded(recipe: AnyRecipe, size: float, from_stage: int) -> float:
    """A rank's share of something that ZeRO shards from a stage on."""
    return size / recipe.cluster.num_trainers if recipe.trainer.zero_stage >= from_stage else size


def _optimizer_bytes(recipe: AnyRecipe, facts: ModelFacts) -> float:
    """Adam's two moments in float32, and float32 master weights beside bfloat16 ones."""
    per_parameter = 12 if recipe.trainer.bf16 else 8
    return _sharded(recipe, per_parameter * trainable_parameters(recipe, facts), 1)


def _activation_bytes(recipe: AnyRecipe, facts: ModelFacts, tokens: float) -> float:
    """What the backward pass keeps: about 10 hidden and 4 MLP vectors per token and layer, or one with
    checkpointing (plus one layer in full)."""
    size = _dtype_bytes(recipe)
    layer = tokens * (10 * facts.hidden_size + 4 * facts.mlp_size) * size
    if recipe.trainer.gradient_checkpointing:
        return layer + tokens * facts.hidden_size * size * facts.num_layers
    return layer * facts.num_layers


def _trainer_bytes(recipe: Recipe, facts: ModelFacts, prompt_tokens: int) -> dict[str, float]:
    canvas = recipe.rollout.max_completion_length
    length = prompt_tokens + canvas
    tokens = max(length, min(recipe.trainer.micro_batch_tokens, _update_rows(recipe) * length))
    needs_reference = recipe.algorithm.keeps_reference and recipe.trainer.lora is None
    return _rank_bytes(
        recipe, facts, tokens=tokens, logit_rows=tokens * canvas / length, needs_reference=needs_reference
    )


def _rank_bytes(
    recipe: AnyRecipe, facts: ModelFacts, *, tokens: float, logit_rows: float, needs_reference: bool
) -> dict[str, float]:
    """Bytes on one rank's device with passes of so many tokens and scored positions."""
    size, trainable = _dtype_bytes(recipe), trainable_parameters(recipe, facts)
    adapters = trainable * size if recipe.trainer.lora is not None else 0
    weights = _weight_bytes(recipe, facts) + adapters
    return {
        "weights": _sharded(recipe, weights, 3),
        # One process adds gradients in float32, in the masters' own.
        "gradients": _sharded(recipe, trainable * (4 if recipe.cluster.backend == "local" else size), 2),
        "optimizer": 0.0 if recipe.trainer.offload_optimizer else _optimizer_bytes(recipe, facts),
        "reference": _sharded(recipe, facts.num_parameters * size, 3) if needs_reference else 0.0,
        "activations": _activation_bytes(recipe, facts, tokens),
        "logits": 3 * min(logit_rows, 1024) * facts.vocab_size * 4,
    }


def _samples_with_trained(recipe: AnyRecipe) -> bool:
    frozen = isinstance(recipe, Recipe) and recipe.algorithm.freezes_model
    return recipe.cluster.backend == "local" and not frozen


def _rollout_bytes(recipe: AnyRecipe, facts: ModelFacts, prompt_tokens: int) -> dict[str, float]:
    rollout, size = recipe.rollout, _dtype_bytes(recipe)
    looks_everywhere = _records_predictions(recipe) or SAMPLERS[rollout.remasking].revises
    scored = rollout.max_completion_length if looks_everywhere else rollout.block_length
    tokens = rollout.slots * (prompt_tokens + rollout.max_completion_length)
    widest = 4 * facts.hidden_size + 3 * facts.mlp_size
    return {
        # In one process the sampler reads the trainer's weights, unless those are of another network.
        "weights": 0.0 if _samples_with_trained(recipe) else _weight_bytes(recipe, facts),
        "activations": tokens * widest * size,
        "logits": 2 * rollout.slots * scored * facts.vocab_size * 4,
        "KV cache": 0.0 if rollout.cache == "none" else _num_cached(facts, tokens + rollout.slots) * size,
    }


def _num_cached(facts: ModelFacts, columns: float) -> float:
    """Numbers in keys and values of every layer; each row of the store has a column to spare."""
    return 2 * facts.num_layers * columns * facts.num_kv_heads * facts.head_dim


def _disk_bytes(recipe: Recipe, facts: ModelFacts, prompt_tokens: int) -> dict[str, float]:
    rows = recipe.rollout.prompts_per_update * recipe.rollout.num_generations
    rows *= recipe.algorithm.samples_rollouts
    every = recipe.tracking.rollouts_every
    files = recipe.trainer.max_steps // every if every else 0
    recorded = files * rows * (_record_bytes(recipe.rollout) + 4.0 * prompt_tokens)
    return {**_kept_bytes(recipe, facts), "rollouts": recorded}


def _kept_bytes(recipe: AnyRecipe, facts: ModelFacts) -> dict[str, float]:
    """Bytes on disk of checkpoints (one more while it is written) and of the exported model."""
    trainer, size = recipe.trainer, _dtype_bytes(recipe)
    trainable = trainable_parameters(recipe, facts)
    one = (12 if trainer.bf16 else 8) * trainable + 2 * trainable * size
    if isinstance(recipe, Recipe) and recipe.algorithm.reference_follows:
        one += facts.num_parameters * size
    watched = isinstance(recipe, Recipe) and recipe.sentinel.enabled
    kept = max(trainer.save_total_limit, 2) if watched else trainer.save_total_limit
    return {
        f"checkpoints ({kept} kept)": (kept + 1) * one,
        "exported model": facts.num_parameters * size,
    }


def _records_predictions(recipe: AnyRecipe) -> bool:
    wanted = isinstance(recipe, Recipe) and recipe.algorithm.needs_predictions
    return wanted or recipe.rollout.record_predictions


def _record_bytes(rollout: RolloutConfig) -> float:
    """Of a completion in the rollouts' files; predictions shrink with the masked positions, to half on
    average."""
    predictions = 12.0 * rollout.diffusion_steps / 2 if rollout.record_predictions else 0.0
    return (20.0 + predictions) * rollout.max_completion_length


def _update_rows(recipe: Recipe) -> float:
    """Corrupted sequences per rank and optimizer step."""
    algorithm, rollout = recipe.algorithm, recipe.rollout
    rows = rollout.prompts_per_update * rollout.num_generations * algorithm.states_per_completion(rollout)
    return rows / recipe.cluster.num_trainers / recipe.trainer.num_minibatches


def _forwards(recipe: Recipe) -> dict[str, float]:
    algorithm, rollout = recipe.algorithm, recipe.rollout
    completions = rollout.prompts_per_update * rollout.num_generations
    states = completions * algorithm.states_per_completion(rollout) * algorithm.num_iterations
    single = algorithm.optimizer_steps(recipe.trainer.num_minibatches) == 1
    return {
        "rollout": float(completions * rollout.diffusion_steps) if algorithm.samples_rollouts else 0.0,
        "old": float(states) if algorithm.needs_old and not single else 0.0,
        "reference": float(states) if algorithm.keeps_reference else 0.0,
        "update (forward and backward)": float(states),
    }

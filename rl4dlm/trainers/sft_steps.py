"""The batches of a fine-tuning run: what each step learns, and what held-out examples are measured by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rl4dlm.data import Example, ExampleSource
from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.recipe import SFTRecipe
from rl4dlm.recipe.objectives import (
    BlockObjective,
    ObjectiveConfig,
    RandomMaskObjective,
    default_objective,
)
from rl4dlm.recipe.sections import RolloutConfig
from rl4dlm.trainers.method import Metrics
from rl4dlm.trainers.sft import SFTBatch, SFTPlan, sft_batch
from rl4dlm.types import DenoiserSpec


def warm_start_plan(rollout: RolloutConfig, spec: DenoiserSpec) -> SFTPlan:
    """The warm start of an RL run: the model's default objective, canvases filled as rollouts are."""
    objective = default_objective(spec.attention)
    return SFTPlan(objective, "canvas", rollout.max_completion_length, spec.block_length)


def step_plan(recipe: SFTRecipe, objective: ObjectiveConfig, spec: DenoiserSpec, step: int) -> SFTPlan:
    """The plan of a step of `rl4dlm sft`, counted from 0.

    Args:
        objective: the recipe's, or the model's default.
        spec: the model's attention and blocks.
    """
    blocks = spec.block_length
    if isinstance(objective, BlockObjective) and objective.growth:
        progress = step / recipe.trainer.max_steps  # in [0, 1)
        blocks = objective.growth[int(progress * len(objective.growth))]
    fill = recipe.sft.fill
    if fill == "auto":
        fill = "canvas" if blocks is None else "block"
    canvas = recipe.rollout.max_completion_length
    return SFTPlan(objective, fill, canvas, blocks, recipe.sft.loss_average)


def step_batch(
    recipe: SFTRecipe, source: ExampleSource, objective: ObjectiveConfig, spec: DenoiserSpec, step: int
) -> SFTBatch:
    """The batch of a step of `rl4dlm sft`, counted from 0: a function of seed and step."""
    examples = source.batch(step, recipe.sft.batch_size)
    seed = derive_seed(recipe.run.seed, "sft", step)
    return sft_batch(examples, step_plan(recipe, objective, spec, step), spec, seed)


def held_out_plan(plan: SFTPlan, spec: DenoiserSpec) -> SFTPlan:
    """The likelihood that held-out examples are measured by, whatever is trained: next-token prediction for
    `ar`, else the ELBO of the model's attention with exact counts, under the blocks it samples with."""
    if plan.objective.type == "ar":
        return plan
    exact = {"mask_rule": "count", "min_rate": 1e-9}
    objective = BlockObjective(**exact) if spec.block_length else RandomMaskObjective(**exact)
    return replace(plan, objective=objective, block_length=spec.block_length)


def held_out_batch(
    examples: Sequence[Example], plan: SFTPlan, spec: DenoiserSpec, seed: int, num_states: int
) -> SFTBatch:
    """Held-out examples, `num_states` times each, in rounds: so the mask rates of an example are stratified.

    Example: 3 examples and 2 states give rows 0 1 2 0 1 2 with times u, u + 1/6, ..., u + 5/6.
    """
    return sft_batch(list(examples) * num_states, plan, spec, seed)


def held_out_metrics(nll: np.ndarray, batch: SFTBatch, num_examples: int) -> Metrics:
    """The held-out ELBO per token and what follows from it.

    Args:
        nll: float64 `[rows]`, nats, of `held_out_batch`.
        batch: it.
        num_examples: distinct examples in it.

    Returns:
        `eval/elbo` in nats per token; `eval/elbo_ci95_low` and `eval/elbo_ci95_high`, the ends of its 95 %
        interval over examples (as the ratio of two means); `eval/perplexity`, exp(-elbo), which bounds the
        model's from above.
    """
    per_example = nll.reshape(-1, num_examples).mean(0)
    tokens = batch.num_trained[:num_examples].astype(np.float64)
    elbo = -per_example.sum() / tokens.sum()
    residual = per_example + elbo * tokens
    spread = math.sqrt((residual**2).sum() * num_examples / max(1, num_examples - 1)) / tokens.sum()
    return {
        "eval/elbo": float(elbo),
        "eval/elbo_ci95_low": float(elbo - 1.96 * spread),
        "eval/elbo_ci95_high": float(elbo + 1.96 * spread),
        "eval/perplexity": math.exp(min(-elbo, 700.0)),
        "eval/num_prompts": float(num_examples),
    }


def throughput(metrics: Metrics, update_s: float) -> Metrics:
    """Tokens per second, and the share of what was read that was padding; takes the padding's count out of
    a step's metrics.

    Args:
        metrics: of `RankSFT.step` over all ranks.
        update_s: seconds that the step took.
    """
    tokens, padding = metrics["sft/tokens"], metrics.pop("sft/padding")
    return {
        "sft/tokens_per_s": tokens / max(update_s, 1e-9),
        "sft/padding_share": padding / (tokens + padding),
    }

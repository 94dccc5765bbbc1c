"""Held-out evaluation in the loop: greedy accuracy, sampled pass@k, with the sampler of the rollouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rl4dlm.benchmarks.statistics import wilson_half_width
from rl4dlm.decoding import SamplerSpec
from rl4dlm.recipe import AnyRecipe, Recipe
from rl4dlm.reward.judge import Scorer, is_correct, score_groups, score_texts, step_texts
from rl4dlm.rollout import Generate, mix_block_lengths
from rl4dlm.rollout.groups import group_rollouts, make_requests
from rl4dlm.rollout.partial import predicted_texts
from rl4dlm.tracking import Evaluation, SampleRow
from rl4dlm.tracking.samples import sample_rows
from rl4dlm.types import DenoiserSpec, Prompt, Scores


def verify_steps(
    generate: Generate,
    rewards: Scorer,
    prompts: Sequence[Prompt],
    recipe: Recipe,
    spec: SamplerSpec,
    block_lengths: Sequence[int] | None = None,
    *,
    model: DenoiserSpec,
    decode: Callable[[Sequence[int]], str],
    version: int,
) -> tuple[list[np.ndarray], Scores]:
    """Decode every prompt once and ask of each step whether the answer that it predicted is correct.

    Args:
        spec: the sampler; predictions are recorded whatever it says.
        block_lengths: draw each decode's from these; None: the sampler's.
        model: whose mask and stop ids the rollouts have.
        decode: token ids -> text.
        version: weights to sample with.

    Returns:
        Per prompt bool `[steps]`, the last entry for the finished answer; and the scores of the texts.
    """
    path = (recipe.run.seed, "verify_steps")
    requests = mix_block_lengths(make_requests(prompts, 1, *path), block_lengths, *path, "block_length")
    drawn = generate(requests, replace(spec, record_predictions=True), version)
    groups = group_rollouts(prompts, drawn)
    decodes = [predicted_texts(rollout, range(rollout.num_steps), model) for rollout in drawn]
    texts = step_texts(groups, decodes, decode)
    scores = score_texts(rewards, texts, version)
    correct = is_correct(scores, recipe.reward)
    return [correct[row] for row in texts.index], scores


def evaluate(
    generate: Generate,
    rewards: Scorer,
    prompts: Sequence[Prompt],
    recipe: AnyRecipe,
    *,
    version: int,
    update: int,
) -> Evaluation:
    """Greedy accuracy and, with `eval.num_samples` > 1, accuracy of sampled completions and pass@k.

    The draws depend on the run's seed and the prompt alone, so evaluations of one run differ by the weights
    only.
    """
    greedy_spec = SamplerSpec.from_config(recipe.rollout, temperature=0.0)
    metrics, samples = _one_pass(generate, rewards, prompts, recipe, greedy_spec, 1, version, update)
    result = {
        "eval/greedy_accuracy": metrics["accuracy"],
        "eval/greedy_accuracy_ci95": metrics["ci95"],
        "eval/greedy_reward": metrics["reward"],
        "eval/mean_length": metrics["length"],
        "eval/nfe_per_sample": metrics["nfe"],
        "eval/num_prompts": float(len(prompts)),
        **{f"eval/{name}": value for name, value in metrics.items() if name.startswith("logged/")},
    }
    decode: dict[str, Any] = {"greedy": greedy_spec.describe()}
    k = recipe.eval.num_samples
    if k > 1:
        spec = SamplerSpec.from_config(recipe.rollout, temperature=recipe.eval.temperature)
        sampled, _ = _one_pass(generate, rewards, prompts, recipe, spec, k, version, update)
        result |= {f"eval/avg@{k}": sampled["accuracy"], f"eval/pass@{k}": sampled["pass"]}
        decode["sampled"] = {**spec.describe(), "k": k}
    result = {name.replace("/logged/", "/"): value for name, value in result.items()}
    return Evaluation(update, result, samples, decode)


def _one_pass(
    generate: Generate,
    rewards: Scorer,
    prompts: Sequence[Prompt],
    recipe: AnyRecipe,
    spec: SamplerSpec,
    num_samples: int,
    version: int,
    update: int,
) -> tuple[dict[str, float], list[SampleRow]]:
    assert recipe.reward is not None, "completions are scored"
    requests = make_requests(prompts, num_samples, recipe.run.seed, "evaluation")
    groups = group_rollouts(prompts, generate(requests, spec, version))
    scores = score_groups(rewards, groups, update)
    correct = is_correct(scores, recipe.reward)
    table = correct.reshape(len(prompts), num_samples)
    finite = scores.reward[np.isfinite(scores.reward)]
    metrics = {
        "accuracy": float(correct.mean()),
        "ci95": wilson_half_width(float(correct.mean()), len(correct)),
        "pass": float(table.any(axis=1).mean()),
        "reward": float(finite.mean()) if len(finite) else math.nan,
        "nfe": float(np.mean([r.num_forwards for g in groups for r in g.rollouts])),
        "length": float(np.mean([r.completion_len for g in groups for r in g.rollouts])),
        **{f"logged/{name}": value for name, value in scores.logged.items()},
    }
    return metrics, sample_rows(groups, scores, correct, update)

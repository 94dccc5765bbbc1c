"""Held-out evaluation in the loop: greedy accuracy, mean reward, sampled pass@k."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from rl4dlm.benchmarks.held_out import HeldOut, with_intervals
from rl4dlm.decoding import SamplerSpec
from rl4dlm.errors import RewardError
from rl4dlm.recipe import AnyRecipe, Recipe
from rl4dlm.reward.rollout_scores import (
    NO_VERDICT,
    Scorer,
    is_correct,
    score_groups,
    score_texts,
    step_texts,
    trainer_state,
)
from rl4dlm.reward.scores import matters_of
from rl4dlm.rollout import Generate, mix_block_lengths
from rl4dlm.rollout.groups import group_rollouts, make_requests
from rl4dlm.rollout.partial import predicted_texts
from rl4dlm.tracking import Evaluation
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

    Raises:
        RewardError: the recipe does not say what is correct.
    """
    path = (recipe.run.seed, "verify_steps")
    requests = mix_block_lengths(make_requests(prompts, 1, *path), block_lengths, *path, "block_length")
    drawn = generate(requests, replace(spec, record_predictions=True), version)
    groups = group_rollouts(prompts, drawn)
    decodes = [predicted_texts(rollout, range(rollout.num_steps), model) for rollout in drawn]
    texts = step_texts(groups, decodes, decode, model.stop_ids)
    scores = score_texts(rewards, texts, trainer_state(version, recipe.trainer.max_steps))
    correct = is_correct(scores, recipe.reward)
    if correct is None:
        raise RewardError(NO_VERDICT)
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
    """Greedy accuracy and reward and, with `eval.num_samples` > 1, those of sampled completions and pass@k.

    Accuracies are there where correctness is defined (see `is_correct`). The draws depend on the run's seed
    and the prompt alone, so evaluations of one run differ by the weights only.
    """
    draw = partial(_one_pass, generate, rewards, prompts, recipe, version=version, update=update)
    greedy_spec = SamplerSpec.from_config(recipe.rollout, temperature=0.0)
    greedy = draw(greedy_spec, 1)
    result = greedy.metrics()
    decode: dict[str, Any] = {"greedy": greedy_spec.describe()}
    warnings = matters_of(greedy.scores)
    k = recipe.eval.num_samples
    if k > 1:
        spec = SamplerSpec.from_config(recipe.rollout, temperature=recipe.eval.temperature)
        sampled = draw(spec, k)
        result |= with_intervals(sampled.figures(k))
        decode["sampled"] = {**spec.describe(), "k": k}
        warnings |= matters_of(sampled.scores)
    rows = sample_rows(greedy.groups, greedy.scores, greedy.correct, update)
    return Evaluation(update, result, rows, decode, warnings)


def _one_pass(
    generate: Generate,
    rewards: Scorer,
    prompts: Sequence[Prompt],
    recipe: AnyRecipe,
    spec: SamplerSpec,
    num_samples: int,
    *,
    version: int,
    update: int,
) -> HeldOut:
    assert recipe.reward is not None, "completions are scored"
    requests = make_requests(prompts, num_samples, recipe.run.seed, "evaluation")
    groups = group_rollouts(prompts, generate(requests, spec, version))
    scores = score_groups(rewards, groups, trainer_state(update, recipe.trainer.max_steps))
    return HeldOut(groups, scores, is_correct(scores, recipe.reward))

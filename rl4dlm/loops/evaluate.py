"""Held-out evaluation in the loop: greedy accuracy, mean reward, sampled pass@k."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from rl4dlm.benchmarks.statistics import Figure, mean_figure, mean_share
from rl4dlm.decoding import SamplerSpec
from rl4dlm.errors import RewardError
from rl4dlm.recipe import AnyRecipe, Recipe
from rl4dlm.reward.judge import (
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
from rl4dlm.tracking.names import GREEDY_ACCURACY, GREEDY_REWARD, HIGH, LOW
from rl4dlm.tracking.samples import sample_rows
from rl4dlm.types import DenoiserSpec, Prompt, Rollout, RolloutGroup, Scores, flatten


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
        result |= _with_intervals(sampled.figures(k))
        decode["sampled"] = {**spec.describe(), "k": k}
        warnings |= matters_of(sampled.scores)
    rows = sample_rows(greedy.groups, greedy.scores, greedy.correct, update)
    return Evaluation(update, result, rows, decode, warnings)


@dataclass(frozen=True)
class _Pass:
    """Completions of the held-out prompts, drawn with one sampler, and their scores."""

    groups: list[RolloutGroup]
    scores: Scores
    correct: np.ndarray | None

    def metrics(self) -> dict[str, float]:
        """Of one greedy completion per prompt."""
        rollouts: list[Rollout] = flatten(self.groups)
        known = self.scores.reward[np.isfinite(self.scores.reward)]
        figures = {
            GREEDY_ACCURACY: None
            if self.correct is None
            else mean_figure(self.correct.astype(float).tolist()),
            GREEDY_REWARD: mean_figure(known.astype(float).tolist()),
        }
        return {
            **_with_intervals(figures),
            "eval/mean_length": float(np.mean([row.completion_len for row in rollouts])),
            "eval/nfe_per_sample": float(np.mean([row.num_forwards for row in rollouts])),
            "eval/num_prompts": float(len(self.groups)),
            **{f"eval/{name}": value for name, value in self.scores.logged.items()},
        }

    def figures(self, k: int) -> dict[str, Figure | None]:
        """Of `k` samples per prompt: share of correct ones and of prompts with one, else the mean reward."""
        if self.correct is None:
            means = [_mean_or_none(row) for row in self.scores.reward.reshape(-1, k)]
            return {f"eval/avg_reward@{k}": mean_figure([mean for mean in means if mean is not None])}
        table = self.correct.reshape(-1, k)
        return {
            f"eval/avg@{k}": mean_share([float(row.mean()) for row in table]),
            f"eval/pass@{k}": mean_share([float(row.any()) for row in table]),
        }


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
) -> _Pass:
    assert recipe.reward is not None, "completions are scored"
    requests = make_requests(prompts, num_samples, recipe.run.seed, "evaluation")
    groups = group_rollouts(prompts, generate(requests, spec, version))
    scores = score_groups(rewards, groups, trainer_state(update, recipe.trainer.max_steps))
    return _Pass(groups, scores, is_correct(scores, recipe.reward))


def _with_intervals(figures: Mapping[str, Figure | None]) -> dict[str, float]:
    """Metrics with the ends of their intervals; a figure of nothing is left out."""
    metrics = {}
    for name, figure in figures.items():
        if figure is None:
            continue
        metrics[name] = figure.value
        if figure.ci95 is not None:
            metrics[name + LOW], metrics[name + HIGH] = figure.ci95
    return metrics


def _mean_or_none(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None

"""What completions of held-out prompts say about a policy, by metric name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rl4dlm.benchmarks.statistics import Figure, mean_figure, mean_share
from rl4dlm.tracking.names import GREEDY_ACCURACY, GREEDY_REWARD, HIGH, LOW
from rl4dlm.types import Rollout, RolloutGroup, Scores, flatten


@dataclass(frozen=True)
class HeldOut:
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
            **with_intervals(figures),
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


def with_intervals(figures: Mapping[str, Figure | None]) -> dict[str, float]:
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

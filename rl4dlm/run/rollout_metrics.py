"""What the rollouts of one update say about the policy and the sampler."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rl4dlm.reward.scores import num_not_applicable
from rl4dlm.types import RolloutGroup, Scores, flatten


def rollout_metrics(
    groups: Sequence[RolloutGroup], scores: Scores, correct: np.ndarray | None, rollout_s: float
) -> dict[str, float]:
    """Accuracy, lengths, forwards, failures and rewards of one update, by metric name.

    Args:
        groups: what was drawn.
        scores: their rewards.
        correct: bool `[batch]`; None where correctness is not defined.
        rollout_s: seconds that drawing them took; 0: not known.
    """
    rollouts = flatten(groups)
    lengths = np.array([rollout.completion_len for rollout in rollouts])
    canvas = np.array([len(rollout.completion_ids) for rollout in rollouts])
    forwards = np.array([rollout.num_forwards for rollout in rollouts])
    ended = np.array([rollout.completion_len < len(rollout.completion_ids) for rollout in rollouts])
    metrics = {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(1 - ended.mean()),
        "diffusion/nfe_per_sample": float(forwards.mean()),
        "diffusion/tokens_per_forward": float(lengths.sum() / forwards.sum()),
        "reward/errors": float(sum(scores.errors.values())),
        "reward/not_applicable": float(num_not_applicable(scores)),
    }
    if correct is not None:
        metrics["accuracy"] = float(correct.mean())
    if rollout_s > 0:
        metrics["rollout/tokens_per_s"] = float(canvas.sum() / rollout_s)
    for name, values in scores.components.items():
        known = values[np.isfinite(values)]
        if len(known):
            metrics[f"rewards/{name}/mean"] = float(known.mean())
            metrics[f"rewards/{name}/std"] = float(known.std())
    return metrics | {f"rewards/{name}": value for name, value in scores.logged.items()}

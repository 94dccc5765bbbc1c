"""Learning rates as pure functions of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from rl4dlm.recipe.sections import TrainerConfig, WarmStartConfig


def schedule_factor(kind: str, step: int, warmup: int, total: int) -> float:
    """Factor on the peak rate at `step` (from 0): linear warm-up, then constant, linear or cosine to 0 at
    `total`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    if kind == "constant":
        return 1.0
    if kind == "linear":
        return max(0.0, 1.0 - progress)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def learning_rate(trainer: TrainerConfig, update: int) -> float:
    """The policy's rate in update 1, 2, ..."""
    return trainer.learning_rate * schedule_factor(
        trainer.lr_scheduler_type, update - 1, trainer.warmup_steps, trainer.max_steps
    )


def warm_start_rate(warm_start: WarmStartConfig, step: int) -> float:
    """The warm start's rate at step 0, 1, ...: a tenth of it rises, the rest is a cosine to 0."""
    return warm_start.learning_rate * schedule_factor(
        "cosine", step, warm_start.steps // 10, warm_start.steps
    )

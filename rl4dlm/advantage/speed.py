"""Rewards that also pay for few denoising steps."""

from __future__ import annotations

import numpy as np


def with_speed(reward: np.ndarray, num_steps: np.ndarray, *, most_steps: int, alpha: float) -> np.ndarray:
    """reward * (1 - steps / most steps) ** alpha.

    Source: arXiv:2512.09106, its reward: a product, because a bonus that is added is earned by
        fast garbage. Departs from it: a reward below 0 is left alone, else being slow would soften it.

    Args:
        reward: float `[batch]`; NaN stays NaN.
        num_steps: int `[batch]`, at most `most_steps`.
        most_steps: steps of one token each, the canvas length.
        alpha: 0 gives every speed the factor 1.

    Returns:
        float32 `[batch]`.
    """
    factor = (1.0 - num_steps / most_steps) ** alpha
    return np.where(reward > 0, reward * factor, reward).astype(np.float32)

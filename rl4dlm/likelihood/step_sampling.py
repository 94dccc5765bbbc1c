"""Which steps of a trajectory are evaluated when not all of them are: a sample from which sums over all steps
are estimated without bias.

    sum over steps s of f(s)  =  E [ sum over sampled s of f(s) / pi_s ],   pi_s the probability that s is
    sampled
"""

from __future__ import annotations

import numpy as np


def inclusion_probabilities(size: np.ndarray, num: int) -> np.ndarray:
    """Probabilities proportional to `size`, at most 1, that sum to `num`.

    Args:
        size: float `[steps]`, non-negative, some positive; equal sizes sample uniformly.
        num: steps to sample; at least as many as there are means all of them.

    Returns:
        float64 `[steps]`. Steps whose share would exceed 1 are certain, and the others share the rest.
    """
    left: np.ndarray = size.astype(np.float64)
    if num >= len(left):
        return np.ones(len(left))
    certain: np.ndarray = np.zeros(len(left), dtype=bool)
    while True:
        rest = np.where(certain, 0.0, left)
        share = (num - certain.sum()) * rest / rest.sum()
        above = share >= 1
        if not above.any():
            return np.where(certain, 1.0, share)
        certain |= above


def systematic_sample(probability: np.ndarray, uniform: float) -> np.ndarray:
    """Sample each step with its probability by one random number: evenly spaced points on the cumulative sum.

    Source: systematic sampling with unequal probabilities (Madow, 1949). Low discrepancy: of any run of
    steps, the number sampled differs from its expectation by less than 1.

    Args:
        probability: float64 `[steps]` in [0, 1]; the sum is a whole number up to rounding.
        uniform: in (0, 1).

    Returns:
        bool `[steps]`; as many True as the probabilities sum to.
    """
    edges = np.concatenate(([0.0], probability.cumsum()))
    edges[-1] = round(edges[-1])  # rounding must not lose the last point
    points = np.floor(edges - uniform) + 1  # points u, u + 1, ... below each edge
    return np.diff(points) > 0

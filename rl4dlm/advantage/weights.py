"""Weights of completions within their group by a softmax of their advantages."""

from __future__ import annotations

import numpy as np


def softmax_weights(advantage: np.ndarray, group: np.ndarray, *, psi: float) -> tuple[np.ndarray, np.ndarray]:
    """w+ = softmax(psi A) and w- = softmax(-psi A) over each group.

    Source: wd1, arXiv:2507.08838.

    Args:
        advantage: float `[batch]`, finite; a shift of a group changes nothing.
        group: int `[batch]`, the row's group; rows of a group need not be adjacent.
        psi: inverse temperature.

    Returns:
        float64 `[batch]` twice, each summing to 1 within every group; large where a completion is to be
        raised, and where it is to be lowered.
    """
    score = psi * advantage.astype(np.float64)
    return _softmax(score, group), _softmax(-score, group)


def _softmax(score: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Softmax within groups."""
    _, index = np.unique(group, return_inverse=True)
    highest = np.full(index.max() + 1, -np.inf)
    np.maximum.at(highest, index, score)
    weight = np.exp(score - highest[index])
    return weight / np.bincount(index, weights=weight)[index]

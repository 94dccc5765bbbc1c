"""Rewards to preferences: which two completions of a prompt are compared."""

from __future__ import annotations

import numpy as np


def best_and_worst(reward: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best and the worst completion of each group; groups of equal rewards are left out.

    Args:
        reward: float `[batch]`, finite.
        group: int `[batch]`, the row's group.

    Returns:
        int64 `[pairs]` twice: rows of the preferred and of the other completion, by ascending group. Of
        equals the first is taken.
    """
    members = [np.flatnonzero(group == number) for number in np.unique(group)]
    pairs = [(rows[reward[rows].argmax()], rows[reward[rows].argmin()]) for rows in members]
    unequal = [(best, worst) for best, worst in pairs if reward[best] > reward[worst]]
    chosen, rejected = np.array(unequal, dtype=np.int64).reshape(-1, 2).T
    return chosen, rejected

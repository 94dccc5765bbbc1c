"""Advantages of completions within their group: the completions of one prompt."""

from __future__ import annotations

from typing import Literal

import numpy as np

_STD_EPSILON = 1e-4  # TRL's; keeps a tiny spread from becoming a huge advantage


ScaleRewards = Literal["none", "group", "group_population", "batch"]
Baseline = Literal["mean", "loo"]


def _group_moments(reward: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, sample standard deviation (0 for a group of one) and size of each row's group, `[batch]` each."""
    _, index, size = np.unique(group, return_inverse=True, return_counts=True)
    reward = reward.astype(np.float64)
    mean = (np.bincount(index, weights=reward) / size)[index]
    square_sum = np.bincount(index, weights=(reward - mean) ** 2)
    std = np.sqrt(square_sum / np.maximum(size - 1, 1))[index]
    return mean, std, size[index]


def group_advantage(
    reward: np.ndarray,
    group: np.ndarray,
    *,
    scale_rewards: ScaleRewards = "none",
    baseline: Baseline = "mean",
) -> np.ndarray:
    """Reward minus what the group got, on request divided by a standard deviation.

    Source: GRPO, arXiv:2402.03300. Without a divisor as in GDPO (arXiv:2510.08554) and Dr. GRPO
        (arXiv:2503.20783); divided by the sample's std as in MDPO and JustGRPO, by the population's as in
        TraceRL; against the mean of the others as in coupled-GRPO and ESPO.
    Rows without a reward must be left out by the caller: they belong to no mean.

    Args:
        reward: float `[batch]`, finite.
        group: int `[batch]`, the row's group; rows of a group need not be adjacent.
        scale_rewards: `group` divides by (sample std of the group + 1e-4), `batch` by that of all rewards,
            `group_population` by the group's population std, without an epsilon; a std of 0 gives 0.
        baseline: `mean` of the group, or `loo`, the mean of the others: G/(G - 1) times as large.

    Returns:
        float32 `[batch]`, summing to 0 within each group.

    Raises:
        ValueError: a reward is not finite.
    """
    if not np.isfinite(reward).all():
        bad = int(np.flatnonzero(~np.isfinite(reward))[0])
        raise ValueError(f"reward[{bad}] = {reward[bad]} is not finite. Fix: leave failed rows out.")
    mean, std, size = _group_moments(reward, group)
    centred = reward.astype(np.float64) - mean
    if baseline == "loo":
        centred = centred * size / np.maximum(size - 1, 1)
    if scale_rewards == "none":
        return centred.astype(np.float32)
    if scale_rewards == "batch":
        std = np.full(len(reward), reward.std(ddof=1, dtype=np.float64) if len(reward) > 1 else 0.0)
    epsilon = _STD_EPSILON
    if scale_rewards == "group_population":
        std, epsilon = std * np.sqrt(np.maximum(size - 1, 0) / size), 0.0
    known = std > 0
    return np.where(known, centred / (np.where(known, std, 1.0) + epsilon), 0.0).astype(np.float32)


def group_means(reward: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The mean reward of each row's group, float64 `[batch]`."""
    return _group_moments(reward, group)[0]


def reward_metrics(reward: np.ndarray, group: np.ndarray) -> dict[str, float]:
    """Statistics of a batch of rewards under TRL's names.

    `reward` and `reward_std` are the mean and the sample standard deviation over all rows;
    `frac_reward_zero_std` is the share of rows whose whole group has the same reward: they teach nothing.
    """
    _, std, _ = _group_moments(reward, group)
    return {
        "reward": float(reward.mean(dtype=np.float64)),
        "reward_std": float(reward.std(ddof=1, dtype=np.float64)) if len(reward) > 1 else 0.0,
        "frac_reward_zero_std": float((std == 0).mean()),
    }


def shuffle_groups(group: np.ndarray, num_parts: int, seed: int) -> list[np.ndarray]:
    """Deal whole groups, in a seeded random order, into parts of nearly equal numbers of groups.

    Args:
        group: int `[batch]`, the row's group.
        num_parts: parts wanted; fewer come back where there are fewer groups.
        seed: of the order.

    Returns:
        Row indices of each part, ascending, int64.
    """
    order = np.random.default_rng(seed).permutation(np.unique(group))
    parts = np.array_split(order, min(num_parts, len(order)))
    return [np.flatnonzero(np.isin(group, part)) for part in parts]

"""One advantage per denoising step, from the rewards of what the model predicted at every step.

Source: MDPO, arXiv:2508.13148, method figure and released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rl4dlm.advantage.group import Baseline, ScaleRewards, group_advantage

AdvKind = Literal["reward", "mean_future_incl", "diff", "diff_plus_future"]


def step_signal(reward: np.ndarray, kind: AdvKind) -> np.ndarray:
    """What a step is worth, before it is compared with the group's other completions.

        diff_plus_future   a_i = (r_i - r_{i-1}) + mean of r_j over j > i
        diff               a_i = r_i - r_{i-1}
        mean_future_incl   a_i = mean of r_j over j >= i
        reward             a_i = r_i

    with r_{-1} = 0, and r_{T-1} in place of the mean over nothing at the last step.

    Args:
        reward: float `[rows, steps]`, in the order in which steps were taken.
        kind: `diff_plus_future` is the published one, the others are its ablations.

    Returns:
        float64 `[rows, steps]`.
    """
    reward = reward.astype(np.float64)
    if kind == "reward":
        return reward
    left = np.arange(reward.shape[1], 0, -1)  # steps from this one on
    suffix = reward[:, ::-1].cumsum(axis=1)[:, ::-1]
    if kind == "mean_future_incl":
        return suffix / left
    difference = np.diff(reward, axis=1, prepend=0.0)
    if kind == "diff":
        return difference
    future = (suffix - reward) / np.maximum(left - 1, 1)
    future[:, -1] = reward[:, -1]
    return difference + future


def step_advantages(
    reward: np.ndarray, kind: AdvKind, *, scale_rewards: ScaleRewards = "group", baseline: Baseline = "mean"
) -> np.ndarray:
    """The signal of each step, compared within the group at the same step index.

    Args:
        reward: float `[group, steps]`, the completions of one prompt, finite.
        kind: see `step_signal`.
        scale_rewards, baseline: see `group_advantage`; the published method divides by the group's std.

    Returns:
        float32 `[group, steps]`; every column sums to 0.
    """
    signal = step_signal(reward, kind)
    one_group: np.ndarray = np.zeros(len(reward), dtype=np.int64)
    columns = [
        group_advantage(column, one_group, scale_rewards=scale_rewards, baseline=baseline)
        for column in signal.T
    ]
    return np.stack(columns, axis=1)


def pad_rewards(rewards: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Step rewards of completions that took different numbers of steps, as a rectangle.

    A finished completion does not change any more, so it keeps its last reward.

    Args:
        rewards: per row float `[steps]`, at least one.

    Returns:
        float32 `[rows, most steps]`, and bool of that shape: the row did take this step.
    """
    length = np.array([len(row) for row in rewards])
    column = np.arange(length.max())
    index = np.minimum(column, length[:, None] - 1)
    padded = np.stack([row[places] for row, places in zip(rewards, index, strict=True)])
    return padded.astype(np.float32), column < length[:, None]


def informative_steps(advantage: np.ndarray, taken: np.ndarray, num_steps: int) -> np.ndarray:
    """The steps at which the completions of a group differ most: largest sum of |advantage| over the group.

    No weight corrects for this choice: it is biased towards steps of high variance, as published.

    Args:
        advantage: float `[group, steps]`.
        taken: bool `[group, steps]`: steps of finished completions do not count.
        num_steps: K.

    Returns:
        int64 `[min(K, steps)]`, the most informative first, earlier ones first among equals.
    """
    score = np.where(taken, np.abs(advantage), 0.0).sum(axis=0, dtype=np.float64)
    return np.argsort(-score, kind="stable")[:num_steps]


@dataclass(frozen=True)
class StepChoice:
    """The steps that each row is trained on, arrays `[rows, K]`; a row's own come first."""

    step: np.ndarray
    """int64: index among the rewarded steps; -1: none."""
    advantage: np.ndarray
    """float32: 0 where there is none."""
    share: np.ndarray
    """float32: the step's weight in its row, 1 / (steps chosen for the group); 0 where there is none."""


def choose_steps(
    rewards: Sequence[np.ndarray],
    group: np.ndarray,
    num_steps: int,
    kind: AdvKind,
    *,
    scale_rewards: ScaleRewards = "group",
    baseline: Baseline = "mean",
    keep_zero: bool = False,
) -> StepChoice:
    """Step advantages of all groups, and the K most informative steps of each.

    All completions of a group are trained on the same steps, as far as they took them.

    Args:
        rewards: per row float `[steps]`.
        group: int `[rows]`, the row's group.
        num_steps: K, at most that many steps per group.
        kind, scale_rewards, baseline: see `step_advantages`.
        keep_zero: keep steps whose advantage is 0 for the row (a KL term is felt there, too).
    """
    shape = (len(rewards), num_steps)
    choice = StepChoice(np.full(shape, -1), np.zeros(shape, np.float32), np.zeros(shape, np.float32))
    for number in np.unique(group):
        rows = np.flatnonzero(group == number).tolist()
        reward, taken = pad_rewards([rewards[row] for row in rows])
        advantage = step_advantages(reward, kind, scale_rewards=scale_rewards, baseline=baseline)
        best = informative_steps(advantage, taken, num_steps)
        for place, row in enumerate(rows):
            mine = best[taken[place, best] & (keep_zero | (advantage[place, best] != 0))]
            choice.step[row, : len(mine)] = mine
            choice.advantage[row, : len(mine)] = advantage[place, mine]
            choice.share[row, : len(mine)] = 1 / len(best)
    return choice

"""Rewards to advantages: compared within their group, as the settings say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rl4dlm.advantage.group import group_advantage
from rl4dlm.recipe.algorithms import GroupMethod
from rl4dlm.trainers.method import Credit
from rl4dlm.types import Rollout


def group_advantages(config: GroupMethod) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """(rewards, groups) to advantages, float32 `[batch]`."""

    def advantages(reward: np.ndarray, group: np.ndarray) -> np.ndarray:
        return group_advantage(reward, group, scale_rewards=config.scale_rewards, baseline=config.baseline)

    return advantages


def compared_in_group(
    config: GroupMethod,
    *,
    keep: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    adjust: Callable[[Sequence[Rollout], np.ndarray], np.ndarray] | None = None,
    decodes: Callable[[Rollout], list[np.ndarray]] | None = None,
    decoded_steps: Callable[[Rollout], np.ndarray] | None = None,
) -> Credit:
    """Rewards minus their group's baseline, scaled; the other arguments are those of `Credit`."""
    return Credit(group_advantages(config), keep, adjust, decodes, decoded_steps)

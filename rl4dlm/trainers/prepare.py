"""Rollouts and their rewards to a batch: who enters, what each is worth, what the method keeps. On the
driver."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rl4dlm.advantage.group import reward_metrics
from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.likelihood.packing import action_mask
from rl4dlm.recipe.algorithms import MethodConfig
from rl4dlm.trainers.method import Method, Metrics, Recorded, UsableRollouts
from rl4dlm.types import Rollout, RolloutGroup, Scores, TrainBatch, flatten


def partial_decodes(method: Method[MethodConfig], groups: Sequence[RolloutGroup]) -> list[list[np.ndarray]]:
    """Per rollout, in the order of the flattened groups, token ids of the texts whose rewards the method
    wants besides the final one."""
    decodes = method.credit.decodes
    return [[] if decodes is None else decodes(rollout) for rollout in flatten(groups)]


def rewards_by_step(
    method: Method[MethodConfig], groups: Sequence[RolloutGroup], step_rewards: Sequence[np.ndarray]
) -> list[np.ndarray] | None:
    """Rewards of partial decodes at their denoising steps, float32 `[num_steps]` per rollout, NaN where none
    was asked for: for the record. None where the decodes are not of steps."""
    steps = method.credit.decoded_steps
    if steps is None:
        return None
    by_step = []
    for rollout, rewards in zip(flatten(groups), step_rewards, strict=True):
        row: np.ndarray = np.full(rollout.num_steps, np.nan, dtype=np.float32)
        row[steps(rollout)] = rewards
        by_step.append(row)
    return by_step


def prepare_batch(
    method: Method[MethodConfig],
    groups: Sequence[RolloutGroup],
    scores: Scores,
    *,
    policy_version: int,
    seed: int,
    step_rewards: Sequence[np.ndarray] | None = None,
) -> tuple[TrainBatch | None, Metrics]:
    """Rewards -> advantages on the global batch -> what an update needs. No model.

    Rows whose reward failed are left out.

    Args:
        policy_version: weights that drew the rollouts.
        seed: of the corruption masks.
        step_rewards: per rollout the rewards of its `partial_decodes`; NaN where the reward failed.

    Returns:
        The batch, None when nothing is left to learn from; and metrics.
    """
    rollouts = flatten(groups)
    found, metrics = _usable(method, groups, rollouts, scores, step_rewards)
    if found is None:
        return None, metrics
    kept = Recorded() if method.record is None else method.record(found)
    batch = TrainBatch(
        prompt_ids=tuple(row.prompt_ids for row in found.rollouts),
        completion_ids=np.stack([row.completion_ids for row in found.rollouts]),
        loss_mask=found.actions,
        advantage=found.advantage,
        seed=np.array([derive_seed(seed, "corruption", row.seed) for row in found.rollouts], dtype=np.int64),
        group=found.group,
        policy_version=policy_version,
        record=kept.record,
        token_advantage=kept.token_advantage,
    )
    size = float(np.abs(found.advantage).mean(dtype=np.float64))
    metrics = {**metrics, "advantage/abs_mean": size, **(kept.metrics or {})}
    if method.regroup is None:
        return batch, metrics
    regrouped, more = method.regroup(batch)
    return regrouped, metrics | more


def _usable(
    method: Method[MethodConfig],
    groups: Sequence[RolloutGroup],
    rollouts: Sequence[Rollout],
    scores: Scores,
    step_rewards: Sequence[np.ndarray] | None,
) -> tuple[UsableRollouts | None, Metrics]:
    """The rollouts that enter the update with their advantages, and metrics of all of them."""
    credit = method.credit
    sizes = [len(group.rollouts) for group in groups]
    group: np.ndarray = np.repeat(np.arange(len(groups), dtype=np.int32), sizes)
    usable = _rewarded(scores, step_rewards)
    reward = scores.reward if credit.adjust is None else credit.adjust(rollouts, scores.reward)
    metrics: Metrics = {"reward/excluded": float(len(rollouts) - usable.sum())}
    if not usable.any():
        return None, metrics
    metrics |= reward_metrics(scores.reward[usable], group[usable])
    if credit.keep is not None:
        usable[usable] = credit.keep(reward[usable], group[usable])
    metrics["reward/filtered"] = float(len(rollouts) - usable.sum()) - metrics["reward/excluded"]
    if not usable.any():
        return None, metrics
    index = np.flatnonzero(usable).tolist()
    rows = [rollouts[i] for i in index]
    until_eos = method.config.completion_scope == "until_eos"
    found = UsableRollouts(
        rollouts=rows,
        reward=reward[index],
        group=group[index],
        advantage=credit.advantages(reward[index], group[index]),
        actions=action_mask(rows, until_eos=until_eos),
        step_rewards=None if step_rewards is None else [step_rewards[i] for i in index],
    )
    return found, metrics


def _rewarded(scores: Scores, step_rewards: Sequence[np.ndarray] | None) -> np.ndarray:
    """bool `[rollouts]`: completions whose rewards are all known."""
    usable = np.isfinite(scores.reward) & ~scores.failed
    if step_rewards is not None:
        usable &= np.array([bool(np.isfinite(rewards).all()) for rewards in step_rewards])
    return usable

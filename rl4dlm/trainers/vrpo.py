"""VRPO (LLaDA 1.5, arXiv:2505.19223): preference optimisation from pairs, DPO with ELBO estimates.

    B(y)  = an ELBO estimate of log p(y | q) from n_t mask rates with n_m masks each
    s     = beta [(B_theta(y_w) - B_ref(y_w)) - (B_theta(y_l) - B_ref(y_l))]
    loss  = mean over pairs of -log sigmoid(s) + sft_weight (-B_theta(y_w) / L_w)

The variance of s is what biases and blurs the loss; hence many rates with one mask each, and the same masks
for theta and ref. Pairs are recorded (`pairs: offline`, the paper's), or the best and the worst completion of
every prompt by reward (`online`). A pair is one row of the batch: its estimate is `[rows, 2]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from rl4dlm.advantage.group import group_advantage
from rl4dlm.advantage.pairs import best_and_worst
from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.likelihood.elbo import plan_corruptions
from rl4dlm.likelihood.pairs import pair_states
from rl4dlm.likelihood.states import States
from rl4dlm.loss.preference import dpo_loss
from rl4dlm.loss.reduce import mean_over_rows
from rl4dlm.recipe.algorithms import VRPOConfig
from rl4dlm.trainers.elbo_states import elbo_settings, model_blocks, same_number
from rl4dlm.trainers.estimates import TokenLogp, place_states, summed_as
from rl4dlm.trainers.method import (
    BatchRows,
    Credit,
    Likelihood,
    Loss,
    Method,
    Metrics,
    Objective,
    Setting,
    StatePlan,
    StepSize,
)
from rl4dlm.types import Pair, Record, TrainBatch


@dataclass(frozen=True)
class Rejected(Record):
    """The completions that were not preferred; a batch's own are the preferred ones."""

    ids: np.ndarray
    """int `[batch, completion]`."""
    mask: np.ndarray
    """bool `[batch, completion]`: their actions."""


def vrpo(config: VRPOConfig, setting: Setting) -> Method[VRPOConfig]:
    """B of both completions of a pair on masks of their own, and DPO's loss."""
    num_states = config.num_states

    def both(logp: Tensor, states: States, num_rows: int) -> Tensor:
        """B(y_w) and B(y_l), `[rows, 2]`."""
        value = (states.weight.to(logp) * logp).sum(-1)
        return place_states(value, states, num_rows, 2 * num_states).unflatten(1, (2, -1)).sum(-1)

    likelihood = Likelihood(pair_plan(config, setting), summed_as(both), TokenLogp(setting.spec))
    return Method(
        config,
        setting,
        likelihood,
        preference(config),
        Credit(group_advantage),  # only their order counts
        regroup=best_against_worst,
        pair_batch=lambda pairs, version, seed: recorded_pairs(config, pairs, version, seed),
    )


def pair_plan(config: VRPOConfig, setting: Setting) -> StatePlan:
    """n_t * n_m states of the preferred completion, then of the other, with masks of their own."""
    settings = elbo_settings(config)

    def make(batch: TrainBatch, rows: list[int], inner: int) -> States:
        blocks, other = model_blocks(batch, rows, setting.spec), batch.recorded(Rejected).take(rows)
        seeds = np.array([derive_seed(int(batch.seed[row]), "rejected") for row in rows], dtype=np.int64)
        plans = (
            plan_corruptions(batch.seed[rows], batch.loss_mask[rows], inner, settings, blocks),
            plan_corruptions(seeds, other.mask, inner, settings, blocks),
        )
        return pair_states(plans, (batch.completion_ids[rows], other.ids))

    return StatePlan(same_number(2 * config.num_states), make)


def preference(config: VRPOConfig) -> Objective:
    """The loss of an estimate `[rows, 2]`, nats."""

    def objective(
        value: Tensor, rows: BatchRows, old: Tensor | None, ref: Tensor | None, step: StepSize
    ) -> Loss:
        assert ref is not None, "preferences are measured against the reference policy"
        gained = value - ref  # [rows, 2]
        if config.normalise_by_length:
            gained = gained / rows.loss_mask.shape[1]
        margin = gained[:, 0] - gained[:, 1]
        loss = mean_over_rows(dpo_loss(margin, beta=config.beta), step.num_rows)
        sft = mean_over_rows(-value[:, 0] / rows.num_tokens, step.num_rows)
        return loss + config.sft_weight * sft, {
            "loss/policy": loss,
            "loss/sft": sft,
            "rewards/chosen": mean_over_rows(config.beta * gained[:, 0], step.num_counted),
            "rewards/rejected": mean_over_rows(config.beta * gained[:, 1], step.num_counted),
            "rewards/margins": mean_over_rows(config.beta * margin, step.num_counted),
            "rewards/accuracies": mean_over_rows((margin > 0).to(margin), step.num_counted),
        }

    return objective


def best_against_worst(batch: TrainBatch) -> tuple[TrainBatch | None, Metrics]:
    """The best against the worst completion of every group that has both."""
    chosen, rejected = best_and_worst(batch.advantage, batch.group)
    metrics = {"pairs/tied": float(len(np.unique(batch.group)) - len(chosen))}
    if not len(chosen):
        return None, metrics
    paired = TrainBatch(
        prompt_ids=tuple(batch.prompt_ids[row] for row in chosen),
        completion_ids=batch.completion_ids[chosen],
        loss_mask=batch.loss_mask[chosen],
        advantage=batch.advantage[chosen] - batch.advantage[rejected],
        seed=batch.seed[chosen],
        group=batch.group[chosen],
        policy_version=batch.policy_version,
        record=Rejected(batch.completion_ids[rejected], batch.loss_mask[rejected]),
    )
    return paired, metrics


def recorded_pairs(config: VRPOConfig, pairs: Sequence[Pair], policy_version: int, seed: int) -> TrainBatch:
    """The batch that a dataset's pairs make."""
    chosen, rejected = (
        np.stack([getattr(pair, name) for pair in pairs]) for name in ("chosen_ids", "rejected_ids")
    )
    length = np.array([(pair.chosen_len, pair.rejected_len) for pair in pairs])
    if config.completion_scope == "canvas":
        length[:] = chosen.shape[1]
    mask = np.arange(chosen.shape[1]) < length[..., None]  # [pairs, 2, completion]
    return TrainBatch(
        prompt_ids=tuple(pair.prompt_ids for pair in pairs),
        completion_ids=chosen,
        loss_mask=mask[:, 0],
        advantage=np.ones(len(pairs), dtype=np.float32),
        seed=np.array([derive_seed(seed, "corruption", pair.uid) for pair in pairs], dtype=np.int64),
        group=np.arange(len(pairs), dtype=np.int32),
        policy_version=policy_version,
        record=Rejected(rejected, mask[:, 1]),
    )

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

import numpy as np
from torch import Tensor

from rl4dlm.advantage.group import group_advantage
from rl4dlm.advantage.pairs import best_and_worst
from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.likelihood.elbo import ElboSettings, plan_corruptions
from rl4dlm.likelihood.pairs import pair_states
from rl4dlm.likelihood.states import States
from rl4dlm.loss.preference import dpo_loss
from rl4dlm.loss.reduce import mean_over_rows
from rl4dlm.recipe.algorithms import VRPOConfig
from rl4dlm.trainers.base import Metrics, Setting, StepSize
from rl4dlm.trainers.state_trainer import Rows, StateTrainer, place_states, stack_metrics
from rl4dlm.types import Pair, RolloutGroup, Scores, TrainBatch


class VRPO(StateTrainer):
    """The method as a `Trainer`; a batch's completions are the preferred ones, the others are in `extra`."""

    needs_old = False

    def __init__(self, config: VRPOConfig, setting: Setting | None = None) -> None:
        super().__init__(config, setting)
        self.settings = ElboSettings(config.estimator, config.num_nodes, config.num_masks, config.count_rule)
        self.offline = config.pairs == "offline"

    def advantages(self, reward: np.ndarray, group: np.ndarray) -> np.ndarray:
        """float32 `[batch]`: only their order counts."""
        return group_advantage(reward, group)

    def prepare(
        self,
        groups: Sequence[RolloutGroup],
        scores: Scores,
        *,
        policy_version: int,
        seed: int,
        step_rewards: Sequence[np.ndarray] | None = None,
    ) -> tuple[TrainBatch | None, Metrics]:
        """See `Trainer.prepare`: the best against the worst completion of every group that has both."""
        batch, metrics = super().prepare(groups, scores, policy_version=policy_version, seed=seed)
        if batch is None:
            return None, metrics
        chosen, rejected = best_and_worst(batch.advantage, batch.group)
        metrics["pairs/tied"] = float(len(np.unique(batch.group)) - len(chosen))
        if not len(chosen):
            return None, metrics
        paired = TrainBatch(
            prompt_ids=tuple(batch.prompt_ids[row] for row in chosen),
            completion_ids=batch.completion_ids[chosen],
            loss_mask=batch.loss_mask[chosen],
            advantage=batch.advantage[chosen] - batch.advantage[rejected],
            seed=batch.seed[chosen],
            group=batch.group[chosen],
            policy_version=policy_version,
            extra=_others(batch.completion_ids[rejected], batch.loss_mask[rejected]),
        )
        return paired, metrics

    def prepare_pairs(
        self, pairs: Sequence[Pair], *, policy_version: int, seed: int
    ) -> tuple[TrainBatch | None, Metrics]:
        """See `Trainer.prepare_pairs`."""
        if not pairs:
            return None, {}
        chosen, rejected = (
            np.stack([getattr(pair, name) for pair in pairs]) for name in ("chosen_ids", "rejected_ids")
        )
        length = np.array([(pair.chosen_len, pair.rejected_len) for pair in pairs])
        if self.config.completion_scope == "canvas":
            length[:] = chosen.shape[1]
        mask = np.arange(chosen.shape[1]) < length[..., None]  # [pairs, 2, completion]
        batch = TrainBatch(
            prompt_ids=tuple(pair.prompt_ids for pair in pairs),
            completion_ids=chosen,
            loss_mask=mask[:, 0],
            advantage=np.ones(len(pairs), dtype=np.float32),
            seed=np.array([derive_seed(seed, "corruption", pair.uid) for pair in pairs], dtype=np.int64),
            group=np.arange(len(pairs), dtype=np.int32),
            policy_version=policy_version,
            extra=_others(rejected, mask[:, 1]),
        )
        return batch, {}

    def num_states(self, batch: TrainBatch) -> np.ndarray:
        """n_t * n_m for each of the two completions."""
        return np.full(len(batch), 2 * self.settings.num_states)

    def states(self, batch: TrainBatch, rows: Sequence[int], inner: int) -> States:
        """The preferred completion's states, then the other's, with masks of their own."""
        rows = list(rows)
        blocks = self.blocks(batch, rows)
        others = np.array([derive_seed(int(batch.seed[row]), "rejected") for row in rows], dtype=np.int64)
        plans = (
            plan_corruptions(batch.seed[rows], batch.loss_mask[rows], inner, self.settings, blocks),
            plan_corruptions(others, batch.extra["rejected_mask"][rows], inner, self.settings, blocks),
        )
        return pair_states(plans, (batch.completion_ids[rows], batch.extra["rejected_ids"][rows]))

    def combine(self, logp: Tensor, states: States, num_rows: int) -> Tensor:
        """B(y_w) and B(y_l), `[rows, 2]`."""
        value = (states.weight.to(logp) * logp).sum(-1)
        placed = place_states(value, states, num_rows, 2 * self.settings.num_states)
        return placed.unflatten(1, (2, -1)).sum(-1)

    def objective(
        self, value: Tensor, rows: Rows, old: Tensor | None, ref: Tensor | None, step: StepSize
    ) -> tuple[Tensor, Metrics]:
        """See `StateTrainer.objective`."""
        assert ref is not None, "preferences are measured against the reference policy"
        config = self.config
        gained = value - ref  # [rows, 2]
        if config.normalise_by_length:
            gained = gained / rows.loss_mask.shape[1]
        margin = gained[:, 0] - gained[:, 1]
        preference = mean_over_rows(dpo_loss(margin, beta=config.beta), step.num_rows)
        sft = mean_over_rows(-value[:, 0] / rows.num_tokens, step.num_rows)
        metrics = {
            "loss/policy": preference,
            "loss/sft": sft,
            "rewards/chosen": mean_over_rows(config.beta * gained[:, 0], step.num_counted),
            "rewards/rejected": mean_over_rows(config.beta * gained[:, 1], step.num_counted),
            "rewards/margins": mean_over_rows(config.beta * margin, step.num_counted),
            "rewards/accuracies": mean_over_rows((margin > 0).to(margin), step.num_counted),
        }
        return preference + config.sft_weight * sft, stack_metrics(metrics)


def _others(ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """What a batch holds of the completions that were not preferred."""
    return {"rejected_ids": ids, "rejected_mask": mask}

"""ELBO-based Sequence-level Policy Optimization (ESPO, arXiv:2512.03759): GDPO's objective on coupled masks.

    Lhat(y | q) = mean over pairs of 1/2 [(L + 1)/x l(S) + (L + 1)/(L - x) l(rest)],   |S| = x in 0..L
    rho_g       = exp((Lhat_theta - Lhat_old) / L)
    loss        = - mean over completions g of min(rho_g A_g, clip(rho_g) A_g)
                  + beta mean of KL(Lhat_theta - Lhat_ref) / L,   A_g = r_g - mean of the group's others

with the same masks in current, old and reference policy, and a KL on the difference of whole sequences.
Departs from the released code: counts are stratified over the batch in its global order, not over the rows
that meet on a device. Not covered: its `reduce_var`, which the code ignores too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from rl4dlm.likelihood.elbo import Strata, plan_coupled
from rl4dlm.likelihood.states import States
from rl4dlm.loss.kl import KL_ESTIMATORS
from rl4dlm.trainers.base import Metrics
from rl4dlm.trainers.sequence_trainer import SequenceTrainer
from rl4dlm.types import Rollout, TrainBatch


class ESPO(SequenceTrainer):
    """The method as a `Trainer`; holds settings only.

    Example: `ESPO(ESPOConfig(num_masks=2))`.
    """

    def extra(
        self,
        rollouts: Sequence[Rollout],
        reward: np.ndarray,
        group: np.ndarray,
        step_rewards: Sequence[np.ndarray] | None,
    ) -> tuple[dict[str, np.ndarray], Metrics]:
        """The place of every row in the stratified draw of counts that the batch shares."""
        place = np.arange(len(rollouts))
        root = np.full(len(rollouts), rollouts[0].seed, dtype=np.int64)
        return {"strata_root": root, "strata_share": place / len(rollouts)}, {}

    def num_states(self, batch: TrainBatch) -> np.ndarray:
        """Two for every pair."""
        return np.full(len(batch), 2 * self.config.num_masks)

    def states(self, batch: TrainBatch, rows: Sequence[int], inner: int) -> States:
        """The pairs of complementary masks, from the rows' seeds."""
        rows = list(rows)
        strata = Strata(batch.extra["strata_root"][rows], batch.extra["strata_share"][rows])
        plan = plan_coupled(
            batch.seed[rows],
            batch.loss_mask[rows],
            inner,
            self.config.num_masks,
            strata,
            self.blocks(batch, rows),
        )
        return plan.states()

    def kl(self, value: Tensor, ref: Tensor, length: Tensor) -> Tensor:
        """KL of the whole sequence, divided by its length; only k3 needs its exponent bounded."""
        difference, clamp = value - ref, self.config.log_ratio_clamp
        if self.config.kl_estimator == "k3":
            difference = difference.clamp(-clamp, clamp)
        return KL_ESTIMATORS[self.config.kl_estimator](difference) / length

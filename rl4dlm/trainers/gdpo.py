"""Group Diffusion Policy Optimization (GDPO, arXiv:2510.08554): clipped sequence ratios of ELBO estimates.

    Lhat(y | q) = sum over nodes n of w_n (1/K) sum over masks k of (L / |S_nk|) l(S_nk)
    rho_g       = exp((Lhat_theta - Lhat_old) / L)                      `sequence_norm`, released code
    loss        = - mean over completions g of min(rho_g A_g, clip(rho_g) A_g) + beta KL,   A_g = r_g - group
    mean

with the same masks S_nk in current, old and reference policy. Departures from the released code are those of
specs/rl-algorithms section 3: counts by round(tL + 1/2) with weight L/|S|, masks derived from row seeds, KL
on the ELBO difference per token. Not covered: group filters, dual clip.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rl4dlm.likelihood.elbo import ElboSettings, plan_corruptions
from rl4dlm.likelihood.states import States
from rl4dlm.recipe.algorithms import GDPOConfig
from rl4dlm.trainers.base import Setting
from rl4dlm.trainers.sequence_trainer import SequenceTrainer
from rl4dlm.types import TrainBatch


class GDPO(SequenceTrainer):
    """The method as a `Trainer`; holds settings only.

    Example: `GDPO(GDPOConfig(num_nodes=2))`.
    """

    def __init__(self, config: GDPOConfig, setting: Setting | None = None) -> None:
        super().__init__(config, setting)
        self.settings = ElboSettings(config.estimator, config.num_nodes, config.num_masks, config.count_rule)

    def num_states(self, batch: TrainBatch) -> np.ndarray:
        """N * K for every row."""
        return np.full(len(batch), self.settings.num_states)

    def states(self, batch: TrainBatch, rows: Sequence[int], inner: int) -> States:
        """The nodes' masks, from the rows' seeds."""
        rows = list(rows)
        plan = plan_corruptions(
            batch.seed[rows], batch.loss_mask[rows], inner, self.settings, self.blocks(batch, rows)
        )
        return plan.states()

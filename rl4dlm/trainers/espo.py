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

import numpy as np
from torch import Tensor

from rl4dlm.likelihood.coupled import Strata, plan_coupled
from rl4dlm.likelihood.states import States
from rl4dlm.loss.kl import KL_ESTIMATORS
from rl4dlm.recipe.algorithms import ESPOConfig, SequenceLevel
from rl4dlm.trainers.elbo_states import model_blocks, same_number
from rl4dlm.trainers.method import Method, Recorded, Setting, StatePlan, UsableRollouts
from rl4dlm.trainers.sequence import KL, sequence_method
from rl4dlm.types import TrainBatch


def espo(config: ESPOConfig, setting: Setting) -> Method[SequenceLevel]:
    """Lhat from pairs of complementary masks, rho and loss by `sequence.py`."""

    def make(batch: TrainBatch, rows: list[int], inner: int) -> States:
        strata, blocks = batch.recorded(Strata).take(rows), model_blocks(batch, rows, setting.spec)
        seed, actions = batch.seed[rows], batch.loss_mask[rows]
        return plan_coupled(seed, actions, inner, config.num_masks, strata, blocks).states()

    states = StatePlan(same_number(2 * config.num_masks), make)
    return sequence_method(config, setting, states, kl=kl_of_sequences(config), record=shared_strata)


def shared_strata(usable: UsableRollouts) -> Recorded:
    """The place of every row in the stratified draw of counts that the batch shares."""
    size = len(usable.rollouts)
    root = np.full(size, usable.rollouts[0].seed, dtype=np.int64)
    return Recorded(Strata(root, np.arange(size) / size))


def kl_of_sequences(config: ESPOConfig) -> KL:
    """KL of the whole sequence, divided by its length; only k3 needs its exponent bounded."""

    def kl(value: Tensor, ref: Tensor, length: Tensor) -> Tensor:
        difference, clamp = value - ref, config.log_ratio_clamp
        if config.kl_estimator == "k3":
            difference = difference.clamp(-clamp, clamp)
        return KL_ESTIMATORS[config.kl_estimator](difference) / length

    return kl

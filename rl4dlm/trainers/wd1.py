"""Weighted log-likelihood without ratios (wd1, arXiv:2507.08838).

    w+- = softmax(+-psi A) within a group,   A = r - group mean
    loss = mean over groups of sum over their completions g of (w-_g - w+_g) log pi(y_g)

with d1's one-step estimate of log pi, summed over the actions and not divided by their number. Neither old
nor reference policy is evaluated. Departs from the released code: the softmax runs over a group, whatever the
devices hold, and so do both sums of weights. Not covered: rollouts from a mixture with the reference (its
`beta` > 0).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from rl4dlm.advantage.weights import softmax_weights
from rl4dlm.likelihood.one_step import one_step_states
from rl4dlm.likelihood.states import States
from rl4dlm.loss.reduce import mean_over_rows
from rl4dlm.trainers.base import Metrics, StepSize
from rl4dlm.trainers.state_trainer import Rows, StateTrainer, stack_metrics
from rl4dlm.types import TrainBatch


class WeightedLikelihood(StateTrainer):
    """A `StateTrainer` whose loss is - mean of A_g log pi(y_g), A_g = G (w+_g - w-_g) or w+_g - w-_g."""

    needs_old = False
    separable = True
    sums_group = True
    """The loss of a group of G is the sum over its completions; else their mean."""

    def advantages(self, reward: np.ndarray, group: np.ndarray) -> np.ndarray:
        """float32 `[batch]`: times the group's size where the mean over rows shall be one of sums."""
        advantage = super().advantages(reward, group)
        raised, lowered = softmax_weights(advantage, group, psi=self.config.psi)
        _, index, size = np.unique(group, return_inverse=True, return_counts=True)
        scale = size[index] if self.sums_group else 1.0
        return (scale * (raised - lowered)).astype(np.float32)

    def objective(
        self, value: Tensor, rows: Rows, old: Tensor | None, ref: Tensor | None, step: StepSize
    ) -> tuple[Tensor, Metrics]:
        """See `StateTrainer.objective`."""
        loss = -mean_over_rows(rows.advantage * value, step.num_rows)
        per_token = mean_over_rows(value.detach() / rows.num_tokens, step.num_counted)
        return loss, stack_metrics({"loss/policy": loss, "logp/mean": per_token})


class WD1(WeightedLikelihood):
    """The method as a `Trainer`; holds settings only."""

    def num_states(self, batch: TrainBatch) -> np.ndarray:
        """One for every row."""
        return np.ones(len(batch), dtype=np.int64)

    def states(self, batch: TrainBatch, rows: Sequence[int], inner: int) -> States:
        """The whole canvas hidden; actions are scored."""
        rows = list(rows)
        lengths = [len(batch.prompt_ids[row]) for row in rows]
        return one_step_states(
            batch.seed[rows], batch.loss_mask[rows], lengths, inner, self.config.p_mask_prompt
        )

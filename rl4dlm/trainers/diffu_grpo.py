"""diffu-GRPO (d1, arXiv:2504.12216): one-step mean-field log-probabilities with a randomly masked prompt.

    l_i  = log p(y_i | prompt with a share p_q hidden, completion hidden)          one forward for all i
    loss = mean over actions of -min(rho_i A, clip(rho_i) A) + beta k3_i(theta, ref),   A = r - group mean

A new prompt mask in every inner pass regularises reuse of the rollouts. Departures from the released code:
masks come from row seeds, so old and current policy see the same; old values are taken in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rl4dlm.likelihood.one_step import one_step_states
from rl4dlm.likelihood.states import States
from rl4dlm.trainers.token_trainer import TokenTrainer
from rl4dlm.types import TrainBatch


class DiffuGRPO(TokenTrainer):
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

"""diffu-GRPO (d1, arXiv:2504.12216): one-step mean-field log-probabilities with a randomly masked prompt.

    l_i  = log p(y_i | prompt with a share p_q hidden, completion hidden)          one forward for all i
    loss = mean over actions of -min(rho_i A, clip(rho_i) A) + beta k3_i(theta, ref),   A = r - group mean

A new prompt mask in every inner pass regularises reuse of the rollouts. Departures from the released code:
masks come from row seeds, so old and current policy see the same; old values are taken in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from rl4dlm.diffusion.masking import bernoulli_masks
from rl4dlm.likelihood.states import States, rectangle
from rl4dlm.trainers.token_trainer import TokenTrainer
from rl4dlm.types import TrainBatch


class DiffuGRPO(TokenTrainer):
    """The method as a `Trainer`; holds settings only."""

    def num_states(self, batch: TrainBatch) -> np.ndarray:
        """One for every row."""
        return np.ones(len(batch), dtype=np.int64)

    def states(self, batch: TrainBatch, rows: Sequence[int], inner: int) -> States:
        """The whole canvas hidden; actions are scored."""
        index = list(rows)
        action = torch.from_numpy(batch.loss_mask[index])[:, None]
        hidden = torch.ones_like(action)
        states = rectangle(hidden, action, target=action)
        return replace(states, prompt_masked=self._prompt_masks(batch, index, inner))

    def _prompt_masks(self, batch: TrainBatch, rows: list[int], inner: int) -> tuple[np.ndarray, ...]:
        """Which prompt tokens each row hides in this pass, bool `[prompt]` each."""
        longest = max(len(batch.prompt_ids[row]) for row in rows)
        rate = torch.full((len(rows), 1), self.config.p_mask_prompt, dtype=torch.float64)
        every = torch.ones(len(rows), longest, dtype=torch.bool)
        masks = bernoulli_masks(torch.tensor(batch.seed[rows]), every, rate, inner)[:, 0].numpy()
        return tuple(mask[: len(batch.prompt_ids[row])] for mask, row in zip(masks, rows, strict=True))

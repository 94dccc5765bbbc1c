"""coupled-GRPO (DiffuCoder, arXiv:2506.20639): token log-probabilities from complementary masks.

    V0 hides the whole completion; V1 each token with probability t ~ U(.2, .8); V2 the tokens that V1 shows
    lhat_i = (l_i(V0) + w_i l_i(V1 or V2, whichever hides i)) / 2,     w_i = 1/t in V1, 1/(1 - t) in V2
    loss   = mean over actions of -min(rho_i A, clip(rho_i) A) + beta k3_i(theta, ref)

Every token is scored in two contexts, one of them partly filled in. The weights of a token add up to 1.5 on
average: lhat is a scaled log-probability, and `calibrate` divides it by 1.5. Departures from the released
code: t is drawn per completion and not shared by all of a pass, masks come from row seeds and every pass has
its own; the reference policy is fixed instead of following the policy every 64 steps. Default baseline: the
group's mean (`baseline: loo` is the released code).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rl4dlm.diffusion.masking import bernoulli_masks, state_uniform
from rl4dlm.likelihood.states import States, rectangle
from rl4dlm.trainers.token_trainer import TokenTrainer
from rl4dlm.types import TrainBatch

_MEAN_WEIGHT = 1.5


class CoupledGRPO(TokenTrainer):
    """The method as a `Trainer`; holds settings only."""

    def num_states(self, batch: TrainBatch) -> np.ndarray:
        """V0, V1 and V2 of every row."""
        return np.full(len(batch), 3)

    def states(self, batch: TrainBatch, rows: Sequence[int], inner: int) -> States:
        """The three views."""
        index = list(rows)
        action = torch.from_numpy(batch.loss_mask[index])[:, None]
        rate = self._rates(batch, index, inner)
        hidden = coupled_masks(torch.tensor(batch.seed[index]), rate, action.shape[-1], inner)
        weight = torch.cat((torch.ones_like(rate), 1 / rate, 1 / (1 - rate)), dim=1)[..., None] / 2
        if self.config.calibrate:
            weight = weight / _MEAN_WEIGHT
        return rectangle(hidden, weight, target=hidden & action)

    def _rates(self, batch: TrainBatch, rows: list[int], inner: int) -> Tensor:
        """t of each row, float64 `[rows, 1]`."""
        low, high = self.config.min_rate, self.config.max_rate
        return low + (high - low) * state_uniform(torch.tensor(batch.seed[rows]), 1, inner)


def coupled_masks(seed: Tensor, rate: Tensor, completion: int, inner: int) -> Tensor:
    """The three views: everything hidden, a random part, and the rest.

    Source: DiffuCoder, arXiv:2506.20639, coupled sampling with one pair.

    Args:
        seed: int64 `[rows]`.
        rate: float64 `[rows, 1]`: probability that the second view hides a position.
        completion: canvas length; positions beyond the end of text are hidden like all others.
        inner: index of the pass.

    Returns:
        bool `[rows, 3, completion]`.
    """
    every = torch.ones(len(seed), completion, dtype=torch.bool)
    part = bernoulli_masks(seed, every, rate, inner)  # [rows, 1, completion]
    return torch.cat((every[:, None], part, ~part), dim=1)

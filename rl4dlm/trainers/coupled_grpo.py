"""coupled-GRPO (DiffuCoder, arXiv:2506.20639): token log-probabilities from complementary masks.

    V0 hides the whole completion; V1 each token with probability t ~ U(.2, .8); V2 the tokens that V1 shows
    lhat_i = (l_i(V0) + w_i l_i(V1 or V2, whichever hides i)) / 2,     w_i = 1/t in V1, 1/(1 - t) in V2
    loss   = mean over actions of -min(rho_i A, clip(rho_i) A) + beta k3_i(theta, ref)

Every token is scored in two contexts, one of them partly filled in. The weights of a token add up to 1.5 on
average: lhat is a scaled log-probability, and `calibrate` divides it by 1.5. Departures from the released
code: t is drawn per completion and not shared by all of a pass, masks come from row seeds and every pass has
its own; the reference policy is fixed unless `sync_ref_model` lets it follow the policy
every 64 optimizer steps. Default baseline: the
group's mean (`baseline: loo` is the released code).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rl4dlm.diffusion.masking import bernoulli_masks, state_uniform
from rl4dlm.likelihood.states import States, rectangle, unseen_by_sampler
from rl4dlm.recipe.algorithms import CoupledGRPOConfig, TokenLevel
from rl4dlm.trainers.elbo_states import same_number
from rl4dlm.trainers.method import Method, Setting, StatePlan
from rl4dlm.trainers.tokens import token_method
from rl4dlm.types import TrainBatch

_MEAN_WEIGHT = 1.5


def coupled_grpo(config: CoupledGRPOConfig, setting: Setting) -> Method[TokenLevel]:
    """lhat_i from the three views, rho and loss by `tokens.py`."""

    def views(batch: TrainBatch, rows: list[int], inner: int) -> States:
        action, seed = torch.from_numpy(batch.loss_mask[rows])[:, None], torch.tensor(batch.seed[rows])
        low, high = config.min_rate, config.max_rate
        rate = low + (high - low) * state_uniform(seed, 1, inner)  # t of each row, [rows, 1]
        hidden = coupled_masks(seed, rate, action.shape[-1], inner) | unseen_by_sampler(action)
        weight = torch.cat((torch.ones_like(rate), 1 / rate, 1 / (1 - rate)), dim=1)[..., None] / 2
        if config.calibrate:
            weight = weight / _MEAN_WEIGHT
        return rectangle(hidden, weight, target=hidden & action)

    return token_method(config, setting, StatePlan(same_number(3), views))


def coupled_masks(seed: Tensor, rate: Tensor, completion: int, inner: int) -> Tensor:
    """The three views: everything hidden, a random part, and the rest.

    Source: DiffuCoder, arXiv:2506.20639, coupled sampling with one pair.

    Args:
        seed: int64 `[rows]`.
        rate: float64 `[rows, 1]`: probability that the second view hides a position.
        completion: canvas length; every position of it takes part.
        inner: index of the pass.

    Returns:
        bool `[rows, 3, completion]`.
    """
    every = torch.ones(len(seed), completion, dtype=torch.bool)
    part = bernoulli_masks(seed, every, rate, inner)  # [rows, 1, completion]
    return torch.cat((every[:, None], part, ~part), dim=1)

"""UniGRPO (MMaDA, arXiv:2505.15809): one random mask per pass, at rates that the passes spread out.

    t_k  = t_1 + (1 - t_1) k / (mu - 1), k = 0 .. mu - 1,    t_1 ~ U(0, 1) per completion
    l_i  = log p(y_i | q, y with S hidden), i in S, |S| = round(t_k L + 1/2)
    loss = mean over completions of the mean over S of -min(rho_i A, clip(rho_i) A) + beta k3_i(theta, ref)

The question is never masked. The paper's code is not released; what its text leaves open is decided here:
exact counts instead of independent masks (less noise), mu = 4, clip .2. A scored token stands for L / |S|
actions, so that every `aggregation` keeps its meaning.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rl4dlm.diffusion.masking import count_masks, masked_counts, state_uniform
from rl4dlm.likelihood.states import States, rectangle, unseen_by_sampler
from rl4dlm.recipe.algorithms import TokenLevel, UniGRPOConfig
from rl4dlm.trainers.elbo_states import same_number
from rl4dlm.trainers.method import Method, Setting, StatePlan
from rl4dlm.trainers.tokens import token_method
from rl4dlm.types import TrainBatch


def unigrpo(config: UniGRPOConfig, setting: Setting) -> Method[TokenLevel]:
    """l_i from the pass's mask, whose tokens stand for all; rho and loss by `tokens.py`."""

    def at_rate(batch: TrainBatch, rows: list[int], inner: int) -> States:
        seed, action = torch.tensor(batch.seed[rows]), torch.from_numpy(batch.loss_mask[rows])
        first = state_uniform(seed, 1, 0)  # of the first pass, whichever pass this is
        rate = spread_rate(first, inner, config.num_iterations)
        counts, weight = masked_counts(rate, action.sum(1, keepdim=True), "round_half")
        hidden = count_masks(seed, action, counts, inner)  # [rows, 1, completion]
        masked = hidden | unseen_by_sampler(action)[:, None]
        states = rectangle(masked, torch.ones(1, dtype=torch.float64), target=hidden)
        return replace(states, stands_for=(weight[..., None] * hidden).flatten(0, 1))

    return token_method(config, setting, StatePlan(same_number(1), at_rate))


def spread_rate(first: Tensor, inner: int, num_iterations: int) -> Tensor:
    """The mask rate of a pass: equal steps from the first pass's rate to 1, which the last pass has.

    Source: MMaDA, arXiv:2505.15809, structured noising.

    Args:
        first: float64, any shape, in (0, 1): the rate of the first pass.
        inner: index of the pass, from 0.
        num_iterations: mu; with a single pass its rate is `first`.
    """
    return first + (1 - first) * inner / max(1, num_iterations - 1)

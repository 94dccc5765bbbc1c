"""The one-step mean-field estimate of d1 (arXiv:2504.12216): every completion token hidden at once.

    log pi(y) ~ sum over i of log p(y_i | prompt with a share p_q hidden, completion hidden)

A surrogate, no bound of the likelihood: tokens are scored as if they were independent given the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from rl4dlm.diffusion.masking import bernoulli_masks
from rl4dlm.likelihood.states import States, rectangle


def one_step_states(
    seed: np.ndarray,
    prompt_lengths: Sequence[int],
    loss_mask: np.ndarray,
    inner: int,
    p_mask_prompt: float,
) -> States:
    """One state per row: the whole canvas hidden, the actions scored with weight 1.

    Args:
        seed: int64 `[rows]`, root of each row's prompt mask.
        prompt_lengths: tokens of each row's prompt.
        loss_mask: bool `[rows, completion]`, the actions.
        inner: index of the pass; each hides other prompt tokens.
        p_mask_prompt: p_q, probability that a prompt token is hidden.
    """
    action = torch.from_numpy(loss_mask)[:, None]
    states = rectangle(torch.ones_like(action), action, target=action)
    every = torch.ones(len(seed), max(prompt_lengths), dtype=torch.bool)
    rate = torch.full((len(seed), 1), p_mask_prompt, dtype=torch.float64)
    masks = bernoulli_masks(torch.tensor(seed), every, rate, inner)[:, 0].numpy()
    hidden = (mask[:length] for mask, length in zip(masks, prompt_lengths, strict=True))
    return replace(states, prompt_masked=tuple(hidden))

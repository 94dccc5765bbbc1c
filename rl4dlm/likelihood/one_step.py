"""The fully hidden completion as one state, and randomly hidden prompt tokens beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from rl4dlm.diffusion.masking import bernoulli_masks
from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.likelihood.states import States, rectangle


def one_step_states(
    seed: np.ndarray, action: np.ndarray, prompt_lengths: Sequence[int], inner: int, p_mask_prompt: float
) -> States:
    """One state per row, the whole canvas hidden: every action is scored, weight 1, in one forward.

    Source: d1, arXiv:2504.12216, its mean-field estimate with a randomly masked prompt.

    Args:
        seed: int64 `[rows]`.
        action: bool `[rows, completion]`, positions that are scored.
        prompt_lengths: tokens of each row's prompt.
        inner: index of the pass; each has prompt masks of its own.
        p_mask_prompt: probability that a prompt token is hidden.
    """
    target = torch.from_numpy(action)[:, None]
    states = rectangle(torch.ones_like(target), target, target=target)
    masks = prompt_masks(seed, prompt_lengths, 1, inner, p_mask_prompt)
    return replace(states, prompt_masked=masks)


def prompt_masks(
    seed: np.ndarray, prompt_lengths: Sequence[int], num_states: int, inner: int, rate: float
) -> tuple[np.ndarray, ...]:
    """Which prompt tokens each state hides: bool `[prompt]` per state, the states of a row side by side.

    Independent of the masks of completions that the same seeds give.

    Args:
        seed: int64 `[rows]`.
        prompt_lengths: tokens of each row's prompt.
        num_states: states of every row.
        inner: index of the pass.
        rate: probability of each token.
    """
    every = torch.ones(len(seed), max(prompt_lengths), dtype=torch.bool)
    rates = torch.full((len(seed), num_states), rate, dtype=torch.float64)
    own = torch.tensor([derive_seed(int(root), "prompt") for root in seed])
    masks = bernoulli_masks(own, every, rates, inner).numpy()
    return tuple(mask[:length] for row, length in zip(masks, prompt_lengths, strict=True) for mask in row)

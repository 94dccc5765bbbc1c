"""States as semi-autoregressive sampling leaves them: earlier blocks clean, one block half done, later ones
hidden."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rl4dlm.diffusion.masking import bernoulli_masks, count_masks, state_uniform
from rl4dlm.diffusion.seeds import derive_seed


def block_random_masks(
    seed: np.ndarray,
    positions: np.ndarray,
    block: Tensor,
    inner: int,
    *,
    num_states: int,
    p_mask_context: float,
) -> tuple[Tensor, Tensor]:
    """Hide a random number of positions of one random block, everything in later blocks, and now and then a
    token of earlier ones.

    Source: SPG, arXiv:2510.09541, its block-wise masking (`block_random` in the released code).

    Args:
        seed: int64 `[rows]`.
        positions: bool `[rows, completion]`, those that may be hidden.
        block: int64 `[rows, completion]`, the block of each.
        inner: index of the pass.
        num_states: states per row; they take blocks in a random order, and begin anew when all have had one.
        p_mask_context: probability that a position of an earlier block is hidden.

    Returns:
        bool `[rows, states, completion]` twice: hidden, and within the chosen block.
    """
    chosen = _choose_blocks(seed, positions, block, inner, num_states)
    real = torch.tensor(positions)[:, None]
    inside = real & (block[:, None] == chosen[..., None])
    uniform = state_uniform(_derived(seed, "counts"), num_states, inner)
    counts = (uniform * inside.sum(-1)).floor().long() + 1
    # Every state is a row of its own here: each has other positions to choose from.
    states = torch.tensor([derive_seed(int(root), "state", k) for root in seed for k in range(num_states)])
    within = count_masks(states, inside.flatten(0, 1), counts.view(-1, 1), inner).view_as(inside)
    rate = torch.full(counts.shape, p_mask_context, dtype=torch.float64)
    disturbed = bernoulli_masks(torch.tensor(seed), real[:, 0], rate, inner)
    earlier = disturbed & (block[:, None] < chosen[..., None])
    later = real & (block[:, None] > chosen[..., None])
    return within | earlier | later, inside


def _choose_blocks(
    seed: np.ndarray, positions: np.ndarray, block: Tensor, inner: int, num_states: int
) -> Tensor:
    """int64 `[rows, states]`: blocks that hold positions, in a random order, repeated as needed."""
    number = torch.arange(int(block.max()) + 1)
    holds = ((block[:, None] == number[:, None]) & torch.tensor(positions)[:, None]).any(-1)  # [rows, blocks]
    noise = state_uniform(_derived(seed, "blocks"), len(number), inner).masked_fill(~holds, torch.inf)
    turn = torch.arange(num_states) % holds.sum(1, keepdim=True).clamp(min=1)
    return noise.argsort(dim=1, stable=True).gather(1, turn)


def _derived(seed: np.ndarray, purpose: str) -> Tensor:
    return torch.tensor([derive_seed(int(root), purpose) for root in seed])

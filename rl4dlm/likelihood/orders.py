"""Plans that generate a completion in an order: token by token in a random one, or block after block.

    ELBO(y | q)       = E over orders sigma of sum over j of log p(y_sigma(j) | q, y_sigma(<j))
    block ELBO(y | q) = sum over blocks b of ELBO(y_b | q, y_<b), later blocks hidden

Source: Ou et al., arXiv:2406.03736 (any-order likelihoods). The first has the ELBO as its mean. The second
is the bound of a model that decodes block by block: another number than the ELBO where there are several
blocks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rl4dlm.diffusion.masking import random_ranks, state_uniform, stratified_counts
from rl4dlm.likelihood.elbo import ElboSettings, plan_corruptions
from rl4dlm.likelihood.plans import CorruptionPlan, block_by_block, plan_each_block
from rl4dlm.likelihood.states import unseen_by_sampler


def random_order_plan(
    seed: np.ndarray, loss_mask: np.ndarray, inner: int, num_steps: int, block: Tensor | None = None
) -> CorruptionPlan:
    """M steps, spread evenly, of writing a completion of L tokens in one uniformly random order, weight L/M.

    A step hides its token and all that come after it, and scores its token alone; with M = L the estimate is
    the log-probability of the order's whole trajectory.

    Args:
        seed: int64 `[rows]`, root of each row's order.
        loss_mask: bool `[rows, completion]`, the positions that are ordered; others as in `plan_corruptions`.
        inner: index of the pass; each has an order of its own.
        num_steps: M.
        block: int64 `[rows, completion]` of a block-causal model: every block has an order of its own, and a
            state is a step of all of them; None: one block.

    Returns:
        The plan; weights are zero where a masked position is not scored.
    """

    def plan(roots: Tensor, positions: Tensor) -> CorruptionPlan:
        return _order_steps(roots[:, 0], positions, inner, num_steps)

    return block_by_block(plan, torch.tensor(seed)[:, None], torch.tensor(loss_mask), block)


def _order_steps(seed: Tensor, positions: Tensor, inner: int, num_steps: int) -> CorruptionPlan:
    length = positions.sum(1)
    first = (state_uniform(seed, 1, inner)[:, 0] * length).floor().long() + 1
    left = stratified_counts(length, first, num_steps)[..., None]  # tokens not yet written
    rank = random_ranks(seed, positions, 1, inner)  # [rows, 1, completion]
    is_masked = (rank < left) & positions[:, None]
    share = length[:, None, None].double() / num_steps
    return CorruptionPlan(is_masked, share * (is_masked & (rank == left - 1)))


def blockwise_plan(
    seed: np.ndarray, loss_mask: np.ndarray, inner: int, settings: ElboSettings, block: Tensor
) -> CorruptionPlan:
    """The states of `settings` in every block, the blocks before it clean and those after it hidden.

    For models with full attention; a block-causal one does all blocks in one forward (`plan_corruptions`).

    Args:
        seed: int64 `[rows]`.
        loss_mask: bool `[rows, completion]`; other positions as in `plan_corruptions`.
        inner: index of the pass.
        settings: the estimate of each block's ELBO.
        block: int64 `[rows, completion]`, ascending from 0.

    Returns:
        The plan of blocks * N * K states; weights are zero outside a state's block.
    """

    def plan(roots: Tensor, positions: Tensor) -> CorruptionPlan:
        return plan_corruptions(roots[:, 0].numpy(), positions.numpy(), inner, settings)

    positions = torch.tensor(loss_mask)
    parts, shape = plan_each_block(plan, torch.tensor(seed)[:, None], positions, block)
    weight = (parts.weight[..., None] * parts.is_masked).unflatten(0, shape)
    inside = parts.is_masked.unflatten(0, shape)  # [rows, blocks, states, completion]
    later = block[:, None] > torch.arange(shape[1])[:, None]  # [rows, blocks, completion]
    hidden = inside | (later & positions[:, None])[:, :, None]
    return CorruptionPlan(hidden.flatten(1, 2), weight.flatten(1, 2), unseen_by_sampler(positions))

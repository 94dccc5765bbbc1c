"""Corruption plans: which states of completions are evaluated, with which weights, block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.likelihood.states import States, rectangle, unseen_by_sampler


@dataclass(frozen=True)
class CorruptionPlan:
    """The states on which completions are evaluated; the estimate is the weighted sum of l(S) over states.

    Example: 3 nodes with 2 masks each give 6 states; states 2n and 2n + 1 belong to node n.
    """

    is_masked: Tensor
    """bool `[rows, states, completion]`: hidden and scored."""
    weight: Tensor
    """float64 `[rows, states]`, or `[rows, states, completion]` where blocks have weights of their own."""
    unseen: Tensor | None = None
    """bool `[rows, completion]`: hidden in all states and scored in none (`unseen_by_sampler`); None: no
    position."""

    def take(self, states: Sequence[int]) -> CorruptionPlan:
        """The plan with only these states; partial estimates over disjoint states add up to the whole."""
        index = list(states)
        return replace(self, is_masked=self.is_masked[:, index], weight=self.weight[:, index])

    def states(self) -> States:
        """As states of the same rows: every masked position is a target, and what is unseen is hidden too."""
        weight = self.weight if self.weight.ndim == 3 else self.weight[..., None]
        hidden = self.is_masked if self.unseen is None else self.is_masked | self.unseen[:, None]
        return rectangle(hidden, weight, target=self.is_masked)


def block_by_block(
    plan: Callable[[Tensor, Tensor], CorruptionPlan], roots: Tensor, positions: Tensor, block: Tensor | None
) -> CorruptionPlan:
    """A plan whose states hide something of every block, each block by counts, masks and weights of its own.

    Args:
        plan: from int64 `[parts, n]` roots and bool `[parts, completion]` positions to the plan of these
            parts: the blocks of the first row, those of the second, and so on.
        roots: int64 `[rows, n]`, roots of randomness.
        positions: bool `[rows, completion]`.
        block: int64 `[rows, completion]`; None: one block.

    Returns:
        The plan; with several blocks its weights are `[rows, states, completion]`. What follows a row's last
        position is `unseen`.
    """
    unseen = unseen_by_sampler(positions)
    if block is None or not block.any():
        return replace(plan(roots, positions), unseen=unseen)
    parts, shape = plan_each_block(plan, roots, positions, block)
    weight = parts.weight if parts.weight.ndim == 3 else parts.weight[..., None]
    weight = (weight * parts.is_masked).unflatten(0, shape)
    is_masked = parts.is_masked.unflatten(0, shape)  # [rows, blocks, states, completion]
    return CorruptionPlan(is_masked.any(1), weight.sum(1), unseen)


def plan_each_block(
    plan: Callable[[Tensor, Tensor], CorruptionPlan], roots: Tensor, positions: Tensor, block: Tensor
) -> tuple[CorruptionPlan, tuple[int, int]]:
    """The plans of all blocks of all rows, `[rows * blocks, ...]`, not joined as in `block_by_block`, and
    (rows, blocks)."""
    num_blocks = int(block.max()) + 1
    inside = torch.arange(num_blocks)[:, None] == block[:, None]  # [rows, blocks, completion]
    seeds = [
        [derive_seed(root, "block", number) for root in row]
        for row in roots.tolist()
        for number in range(num_blocks)
    ]
    parts = plan(torch.tensor(seeds), (inside & positions[:, None]).flatten(0, 1))
    return parts, (len(roots), num_blocks)

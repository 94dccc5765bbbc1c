"""Coupled masks: a random subset of the tokens, and the rest (ESPO, arXiv:2512.03759)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rl4dlm.diffusion.masking import count_masks, coupled_counts, state_uniform
from rl4dlm.likelihood.plans import CorruptionPlan, block_by_block
from rl4dlm.types import Record


@dataclass(frozen=True)
class Strata(Record):
    """Where rows stand in a stratified draw that they share, however the batch is split afterwards.

    Example: three rows of one batch: `root = [7, 7, 7]`, `share = [0, 1/3, 2/3]`.
    """

    root: np.ndarray
    """int64 `[rows]`: root of the random start that the rows have in common."""
    share: np.ndarray
    """float64 `[rows]`, in [0, 1): the row's place among them."""


def plan_coupled(
    seed: np.ndarray,
    loss_mask: np.ndarray,
    inner: int,
    num_pairs: int,
    strata: Strata,
    block: Tensor | None = None,
) -> CorruptionPlan:
    """Coupled states: a random subset S of random size x, and the positions that it leaves visible.

        Lhat = mean over pairs of 1/2 [(L + 1)/x l(S) + (L + 1)/(L - x) l(rest)],   x in 0..L

    A term whose set is empty is left out. Every position is scored in every pair, and Lhat is unbiased.

    Source: ESPO, arXiv:2512.03759, its coupled estimator. Departs from the released code: counts are
    stratified over an order fixed beforehand (`strata`), not over the rows that meet on a device.

    Args:
        seed, loss_mask, inner, block: as in `plan_corruptions`.
        num_pairs: pairs per row.
        strata: of the same rows; those of one root draw x_b = (k + round(share_b (L + 1))) mod (L + 1) with
            one random k for each pair (and block).

    Returns:
        The plan; states 2j and 2j + 1 are pair j.
    """

    def part(roots: Tensor, positions: Tensor) -> CorruptionPlan:
        share = torch.tensor(strata.share).repeat_interleave(len(positions) // len(strata.share))
        length = positions.sum(1)
        start = (state_uniform(roots[:, 1], num_pairs, inner) * (length[:, None] + 1)).floor().long()
        counts = coupled_counts(length, start, share)  # [parts, pairs]
        subset = count_masks(roots[:, 0], positions, counts, inner)
        pair = torch.stack((subset, positions[:, None] & ~subset), dim=2)  # [parts, pairs, 2, completion]
        size = pair.sum(-1)
        weight = torch.where(size > 0, (length[:, None, None] + 1) / size.clamp(min=1), 0.0)
        return CorruptionPlan(pair.flatten(1, 2), weight.double().flatten(1) / (2 * num_pairs))

    roots = torch.from_numpy(np.stack((seed, strata.root), axis=1))
    return block_by_block(part, roots, torch.tensor(loss_mask), block)

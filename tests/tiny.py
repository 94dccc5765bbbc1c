"""Enumerations of the tiny denoiser's likelihood, beside the denoiser and the small batches of
`rl4dlm.testing`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rl4dlm.testing.tiny import (
    TinyModel,
    tiny_denoiser,
    tiny_groups,
    tiny_predictions,
    tiny_rollout,
    tiny_scores,
)
from rl4dlm.types import Denoiser

__all__ = [
    "TinyModel",
    "all_subsets",
    "bernoulli_mean",
    "conditional_table",
    "enumerate_elbo",
    "subset_code",
    "tiny_denoiser",
    "tiny_groups",
    "tiny_predictions",
    "tiny_rollout",
    "tiny_scores",
]

# --- Enumeration: subsets of L positions in the order of their binary codes, bit i = position i masked. ---


def all_subsets(length: int) -> Tensor:
    """bool `[2^L, L]`."""
    return (torch.arange(2**length)[:, None] >> torch.arange(length)) & 1 == 1


def subset_code(is_masked: Tensor) -> Tensor:
    """int64 `[...]` from bool `[..., L]`: the row of `all_subsets`."""
    return (is_masked.long() << torch.arange(is_masked.shape[-1])).sum(-1)


def conditional_table(denoiser: Denoiser, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    """log p(y_i | q, y with S hidden) for every S, `[2^L, L]`, 0 where i is not in S. Computed row by row."""
    subsets = all_subsets(len(completion))
    ids = torch.tensor([*prompt, *completion]).expand(len(subsets), -1)
    select = torch.cat([torch.zeros(len(subsets), len(prompt), dtype=torch.bool), subsets], dim=1)
    logits = denoiser.logits(ids.masked_fill(select, denoiser.spec.mask_id), None, torch.ones_like(select))
    logp = logits.view(*ids.shape, -1).log_softmax(-1).gather(2, ids[..., None])[..., 0]
    return (logp[:, len(prompt) :] * subsets).detach()


def enumerate_elbo(table: Tensor) -> float:
    """The exact ELBO by counts: sum over k of (1/k) times the mean of l(S) over |S| = k."""
    joint, size = table.sum(1), all_subsets(table.shape[1]).sum(1)
    return sum(joint[size == k].mean().item() / k for k in range(1, table.shape[1] + 1))


def bernoulli_mean(table: Tensor, rate: float) -> float:
    """g(t) = E over S ~ Bernoulli(t)^L of l(S) / t, by enumeration."""
    length = table.shape[1]
    size = all_subsets(length).sum(1).double()  # a float to an integer tensor's power would be float32
    return (rate**size * (1 - rate) ** (length - size) * table.sum(1)).sum().item() / rate

"""Selections: which eligible positions a step commits, and in which order.

Every selection takes a prefix of the order of scores, so it is a rule for *how many*; `top_k` does the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor


def top_k(score: Tensor, eligible: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """The `count` eligible positions of highest score in each row; equal scores go to the lower position.

    A count above the number of eligible positions takes them all: it must never reach into positions that are
    revealed already or not due yet.

    Args:
        score: float `[rows, width]`; finite where eligible, ignored elsewhere.
        eligible: bool `[rows, width]`.
        count: int64 `[rows]`.

    Returns:
        `chosen`: bool `[rows, width]`. `rank`: int64 `[rows, width]`, 0 for the position picked first;
            meaningless
        where not chosen.
    """
    order = score.masked_fill(~eligible, float("-inf")).sort(dim=1, descending=True, stable=True).indices
    places = torch.arange(score.shape[1], device=score.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    return eligible & (rank < count[:, None]), rank


def above_threshold(score: Tensor, eligible: Tensor, threshold: float, *, strict: bool) -> Tensor:
    """How many eligible positions reach the threshold, or exceed it: int64 `[rows]`.

    Source: Fast-dLLM, arXiv:2505.22618 (reaches); SDAR, arXiv:2510.06303 (exceeds).
    """
    passed = score > threshold if strict else score >= threshold
    return (passed & eligible).sum(dim=1)


def within_factor(score: Tensor, eligible: Tensor, factor: float) -> Tensor:
    """The longest run of best scores c(1) >= c(2) >= ... with `(n + 1) (1 - c(n)) < factor`: int64 `[rows]`.

    Source: Fast-dLLM, arXiv:2505.22618: more confidence is asked for when more tokens are committed together.
    The first rank that fails ends the run; since `(n + 1) (1 - c(n))` grows with n none passes after it.
    """
    best = _ordered(score, eligible)
    ranks = torch.arange(1, best.shape[1] + 1, device=score.device)
    return _run_length((ranks + 1) * (1 - best) < factor)


def within_entropy(entropy: Tensor, eligible: Tensor, budget: float, *, count_last: bool) -> Tensor:
    """How many of the most certain positions an entropy budget pays for: int64 `[rows]`.

    Source: EB-Sampler, arXiv:2505.24857: the largest set U, most certain positions first, whose entropies
    without the largest sum to at most the budget (they bound what the tokens say about each other).
    With `count_last` the variant of JetEngine / SDAR: all entropies of U sum to less than the budget.

    Args:
        entropy: float `[rows, width]`, nats, non-negative.
        eligible: bool `[rows, width]`.
        budget: nats.
        count_last: include the largest entropy of the set in the sum.
    """
    ordered = -_ordered(-entropy, eligible)  # ascending, infinity at the end
    sums = ordered.cumsum(dim=1)
    if count_last:
        return _run_length(sums < budget)
    before = torch.cat([torch.zeros_like(sums[:, :1]), sums[:, :-1]], dim=1)
    return _run_length((before <= budget) & ordered.isfinite())


def _ordered(score: Tensor, eligible: Tensor) -> Tensor:
    """Scores of the eligible positions in descending order, float64, then -inf."""
    filled = score.double().masked_fill(~eligible, float("-inf"))
    return filled.sort(dim=1, descending=True).values


def _run_length(passed: Tensor) -> Tensor:
    """Leading True entries of each row: int64 `[rows]`."""
    return passed.long().cumprod(dim=1).sum(dim=1)

"""Bounds of a completion's log-likelihood from log-probabilities on several of its states."""

from __future__ import annotations

import torch
from torch import Tensor


def elbo_per_token(logp: Tensor, weight: Tensor, length: Tensor) -> Tensor:
    """The ELBO estimate divided by the number of tokens: sum of weight times log p, over L.

    Args:
        logp: `[rows, states, completion]`, nats; anything where the weight is 0.
        weight: of its shape: (1 / states) (1 / t) where a state hides the position and scores it, else 0.
        length: `[rows]`, L.

    Returns:
        `[rows]`, nats per token.
    """
    return torch.where(weight > 0, weight * logp, 0.0).sum((1, 2)) / length


def eubo_per_token(logp: Tensor, weight: Tensor, *, exponent: float) -> Tensor:
    """(1/b) log E[w(t) 1[i hidden] p(y_i | state)^b], the mean over the positions i that some state scores.

    Source: SPG, arXiv:2510.09541, its evidence upper bound, as the released code estimates it: the
    expectation is the mean over the row's states, so its logarithm is biased low. It is above the ELBO and
    grows with b; that it bounds the likelihood is certain for b = L only.

    Args:
        logp, weight: as in `elbo_per_token`.
        exponent: b, at least 1.

    Returns:
        `[rows]`, nats per token; 0 for a row that scores nothing.
    """
    scored = weight > 0
    powered = torch.where(scored, weight.clamp(min=1e-30).log() + exponent * logp, -torch.inf)
    known = scored.any(1)  # [rows, completion]
    # A logsumexp over nothing would have the gradient NaN, even where it is masked away.
    powered = torch.where(known[:, None], powered, 0.0)
    per_token = torch.where(known, powered.logsumexp(1) / exponent, 0.0)
    return per_token.sum(1) / known.sum(1).clamp(min=1)

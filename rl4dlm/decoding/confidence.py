"""Confidences: how sure the model is of a position; larger is committed earlier.

A confidence that looks at the drawn token biases which tokens survive; one that looks only at the
distribution leaves the law of the committed token exact.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rl4dlm.decoding.proposal import Law, probabilities, row_chunks


def drawn_probability(logits: Tensor, token: Tensor, law: Law) -> Tensor:
    """Probability of the drawn token: the confidence of LLaDA, d1 and MDPO.

    Args:
        logits: `[positions, vocab]` float32 (or float64).
        token: int64 `[positions]`.
        law: the distribution that is asked.

    Returns:
        float32 `[positions]`.
    """
    chosen = [
        probabilities(logits[rows], law).gather(1, token[rows, None]).squeeze(1).float()
        for rows in row_chunks(logits)
    ]
    return torch.cat(chosen) if chosen else token.float()


def top_probability(logits: Tensor, law: Law) -> Tensor:
    """Probability of the most likely token, whatever is drawn: float32 `[positions]`."""
    return _of_distribution(logits, law, lambda probs: probs.amax(dim=1))


def margin(logits: Tensor, law: Law) -> Tensor:
    """How far the most likely token is ahead of the next one: float32 `[positions]`.

    Source: Dream, arXiv:2508.15487, `topk_margin`.
    """

    def ahead(probs: Tensor) -> Tensor:
        first, second = probs.topk(2, dim=1).values.unbind(dim=1)
        return first - second

    return _of_distribution(logits, law, ahead)


def neg_entropy(logits: Tensor, law: Law) -> Tensor:
    """Minus the entropy of the distribution, nats, at most 0: float32 `[positions]`."""
    return _of_distribution(logits, law, lambda probs: -torch.special.entr(probs).sum(dim=1))


def logit_gap(logits: Tensor) -> Tensor:
    """Difference of the two largest logits, whatever the temperature: float32 `[positions]`.

    Source: Prophet, arXiv:2508.19982; SchED, arXiv:2512.02892.
    """
    if logits.shape[0] == 0:
        return logits.new_zeros(0, dtype=torch.float32)
    first, second = logits.topk(2, dim=1).values.unbind(dim=1)
    return (first - second).float()


def _of_distribution(logits: Tensor, law: Law, value: Callable[[Tensor], Tensor]) -> Tensor:
    """A number per position from its distribution, chunk by chunk."""
    parts = [value(probabilities(logits[rows], law)).float() for rows in row_chunks(logits)]
    return torch.cat(parts) if parts else logits.new_zeros(0, dtype=torch.float32)

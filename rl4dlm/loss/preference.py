"""Losses on pairs of which one completion is preferred."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo_loss(margin: Tensor, *, beta: float) -> Tensor:
    """-log sigmoid(beta margin), element by element.

    Source: DPO, arXiv:2305.18290, Eq. (7).

    Args:
        margin: `[pairs]`, nats: how much likelier the preferred completion became against the reference than
            the other did.
        beta: how soon a pair counts as learnt; also the strength of the pull to the reference.
    """
    return -logsigmoid(beta * margin)

"""Revisions: which committed positions a step remasks."""

from __future__ import annotations

import torch
from torch import Tensor

from rl4dlm.decoding.selection import top_k
from rl4dlm.recipe.samplers import RcrUpdate


def running_confidence(
    running: Tensor, touched: Tensor, score: Tensor, written: Tensor, update: RcrUpdate
) -> Tensor:
    """The confidences kept over the steps after some positions were written again.

    Source: MDPO's RCR, arXiv:2508.13148; the released code overwrites (`last`), the description keeps the
    largest or the smallest.

    Args:
        running: float `[rows, width]`.
        touched: bool `[rows, width]`: written before; where not, `running` means nothing.
        score: float `[rows, width]`: confidence of what is written now.
        written: bool `[rows, width]`.
        update: `last`, `max` or `min`.

    Returns:
        float `[rows, width]`.
    """
    if update == "last":
        new = score
    else:
        merged = torch.maximum(running, score) if update == "max" else torch.minimum(running, score)
        new = torch.where(touched, merged, score)
    return torch.where(written, new, running)


def least_confident(running: Tensor, touched: Tensor, count: Tensor) -> Tensor:
    """The `count` written positions of smallest running confidence, the lower position among equals.

    Returns:
        bool `[rows, width]`.
    """
    return top_k(-running, touched, count)[0]

"""Policy gradients between two bounds of the likelihood."""

from __future__ import annotations

import torch
from torch import Tensor


def sandwiched(lower: Tensor, upper: Tensor, advantage: Tensor, *, omega: float) -> Tensor:
    """The bound whose change is safe: the lower one to be raised, a mixture with the upper one to be lowered.

    Lowering a lower bound need not lower the likelihood; the upper bound does so where it is one.

    Source: SPG, arXiv:2510.09541.

    Args:
        lower, upper: `[rows]`, nats (per token).
        advantage: `[rows]`; its sign decides.
        omega: share of the upper bound in the mixture; 0: the lower bound for all rows.

    Returns:
        `[rows]`.
    """
    return torch.where(advantage >= 0, lower, omega * upper + (1 - omega) * lower)

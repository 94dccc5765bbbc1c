"""Clipped regression of a value model, and how much of the returns it explains."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def clipped_value_error(value: Tensor, old_value: Tensor, returns: Tensor, *, clip: float) -> Tensor:
    """max((V - R)^2, (V_old + clip(V - V_old, +-clip) - R)^2) / 2, element by element.

    Source: PPO's released code; TraceRL, arXiv:2509.06949. The gradient is zero where V has left the clip
    range on the side that the return asks for.

    Args:
        value: any shape, carries gradient.
        old_value: before the update, without gradient.
        returns: targets.
        clip: half-width of the range around the old value.
    """
    clipped = old_value + (value - old_value).clamp(-clip, clip)
    return torch.maximum((value - returns).square(), (clipped - returns).square()) / 2


def with_explained_variance(metrics: Mapping[str, float]) -> dict[str, float]:
    """Add `value/explained_var` = 1 - Var(R - V) / Var(R) to finished metrics that hold both deviations.

    1: perfect. 0: no better than a constant. Below: worse. Without spread in the returns there is nothing to
    explain, and no entry.
    """
    finished = dict(metrics)
    spread = finished.get("value/return/std", 0.0)
    if spread > 0 and "value/error/std" in finished:
        finished["value/explained_var"] = 1.0 - (finished["value/error/std"] / spread) ** 2
    return finished

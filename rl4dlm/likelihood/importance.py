"""Importance weights against the policy that drew a rollout.

Source: truncated importance sampling (Ionides, 2008), in the form that TRL and verl use between trainer and
inference engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def truncated_weights(logp: Tensor, rollout_logp: Tensor, *, cap: float) -> Tensor:
    """min(exp(logp - rollout_logp), cap): how much likelier a token is now than when it was drawn.

    The two differ where rollouts are older than the weights, or came from approximate caches or other
    numerics. The weight is a constant of the update.

    Args:
        logp: any shape, nats: the recorded trajectory under the weights that the update begins with.
        rollout_logp: the same shape, nats, as the sampler recorded it.
        cap: largest weight, at least 1.

    Returns:
        The weights, without gradient.
    """
    return (logp - rollout_logp).detach().clamp(max=math.log(cap)).exp()


def importance_weights(
    now: Mapping[int, Tensor], rollout_logp: np.ndarray, *, cap: float
) -> dict[int, Tensor]:
    """The weights of every token of some rows.

    Args:
        now: by row of the batch: log-probabilities under the weights that an update begins with, nats.
        rollout_logp: `[batch, ...]`, nats, as the sampler recorded it.
        cap: largest weight, at least 1.
    """
    recorded = torch.from_numpy(rollout_logp)
    return {row: truncated_weights(logp, recorded[row].to(logp), cap=cap) for row, logp in now.items()}

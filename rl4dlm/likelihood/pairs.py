"""States of two completions per row, for methods that compare them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from rl4dlm.likelihood.plans import CorruptionPlan
from rl4dlm.likelihood.states import States, rectangle


def pair_states(plans: Sequence[CorruptionPlan], completion_ids: Sequence[np.ndarray]) -> States:
    """The states of the first completion of every row, then those of the second.

    Args:
        plans: of the first and of the second completions, with as many states for all.
        completion_ids: int `[rows, completion]` twice.

    Returns:
        2n states per row, each with the completion that it hides parts of.
    """
    parts = [plan.states() for plan in plans]
    count = plans[0].is_masked.shape[1]
    hidden = torch.cat([part.is_masked.unflatten(0, (-1, count)) for part in parts], dim=1)
    target = torch.cat([part.target.unflatten(0, (-1, count)) for part in parts], dim=1)
    weight = torch.cat([part.weight.unflatten(0, (-1, count)) for part in parts], dim=1)
    clean = torch.from_numpy(np.stack(completion_ids, axis=1)).long()  # [rows, 2, completion]
    return replace(
        rectangle(hidden, weight, target=target), clean=clean.repeat_interleave(count, dim=1).flatten(0, 1)
    )

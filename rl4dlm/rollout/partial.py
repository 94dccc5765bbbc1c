"""Partial decodes: the whole answer that a rollout had at each step, to be verified before it was finished.

Source: MDPO, arXiv:2508.13148: every prediction is a complete answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rl4dlm.decoding import completion_length
from rl4dlm.diffusion.replay import prediction_at
from rl4dlm.types import DenoiserSpec, Rollout


def rewarded_steps(num_steps: int, stride: int = 1) -> np.ndarray:
    """Steps whose predictions are verified: every `stride`-th from the first on, and the last.

    Returns:
        int64, ascending.
    """
    return np.minimum(np.arange(0, num_steps - 1 + stride, stride), num_steps - 1)


def predicted_texts(
    rollout: Rollout, steps: Sequence[int] | np.ndarray, spec: DenoiserSpec
) -> list[np.ndarray]:
    """The answers that the model had at some steps: what was committed, filled up with its predictions.

    Args:
        rollout: sampled with recorded predictions.
        steps: from 0.
        spec: the model's mask and stop ids.

    Returns:
        Per step int32 token ids up to and including the first stop id.
    """
    texts = []
    for step in steps:
        tokens = prediction_at(rollout, int(step), spec.mask_id)
        length, _ = completion_length(tokens, spec.stop_ids)
        texts.append(tokens[:length])
    return texts

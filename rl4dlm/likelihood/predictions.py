"""Recorded predictions as states to train on: what the sampler saw, and what it would have written everywhere
(MDPO, arXiv:2508.13148)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rl4dlm.diffusion.replay import state_before, step_prediction
from rl4dlm.types import REVEAL, Rollout, Trace


@dataclass(frozen=True)
class VisitedStates:
    """States that the sampler visited, and what it predicted there; arrays `[..., completion]`."""

    canvas: np.ndarray
    """int32: the mask token where the state hides."""
    prediction: np.ndarray
    """int32: the canvas with every mask filled by its prediction."""
    confidence: np.ndarray
    """float32: the sampler's confidence in the prediction; 0 where nothing is hidden."""
    logp: np.ndarray
    """float32, nats: of the prediction, as the sampler recorded it; 0 where `target` is not."""
    target: np.ndarray
    """bool: hidden positions that are trained on."""

    @classmethod
    def empty(cls, *shape: int) -> VisitedStates:
        """Nothing hidden, nothing to train on."""
        ids, numbers = np.int32, np.float32
        return cls(*(np.zeros(shape, dtype) for dtype in (ids, ids, numbers, numbers, bool)))

    def write(self, place: tuple[int, int], rollout: Rollout, step: int, mask_id: int, beyond: bool) -> None:
        """Put the state of a step at a place of these arrays.

        Args:
            place: index of all dimensions but the last.
            rollout: sampled with recorded predictions.
            step: from 0.
            mask_id: the model's mask token.
            beyond: train on predictions beyond the active block, too.
        """
        canvas, found = state_before(rollout, step, mask_id), step_prediction(rollout, step, mask_id)
        self.canvas[place], self.prediction[place] = canvas, canvas
        self.prediction[place][found.position] = found.token
        self.confidence[place][found.position] = found.confidence
        self.logp[place][found.position] = found.logp
        self.target[place] = canvas == mask_id
        if not beyond:
            self.target[place] &= block_of_commit(rollout.trace) <= rollout.trace.step_block[step]
        self.logp[place] *= self.target[place]


_TINY = 1e-4  # the released code's, beside counts of masked positions


def prediction_weights(visited: VisitedStates, *, by_confidence: bool) -> np.ndarray:
    """The weight of each prediction in the mean of its state: c_j / |S|, where S are the state's targets.

    Source: MDPO's released code (arXiv:2508.13148); the confidence approximates what is kept.

    Args:
        by_confidence: False: c = 1.

    Returns:
        float32 `[..., completion]`, 0 outside S.
    """
    confidence = visited.confidence if by_confidence else 1.0
    size = visited.target.sum(-1, keepdims=True)
    return (visited.target * confidence / (size + _TINY)).astype(np.float32)


def inverse_mask_rate(visited: VisitedStates, mask_id: int) -> np.ndarray:
    """lambda = L / (masked positions of the state): the ELBO's 1/t.

    Source: MDPO's released code (arXiv:2508.13148).

    Returns:
        float64 `[...]`.
    """
    return visited.canvas.shape[-1] / ((visited.canvas == mask_id).sum(-1) + _TINY)


def block_of_commit(trace: Trace) -> np.ndarray:
    """The active block when each position was first written, int64 `[completion]`.

    Every sampler writes all of a block before it begins the next, so this is the position's block; positions
    that were never reached (fillers) come after all blocks.
    """
    never = np.iinfo(np.int64).max
    block: np.ndarray = np.append(trace.step_block.astype(np.int64), never)
    if trace.events is None:
        return block[np.minimum(trace.step_map, len(block) - 1)]
    reveals = np.flatnonzero(trace.events.op == REVEAL)[::-1]  # the first reveal is written last, and stays
    step = np.searchsorted(trace.events.ptr, reveals, side="right") - 1
    first = np.full(len(trace.step_map), never)
    first[trace.events.pos[reveals]] = block[np.minimum(step, len(block) - 1)]
    return first

"""Replay of a recorded trajectory: every state the sampler saw, and what it did there.

The one place that knows how a trace is read, so sampler, trainer and player agree.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rl4dlm.types import FORCED, REVEAL, SAMPLED, Predictions, Rollout


class Commits(NamedTuple):
    """Tokens that the policy wrote in one step, in ascending order of positions."""

    position: np.ndarray
    """int64 `[tokens]`."""
    token: np.ndarray
    """int32 `[tokens]`; with a sampler that remasks it need not be the final one."""
    logp: np.ndarray
    """float32 `[tokens]`, nats, as recorded."""


class StepPrediction(NamedTuple):
    """One step of `Predictions`."""

    position: np.ndarray
    """int64 `[masked]`, ascending: canvas positions that were masked before the step."""
    token: np.ndarray
    """int32 `[masked]`."""
    logp: np.ndarray
    """float32 `[masked]`, nats."""
    confidence: np.ndarray
    """float32 `[masked]`."""


def state_before(rollout: Rollout, step: int, mask_id: int) -> np.ndarray:
    """The canvas as the model saw it at a step.

    Args:
        rollout: a recorded rollout.
        step: from 0; `num_steps` gives the canvas after the last step, one more shows the fillers too.
        mask_id: the model's mask token.

    Returns:
        int32 `[completion]`.
    """
    trace, events = rollout.trace, rollout.trace.events
    if events is None:
        return np.where(trace.step_map < step, rollout.completion_ids, mask_id).astype(np.int32)
    canvas: np.ndarray = np.full(len(rollout.completion_ids), mask_id, dtype=np.int32)
    past = slice(0, int(events.ptr[min(step, len(events.ptr) - 1)]))
    # Of several assignments to one place the last one counts.
    canvas[events.pos[past]] = events.token[past]
    return canvas


def commits_of(rollout: Rollout, step: int) -> Commits:
    """The tokens that the policy drew and wrote in a step: targets of a trajectory likelihood.

    Early commits and fillers are left out: they are no draws of their state.
    """
    trace, events = rollout.trace, rollout.trace.events
    if events is None:
        drawn = (trace.kind == SAMPLED) | (trace.kind == FORCED)
        where = np.flatnonzero(drawn & (trace.step_map == step))
        return Commits(where, rollout.completion_ids[where], trace.rollout_logp[where])
    inside = np.arange(events.ptr[step], events.ptr[step + 1])
    inside = inside[events.op[inside] == REVEAL]
    inside = inside[np.argsort(events.pos[inside], kind="stable")]
    return Commits(events.pos[inside].astype(np.int64), events.token[inside], events.logp[inside])


def step_prediction(rollout: Rollout, step: int, mask_id: int) -> StepPrediction:
    """What the sampler would have written at every masked position of a step.

    Raises:
        ValueError: the rollout was sampled without `record_predictions`.
    """
    found = _predictions(rollout)
    inside = slice(int(found.ptr[step]), int(found.ptr[step + 1]))
    position = np.flatnonzero(state_before(rollout, step, mask_id) == mask_id)
    return StepPrediction(position, found.token[inside], found.logp[inside], found.confidence[inside])


def prediction_at(rollout: Rollout, step: int, mask_id: int) -> np.ndarray:
    """The whole answer as the sampler saw it at a step: the canvas with every mask filled by its prediction.

    Returns:
        int32 `[completion]`.

    Raises:
        ValueError: the rollout was sampled without `record_predictions`.
    """
    canvas, predicted = state_before(rollout, step, mask_id), step_prediction(rollout, step, mask_id)
    canvas[predicted.position] = predicted.token
    return canvas


def _predictions(rollout: Rollout) -> Predictions:
    found = rollout.trace.predictions
    if found is None:
        raise ValueError(
            f"prompt uid {rollout.prompt_uid}, sample {rollout.sample}: predictions were not "
            "recorded; sample with SamplerSpec.record_predictions"
        )
    return found

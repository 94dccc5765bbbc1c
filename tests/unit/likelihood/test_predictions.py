from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny import tiny_rollout

from rl4dlm.likelihood.predictions import (
    VisitedStates,
    block_of_commit,
    inverse_mask_rate,
    prediction_weights,
)
from rl4dlm.types import EOS_FILLER, REMASK, REVEAL, SAMPLED, Events, Predictions, Trace

MASK = 4


def revealed(step_map, step_block, kind=None, **records) -> Trace:
    """A trace of which only the order and the blocks matter."""
    size = len(step_map)
    steps = np.arange(len(step_block))
    return Trace(
        step_map=np.array(step_map, np.int32),
        rank=np.zeros(size, np.int16),
        kind=np.full(size, SAMPLED, np.uint8) if kind is None else np.array(kind, np.uint8),
        rollout_logp=np.zeros(size, np.float32),
        score=np.zeros(size, np.float32),
        step_block=np.array(step_block, np.int16),
        step_masked=(size - steps).astype(np.int32),
        **records,
    )


@pytest.fixture
def rollout():
    """Four tokens in two blocks of two, committed 1, 0, 3, 2; predictions that are not all kept."""
    predictions = Predictions(
        ptr=np.int32([0, 4, 7, 9, 10]),
        token=np.int32([3, 1, 2, 2, 0, 2, 2, 1, 2, 2]),
        logp=-np.arange(1, 11, dtype=np.float32),
        confidence=np.arange(10, dtype=np.float32) / 10,
    )
    trace = revealed([1, 0, 3, 2], [0, 0, 1, 1], predictions=predictions)
    return replace(tiny_rollout([1], [0, 1, 2, 2]), num_steps=4, trace=trace)


def written(rollout, step: int, beyond: bool = True) -> VisitedStates:
    visited = VisitedStates.empty(2, 3, 4)
    visited.write((1, 2), rollout, step, MASK, beyond)
    assert not any(values[0].any() or values[1, :2].any() for values in vars(visited).values())
    return VisitedStates(*(values[1, 2] for values in vars(visited).values()))


def test_a_state_hides_what_was_masked_and_the_prediction_fills_it(rollout):
    visited = written(rollout, 1)
    assert visited.canvas.tolist() == [MASK, 1, MASK, MASK]
    assert visited.prediction.tolist() == [0, 1, 2, 2]
    assert visited.target.tolist() == [True, False, True, True]
    np.testing.assert_allclose(visited.confidence, [0.4, 0, 0.5, 0.6])
    np.testing.assert_allclose(visited.logp, [-5, 0, -6, -7])
    # The first prediction of all, before anything was committed, had another first token.
    assert written(rollout, 0).prediction.tolist() == [3, 1, 2, 2]


def test_training_can_stop_at_the_end_of_the_active_block(rollout):
    visited = written(rollout, 1, beyond=False)
    assert visited.target.tolist() == [True, False, False, False]
    assert visited.logp.tolist() == [-5, 0, 0, 0]
    assert written(rollout, 2, beyond=False).target.tolist() == [False, False, True, True]


def test_a_weight_is_the_confidence_over_the_number_of_targets(rollout):
    visited = written(rollout, 1)
    np.testing.assert_allclose(
        prediction_weights(visited, by_confidence=True), np.array([0.4, 0, 0.5, 0.6]) / 3.0001, rtol=1e-6
    )
    assert prediction_weights(visited, by_confidence=False) == pytest.approx(
        [1 / 3.0001, 0] + [1 / 3.0001] * 2
    )


def test_lambda_is_the_inverse_share_of_masked_positions_also_of_those_that_are_not_trained(rollout):
    for beyond in (True, False):
        assert inverse_mask_rate(written(rollout, 1, beyond), MASK) == pytest.approx(4 / 3.0001)


def test_fillers_come_after_all_blocks():
    trace = revealed([0, 1, 2, 2], [0, 0], kind=[SAMPLED, SAMPLED, EOS_FILLER, EOS_FILLER])
    assert (block_of_commit(trace) <= 0).tolist() == [True, True, False, False]


def test_a_position_that_was_taken_back_in_a_later_block_stays_in_its_own():
    # Steps: reveal 0 | reveal 1 | take 0 back, reveal 2 | reveal 0 and 3; blocks of two. Then no fillers.
    events = Events(
        ptr=np.int32([0, 1, 2, 4, 6, 6]),
        pos=np.int32([0, 1, 0, 2, 0, 3]),
        op=np.uint8([REVEAL, REVEAL, REMASK, REVEAL, REVEAL, REVEAL]),
        token=np.int32([1, 1, MASK, 2, 2, 3]),
        logp=np.zeros(6, np.float32),
    )
    trace = revealed([3, 1, 2, 3], [0, 0, 1, 1], events=events)
    assert block_of_commit(trace).tolist() == [0, 0, 1, 1]

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny import tiny_denoiser, tiny_rollout

from rl4dlm.rollout.partial import predicted_texts, rewarded_steps
from rl4dlm.types import Predictions

SPEC = tiny_denoiser().spec  # the mask is 4, end-of-text 3


@pytest.mark.parametrize(
    ("num_steps", "stride", "steps"),
    [(4, 1, [0, 1, 2, 3]), (8, 3, [0, 3, 6, 7]), (7, 3, [0, 3, 6]), (3, 9, [0, 2]), (1, 5, [0])],
)
def test_every_nth_step_and_the_last_are_rewarded(num_steps, stride, steps):
    assert rewarded_steps(num_steps, stride).tolist() == steps


def test_a_text_goes_up_to_the_first_stop_id_of_the_prediction():
    # Three steps from left to right: the first predicts `1 end 2`, the second `1 0 0`, the last `1 0 end`.
    predictions = Predictions(
        ptr=np.int32([0, 3, 5, 6]),
        token=np.int32([1, 3, 2, 0, 0, 3]),
        logp=np.zeros(6, np.float32),
        confidence=np.ones(6, np.float32),
    )
    rollout = tiny_rollout([2], [1, 0, 3])
    rollout = replace(rollout, trace=replace(rollout.trace, predictions=predictions))
    texts = predicted_texts(rollout, range(3), SPEC)
    assert [text.tolist() for text in texts] == [[1, 3], [1, 0, 0], [1, 0, 3]]


def test_the_last_prediction_is_the_completion():
    rollout = tiny_rollout([2, 1], [1, 0, 2, 3, 3])
    (text,) = predicted_texts(rollout, [rollout.num_steps - 1], SPEC)
    assert text.tolist() == [1, 0, 2, 3]

from __future__ import annotations

import numpy as np
import pytest

from rl4dlm.advantage.speed import with_speed


def test_a_reward_is_multiplied_by_the_share_of_steps_that_was_saved() -> None:
    # Of 8 steps 2, 4 and 8: factors (3/4)^2, (1/2)^2 and 0.
    reward = with_speed(np.array([1.0, 0.5, 1.0]), np.array([2, 4, 8]), most_steps=8, alpha=2.0)
    assert reward.tolist() == pytest.approx([0.5625, 0.125, 0.0])


def test_without_alpha_every_speed_has_the_factor_one() -> None:
    reward = np.array([1.0, 0.5, 0.0], dtype=np.float32)
    assert with_speed(reward, np.array([1, 8, 8]), most_steps=8, alpha=0.0).tolist() == reward.tolist()


def test_being_slow_does_not_soften_a_punishment() -> None:
    reward = with_speed(np.array([-1.0, np.nan]), np.array([4, 4]), most_steps=8, alpha=1.0)
    assert reward[0] == -1.0 and np.isnan(reward[1])

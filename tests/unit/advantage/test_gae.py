"""Returns and advantages along the trace, against the golden vector and its special cases."""

import numpy as np
import pytest

from rl4dlm.advantage.gae import place_on_last_step, trace_gae

STEP = np.array([0, 1, 1, 2, 0, 2])
REWARD = np.array([0, 0, 0, 1.2, 0, 1.2])
VALUE = np.array([0.1, 0.3, -0.1, 0.5, 0.3, 0.1])
ALL = np.ones(6, dtype=bool)


def gae(gamma, lam, value=VALUE, reward=REWARD, trainable=ALL):
    return trace_gae(reward, value, STEP, trainable, gamma=gamma, lam=lam)


def test_the_golden_vector():
    found = gae(0.9, 0.5)
    assert found.returns.tolist() == pytest.approx([0.972, 1.08, 1.08, 1.2, 0.972, 1.2])
    assert found.advantage.tolist() == pytest.approx([0.24875, 0.375, 0.775, 0.7, 0.04875, 1.1])


def test_without_discount_the_advantage_is_reward_minus_value():
    found = gae(1, 1)
    assert found.returns.tolist() == pytest.approx([1.2] * 6)
    assert found.advantage.tolist() == pytest.approx([1.1, 0.9, 1.3, 0.7, 0.9, 1.1])


def test_lambda_zero_is_the_one_step_difference():
    # V* = [.2, .1, .3]: r_j - V_j + gamma V*_{t+1}.
    expected = [-0.1 + 0.09, -0.3 + 0.27, 0.1 + 0.27, 0.7, -0.3 + 0.09, 1.1]
    assert gae(0.9, 0).advantage.tolist() == pytest.approx(expected)


def test_without_values_the_advantage_is_the_return_discounted_by_gamma_lambda():
    found, plain = gae(0.9, 0.5, value=np.zeros(6)), gae(0.45, 1, value=np.zeros(6))
    assert found.advantage.tolist() == pytest.approx(plain.returns.tolist())


def test_tokens_that_are_not_trained_make_no_steps_and_get_nothing():
    trainable = np.array([True, False, False, True, True, True])
    found = gae(0.5, 1, trainable=trainable)
    assert found.returns.tolist() == pytest.approx([0.6, 0, 0, 1.2, 0.6, 1.2])
    assert not found.advantage[1:3].any()
    nothing = gae(0.5, 1, trainable=np.zeros(6, dtype=bool))
    assert not nothing.returns.any() and not nothing.advantage.any()


def test_a_reward_lies_on_all_tokens_of_the_last_step():
    assert place_on_last_step(2.0, STEP, ALL).tolist() == [0, 0, 0, 2, 0, 2]
    until = np.array([True, True, True, False, True, False])
    assert place_on_last_step(2.0, STEP, until).tolist() == [0, 2, 2, 0, 0, 0]
    assert not place_on_last_step(2.0, STEP, np.zeros(6, dtype=bool)).any()

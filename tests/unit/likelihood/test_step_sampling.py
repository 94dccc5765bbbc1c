"""Sampling steps of a trajectory: the promised probabilities, the promised number."""

import numpy as np
import pytest

from rl4dlm.likelihood.step_sampling import inclusion_probabilities, systematic_sample


def test_equal_sizes_share_the_number_equally():
    assert inclusion_probabilities(np.ones(4), 3).tolist() == [0.75] * 4


def test_a_large_step_is_certain_and_the_others_share_the_rest():
    # 2 of [6, 1, 1]: the first would have 1.5; capped, the others share 1 equally.
    assert inclusion_probabilities(np.array([6.0, 1.0, 1.0]), 2).tolist() == [1.0, 0.5, 0.5]
    # 3 of [6, 2, 1, 1]: 1.8 -> 1, then 2 x [2, 1, 1]/4 = [1, .5, .5].
    assert inclusion_probabilities(np.array([6.0, 2.0, 1.0, 1.0]), 3).tolist() == [1.0, 1.0, 0.5, 0.5]


@pytest.mark.parametrize("num", [3, 5])
def test_as_many_as_there_are_or_more_means_all(num):
    assert inclusion_probabilities(np.array([1.0, 0.0, 2.0]), num).tolist() == [1, 1, 1]
    assert systematic_sample(np.ones(3), 0.3).all()


def test_no_steps_give_no_sample():
    assert systematic_sample(inclusion_probabilities(np.zeros(0), 2), 0.5).tolist() == []


def test_points_on_the_cumulative_sum_pick_the_steps():
    # Cumulative .5, 1, 1.5, 2; points .7 and 1.7 fall into the second and the fourth step.
    assert systematic_sample(np.full(4, 0.5), 0.7).tolist() == [False, True, False, True]


@pytest.mark.parametrize("num", [1, 2, 5])
def test_every_step_is_sampled_as_often_as_promised(num):
    size = np.array([0.2, 3.0, 1.0, 0.5, 0.5, 2.0, 0.1])
    probability = inclusion_probabilities(size, num)
    uniform = (np.arange(5000) + 0.5) / 5000
    samples = np.array([systematic_sample(probability, u) for u in uniform])
    assert (samples.sum(1) == num).all()
    np.testing.assert_allclose(samples.mean(0), probability, atol=5e-4)

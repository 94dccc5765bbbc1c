"""wd1: softmax weights within a group, and the likelihood that they weigh."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import tiny_denoiser, tiny_groups, tiny_scores

from rl4dlm.advantage.weights import softmax_weights
from rl4dlm.recipe.algorithms import WD1Config
from rl4dlm.trainers import make_method
from rl4dlm.trainers.passes import estimate_rows, micro_batches, step_size
from rl4dlm.trainers.passes import loss as loss_of_rows
from rl4dlm.trainers.prepare import prepare_batch

REWARD = [1, 0, 0.5, 0, 0, 0, 0, 0, 1, 1, 0, 0.25]
ONE_GROUP = np.zeros(4, dtype=np.int32)


def test_weights_are_those_of_the_golden_vector():
    raised, lowered = softmax_weights(np.array([1.0, 0, 0, -1]), ONE_GROUP, psi=1.0)
    assert raised.tolist() == pytest.approx([0.5344, 0.1966, 0.1966, 0.0723], abs=5e-5)
    assert (lowered - raised).tolist() == pytest.approx([-0.4621, 0, 0, 0.4621], abs=5e-5)


def test_groups_are_weighed_apart_wherever_their_rows_lie():
    advantage, group = np.array([1.0, 5, -1, 5, 0, 7]), np.array([0, 1, 0, 1, 0, 2])
    raised, lowered = softmax_weights(advantage, group, psi=2.0)
    alone, _ = softmax_weights(advantage[[0, 2, 4]], np.zeros(3), psi=2.0)
    assert raised[[0, 2, 4]].tolist() == pytest.approx(alone.tolist())
    assert raised[[1, 3, 5]].tolist() == lowered[[1, 3, 5]].tolist() == [0.5, 0.5, 1.0]


def test_a_shift_changes_nothing_and_huge_rewards_overflow_nothing():
    advantage = np.array([3.0, 1, 0, -2])
    first, second = (softmax_weights(advantage + shift, ONE_GROUP, psi=1.0) for shift in (0, 1000))
    assert first[0].tolist() == pytest.approx(second[0].tolist())
    raised, lowered = softmax_weights(np.array([1e6, 0, 0, -1e6]), ONE_GROUP, psi=1.0)
    assert raised.tolist() == [1, 0, 0, 0] and lowered.tolist() == [0, 0, 0, 1]


def test_a_sharp_softmax_compares_the_best_with_the_worst_alone():
    raised, lowered = softmax_weights(np.array([1.0, 0.9, 0, -1]), ONE_GROUP, psi=1000.0)
    assert (raised - lowered).tolist() == pytest.approx([1, 0, 0, -1])


def test_the_loss_is_the_mean_over_groups_of_weighted_sums_of_log_likelihoods():
    trainer, denoiser = make_method(WD1Config()), tiny_denoiser()
    batch, _ = prepare_batch(trainer, tiny_groups(), tiny_scores(REWARD), policy_version=0, seed=5)
    (micro,) = micro_batches(trainer, batch, range(12), 10**6)
    with torch.no_grad():
        logp = dict(
            zip(
                micro.rows, estimate_rows(trainer.likelihood, denoiser, batch, micro, 0).tolist(), strict=True
            )
        )
    expected = 0.0
    for number, rewards in enumerate(np.array(REWARD).reshape(3, 4)):
        raised, lowered = softmax_weights(rewards, ONE_GROUP, psi=1.0)
        for sample, weight in enumerate(lowered - raised):
            expected += weight * logp.get(4 * number + sample, 0.0) / 3
    step = step_size(trainer, batch, range(12))
    loss, _ = loss_of_rows(trainer, denoiser, batch, micro, 0, old=None, ref=None, current=None, step=step)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert set(micro.rows) == {0, 1, 2, 3, 8, 9, 10, 11}  # the group of equal rewards is not run

from __future__ import annotations

import numpy as np
import pytest

from rl4dlm.advantage.group import group_advantage, reward_metrics, shuffle_groups


def test_advantages_are_rewards_minus_the_mean_of_their_group():
    reward = np.array([1, 0, 0, 1, 5, 3], dtype=np.float32)
    group = np.array([0, 0, 0, 0, 7, 7])
    advantage = group_advantage(reward, group, scale_rewards="none")
    assert advantage.tolist() == [0.5, -0.5, -0.5, 0.5, 1.0, -1.0]
    assert advantage.dtype == np.float32


def test_rows_of_a_group_need_not_be_adjacent():
    advantage = group_advantage(np.array([1.0, 5.0, 3.0, 7.0]), np.array([2, 0, 2, 0]), scale_rewards="none")
    assert advantage.tolist() == [-1.0, -1.0, 1.0, 1.0]


def test_scaling_divides_by_the_sample_std_and_leaves_equal_rewards_at_zero():
    # Group 0: mean 2, deviations -1, 1, 0, sample variance (1 + 1 + 0) / 2 = 1. Group 1: all equal.
    advantage = group_advantage(
        np.array([1.0, 3.0, 2.0, 4.0, 4.0]), np.array([0, 0, 0, 1, 1]), scale_rewards="group"
    )
    np.testing.assert_allclose(advantage, [-1 / 1.0001, 1 / 1.0001, 0, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("scale_rewards", ["none", "group", "group_population", "batch"])
def test_equal_rewards_give_exactly_zero(scale_rewards):
    reward = np.full(7, 0.1, dtype=np.float32)
    assert not group_advantage(reward, np.zeros(7, dtype=int), scale_rewards=scale_rewards).any()


@pytest.mark.parametrize("scale_rewards", ["none", "group", "group_population", "batch"])
def test_a_constant_added_to_all_rewards_changes_nothing(scale_rewards):
    rng = np.random.default_rng(0)
    reward, group = rng.random(12), np.repeat(np.arange(3), 4)
    np.testing.assert_allclose(
        group_advantage(reward + 10, group, scale_rewards=scale_rewards),
        group_advantage(reward, group, scale_rewards=scale_rewards),
        atol=1e-6,
    )


def test_a_group_of_one_has_advantage_zero():
    assert group_advantage(np.array([3.0]), np.array([0]), scale_rewards="group").tolist() == [0.0]


def test_a_reward_that_is_not_finite_is_refused_with_its_row():
    with pytest.raises(ValueError, match=r"reward\[1\] = nan"):
        group_advantage(np.array([0.0, np.nan]), np.array([0, 0]), scale_rewards="none")


def test_reward_metrics_count_the_rows_whose_group_teaches_nothing():
    # Sample std over all rows: mean 1/3, squares 4 * (1/9) + 2 * (4/9) = 4/3, over 5.
    metrics = reward_metrics(np.array([1, 1, 0, 0, 0, 0], dtype=np.float32), np.array([0, 0, 1, 1, 2, 2]))
    assert metrics["reward"] == pytest.approx(1 / 3)
    assert metrics["reward_std"] == pytest.approx((4 / 15) ** 0.5)
    assert metrics["frac_reward_zero_std"] == 1.0
    metrics = reward_metrics(np.array([1, 0, 0, 0], dtype=np.float32), np.array([0, 0, 1, 1]))
    assert metrics["frac_reward_zero_std"] == 0.5


def test_reward_metrics_of_one_row_are_finite():
    assert reward_metrics(np.array([2.0], dtype=np.float32), np.array([0])) == {
        "reward": 2.0,
        "reward_std": 0.0,
        "frac_reward_zero_std": 1.0,
    }


def test_shuffled_groups_stay_whole_and_every_row_occurs_once():
    group = np.repeat([3, 1, 8, 5, 9], 4)
    parts = shuffle_groups(group, 2, seed=1)
    assert sorted(np.concatenate(parts).tolist()) == list(range(20))
    assert sorted(len(part) for part in parts) == [8, 12]
    assert not set(group[parts[0]]) & set(group[parts[1]])


def test_the_order_of_groups_follows_the_seed():
    group = np.repeat(np.arange(8), 2)
    orders = {tuple(tuple(part) for part in shuffle_groups(group, 4, seed)) for seed in range(20)}
    assert len(orders) > 15
    again = [part.tolist() for part in shuffle_groups(group, 4, 7)]
    assert again == [part.tolist() for part in shuffle_groups(group, 4, 7)]


def test_fewer_groups_than_parts_give_fewer_parts_and_none_empty():
    parts = shuffle_groups(np.array([0, 0, 4, 4]), 3, seed=0)
    assert [len(part) for part in parts] == [2, 2]

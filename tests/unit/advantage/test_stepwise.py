from __future__ import annotations

import numpy as np
import pytest

from rl4dlm.advantage.stepwise import (
    choose_steps,
    informative_steps,
    pad_rewards,
    step_advantages,
    step_signal,
)

# Specification 12.1: three completions of four steps.
REWARD = np.array([[0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]], dtype=np.float32)
ADVANTAGE = [
    [0.5772, 0.8728, -0.5773, -0.9999],
    [0.5772, 0.2182, 1.1546, 0.9999],
    [-1.1544, -1.0909, -0.5773, 0],
]
KINDS = ["reward", "mean_future_incl", "diff", "diff_plus_future"]


def test_a_step_is_worth_its_improvement_and_the_mean_of_what_follows():
    signal = step_signal(REWARD, "diff_plus_future")
    np.testing.assert_allclose(signal, [[2 / 3, 1.5, 0, -1], [2 / 3, 1, 2, 1], [0, 0, 0, 0]], atol=1e-12)


def test_the_ablations_leave_parts_of_it_out():
    np.testing.assert_array_equal(step_signal(REWARD, "reward"), REWARD)
    np.testing.assert_array_equal(step_signal(REWARD, "diff"), [[0, 1, 0, -1], [0, 0, 1, 0], [0, 0, 0, 0]])
    expected = [[2 / 4, 2 / 3, 1 / 2, 0], [2 / 4, 2 / 3, 1, 1], [0, 0, 0, 0]]
    np.testing.assert_allclose(step_signal(REWARD, "mean_future_incl"), expected, atol=1e-12)


def test_the_only_step_is_worth_its_reward_twice():
    # d = r, and with nothing in the future f = r.
    assert step_signal(np.array([[0.5]]), "diff_plus_future").tolist() == [[1.0]]


def test_improvements_add_up_to_the_final_reward():
    reward = np.random.default_rng(0).random((5, 9))
    np.testing.assert_allclose(step_signal(reward, "diff").sum(1), reward[:, -1])


def test_advantages_of_the_golden_example():
    np.testing.assert_allclose(step_advantages(REWARD, "diff_plus_future"), ADVANTAGE, atol=6e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_has_mean_zero_and_unit_spread_over_the_group(kind):
    advantage = step_advantages(np.random.default_rng(1).random((6, 5)), kind)
    np.testing.assert_allclose(advantage.mean(0), 0, atol=1e-6)
    # Divided by the sample standard deviation + 1e-4.
    np.testing.assert_allclose(advantage.std(0, ddof=1), 1, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_added_to_all_rewards_changes_no_advantage(kind):
    reward = np.random.default_rng(2).random((4, 7))
    np.testing.assert_allclose(step_advantages(reward + 3, kind), step_advantages(reward, kind), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_completions_with_equal_rewards_have_advantage_zero(kind):
    assert not step_advantages(np.tile(np.float32([0, 0.3, 1]), (4, 1)), kind).any()


def test_the_most_informative_steps_of_the_golden_example():
    # Sums of |A|: 2.3088, 2.1819, 2.3092, 1.9998.
    advantage = step_advantages(REWARD, "diff_plus_future")
    assert informative_steps(advantage, np.ones((3, 4), bool), 2).tolist() == [2, 0]


def test_more_steps_than_there_are_means_all_of_them_and_ties_go_to_the_earlier_step():
    advantage = np.float32([[1, 2, 1], [-1, -2, -1]])
    assert informative_steps(advantage, np.ones((2, 3), bool), 9).tolist() == [1, 0, 2]


def test_a_finished_completion_keeps_its_last_reward():
    reward, taken = pad_rewards([np.float32([0, 1]), np.float32([0.5, 0, 0, 0.25])])
    assert reward.tolist() == [[0, 1, 1, 1], [0.5, 0, 0, 0.25]]
    assert taken.tolist() == [[True, True, False, False], [True] * 4]


def test_steps_of_finished_completions_do_not_make_a_step_informative():
    advantage = np.float32([[1, 5], [-1, 0]])
    assert informative_steps(advantage, np.array([[True, False], [True, True]]), 1).tolist() == [0]


def test_all_completions_of_a_group_share_their_steps_and_groups_choose_apart():
    other = np.float32([[0, 0, 0, 0], [0, 0, 0, 1]])
    rewards, group = [*REWARD, *other], np.array([5, 5, 5, 2, 2])
    choice = choose_steps(rewards, group, 2, "diff_plus_future", keep_zero=True)
    assert choice.step[:3].tolist() == [[2, 0]] * 3
    np.testing.assert_allclose(choice.advantage[:3], np.array(ADVANTAGE)[:, [2, 0]], atol=6e-5)
    # Of the other group every step differs alike: a = (1/3, 1/2, 1, 2) against zeros, scaled to +-0.7.
    assert choice.step[3:].tolist() == [[3, 2]] * 2
    assert choice.share.tolist() == [[0.5, 0.5]] * 5


def test_steps_that_teach_a_completion_nothing_are_left_out_but_keep_their_share():
    choice = choose_steps(list(REWARD), np.zeros(3, int), 4, "diff_plus_future")
    # Order by informativeness: 2, 0, 1, 3; the third completion's advantage at step 3 is 0.
    assert choice.step.tolist() == [[2, 0, 1, 3], [2, 0, 1, 3], [2, 0, 1, -1]]
    assert choice.share.tolist() == [[0.25] * 4, [0.25] * 4, [0.25] * 3 + [0]]
    assert choice.advantage[2, 3] == 0


def test_a_completion_is_not_trained_on_steps_that_it_did_not_take():
    rewards = [np.float32([1]), np.float32([0, 1, 0])]
    choice = choose_steps(rewards, np.zeros(2, int), 3, "diff_plus_future", keep_zero=True)
    assert (choice.step[0] >= 0).sum() == 1 and choice.step[0, 0] == 0
    assert sorted(choice.step[1].tolist()) == [0, 1, 2]
    np.testing.assert_allclose(choice.share[:, 0], 1 / 3)

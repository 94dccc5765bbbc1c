"""The states of recorded trajectories, against the golden vectors and by enumeration."""

import numpy as np
import pytest
from tiny import conditional_table, tiny_denoiser

from rl4dlm.likelihood.states import state_logp
from rl4dlm.likelihood.trajectory import Trajectories, count_states, rounds, shrink_steps, trajectory_states

STEPS = np.array([3, 1, 2, 2, 5, 4, 4, 6])
BLOCK = np.array([0, 0, 0, 0, 1, 1, 1, 1])
ALL = np.ones(8, dtype=bool)


def positions(mask) -> set[int]:
    return set(np.flatnonzero(np.asarray(mask)).tolist())


def one(step_map, trainable=None, drawn=None, block=None) -> Trajectories:
    steps = np.array([step_map])
    ones = np.ones(steps.shape, dtype=bool)
    return Trajectories(
        steps,
        ones if drawn is None else np.array([drawn]),
        ones if trainable is None else np.array([trainable]),
        np.zeros_like(steps) if block is None else np.array([block]),
    )


def test_rounds_train_the_next_step_of_every_block_as_the_golden_vector_says():
    made = rounds(STEPS, ALL, BLOCK)
    assert [(positions(hidden), positions(target)) for hidden, target in made] == [
        (set(range(8)), {1, 5, 6}),
        ({0, 2, 3, 4, 7}, {2, 3, 4}),
        ({0, 7}, {0, 7}),
    ]


def test_shrinking_merges_steps_within_each_block_as_the_golden_vector_says():
    merged = shrink_steps(STEPS, ALL, BLOCK, 2)
    assert merged.tolist() == [3, 2, 2, 2, 5, 5, 5, 6]
    assert [(positions(h), positions(t)) for h, t in rounds(merged, ALL, BLOCK)] == [
        (set(range(8)), {1, 2, 3, 4, 5, 6}),
        ({0, 7}, {0, 7}),
    ]


@pytest.mark.parametrize("shrink", [1, 2, 3, 8])
def test_every_action_is_scored_once_and_the_count_is_known_beforehand(shrink):
    trainable = ALL.copy()
    trainable[[2, 7]] = False
    rows = Trajectories(
        np.stack([STEPS, STEPS[::-1]]),
        np.stack([ALL, ALL]),
        np.stack([trainable, ALL]),
        np.stack([BLOCK] * 2),
    )
    states = trajectory_states(rows, shrink)
    for row, actions in enumerate(rows.trainable):
        assert states.target[states.row == row].sum(0).tolist() == actions.astype(int).tolist()
    assert count_states(rows, shrink).tolist() == [(states.row == row).sum().item() for row in (0, 1)]
    assert not (states.target & ~states.is_masked).any()


def test_merging_all_steps_hides_the_whole_completion():
    states = trajectory_states(one(STEPS), shrink=8)
    assert len(states) == 1 and states.is_masked.all()


def test_fillers_stay_hidden_and_given_tokens_stay_visible():
    # Position 0 was given, 3 is a filler after the last step.
    drawn = [False, True, True, False]
    states = trajectory_states(one([-1, 1, 0, 2], drawn, drawn), shrink=1)
    assert states.is_masked.tolist() == [[False, True, True, True], [False, True, False, True]]
    assert states.target.tolist() == [[False, False, True, False], [False, True, False, False]]


def test_actions_that_are_not_trained_still_define_the_states():
    # Position 1, drawn second, lies beyond the end of text: it is hidden before, and visible after its step.
    states = trajectory_states(one([2, 1, 0], trainable=[True, False, True]), shrink=1)
    assert states.is_masked.tolist() == [[True, True, True], [True, False, False]]


def test_log_probabilities_are_the_conditionals_of_the_visited_states():
    denoiser, prompt, completion = tiny_denoiser(max_length=8), [2, 0], [1, 3, 0]
    table = conditional_table(denoiser, prompt, completion)  # [2^L, L]
    states = trajectory_states(one([1, 0, 2]), shrink=1)
    logp = state_logp(denoiser, [np.array(prompt)], np.array([completion]), states)
    # Hidden sets {0,1,2}, {0,2}, {2} have codes 7, 5, 4; positions 1, 0, 2 are drawn.
    expected = [table[7, 1].item(), table[5, 0].item(), table[4, 2].item()]
    assert logp.sum(1).tolist() == pytest.approx(expected, abs=1e-12)


def test_all_orders_of_a_sequence_sum_to_probability_one():
    """Random order and exact conditionals: the trajectory likelihoods of all sequences sum to 1."""
    denoiser, total = tiny_denoiser(num_tokens=3, max_length=6), 0.0
    for code in range(3**3):
        completion = [code // 3**i % 3 for i in range(3)]
        states = trajectory_states(one([2, 0, 1]), shrink=1)
        logp = state_logp(denoiser, [np.array([1])], np.array([completion]), states)
        total += logp.sum().exp().item()
    assert total == pytest.approx(1.0, abs=1e-12)

"""Rewards of chunks: where chunks end, how they are compared, where they land."""

import numpy as np
import pytest

from rl4dlm.advantage.process import chunk_ends, compare_chunks, place_chunks


@pytest.mark.parametrize(("length", "ends"), [(10, [4, 8, 10]), (8, [4, 8]), (3, [3]), (4, [4])])
def test_the_last_chunk_may_be_shorter(length, ends):
    assert chunk_ends(length, 4) == ends


def test_chunks_are_compared_at_equal_index_within_the_group():
    rewards = [np.array([1.0, 0.0]), np.array([0.0]), np.array([5.0, 1.0]), np.array([3.0, 3.0])]
    compared = compare_chunks(rewards, np.array([0, 0, 1, 1]), scale_rewards="none")
    # First chunks: means .5 and 4; second chunks: alone in group 0 (so 0), mean 2 in group 1.
    assert [row.tolist() for row in compared] == [[0.5, 0.0], [-0.5], [1.0, -1.0], [-1.0, 1.0]]


def test_a_chunks_reward_lands_on_the_tokens_of_its_last_step():
    step = np.array([1, 3, 3, 0, 2, 5])
    placed = place_chunks(np.array([0.5, -1.0]), [3, 6], step, np.ones(6, dtype=bool))
    assert placed.tolist() == [0, 0.5, 0.5, 0, 0, -1.0]

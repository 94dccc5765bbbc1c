from __future__ import annotations

from rl4dlm.decoding.schedules import block_schedule


def test_the_even_schedule_is_an_even_split() -> None:
    assert block_schedule("even", 32, 5) == (7, 7, 6, 6, 6)


def test_dreams_time_grid_rounds_down_and_leaves_the_rest_for_the_last_step() -> None:
    # 8 positions, 4 steps: 1 - s/t = .24975 / t at t = 1, .75025, .5005, .25075; 8 x .24975 = 1.998 -> 1,
    # 7 x .3329 = 2.33 -> 2, 5 x .499 = 2.495 -> 2, the last step takes 3.
    assert block_schedule("time_grid", 8, 4) == (1, 2, 2, 3)


def test_steps_of_the_time_grid_that_reveal_nothing_are_left_out() -> None:
    # One step per token: the first reveals floor(4 x .24975) = 0 and the last takes what is missing.
    counts = block_schedule("time_grid", 4, 4)
    assert (sum(counts), min(counts), len(counts)) == (4, 1, 3)

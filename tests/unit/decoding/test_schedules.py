from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl4dlm.decoding.schedules import block_schedule
from rl4dlm.recipe.samplers import CountSchedule


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


@pytest.mark.parametrize(
    ("schedule", "tokens", "steps", "counts"),
    [
        # Left after each step: 7.5, 5, 2.5 and 0, rounded down.
        ("linear", 10, 4, (3, 2, 3, 2)),
        # .1 of 10 is 1 in float32, and a little less in float64.
        ("linear", 10, 10, (1,) * 10),
        # 8 cos(pi i / 8) = 7.39, 5.66, 3.06, 0.
        ("cosine", 8, 4, (1, 2, 2, 3)),
        # 8 (1 - i^2 / 16) = 7.5, 6, 3.5, 0; 8 (1 - i^3 / 64) = 7.875, 7, 4.625, 0.
        ("pow2", 8, 4, (1, 1, 3, 3)),
        ("pow3", 8, 4, (1, 3, 4)),
        # -8 log2(i / 4) / 3 = 5.33, 2.67, 1.11, 0.
        ("log", 8, 4, (3, 3, 1, 1)),
        # 8 (1 - 2^(-3 (1 - i / 4))) = 6.32, 5.17, 3.24, 0.
        ("exp", 8, 4, (2, 1, 2, 3)),
        ("log", 1, 1, (1,)),
        ("exp", 1, 1, (1,)),
    ],
)
def test_maskgits_schedules_round_down_what_is_left(
    schedule: CountSchedule, tokens: int, steps: int, counts: tuple[int, ...]
) -> None:
    assert block_schedule(schedule, tokens, steps) == counts


@given(st.sampled_from(get_args(CountSchedule)), st.integers(1, 300), st.data())
def test_every_schedule_commits_each_token_once(
    schedule: CountSchedule, tokens: int, data: st.DataObject
) -> None:
    counts = block_schedule(schedule, tokens, data.draw(st.integers(1, tokens)))
    assert sum(counts) == tokens and min(counts) > 0

"""Ranks run as many passes, whatever their shares."""

from __future__ import annotations

import pytest

from rl4dlm.learner.passes import in_step


@pytest.mark.parametrize("plans", [[["a", "b", "c"], ["d"], []], [["a"], ["b"]], [[], []], [[]]])
def test_every_rank_runs_the_longest_plan_and_its_own_passes_once(plans: list[list[str]]) -> None:
    longest = max(map(len, plans))
    for rank, mine in enumerate(plans):
        passes = list(in_step(plans, rank, lambda: "filler"))
        assert len(passes) == longest
        assert [one for one, real in passes if real] == mine
        assert {one for one, real in passes if not real} <= {"filler"}


def test_a_filler_is_made_only_where_it_is_needed() -> None:
    def never() -> str:
        raise AssertionError("no filler is needed")

    assert list(in_step([["a"], ["b"]], 1, never)) == [("b", True)]

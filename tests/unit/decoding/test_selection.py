from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl4dlm.decoding.selection import above_threshold, top_k, within_entropy, within_factor

CELL = st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(CELL, min_size=6, max_size=6), st.integers(0, 9)), min_size=1, max_size=4))
def test_each_row_takes_its_best_eligible_positions(rows: list) -> None:
    score = torch.tensor([[cell[0] for cell in cells] for cells, _ in rows])
    eligible = torch.tensor([[cell[1] for cell in cells] for cells, _ in rows])
    chosen, rank = top_k(score, eligible, torch.tensor([count for _, count in rows]))
    for i, (cells, count) in enumerate(rows):
        candidates = [position for position, cell in enumerate(cells) if cell[1]]
        best = sorted(candidates, key=lambda position, cells=cells: (-cells[position][0], position))[:count]
        assert chosen[i].nonzero().flatten().tolist() == sorted(best)
        assert [int(rank[i, position]) for position in best] == list(range(len(best)))


def test_equal_scores_go_to_the_lower_position() -> None:
    chosen, rank = top_k(torch.full((1, 64), 0.5), torch.ones(1, 64, dtype=torch.bool), torch.tensor([3]))
    assert chosen[0].nonzero().flatten().tolist() == [0, 1, 2]
    assert rank[0, :3].tolist() == [0, 1, 2]


def test_a_count_beyond_the_eligible_positions_never_reaches_the_others() -> None:
    eligible = torch.tensor([[False, True, False, True], [False, False, False, False]])
    chosen, _ = top_k(torch.tensor([[9.0, 0.1, 9.0, 0.2]] * 2), eligible, torch.tensor([4, 4]))
    assert torch.equal(chosen, eligible)


EVERYWHERE = torch.ones(1, 4, dtype=torch.bool)


def test_a_threshold_is_reached_or_exceeded() -> None:
    score = torch.tensor([[0.9, 0.5, 0.75, 0.75]])
    assert above_threshold(score, EVERYWHERE, 0.75, strict=False).tolist() == [3]
    assert above_threshold(score, EVERYWHERE, 0.75, strict=True).tolist() == [1]
    assert above_threshold(score, score < 0.8, 0.75, strict=False).tolist() == [2]


def test_the_factor_rule_stops_at_the_first_rank_that_fails() -> None:
    # (n + 1)(1 - c): 2 x .01 = .02, 3 x .2 = .6, 4 x .3 = 1.2, 5 x .35 = 1.75.
    score = torch.tensor([[0.7, 0.99, 0.65, 0.8]])
    for factor, count in ((0.0, 0), (0.5, 1), (1.0, 2), (1.5, 3), (2.0, 4)):
        assert within_factor(score, EVERYWHERE, factor).tolist() == [count]
    # Two masks, .99 and .2: the second fails 3 x .8 < 1 and is not taken for being the last (specs: X5).
    assert within_factor(torch.tensor([[0.99, 0.2]]), EVERYWHERE[:, :2], 1.0).tolist() == [1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 9))
def test_the_factor_rule_is_the_largest_rank_that_passes(scores: list, factor: float) -> None:
    ordered = sorted(scores, reverse=True)
    passing = [n for n, c in enumerate(ordered, start=1) if (n + 1) * (1 - c) < factor]
    row = torch.tensor([scores], dtype=torch.float64)
    assert within_factor(row, torch.ones_like(row, dtype=torch.bool), factor).item() == max(
        passing, default=0
    )


def test_an_entropy_budget_leaves_the_largest_out_or_counts_it() -> None:
    entropy = torch.tensor([[0.5, 0.1, 0.2, 0.4]])
    # Ascending .1, .2, .4, .5: sums of all but the last 0, .1, .3, .7; of all .1, .3, .7, 1.2.
    for budget, paper, whole in ((0.0, 1, 0), (0.11, 2, 1), (0.35, 3, 2), (0.75, 4, 3), (2.0, 4, 4)):
        assert within_entropy(entropy.double(), EVERYWHERE, budget, count_last=False).item() == paper
        assert within_entropy(entropy.double(), EVERYWHERE, budget, count_last=True).item() == whole
    few = torch.tensor([[True, False, False, True]])
    assert within_entropy(entropy, few, 9.0, count_last=False).tolist() == [2]

from __future__ import annotations

import torch

from rl4dlm.decoding import block_span, num_blocks


def test_blocks_follow_each_other_on_the_canvas() -> None:
    assert block_span(torch.tensor([0, 2]), 3, 0, 9).tolist() == [[0, 3], [6, 9]]
    assert num_blocks(9, 3, 0) == 3


def test_a_prompts_tail_shortens_the_first_block_and_lengthens_the_last() -> None:
    # A prompt of 6 tokens leaves 2 in the block of 4 that a canvas of 8 begins in: blocks of 2, 4 and 2.
    spans = block_span(torch.tensor([0, 1, 2]), 4, 2, 8).tolist()
    assert spans == [[0, 2], [2, 6], [6, 8]]
    assert num_blocks(8, 4, 2) == 3


def test_rows_may_have_blocks_of_their_own() -> None:
    spans = block_span(torch.tensor([1, 1]), torch.tensor([4, 8]), torch.tensor([3, 0]), 12)
    assert spans.tolist() == [[1, 5], [8, 12]]

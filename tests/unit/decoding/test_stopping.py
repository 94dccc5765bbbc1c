from __future__ import annotations

import numpy as np
import torch

from rl4dlm.decoding import completion_length, ends_row


def test_a_block_with_a_stop_id_ends_the_row_under_block_eos_only() -> None:
    last = torch.tensor([False, False, False, True])
    stops = torch.tensor([[0, 0], [0, 1], [1, 0], [0, 0]], dtype=torch.bool)
    assert ends_row(last, stops, "block_eos").tolist() == [False, True, True, True]
    assert ends_row(last, stops, "none").tolist() == [False, False, False, True]


def test_a_completion_ends_with_its_first_stop_id() -> None:
    assert completion_length(np.array([1, 2, 9, 3, 8]), (8, 9)) == (3, True)
    assert completion_length(np.array([8, 2]), (8, 9)) == (1, True)
    assert completion_length(np.array([1, 2, 3]), (8, 9)) == (3, False)

from __future__ import annotations

import numpy as np
import pytest
import torch

from rl4dlm.decoding import completion_length, ends_row

# Canvases of 6 tokens in blocks of 2: a token, a stop id, a mask.
CANVASES = ["tt tt tt", "ts tt mm", "ss mm mm", "ts ms mm", "tm sm mm", "ts mm mm", "tm mm mm"]
BLOCKS = [2, 1, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("policy", "ended"),
    [
        ("none", [0]),
        # The stop id of an earlier block counts, too, once the active one is finished.
        ("block_eos", [0, 1, 2, 5]),
        ("block_all_eos", [0, 2]),
        # Row 3: the first stop id has no mask before it. Row 4: a mask stands before it.
        ("accepted_eos", [0, 1, 2, 3, 5]),
    ],
)
def test_a_policy_ends_the_rows_it_is_meant_to(policy: str, ended: list[int]) -> None:
    rows = [list(canvas.replace(" ", "")) for canvas in CANVASES]
    stop, masked = (torch.tensor([[token == kind for token in row] for row in rows]) for kind in "sm")
    block = torch.tensor(BLOCKS)
    active = torch.arange(6)[None] // 2 == block[:, None]
    assert ends_row(stop, masked, active, block == 2, policy).nonzero().flatten().tolist() == ended


def test_a_completion_ends_with_its_first_stop_id() -> None:
    assert completion_length(np.array([1, 2, 9, 3, 8]), (8, 9)) == (3, True)
    assert completion_length(np.array([8, 2]), (8, 9)) == (1, True)
    assert completion_length(np.array([1, 2, 3]), (8, 9)) == (3, False)

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from tiny import tiny_rollout

from rl4dlm.likelihood.packing import action_mask, pack_rows, split_by_tokens


def test_prompts_are_padded_on_the_left_to_the_longest_at_hand():
    packed = pack_rows(
        [np.array([7]), np.array([5, 6, 7])], np.array([[1, 2], [3, 4]]), pad_id=9, device="cpu"
    )
    assert packed.input_ids.tolist() == [[9, 9, 7, 1, 2], [5, 6, 7, 3, 4]]
    assert packed.attention_mask.tolist() == [[False, False, True, True, True], [True] * 5]
    assert packed.canvas_start == 3
    assert packed.input_ids.dtype == torch.int64


def test_prompts_of_one_length_need_no_attention_mask():
    packed = pack_rows([np.array([7, 8]), np.array([5, 6])], np.array([[1], [3]]), pad_id=7, device="cpu")
    assert packed.attention_mask is None


def test_read_only_arrays_as_ray_hands_them_out_are_accepted():
    prompt, completion = np.array([7], dtype=np.int32), np.array([[1, 2]], dtype=np.int32)
    prompt.flags.writeable = completion.flags.writeable = False
    assert pack_rows([prompt], completion, pad_id=0, device="cpu").input_ids.tolist() == [[7, 1, 2]]


def test_fillers_are_never_actions_and_the_first_stop_id_is():
    stopped, full = tiny_rollout([0], [1, 2, 3, 3, 3]), tiny_rollout([0], [1, 2, 0, 1, 2])
    for until_eos in (False, True):
        mask = action_mask([stopped, full], until_eos=until_eos)
        assert mask.tolist() == [[True, True, True, False, False], [True] * 5]


def test_tokens_sampled_after_the_first_stop_id_are_actions_of_the_canvas_alone():
    rollout = tiny_rollout([0], [1, 2, 3, 3, 1])
    sampled = dataclasses.replace(
        rollout, trace=dataclasses.replace(rollout.trace, kind=np.zeros(5, np.uint8))
    )
    assert action_mask([sampled], until_eos=False).tolist() == [[True] * 5]
    assert action_mask([sampled], until_eos=True).tolist() == [[True, True, True, False, False]]


def test_passes_hold_every_row_once_within_the_padded_budget():
    rng = np.random.default_rng(0)
    for _ in range(50):
        tokens = rng.integers(1, 40, size=rng.integers(1, 30)).tolist()
        budget = int(rng.integers(40, 120))
        passes = split_by_tokens(tokens, budget)
        assert sorted(index for part in passes for index in part) == list(range(len(tokens)))
        assert all(len(part) * max(tokens[i] for i in part) <= budget for part in passes)


def test_the_largest_pass_comes_first_and_a_row_above_the_budget_is_alone():
    # 50 > 40 is alone; 20 + 20 = 40 fits; 3 rows padded to 10 fit.
    assert split_by_tokens([10, 20, 50, 9, 20, 10], 40) == [[2], [1, 4], [0, 5, 3]]


def test_no_rows_give_no_passes():
    assert split_by_tokens([], 10) == []

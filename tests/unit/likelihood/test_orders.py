from __future__ import annotations

import numpy as np
import torch
from tiny import conditional_table, subset_code, tiny_denoiser

from rl4dlm.likelihood.elbo import ElboSettings, elbo
from rl4dlm.likelihood.orders import blockwise_plan, random_order_plan

SEED = np.array([3, 4])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=bool)


def test_all_steps_of_an_order_score_every_token_once_given_those_before_it():
    plan = random_order_plan(SEED, MASK, 0, 5)
    hidden, scored = plan.is_masked[0], plan.weight[0] > 0
    assert sorted(hidden.sum(-1).tolist()) == [1, 2, 3, 4, 5]
    assert scored.sum(0).tolist() == [1] * 5 and scored.sum(1).tolist() == [1] * 5
    by_size = hidden[hidden.sum(-1).argsort()]
    assert (by_size[:-1] <= by_size[1:]).all()  # one order: each step hides what the later ones hide
    assert (plan.weight[0][scored] == 1).all()


def test_a_whole_order_is_the_log_probability_of_its_trajectory():
    denoiser, prompt, completion = tiny_denoiser(), [2, 0], [0, 1, 2, 3, 0]
    plan = random_order_plan(SEED[:1], MASK[:1], 0, 5)
    table = conditional_table(denoiser, prompt, completion)
    left, expected = plan.is_masked[0][plan.is_masked[0].sum(-1).argmax()], 0.0
    for size in (5, 4, 3, 2, 1):
        state = int((plan.is_masked[0].sum(-1) == size).nonzero())
        token = int(plan.weight[0, state].nonzero())
        assert torch.equal(left, plan.is_masked[0, state])
        expected += table[subset_code(left), token].item()
        left = left.clone()
        left[token] = False
    value = elbo(denoiser, [np.array(prompt)], np.array([completion]), plan)
    assert abs(value.item() - expected) < 1e-9


def test_fewer_steps_weigh_more_and_never_leave_the_loss_mask():
    plan = random_order_plan(SEED, MASK, 0, 2)
    assert plan.weight[0][plan.weight[0] > 0].tolist() == [2.5, 2.5]
    assert plan.weight[1][plan.weight[1] > 0].tolist() == [1.5, 1.5]
    assert not plan.is_masked[1, :, 3:].any()
    assert (plan.is_masked[0, 0] != plan.is_masked[0, 1]).any()


def test_other_passes_and_rows_have_other_orders_and_every_order_occurs():
    many = np.full((600, 3), True)
    plan = random_order_plan(np.arange(600), many, 0, 3)
    by_size = plan.is_masked.sum(-1).argsort(dim=-1)
    last = plan.weight.gather(1, by_size[..., None].expand_as(plan.weight)).argmax(-1)  # [rows, 3]
    orders, counts = torch.unique(last, dim=0, return_counts=True)
    assert len(orders) == 6
    assert (counts > 60).all()  # 100 expected, standard deviation 9
    again = random_order_plan(np.arange(600), many, 1, 3)
    assert not torch.equal(again.is_masked, plan.is_masked)


def test_blocks_have_orders_of_their_own_and_a_state_is_a_step_of_all():
    block = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1, 1, 1]])
    plan = random_order_plan(SEED, MASK, 0, 2, block)
    scored = (plan.weight > 0)[0]
    assert scored[:, :2].sum(1).tolist() == [1, 1] and scored[:, 2:].sum(1).tolist() == [1, 1]
    assert plan.weight[0, :, :2].max() == 1.0 and plan.weight[0, :, 2:].max() == 1.5


def test_block_by_block_shows_what_is_before_a_block_and_hides_what_is_after():
    block = torch.tensor([[0, 0, 1, 1, 2], [0, 0, 1, 1, 2]])
    plan = blockwise_plan(SEED, MASK, 0, ElboSettings("stratified", 2, 1, "round_half"), block)
    assert plan.is_masked.shape == (2, 6, 5)
    middle = plan.is_masked[0, 2:4]
    assert not middle[:, :2].any() and middle[:, 4].all() and middle[:, 2:4].any(1).all()
    assert (plan.weight[0, 2:4, [0, 1, 4]] == 0).all()
    # Both counts of a block of two once: weights 2 and 1, halved; of one: 1, halved twice.
    assert sorted(plan.weight[0, 2:4].max(-1).values.tolist()) == [0.5, 1.0]
    assert plan.weight[0, 4:, 4].tolist() == [0.5, 0.5]
    # The short row: its third token is a block, its last block holds nothing to estimate.
    assert not plan.is_masked[1, :, 3:].any() and (plan.weight[1, 4:] == 0).all()

"""UniGRPO: rates that spread over the passes, and masked tokens that stand for all."""

import numpy as np
import pytest
import torch
from method_toys import batch_of, estimate, loss_of, make, perturbed, states_of
from tiny import conditional_table, subset_code, tiny_denoiser, tiny_groups

from rl4dlm.trainers.unigrpo import spread_rate


def test_rates_go_from_the_first_to_one_in_equal_steps():
    first = torch.tensor([0.1, 0.4], dtype=torch.float64)
    rates = torch.stack([spread_rate(first, inner, 4) for inner in range(4)], dim=1)
    expected = [[0.1, 0.4, 0.7, 1.0], [0.4, 0.6, 0.8, 1.0]]
    torch.testing.assert_close(rates, torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(spread_rate(first, 0, 1), first)


def test_only_actions_are_scored_and_the_last_pass_scores_all_of_them():
    trainer = make(type="unigrpo")
    batch = batch_of(trainer)
    action = torch.from_numpy(batch.loss_mask)
    for inner in range(4):
        states = states_of(trainer, batch, range(12), inner)
        assert not (states.target & ~action).any() and states.target.any(1).all()
        assert torch.equal(states.is_masked, states.target | ~action)  # completions end once
    assert torch.equal(states.target, action)


def test_masked_tokens_stand_for_all_actions_of_their_row():
    trainer = make(type="unigrpo")
    batch = batch_of(trainer)
    states = states_of(trainer, batch, range(12), 0)
    total = states.stands_for.sum(1)
    torch.testing.assert_close(total, torch.from_numpy(batch.loss_mask.sum(1)).double())


def test_hidden_tokens_are_scored_given_the_others():
    trainer, denoiser = make(type="unigrpo"), tiny_denoiser()
    batch = batch_of(trainer)
    values, states = estimate(trainer, denoiser, batch, 1), states_of(trainer, batch, range(12), 1)
    for row in range(12):
        table = conditional_table(denoiser, batch.prompt_ids[row], batch.completion_ids[row])
        expected = table[subset_code(states.is_masked[row])] * states.target[row]
        torch.testing.assert_close(values[row], expected, atol=1e-12, rtol=0)


def test_the_loss_is_the_mean_over_rows_of_the_mean_over_masked_tokens():
    trainer = make(type="unigrpo", beta=0.0, epsilon=0.1)
    batch, now = batch_of(trainer), perturbed()
    old = estimate(trainer, tiny_denoiser(), batch, 1)
    loss, metrics = loss_of(trainer, now, batch, inner=1, old=old)
    new, masks = estimate(trainer, now, batch, 1).numpy(), states_of(trainer, batch, range(12), 1).target
    rows, ratios = [], []
    for row in range(12):
        ratio = np.exp(new[row] - old[row].numpy())[masks[row].numpy()]
        gain = np.minimum(ratio * batch.advantage[row], ratio.clip(0.9, 1.1) * batch.advantage[row])
        rows.append(gain.mean())
        if batch.advantage[row]:
            ratios += [ratio.mean()] * int(batch.loss_mask[row].sum())
    assert loss.item() == pytest.approx(-np.mean(rows), abs=1e-9)
    # The masked tokens stand for all: the mean ratio weighs the rows that are run by their actions.
    assert metrics["ratio/mean"] == pytest.approx(np.mean(ratios), abs=1e-9)


def test_token_mean_weighs_rows_by_their_length():
    trainer = make(type="unigrpo", beta=0.0, aggregation="token_mean")
    batch = batch_of(trainer)
    loss, _ = loss_of(trainer, perturbed(), batch)
    length = batch.loss_mask.sum(1)
    assert loss.item() == pytest.approx(-(batch.advantage * length).sum() / length.sum(), abs=1e-6)


def test_advantages_are_scaled_by_the_groups_standard_deviation():
    batch = batch_of(make(type="unigrpo"), tiny_groups(1), [1, 0, 1, 0])
    # Deviations +-.5, sample standard deviation .57735.
    np.testing.assert_allclose(np.abs(batch.advantage), 0.5 / (0.57735 + 1e-4), rtol=1e-4)

"""coupled-GRPO: complementary views, their weights, the baseline."""

import numpy as np
import pytest
import torch
from method_toys import batch_of, estimate, loss_of, make, perturbed, states_of
from tiny import conditional_table, subset_code, tiny_denoiser

from rl4dlm.trainers.coupled_grpo import coupled_masks


def test_the_second_and_the_third_view_hide_each_position_once():
    rate = torch.full((3, 1), 0.3, dtype=torch.float64)
    masks = coupled_masks(torch.tensor([1, 2, 3]), rate, 5, inner=0)
    assert masks[:, 0].all() and (masks[:, 1] ^ masks[:, 2]).all()
    assert not torch.equal(masks[0], masks[1])


def test_the_weights_of_a_token_add_up_to_one_and_a_half_on_average():
    """1/2 from the full view, and 1/2 (t / t + (1 - t) / (1 - t)) = 1 from the pair; 1 when calibrated."""
    for calibrate, expected in ((False, 1.5), (True, 1.0)):
        trainer, total = make(type="coupled_grpo", calibrate=calibrate), 0.0
        batch = batch_of(trainer)
        for inner in range(60):
            states = states_of(trainer, batch, range(len(batch)), inner)
            weight = (states.weight * states.target).view(len(batch), 3, -1).sum(1)
            total += weight[torch.from_numpy(batch.loss_mask)].mean().item() / 60
        assert total == pytest.approx(expected, abs=0.06)


def test_the_rate_stays_in_its_range_and_is_each_rows_own():
    trainer = make(type="coupled_grpo", min_rate=0.3, max_rate=0.4)
    batch = batch_of(trainer)
    weight = states_of(trainer, batch, range(12), 0).weight.view(12, 3, -1)[..., 0]
    rate = 1 / (2 * weight[:, 1])
    assert ((rate >= 0.3) & (rate <= 0.4)).all() and rate.unique().numel() == 12
    torch.testing.assert_close(1 / (2 * weight[:, 2]), 1 - rate)


def test_each_token_is_scored_in_the_full_view_and_in_the_one_that_hides_it():
    trainer, denoiser = make(type="coupled_grpo"), tiny_denoiser()
    batch = batch_of(trainer)
    values, states = estimate(trainer, denoiser, batch), states_of(trainer, batch, range(12), 0)
    masks, weight = states.is_masked.view(12, 3, 5), states.weight.view(12, 3, 5)
    for row in range(12):
        table = conditional_table(denoiser, batch.prompt_ids[row], batch.completion_ids[row])
        for token in np.flatnonzero(batch.loss_mask[row]):
            view = 1 if masks[row, 1, token] else 2
            expected = 0.5 * table[31, token]  # all five hidden: code 31
            expected += weight[row, view, token] * table[subset_code(masks[row, view]), token]
            assert values[row, token].item() == pytest.approx(expected.item(), abs=1e-12)
    assert (values[~torch.from_numpy(batch.loss_mask)] == 0).all()


def test_the_prompt_is_never_hidden():
    trainer = make(type="coupled_grpo")
    assert states_of(trainer, batch_of(trainer), [0, 1], 0).prompt_masked is None


def test_leave_one_out_scales_the_advantages_by_the_group():
    mean, loo = (batch_of(make(type="coupled_grpo", baseline=b)).advantage for b in ("mean", "loo"))
    np.testing.assert_allclose(loo, mean * 4 / 3, rtol=1e-6)


def test_the_loss_is_the_clipped_mean_over_actions_plus_k3_to_the_reference():
    trainer = make(type="coupled_grpo", beta=0.3, epsilon=0.2)
    batch, now = batch_of(trainer), perturbed()
    loss, metrics = loss_of(
        trainer,
        now,
        batch,
        inner=1,
        old=estimate(trainer, tiny_denoiser(), batch, 1),
        ref=estimate(trainer, perturbed(1), batch, 1),
    )
    new, old, ref = (
        estimate(trainer, model, batch, 1).numpy() for model in (now, tiny_denoiser(), perturbed(1))
    )
    total, actions = 0.0, 0
    for row in range(12):
        for token in np.flatnonzero(batch.loss_mask[row]):
            ratio, advantage = np.exp(new[row, token] - old[row, token]), batch.advantage[row]
            d = new[row, token] - ref[row, token]
            gain = min(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
            total += -gain + 0.3 * (np.exp(-d) + d - 1)
            actions += 1
    assert loss.item() == pytest.approx(total / actions, abs=1e-9)
    assert metrics["kl"] > 0

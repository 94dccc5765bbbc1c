"""diffu-GRPO: the one-step estimate, its prompt masks, and its loss."""

import numpy as np
import pytest
import torch
from method_toys import batch_of, estimate, loss_of, make, perturbed, states_of
from tiny import conditional_table, tiny_denoiser, tiny_groups

from rl4dlm.trainers.trajectories import trajectory_likelihood, visited_states


def prompt_masks(trainer, batch, inner=0):
    return states_of(trainer, batch, range(len(batch)), inner).prompt_masked


def long_prompts():
    """Two groups of eight with prompts of ten tokens."""
    groups = tiny_groups(2, 8)
    prompt = np.arange(10, dtype=np.int32) % 3
    return [
        type(g)(g.prompt, tuple(type(r)(**{**vars(r), "prompt_ids": prompt}) for r in g.rollouts))
        for g in groups
    ]


@pytest.mark.parametrize("rate", [0.0, 0.15, 0.6])
def test_prompt_tokens_are_hidden_at_the_rate(rate):
    trainer = make(type="diffu_grpo", p_mask_prompt=rate)
    batch = batch_of(trainer, long_prompts(), [1, 0] * 8)
    share = np.mean([np.stack(prompt_masks(trainer, batch, inner)).mean() for inner in range(40)])
    # 6400 draws: a standard error of .006 at most.
    assert share == pytest.approx(rate, abs=0.02)


def test_every_row_and_every_pass_hides_other_prompt_tokens_and_each_always_the_same():
    trainer = make(type="diffu_grpo", p_mask_prompt=0.5)
    batch = batch_of(trainer, long_prompts(), [1, 0] * 8)
    first, second = (np.stack(prompt_masks(trainer, batch, inner)) for inner in (0, 1))
    assert len({mask.tobytes() for mask in first}) > 12 and (first != second).any(1).sum() > 12
    np.testing.assert_array_equal(first, np.stack(prompt_masks(trainer, batch, 0)))
    # A row's mask does not depend on the rows beside it.
    alone = states_of(trainer, batch, [3], 0).prompt_masked
    np.testing.assert_array_equal(alone[0], first[3])


def test_current_old_and_reference_policy_see_the_same_prompt():
    """They are evaluated apart; equal weights then give equal log-probabilities, whatever is hidden."""
    trainer = make(type="diffu_grpo", p_mask_prompt=0.5)
    batch = batch_of(trainer)
    for inner in (0, 3):
        now, old = (estimate(trainer, tiny_denoiser(), batch, inner) for _ in range(2))
        assert torch.equal(now, old)
    hidden = make(type="diffu_grpo", p_mask_prompt=0.0)
    assert not torch.equal(
        estimate(trainer, tiny_denoiser(), batch), estimate(hidden, tiny_denoiser(), batch)
    )


def test_a_hidden_prompt_token_is_the_mask_to_the_model():
    trainer, denoiser = make(type="diffu_grpo", p_mask_prompt=0.5), tiny_denoiser()
    batch = batch_of(trainer)
    values, masks = estimate(trainer, denoiser, batch), prompt_masks(trainer, batch)
    assert any(mask.any() and not mask.all() for mask in masks)
    for row, mask in enumerate(masks):
        prompt = np.where(mask, denoiser.spec.mask_id, batch.prompt_ids[row])
        table = conditional_table(denoiser, prompt.tolist(), batch.completion_ids[row].tolist())
        expected = table[31] * torch.from_numpy(batch.loss_mask[row])  # all five positions hidden: code 31
        torch.testing.assert_close(values[row], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("block_length", [None, 2])
def test_it_is_the_trajectory_shrunk_to_one_step_where_the_prompt_is_not_masked(block_length):
    """Property 16: s = n and p_q = 0."""
    trainer = make(block_length, type="diffu_grpo", p_mask_prompt=0.0, importance_correction="truncated")
    batch, denoiser = batch_of(trainer), tiny_denoiser(block_length=block_length)
    merged = trajectory_likelihood(trainer.setting, visited_states(99))
    assert merged.states.count(batch).max() == 1
    torch.testing.assert_close(
        estimate(trainer, denoiser, batch), estimate(merged, denoiser, batch), atol=1e-12, rtol=0
    )


def test_off_policy_the_loss_is_the_clipped_mean_over_actions_plus_beta_k3():
    trainer, now, ref = make(type="diffu_grpo", beta=0.3, epsilon=0.1), perturbed(), perturbed(1)
    batch = batch_of(trainer)
    old = estimate(trainer, tiny_denoiser(), batch, 1)
    loss, metrics = loss_of(trainer, now, batch, 1, old=old, ref=estimate(trainer, ref, batch, 1))
    new, other = (estimate(trainer, model, batch, 1).numpy() for model in (now, ref))
    gains, k3, clipped = [], [], 0
    for row in range(12):
        for token in np.flatnonzero(batch.loss_mask[row]):
            ratio = np.exp(new[row, token] - old[row, token].item())
            advantage, d = float(batch.advantage[row]), new[row, token] - other[row, token]
            gains.append(min(ratio * advantage, min(max(ratio, 0.9), 1.1) * advantage))
            k3.append(np.exp(-d) + d - 1)
            clipped += (ratio < 0.9 and advantage < 0) or (ratio > 1.1 and advantage > 0)
    assert clipped > 3
    assert loss.item() == pytest.approx(-np.mean(gains) + 0.3 * np.mean(k3), abs=1e-9)
    assert metrics["kl"] == pytest.approx(np.mean(k3), abs=1e-9)
    assert metrics["clip_ratio/region_mean"] == pytest.approx(clipped / len(gains), abs=1e-9)

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import conditional_table, subset_code, tiny_denoiser

from rl4dlm.diffusion.quadrature import gauss_legendre
from rl4dlm.likelihood.elbo import ElboSettings, elbo, plan_corruptions
from rl4dlm.likelihood.plans import CorruptionPlan

SEED = np.array([11, 12, 13])
MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=bool)


def test_sdmc_weighs_states_by_node_weight_and_l_over_k():
    plan = plan_corruptions(SEED, MASK, 0, ElboSettings("sdmc", 2, 2, "round_half"))
    # L = 6: round(.211 * 6 + .5) = round(1.77) = 2, round(.789 * 6 + .5) = round(5.23) = 5.
    assert plan.is_masked.sum(-1)[0].tolist() == [2, 2, 5, 5]
    torch.testing.assert_close(plan.weight[0], torch.tensor([3, 3, 1.2, 1.2]).double() / 4)
    # L = 3: round(1.13) = 1, round(2.87) = 3.
    assert plan.is_masked.sum(-1)[1].tolist() == [1, 1, 3, 3]
    torch.testing.assert_close(plan.weight[1], torch.tensor([3, 3, 1, 1]).double() / 4)


def test_masks_of_a_node_share_its_weight():
    plan = plan_corruptions(SEED[:1], MASK[:1], 0, ElboSettings("sdmc", 3, 2, "round_half"))
    # L = 6: counts round(1.18) = 1, round(3.5) = 4 (half to even), round(5.82) = 6; weights 5, 8, 5 of 18.
    assert plan.is_masked.sum(-1)[0].tolist() == [1, 1, 4, 4, 6, 6]
    expected = torch.tensor([5 * 6, 5 * 6, 8 * 1.5, 8 * 1.5, 5, 5]).double() / 36
    torch.testing.assert_close(plan.weight[0], expected)


def test_bernoulli_states_at_quadrature_nodes_weigh_1_over_t():
    plan = plan_corruptions(SEED, MASK, 0, ElboSettings("sdmc", 3, 1, "bernoulli"))
    nodes, weight = gauss_legendre(3)
    torch.testing.assert_close(plan.weight, (weight / nodes).expand(3, -1))


def test_stratified_counts_weigh_l_over_k():
    plan = plan_corruptions(SEED, MASK, 0, ElboSettings("stratified", 3, 2, "round_half"))
    counts = plan.is_masked.sum(-1)
    assert counts[0, ::2].tolist() == counts[0, 1::2].tolist()
    # Strata of L = 6 with three draws lie 2 apart, cyclically.
    assert sorted((counts[0, ::2] % 2).tolist()) in ([0, 0, 0], [1, 1, 1])
    assert len(set(counts[0].tolist())) == 3
    torch.testing.assert_close(plan.weight[:2], torch.tensor([[6.0], [3.0]]).double() / counts[:2] / 6)


def test_double_mc_shares_a_rate_among_the_masks_of_a_draw():
    plan = plan_corruptions(
        SEED[:1], np.ones((1, 200), dtype=bool), 0, ElboSettings("double_mc", 4, 2, "bernoulli")
    )
    rate = 1 / (8 * plan.weight[0])
    assert torch.equal(rate[::2], rate[1::2])
    assert len(set(rate.tolist())) == 4
    torch.testing.assert_close(plan.is_masked.double().mean(-1)[0], rate, atol=0.15, rtol=0)


@pytest.mark.parametrize("estimator", ["sdmc", "double_mc", "stratified"])
def test_a_row_without_positions_has_the_elbo_zero(estimator):
    denoiser = tiny_denoiser()
    plan = plan_corruptions(SEED, MASK, 0, ElboSettings(estimator, 2, 1, "round_half"))
    completion = np.array([[0, 1, 2, 0, 1, 2]] * 3)
    value = elbo(denoiser, [np.array([1])] * 3, completion, plan)
    assert value.isfinite().all()
    assert value[2].item() == 0.0


@pytest.mark.parametrize("estimator", ["sdmc", "double_mc", "stratified"])
@pytest.mark.parametrize("count_rule", ["round_half", "bernoulli"])
def test_positions_outside_the_loss_mask_are_never_hidden(estimator, count_rule):
    mask = np.tile(MASK[1], (200, 1))
    plan = plan_corruptions(np.arange(200), mask, 0, ElboSettings(estimator, 3, 2, count_rule))
    assert not plan.is_masked[..., 3:].any()
    assert plan.is_masked[..., :3].any(0).all()


def test_the_estimate_is_the_weighted_sum_of_joint_log_probabilities():
    denoiser, prompt, completion = tiny_denoiser(), [2, 0], [0, 1, 2, 3, 0, 1]
    plan = plan_corruptions(SEED[:1], MASK[:1], 0, ElboSettings("sdmc", 3, 2, "round_half"))
    joint = conditional_table(denoiser, prompt, completion).sum(1)[subset_code(plan.is_masked[0])]
    value = elbo(denoiser, [np.array(prompt)], np.array([completion]), plan)
    assert value.item() == pytest.approx((plan.weight[0] * joint).sum().item(), abs=1e-12)


def test_partial_estimates_over_states_add_up_to_the_whole():
    denoiser = tiny_denoiser()
    plan = plan_corruptions(SEED, MASK, 1, ElboSettings("sdmc", 3, 2, "round_half"))
    prompts, completion = [np.array([1]), np.array([1, 2]), np.array([0])], np.array([[0, 1, 2, 0, 1, 2]] * 3)
    whole = elbo(denoiser, prompts, completion, plan)
    parts = [elbo(denoiser, prompts, completion, plan.take(states)) for states in ([0], [1, 2, 3], [4, 5])]
    torch.testing.assert_close(sum(parts), whole, atol=1e-12, rtol=0)


def test_two_policies_are_evaluated_on_the_same_corruptions_and_two_passes_on_different_ones():
    settings = ElboSettings("sdmc", 3, 1, "round_half")
    first, again, later = (plan_corruptions(SEED, MASK, inner, settings) for inner in (0, 0, 1))
    assert torch.equal(first.is_masked, again.is_masked)
    assert not torch.equal(first.is_masked, later.is_masked)


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="'simpson' does not exist"):
        plan_corruptions(SEED, MASK, 0, ElboSettings("simpson", 3, 1, "round_half"))


def test_float32_models_give_float32_estimates():
    denoiser = tiny_denoiser()
    denoiser.model.float()
    plan = CorruptionPlan(torch.ones(1, 1, 2, dtype=torch.bool), torch.ones(1, 1, dtype=torch.float64))
    assert elbo(denoiser, [np.array([1])], np.array([[0, 1]]), plan).dtype == torch.float32

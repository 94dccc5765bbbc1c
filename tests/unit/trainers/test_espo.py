"""ESPO: coupled masks, their stratified counts, and a KL on whole sequences."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from method_toys import states_of
from tiny import all_subsets, conditional_table, enumerate_elbo, subset_code, tiny_denoiser, tiny_groups
from tiny import tiny_scores as scores_of

from rl4dlm.diffusion.masking import coupled_counts
from rl4dlm.likelihood.coupled import Strata, plan_coupled
from rl4dlm.likelihood.elbo import ElboSettings, plan_corruptions
from rl4dlm.recipe.algorithms import ESPOConfig, MethodConfig
from rl4dlm.trainers import make_method
from rl4dlm.trainers.espo import kl_of_sequences
from rl4dlm.trainers.method import Method
from rl4dlm.trainers.passes import estimate_rows, micro_batches, step_size
from rl4dlm.trainers.passes import loss as loss_of_rows
from rl4dlm.trainers.prepare import prepare_batch
from rl4dlm.types import TrainBatch

REWARD = [1, 0, 0.5, 0, 0, 0, 0, 0, 1, 1, 0, 0.25]
WHOLE = 10**6


def batch_of(trainer: Method[MethodConfig]) -> TrainBatch:
    batch, _ = prepare_batch(trainer, tiny_groups(), scores_of(REWARD), policy_version=0, seed=5)
    assert batch is not None
    return batch


def one_step(trainer, denoiser, batch, ref=None):
    """Loss of the first optimizer step, in one pass, with gradients in the model."""
    (micro,) = micro_batches(trainer, batch, range(len(batch)), WHOLE)
    with torch.no_grad():
        given = None if ref is None else estimate_rows(trainer.likelihood, ref, batch, micro, 0)
    step = step_size(trainer, batch, range(len(batch)))
    loss, metrics = loss_of_rows(
        trainer, denoiser, batch, micro, 0, old=None, ref=given, current=None, step=step
    )
    denoiser.model.zero_grad()
    loss.backward()
    return loss.item(), metrics


def strata(num_rows: int) -> Strata:
    return Strata(np.zeros(num_rows, dtype=np.int64), np.arange(num_rows) / num_rows)


# --- Counts ---


def test_counts_are_spread_over_the_rows_as_in_the_golden_vector():
    # L = 8, three rows, k = 5: 5, 5 + 3, 5 + 6 mod 9.
    counts = coupled_counts(torch.full((3,), 8), torch.full((3, 1), 5), torch.arange(3).double() / 3)
    assert counts[:, 0].tolist() == [5, 8, 2]


def test_every_count_is_as_likely_as_the_others_in_every_row():
    for share in (0.0, 0.1, 0.5, 0.99):
        first = torch.arange(6)[:, None]
        counts = coupled_counts(torch.full((6,), 5), first, torch.full((6,), share, dtype=torch.float64))
        assert sorted(counts[:, 0].tolist()) == [0, 1, 2, 3, 4, 5]


def test_as_many_rows_as_counts_draw_each_count_once():
    plan = plan_coupled(np.arange(6), np.ones((6, 5), dtype=bool), 0, 2, strata(6))
    counts = plan.is_masked.sum(-1)
    assert sorted(counts[:, 0].tolist()) == sorted(counts[:, 2].tolist()) == [0, 1, 2, 3, 4, 5]
    assert (counts[:, 0] != counts[:, 2]).any()


def test_a_row_keeps_its_masks_when_the_batch_is_split_or_permuted():
    trainer = make_method(ESPOConfig())
    batch = batch_of(trainer)
    whole = states_of(trainer, batch, range(12), 3).is_masked.view(12, 4, -1)
    order = [7, 2, 11]
    assert torch.equal(states_of(trainer, batch, order, 3).is_masked.view(3, 4, -1), whole[order])
    assert not torch.equal(states_of(trainer, batch, range(12), 4).is_masked.view(12, 4, -1), whole)


# --- The estimate ---


def test_a_pair_hides_every_position_once_and_weighs_by_the_size_of_each_half():
    plan = plan_coupled(np.arange(4), np.ones((4, 3), dtype=bool), 0, 1, strata(4))
    assert (plan.is_masked.sum(1) == 1).all()
    size = plan.is_masked.sum(-1)
    # L = 3, one pair: 4 / (2 x); an empty half weighs nothing.
    expected = torch.where(size > 0, 2.0 / size.clamp(min=1), 0.0).double()
    torch.testing.assert_close(plan.weight, expected)
    assert 0 in size


@pytest.mark.parametrize("length", [3, 4, 6])
def test_over_all_counts_and_subsets_the_mean_is_the_elbo(length):
    completion = [(3 * i + 1) % 4 for i in range(length)]
    table = conditional_table(tiny_denoiser(max_length=12), [2, 0, 1], completion)
    subsets, joint = all_subsets(length), table.sum(1)
    rest = joint[subset_code(~subsets)]
    size = subsets.sum(1).double()
    halves = torch.where(size > 0, (length + 1) / size.clamp(min=1) * joint, 0.0)
    others = torch.where(size < length, (length + 1) / (length - size).clamp(min=1) * rest, 0.0)
    value = [((halves + others) / 2)[size == x].mean().item() for x in range(length + 1)]
    assert np.mean(value) == pytest.approx(enumerate_elbo(table), abs=1e-9)


def table_estimates(table: torch.Tensor, plan) -> torch.Tensor:
    return (plan.weight * table.sum(1)[subset_code(plan.is_masked)]).sum(1)


def test_estimates_from_seeds_have_the_elbo_as_their_mean():
    table = conditional_table(tiny_denoiser(max_length=12, seed=2), [2, 0, 1], [1, 0, 3, 2, 1])
    seed, mask = np.arange(20000) * 7 + 3, np.ones((20000, 5), dtype=bool)
    # Roots of their own: independent rows, so that the standard error is that of a plain mean.
    sample = table_estimates(table, plan_coupled(seed, mask, 0, 1, Strata(seed + 1, np.zeros(20000))))
    assert abs(sample.mean().item() - enumerate_elbo(table)) < 4 * sample.std().item() / 20000**0.5


def test_a_pair_varies_less_than_two_independent_masks():
    # A hidden token costs more nats the more is hidden: the halves of a pair balance each other.
    hidden = all_subsets(8).double()
    table = -(0.2 + 2 * hidden.mean(1, keepdim=True) ** 2) * hidden
    seed, mask = np.arange(4000) * 7 + 3, np.ones((4000, 8), dtype=bool)
    pair = table_estimates(table, plan_coupled(seed, mask, 0, 1, Strata(seed, np.zeros(4000))))
    two = plan_corruptions(seed, mask, 0, ElboSettings("double_mc", 2, 1, "round_half"))
    assert pair.var().item() < 0.8 * table_estimates(table, two).var().item()


def test_blocks_have_counts_of_their_own_and_the_weights_of_their_length():
    block = torch.tensor([[0, 0, 0, 1, 1]]).expand(60, -1)
    plan = plan_coupled(np.arange(60), np.ones((60, 5), dtype=bool), 0, 1, strata(60), block)
    first, second = plan.is_masked[..., :3].sum(-1), plan.is_masked[..., 3:].sum(-1)
    assert (first.sum(1) == 3).all() and (second.sum(1) == 2).all()
    for counts, expected in ((first, 15), (second, 20)):  # rounding may move a row to the next count
        assert (np.abs(np.bincount(counts[:, 0]) - expected) <= 1).all()
    expected = torch.where(first > 0, 4 / (2.0 * first.clamp(min=1)), 0.0).double()
    torch.testing.assert_close(plan.weight[..., :3].amax(-1), expected)


# --- The objective ---


def test_at_ratio_one_the_gradient_is_that_of_the_weighted_elbo_per_token():
    trainer, denoiser = make_method(ESPOConfig(beta=0.0)), tiny_denoiser()
    batch = batch_of(trainer)
    one_step(trainer, denoiser, batch)
    gradient = denoiser.model.readout.grad.clone()
    denoiser.model.zero_grad()
    (micro,) = micro_batches(trainer, batch, range(12), WHOLE)
    rows = list(micro.rows)
    weight = torch.tensor(batch.advantage[rows] / batch.loss_mask[rows].sum(1) / 12)
    (-(weight * estimate_rows(trainer.likelihood, denoiser, batch, micro, 0)).sum()).backward()
    torch.testing.assert_close(gradient, denoiser.model.readout.grad, atol=1e-7, rtol=0)


def test_advantages_are_against_the_others_of_the_group():
    # (1 - (0 + .5 + 0) / 3) and so on: 4/3 of the difference from the mean .375.
    advantage = batch_of(make_method(ESPOConfig())).advantage
    assert advantage[:4].tolist() == pytest.approx([5 / 6, -0.5, 1 / 6, -0.5])


@pytest.mark.parametrize(("estimator", "value"), [("k1", lambda d: d), ("k2", lambda d: d**2 / 2)])
def test_the_kl_is_that_of_whole_sequences_divided_by_their_length(estimator, value):
    trainer = make_method(ESPOConfig(beta=0.5, kl_estimator=estimator))
    batch, denoiser, ref = batch_of(trainer), tiny_denoiser(), tiny_denoiser(seed=1)
    flat = dataclasses.replace(batch, advantage=np.zeros(12, dtype=np.float32))
    loss, metrics = one_step(trainer, denoiser, flat, ref)
    (micro,) = micro_batches(trainer, flat, range(12), WHOLE)
    with torch.no_grad():
        d = estimate_rows(trainer.likelihood, denoiser, flat, micro, 0) - estimate_rows(
            trainer.likelihood, ref, flat, micro, 0
        )
    length = torch.tensor(batch.loss_mask[list(micro.rows)].sum(1))
    expected = (value(d) / length).mean().item()
    assert metrics["kl"] == pytest.approx(expected)
    assert loss == pytest.approx(0.5 * expected)


def test_a_distant_reference_overflows_no_exponent():
    trainer = make_method(ESPOConfig(beta=0.5, kl_estimator="k3"))
    value = torch.tensor([-1000.0, 1000.0], requires_grad=True)
    kl = kl_of_sequences(trainer.config)(value, torch.zeros(2), torch.tensor([4.0, 4.0]))
    # Clamped to +-10: (e^10 - 11) / 4, (e^-10 + 9) / 4.
    assert kl.tolist() == pytest.approx([(np.exp(10) - 11) / 4, (np.exp(-10) + 9) / 4], rel=1e-5)

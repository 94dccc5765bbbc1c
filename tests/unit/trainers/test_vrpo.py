"""VRPO: pairs from rewards or a dataset, shared masks, and the logistic loss."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from method_toys import states_of
from tiny import tiny_denoiser, tiny_groups, tiny_scores

from rl4dlm.advantage.pairs import best_and_worst
from rl4dlm.likelihood.elbo import elbo, plan_corruptions
from rl4dlm.likelihood.states import state_logp
from rl4dlm.loss.preference import dpo_loss
from rl4dlm.recipe.algorithms import MethodConfig, VRPOConfig
from rl4dlm.trainers import make_method
from rl4dlm.trainers.elbo_states import elbo_settings
from rl4dlm.trainers.method import Method, Setting
from rl4dlm.trainers.passes import estimate_rows, micro_batches, step_size
from rl4dlm.trainers.passes import loss as loss_of_rows
from rl4dlm.trainers.prepare import prepare_batch
from rl4dlm.trainers.vrpo import Rejected
from rl4dlm.types import Pair, TrainBatch, flatten

REWARD = [1, 0, 0.5, 0, 0, 0, 0, 0, 0.25, 1, 0, 1]
WHOLE = 10**6


def make(**settings) -> Method[MethodConfig]:
    return make_method(VRPOConfig(**{"pairs": "online", "num_nodes": 3, **settings}))


def batch_of(trainer: Method[MethodConfig], reward=REWARD) -> TrainBatch:
    batch, _ = prepare_batch(trainer, tiny_groups(), tiny_scores(reward), policy_version=2, seed=5)
    assert batch is not None
    return batch


def swapped(batch: TrainBatch) -> TrainBatch:
    """Chosen and rejected exchanged."""
    return dataclasses.replace(
        batch,
        completion_ids=batch.record.ids,
        loss_mask=batch.record.mask,
        record=Rejected(batch.completion_ids, batch.loss_mask),
    )


def loss_of(trainer, denoiser, batch, ref):
    (micro,) = micro_batches(trainer, batch, range(len(batch)), WHOLE)
    with torch.no_grad():
        given = estimate_rows(trainer.likelihood, ref, batch, micro, 0)
    step = step_size(trainer, batch, range(len(batch)))
    return loss_of_rows(trainer, denoiser, batch, micro, 0, old=None, ref=given, current=None, step=step)


# --- Pairs ---


def test_the_best_meets_the_worst_of_every_group_that_has_both():
    batch, metrics = prepare_batch(make(), tiny_groups(), tiny_scores(REWARD), policy_version=2, seed=5)
    rollouts = flatten(tiny_groups())
    # Of equals the first: 0 against 1; the second group is all alike; 9 (not 11) against 10.
    for row, (chosen, rejected) in enumerate([(0, 1), (9, 10)]):
        assert batch.completion_ids[row].tolist() == rollouts[chosen].completion_ids.tolist()
        assert batch.record.ids[row].tolist() == rollouts[rejected].completion_ids.tolist()
        assert batch.record.mask[row].sum() == rollouts[rejected].completion_len
        assert batch.prompt_ids[row].tolist() == rollouts[chosen].prompt_ids.tolist()
    assert len(batch) == 2 and batch.group.tolist() == [0, 2]
    assert metrics["pairs/tied"] == 1 and metrics["reward"] == pytest.approx(np.mean(REWARD))


def test_rows_of_a_group_need_not_be_adjacent():
    chosen, rejected = best_and_worst(np.array([0.0, 5, 1, 4, 3, 3]), np.array([1, 0, 1, 0, 2, 2]))
    assert chosen.tolist() == [1, 2] and rejected.tolist() == [3, 0]


def test_without_any_preference_there_is_no_batch():
    batch, metrics = prepare_batch(make(), tiny_groups(), tiny_scores([0.5] * 12), policy_version=0, seed=0)
    assert batch is None and metrics["pairs/tied"] == 3


def recorded(uid: int = 4) -> Pair:
    chosen, rejected = np.array([0, 1, 3, 3, 3]), np.array([2, 3, 3, 3, 3])
    return Pair(uid, np.array([1, 2]), chosen, rejected, chosen_len=3, rejected_len=2)


@pytest.mark.parametrize(("scope", "lengths"), [("until_eos", (3, 2)), ("canvas", (5, 5))])
def test_recorded_pairs_become_rows_of_the_scope_that_is_asked_for(scope, lengths):
    trainer = make(pairs="offline", completion_scope=scope)
    assert make().config.samples_rollouts and not trainer.config.samples_rollouts
    batch = trainer.pair_batch([recorded(4), recorded(5)], 7, 1)
    assert batch.completion_ids.tolist() == [[0, 1, 3, 3, 3]] * 2
    assert batch.record.ids.tolist() == [[2, 3, 3, 3, 3]] * 2
    assert (batch.loss_mask.sum(1)[0], batch.record.mask.sum(1)[0]) == lengths
    assert batch.policy_version == 7 and batch.seed[0] != batch.seed[1]
    ref = tiny_denoiser(seed=1)
    loss, metrics = loss_of(trainer, tiny_denoiser(), batch, ref)
    loss.backward()
    assert math.isfinite(loss.item()) and metrics["rewards/margins"] != 0


# --- Likelihoods ---


@pytest.mark.parametrize("block_length", [None, 2])
def test_the_estimate_holds_the_elbo_of_each_completion_on_masks_of_its_own(block_length):
    denoiser = tiny_denoiser(block_length=block_length)
    trainer = make_method(VRPOConfig(pairs="online", num_nodes=2), Setting(spec=denoiser.spec))
    batch = batch_of(trainer)
    (micro,) = micro_batches(trainer, batch, range(2), WHOLE)
    value = estimate_rows(trainer.likelihood, denoiser, batch, micro, 1)
    back = swapped(batch)
    for side, one in enumerate((batch, back)):
        states = states_of(trainer, batch, micro.rows, 1)
        mine = states.number // 2 == side
        rows = torch.tensor(micro.rows)
        logp = state_logp(
            denoiser,
            [one.prompt_ids[row] for row in micro.rows],
            one.completion_ids[rows],
            dataclasses.replace(states.take(mine), clean=None),
        )
        expected = (states.weight[mine] * logp).sum(-1).view(2, 2).sum(1)
        torch.testing.assert_close(value[:, side], expected, atol=1e-9, rtol=0)
    masks = states_of(trainer, batch, [0, 1], 1).is_masked.view(2, 4, -1)
    assert not torch.equal(masks[:, :2], masks[:, 2:])


def test_the_chosen_side_is_gdpos_estimate_of_the_same_seeds():
    trainer, denoiser = make(), tiny_denoiser()
    batch = batch_of(trainer)
    (micro,) = micro_batches(trainer, batch, range(2), WHOLE)
    rows = list(micro.rows)
    plan = plan_corruptions(batch.seed[rows], batch.loss_mask[rows], 0, elbo_settings(trainer.config))
    expected = elbo(denoiser, [batch.prompt_ids[r] for r in rows], batch.completion_ids[rows], plan)
    torch.testing.assert_close(estimate_rows(trainer.likelihood, denoiser, batch, micro, 0)[:, 0], expected)


# --- The loss ---


def test_at_the_reference_the_score_is_zero_and_the_loss_log_two():
    trainer = make()
    loss, metrics = loss_of(trainer, tiny_denoiser(), batch_of(trainer), tiny_denoiser())
    assert loss.item() == pytest.approx(math.log(2), abs=1e-12)
    assert metrics["rewards/margins"] == 0


def test_exchanging_the_two_completions_turns_the_score_around():
    trainer, denoiser, ref = make(), tiny_denoiser(), tiny_denoiser(seed=1)
    batch = batch_of(trainer)
    back = swapped(batch)
    of_rows, half = trainer.likelihood.states, trainer.config.num_states

    def exchanged(_, rows, inner):
        """Each completion keeps its masks, which the side it stands on would change."""
        plain = of_rows.make(batch, rows, inner)
        turned = {
            name: getattr(plain, name).view(len(rows), 2, half, -1).flip(1).flatten(0, 2)
            for name in ("is_masked", "target", "weight", "clean")
        }
        return dataclasses.replace(plain, **turned)

    there = loss_of(trainer, denoiser, batch, ref)[1]["rewards/margins"]
    states = dataclasses.replace(of_rows, make=exchanged)
    likelihood = dataclasses.replace(trainer.likelihood, states=states)
    turned = dataclasses.replace(trainer, likelihood=likelihood)
    assert loss_of(turned, denoiser, back, ref)[1]["rewards/margins"] == pytest.approx(-there)
    assert there != 0


def test_the_loss_by_hand():
    # -log sigmoid(.5 * 2) = log(1 + 1/e); far beyond the reference's side it is the distance itself.
    loss = dpo_loss(torch.tensor([2.0, -2000.0]), beta=0.5)
    assert loss.tolist() == pytest.approx([math.log(1 + math.exp(-1)), 1000.0])


@pytest.mark.parametrize("by_length", [False, True])
def test_the_loss_compares_gains_against_the_reference_and_adds_the_likelihood_of_the_chosen(by_length):
    trainer = make(beta=0.4, sft_weight=0.05, normalise_by_length=by_length)
    denoiser, ref = tiny_denoiser(), tiny_denoiser(seed=1)
    batch = batch_of(trainer)
    (micro,) = micro_batches(trainer, batch, range(2), WHOLE)
    value, base = (
        estimate_rows(trainer.likelihood, model, batch, micro, 0).detach() for model in (denoiser, ref)
    )
    gain = (value - base) / (5 if by_length else 1)
    score = 0.4 * (gain[:, 0] - gain[:, 1])
    length = torch.tensor(batch.loss_mask[list(micro.rows)].sum(1))
    expected = torch.log1p(torch.exp(-score)).mean() + 0.05 * (-value[:, 0] / length).mean()
    loss, metrics = loss_of(trainer, denoiser, batch, ref)
    assert loss.item() == pytest.approx(expected.item())
    assert metrics["rewards/margins"] == pytest.approx(score.mean().item())
    assert metrics["rewards/chosen"] == pytest.approx(0.4 * gain[:, 0].mean().item())
    assert metrics["rewards/accuracies"] == pytest.approx((score > 0).double().mean().item())


def test_shared_masks_make_the_score_far_more_certain():
    trainer, denoiser, ref = make(num_nodes=1), tiny_denoiser(), tiny_denoiser(context=1.02)
    batch = batch_of(trainer)
    (micro,) = micro_batches(trainer, batch, range(2), WHOLE)

    def values(model, passes):
        with torch.no_grad():
            parts = [estimate_rows(trainer.likelihood, model, batch, micro, k) for k in passes]
        return torch.stack([part[:, 0] - part[:, 1] for part in parts])

    shared = values(denoiser, range(200)) - values(ref, range(200))
    apart = values(denoiser, range(200)) - values(ref, range(200, 400))
    assert shared.std() < 0.1 * apart.std()

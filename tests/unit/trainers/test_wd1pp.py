"""wd1++: predictions at visited states, weighed as their completions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny import tiny_denoiser, tiny_groups, tiny_rollout, tiny_scores

from rl4dlm.advantage.weights import softmax_weights
from rl4dlm.diffusion.replay import prediction_at, state_before
from rl4dlm.recipe.algorithms import MethodConfig, WD1PlusConfig
from rl4dlm.trainers import make_method
from rl4dlm.trainers.method import Method, Setting
from rl4dlm.trainers.passes import estimate_rows, micro_batches, step_size
from rl4dlm.trainers.passes import loss as loss_of_rows
from rl4dlm.trainers.prepare import prepare_batch
from rl4dlm.trainers.wd1pp import draw_steps
from rl4dlm.types import RolloutGroup, TrainBatch, flatten

REWARD = [1, 0, 0.5, 0, 0, 0, 0, 0, 1, 1, 0, 0.25]
MASK = 4
WHOLE = 10**6


def make(**settings) -> Method[MethodConfig]:
    return make_method(WD1PlusConfig(**settings), Setting(spec=tiny_denoiser().spec))


def batch_of(trainer: Method[MethodConfig], groups=None) -> TrainBatch:
    groups = tiny_groups() if groups is None else groups
    batch, _ = prepare_batch(trainer, groups, tiny_scores(REWARD), policy_version=0, seed=5)
    assert batch is not None
    return batch


def test_steps_are_drawn_without_repetition_and_belong_to_the_rollout():
    rollout = dataclasses.replace(tiny_rollout([0], [1, 2, 0, 1, 3]), num_steps=40)
    steps = draw_steps(rollout, 8)
    assert len(set(steps.tolist())) == 8 and steps.max() < 40 and (np.diff(steps) > 0).all()
    assert draw_steps(rollout, 8).tolist() == steps.tolist()
    assert draw_steps(dataclasses.replace(rollout, seed=1), 8).tolist() != steps.tolist()
    assert draw_steps(rollout, 100).tolist() == list(range(40))


def test_every_step_is_as_likely_to_be_drawn():
    rollout = dataclasses.replace(tiny_rollout([0], [1, 2, 0, 1, 3]), num_steps=10)
    drawn = [draw_steps(dataclasses.replace(rollout, seed=seed), 4) for seed in range(1000)]
    counts = np.bincount(np.concatenate(drawn), minlength=10)
    assert (np.abs(counts - 400) < 80).all()  # five standard deviations of a binomial


def test_the_estimate_is_the_mean_over_steps_of_weighted_log_likelihoods_of_predictions():
    trainer, denoiser = make(), tiny_denoiser()
    rollouts = flatten(tiny_groups())
    batch = batch_of(trainer)
    (micro,) = micro_batches(trainer, batch, range(12), WHOLE)
    value = estimate_rows(trainer.likelihood, denoiser, batch, micro, 0)
    for row, found in zip(micro.rows, value.tolist(), strict=True):
        rollout, total = rollouts[row], 0.0
        for step in range(rollout.num_steps):
            canvas = state_before(rollout, step, MASK)
            hidden = torch.tensor(canvas == MASK)
            filled = torch.tensor(batch.loss_mask[row])  # fillers were drawn by nobody
            ids = torch.tensor([[*rollout.prompt_ids, *canvas]]).long()
            logits = denoiser.logits(ids, None, torch.ones_like(ids, dtype=torch.bool))
            logp = logits.log_softmax(-1)[len(rollout.prompt_ids) :]
            label = torch.tensor(prediction_at(rollout, step, MASK)).long()
            scores = logp.gather(1, label[:, None])[:, 0][hidden & filled]
            total += 5 / hidden.sum().item() * scores.sum().item() / rollout.num_steps
        assert found == pytest.approx(total, rel=1e-4)  # the weights' 1e-4 beside counts


def test_the_loss_is_the_mean_over_groups_of_the_mean_over_their_completions():
    trainer, denoiser = make(sample_train_steps=3), tiny_denoiser()
    batch = batch_of(trainer)
    (micro,) = micro_batches(trainer, batch, range(12), WHOLE)
    with torch.no_grad():
        logp = dict(
            zip(
                micro.rows, estimate_rows(trainer.likelihood, denoiser, batch, micro, 0).tolist(), strict=True
            )
        )
    expected = 0.0
    for number, rewards in enumerate(np.array(REWARD).reshape(3, 4)):
        raised, lowered = softmax_weights(rewards, np.zeros(4), psi=1.0)
        for sample, weight in enumerate(lowered - raised):
            expected += weight * logp.get(4 * number + sample, 0.0) / 4 / 3
    step = step_size(trainer, batch, range(12))
    loss, _ = loss_of_rows(trainer, denoiser, batch, micro, 0, old=None, ref=None, current=None, step=step)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_the_narrow_scope_scores_nothing_after_the_end():
    groups = [
        RolloutGroup(group.prompt, tuple(dataclasses.replace(r, completion_len=2) for r in group.rollouts))
        for group in tiny_groups()
    ]
    wide = batch_of(make(), groups).record.target
    narrow = batch_of(make(completion_scope="until_eos"), groups).record.target
    assert narrow[..., :2].sum() == wide[..., :2].sum() > 0
    assert wide[..., 2:].any() and not narrow[..., 2:].any()


def test_a_rollout_without_predictions_is_refused():
    groups = [
        RolloutGroup(
            group.prompt,
            tuple(
                dataclasses.replace(r, trace=dataclasses.replace(r.trace, predictions=None))
                for r in group.rollouts
            ),
        )
        for group in tiny_groups()
    ]
    with pytest.raises(ValueError, match="predictions were not recorded"):
        batch_of(make(), groups)
    assert make().config.needs_predictions

"""Importance weights of a rank: the recorded trajectory under the trainer, over what the sampler said."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

TESTS = Path(__file__).resolve().parents[2]
sys.path.extend([str(TESTS / "loop"), str(TESTS / "unit" / "trainers")])

import zero_rank  # noqa: E402
from method_toys import batch_of, estimate, loss_of, make, perturbed, with_record  # noqa: E402
from tiny import conditional_table, tiny_denoiser  # noqa: E402

from rl4dlm.learner.engine import PlainEngine  # noqa: E402
from rl4dlm.learner.update import RankUpdate  # noqa: E402
from rl4dlm.trainers.trajectories import trajectory_likelihood  # noqa: E402
from rl4dlm.types import Denoiser, TrainBatch  # noqa: E402

SETTINGS = {"type": "diffu_grpo", "beta": 0.0, "importance_correction": "truncated"}


def rank(trainer, model: Denoiser, number: int = 0, ranks: int = 1, budget: int = 10**6) -> RankUpdate:
    engine = PlainEngine(model.model, zero_rank.settings(0))
    return RankUpdate(
        engine=engine,
        denoiser=Denoiser(engine, model.spec),
        method=trainer,
        rank=number,
        world_size=ranks,
        token_budget=budget,
        num_minibatches=1,
    )


def drawn_by(model: Denoiser, trainer, batch: TrainBatch) -> TrainBatch:
    """The batch with what the sampler records when it holds the weights of `model`."""
    logp = estimate(trajectory_likelihood(trainer.setting), model, batch)
    return with_record(batch, rollout_logp=logp.numpy().astype(np.float32))


def weights(part: RankUpdate, batch: TrainBatch) -> np.ndarray:
    return part._with_importance(batch).importance


def test_without_the_setting_nothing_is_computed():
    trainer = make(type="diffu_grpo")
    batch = batch_of(trainer)
    assert trainer.replay is None and batch.record is None
    assert rank(trainer, tiny_denoiser())._with_importance(batch) is batch


@pytest.mark.parametrize("block_length", [None, 2])
def test_rollouts_of_the_very_weights_weigh_one(block_length):
    trainer, model = make(block_length, **SETTINGS), tiny_denoiser(block_length=block_length)
    batch = drawn_by(model, trainer, batch_of(trainer))
    run = batch.loss_mask & (batch.advantage != 0)[:, None]
    np.testing.assert_allclose(weights(rank(trainer, model), batch)[run], 1.0, atol=1e-6)


def test_older_rollouts_weigh_the_ratio_of_the_trajectorys_conditionals_up_to_the_cap():
    trainer, now, then = make(**SETTINGS, importance_cap=1.5), tiny_denoiser(), perturbed()
    batch = drawn_by(then, trainer, batch_of(trainer))
    found, cut = weights(rank(trainer, now), batch), 0
    for row in np.flatnonzero(batch.advantage):
        tables = [
            conditional_table(model, batch.prompt_ids[row], batch.completion_ids[row])
            for model in (now, then)
        ]
        for token in np.flatnonzero(batch.loss_mask[row]):
            code = sum(1 << later for later in range(token, 5))  # toy rollouts go from left to right
            ratio = (tables[0][code, token] - tables[1][code, token]).exp().item()
            assert found[row, token] == pytest.approx(min(ratio, 1.5), abs=1e-5)
            cut += ratio > 1.5
    assert cut > 0


def test_the_rollout_temperature_is_the_trainers():
    """A sampler at temperature .5 records tempered log-probabilities, and equal weights still weigh one."""
    trainer, model = make(temperature=0.5, **SETTINGS), tiny_denoiser()
    batch = batch_of(trainer)
    plain = conditional_table(model, batch.prompt_ids[0], batch.completion_ids[0])[31, 0].item()
    batch = drawn_by(model, trainer, batch)
    assert batch.record.rollout_logp[0, 0] != pytest.approx(plain, abs=1e-3)
    run = batch.loss_mask & (batch.advantage != 0)[:, None]
    np.testing.assert_allclose(weights(rank(trainer, model), batch)[run], 1.0, atol=1e-6)


@pytest.mark.parametrize(("ranks", "budget"), [(1, 1), (1, 20), (2, 10**6), (3, 15)])
def test_they_depend_neither_on_micro_batches_nor_on_ranks(ranks, budget):
    trainer, now = make(**SETTINGS), tiny_denoiser()
    batch = drawn_by(perturbed(), trainer, batch_of(trainer))
    expected = weights(rank(trainer, now), batch)
    # Each rank weighs its own rows and leaves zeros in the others.
    shares = [weights(rank(trainer, now, number, ranks, budget), batch) for number in range(ranks)]
    np.testing.assert_allclose(sum(shares), expected, atol=1e-6)


def test_each_tokens_gain_is_multiplied_by_its_weight():
    trainer, now = make(**SETTINGS), tiny_denoiser()
    batch = drawn_by(perturbed(), trainer, batch_of(trainer))
    weighed = rank(trainer, now)._with_importance(batch)
    loss, metrics = loss_of(trainer, now, weighed)
    gain = weighed.importance * batch.advantage[:, None] * batch.loss_mask  # the ratio is 1
    assert loss.item() == pytest.approx(-gain.sum() / batch.loss_mask.sum(), abs=1e-6)
    run = batch.loss_mask & (batch.advantage != 0)[:, None]
    assert metrics["importance/mean"] == pytest.approx(weighed.importance[run].mean(), abs=1e-6)


def test_a_whole_update_applies_them():
    trainer = make(**SETTINGS)
    batch = batch_of(trainer)
    fresh = rank(trainer, tiny_denoiser()).run(drawn_by(tiny_denoiser(), trainer, batch))
    stale = rank(trainer, tiny_denoiser()).run(drawn_by(perturbed(), trainer, batch))
    assert fresh["importance/mean"] == pytest.approx(1.0, abs=1e-6)
    assert abs(stale["importance/mean"] - 1) > 0.01 and stale["loss/policy"] != fresh["loss/policy"]
    assert torch.isfinite(torch.tensor(stale["grad_norm"]))

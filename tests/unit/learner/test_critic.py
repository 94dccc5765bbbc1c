"""A rank's critic: advantages for the policy, steps for the value model, whatever the number of ranks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny import TinyModel, tiny_denoiser, tiny_groups, tiny_scores

from rl4dlm.learner.critic import Critic
from rl4dlm.learner.engine import PlainEngine
from rl4dlm.learner.update import RankUpdate
from rl4dlm.loss.reduce import finish_metrics, merge_metrics
from rl4dlm.loss.value import with_explained_variance
from rl4dlm.recipe.algorithms import TraceRLConfig, ValueConfig
from rl4dlm.recipe.sections import TrainerConfig
from rl4dlm.trainers import make_method
from rl4dlm.trainers.method import Setting
from rl4dlm.trainers.prepare import prepare_batch
from rl4dlm.trainers.trace_value import trace_value
from rl4dlm.types import Denoiser

REWARD = [1, 0, 0.5, 0, 0, 1, 0, 0, 1, 1, 0, 0.25]


class TinyValue(TinyModel):
    """One number per position: the first logit's part."""

    def forward(self, input_ids, attention_mask=None, select=None, layout=None):
        select = torch.ones_like(input_ids, dtype=torch.bool) if select is None else select
        return self.all_logits(input_ids, attention_mask, layout)[select][:, 0]


def critic_of(config: TraceRLConfig, rank=0, world_size=1, budget=10**6, all_sum=lambda x: x):
    spec = tiny_denoiser().spec
    method = trace_value(config, config.value, Setting(spec=spec))
    model = TinyValue(seed=3)
    engine = PlainEngine(model, TrainerConfig(learning_rate=0.05, max_grad_norm=1e9))
    update = RankUpdate(
        engine=engine,
        denoiser=Denoiser(model, spec),
        method=method.learns,
        rank=rank,
        world_size=world_size,
        token_budget=budget,
        num_minibatches=1,
    )
    return Critic(update, method, all_sum), model


def batch_of(config: TraceRLConfig):
    trainer = make_method(config, Setting(spec=tiny_denoiser().spec))
    batch, _ = prepare_batch(trainer, tiny_groups(), tiny_scores(REWARD), policy_version=0, seed=0)
    return batch


def test_the_advantage_is_reward_minus_value_and_training_explains_more():
    config = TraceRLConfig(value=ValueConfig(epsilon=10.0))
    batch = batch_of(config)
    critic, _ = critic_of(config)
    values = critic.update.estimate(batch)
    judged, first = critic.run(batch)
    for row, value in values.items():
        expected = np.where(batch.loss_mask[row], batch.advantage[row] - value.numpy(), 0)
        np.testing.assert_allclose(judged.token_advantage[row], expected, atol=1e-5)
    for _ in range(60):
        _, last = critic.run(batch)
    explained = [
        with_explained_variance(finish_metrics(metrics))["value/explained_var"] for metrics in (first, last)
    ]
    # The first states of a group are alike, so its values cannot tell completions apart: never all of it.
    assert 0.3 < explained[1] < 1.0 and explained[0] < 0


def test_importance_weights_concern_the_policy_alone():
    config = TraceRLConfig(value=ValueConfig(), importance_correction="truncated")
    judged, _ = critic_of(config)[0].run(batch_of(config))
    assert judged.token_advantage is not None and judged.importance is None


def test_ranks_and_budgets_change_neither_advantages_nor_metrics():
    config = TraceRLConfig(value=ValueConfig(), shrink=2)
    batch = batch_of(config)
    whole, metrics = critic_of(config)[0].run(batch)
    parts = [critic_of(config, rank, 2, budget=15)[0].run(batch) for rank in (0, 1)]
    together = sum(part.token_advantage for part, _ in parts)
    np.testing.assert_allclose(together, whole.token_advantage, atol=1e-6)
    merged = merge_metrics([part for _, part in parts])
    assert merged["value/loss"] == pytest.approx(metrics["value/loss"], abs=1e-9)
    assert merged["value/error/mean_square"] == pytest.approx(metrics["value/error/mean_square"], abs=1e-9)


def test_whitened_advantages_have_mean_zero_and_unit_spread_over_all_ranks():
    config = TraceRLConfig(value=ValueConfig(whiten_advantages=True))
    batch = batch_of(config)
    sums: list[torch.Tensor] = []
    for rank in (0, 1):
        critic_of(config, rank, 2, all_sum=lambda x: (sums.append(x), x)[1])[0].run(batch)
    total = sums[0] + sums[1]
    parts = [critic_of(config, rank, 2, all_sum=lambda x: total)[0].run(batch)[0] for rank in (0, 1)]
    tokens = sum(part.token_advantage for part in parts)[batch.loss_mask]
    assert tokens.mean() == pytest.approx(0, abs=1e-6) and tokens.std() == pytest.approx(1, abs=1e-6)


def test_a_row_without_advantage_still_teaches_its_value():
    config = TraceRLConfig(value=ValueConfig())
    batch = dataclasses.replace(batch_of(config), advantage=np.zeros(12, np.float32))
    critic, model = critic_of(config)
    before = [p.detach().clone() for p in model.parameters()]
    critic.run(batch)
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))

"""The laws that every method obeys, whatever its likelihood and its loss (specs/rl-algorithms 12, 17 to 20).

A method that is added to `rl4dlm.trainers.METHODS` and to `SETTINGS` is held to them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from tiny import tiny_denoiser, tiny_groups, tiny_scores

from rl4dlm.loss.reduce import finish_metrics, merge_metrics
from rl4dlm.recipe.algorithms import AlgorithmConfig
from rl4dlm.trainers import METHODS, make_method
from rl4dlm.trainers.base import Setting, Trainer
from rl4dlm.trainers.trajectory_trainer import TrajectoryTrainer
from rl4dlm.types import Denoiser, TrainBatch, flatten

REWARD = [1, 0, 0.5, 0, 0, 0, 0, 0, 1, 1, 0, 0.25]  # the second of three groups is all equal
WHOLE = 10**6  # a token budget that everything fits in

SETTINGS: dict[str, dict[str, Any]] = {
    "espo": {"type": "espo", "epsilon": 0.2},
    "espo-plain": {"type": "espo", "epsilon": 0.01, "beta": 0.0, "num_masks": 1, "baseline": "mean"},
    "gdpo": {"type": "gdpo"},
    "gdpo-kl": {"type": "gdpo", "beta": 0.2, "num_nodes": 2},
    "spg": {"type": "spg"},
    "spg-random": {"type": "spg", "mask_scheme": "random", "num_masks": 3, "after_eos": "keep"},
    "spg-block": {"type": "spg", "restrict_to_block": True, "eubo_beta": 1.0, "omega": 1.0},
    "vrpo": {"type": "vrpo", "pairs": "online", "num_nodes": 3},
    "vrpo-sft": {"type": "vrpo", "pairs": "online", "num_nodes": 2, "num_masks": 2, "sft_weight": 0.5},
    "vrpo-length": {"type": "vrpo", "pairs": "online", "normalise_by_length": True, "beta": 5.0},
    "wd1": {"type": "wd1"},
    "wd1pp": {"type": "wd1pp"},
    "wd1pp-few": {"type": "wd1pp", "sample_train_steps": 2, "completion_scope": "until_eos", "psi": 2.0},
    "wd1-sharp": {"type": "wd1", "psi": 3.0, "p_mask_prompt": 0.0, "completion_scope": "canvas"},
    "diffu_grpo": {"type": "diffu_grpo", "beta": 0.0},
    "diffu_grpo-kl": {"type": "diffu_grpo", "p_mask_prompt": 0.5},
    "mdpo": {"type": "mdpo", "beta": 0.0},
    "mdpo-kl": {"type": "mdpo", "sample_train_steps": 2, "beta": 0.5, "token_weights": "uniform"},
    "mdpo-options": {
        "type": "mdpo",
        "beta": 0.0,
        "adv_kind": "reward",
        "reward_stride": 2,
        "lambda_mode": "none",
        "train_beyond_block": False,
        "importance_correction": "truncated",
    },
    "diffu_grpo-importance": {"type": "diffu_grpo", "importance_correction": "truncated"},
    "coupled_grpo": {"type": "coupled_grpo", "beta": 0.0},
    "coupled_grpo-kl": {"type": "coupled_grpo", "beta": 0.3, "calibrate": True, "baseline": "loo"},
    "unigrpo": {"type": "unigrpo", "beta": 0.0},
    "unigrpo-kl": {"type": "unigrpo", "beta": 0.3, "aggregation": "token_mean"},
    "agrpo": {"type": "agrpo", "num_steps": 3},
    "agrpo-kl": {"type": "agrpo", "num_steps": 2, "step_sampling": "surprisal", "beta": 0.3},
    "agrpo-update": {
        "type": "agrpo",
        "num_steps": 2,
        "ratio_against": "update",
        "aggregation": "seq_mean",
        "importance_correction": "truncated",
    },
    "just_grpo": {"type": "just_grpo"},
    "tracerl": {"type": "tracerl"},
    "tracerl-shrunk": {"type": "tracerl", "shrink": 2, "aggregation": "step_mean", "beta": 0.1},
    "tracerl-release": {"type": "tracerl", "aggregation": "state_mean", "importance_correction": "truncated"},
}
"""Settings by name; every method must occur."""

cases = pytest.mark.parametrize("name", SETTINGS)
models = pytest.mark.parametrize("block_length", [None, 2], ids=["full", "blocks"])


def make(name: str, block_length: int | None = None, **changes: Any) -> Trainer:
    """The trainer of some settings, for a tiny model of full or block attention."""
    config = TypeAdapter(AlgorithmConfig).validate_python({**SETTINGS[name], **changes})
    spec = tiny_denoiser(block_length=block_length).spec
    return make_method(config, Setting(temperature=1.0, spec=spec, block_length=3))


def batch_of(trainer: Trainer, reward=REWARD, groups=None) -> TrainBatch:
    groups = tiny_groups() if groups is None else groups
    step_rewards = None
    if trainer.scores_steps:
        rng = np.random.default_rng(0)
        decodes = trainer.partial_decodes(groups)
        final = [0.5 if np.isnan(value) else value for value in reward]
        step_rewards = [
            final[i] * rng.uniform(0.5, 1, len(texts)).astype(np.float32) for i, texts in enumerate(decodes)
        ]
        assert len(decodes) == len(flatten(groups))
    batch, _ = trainer.prepare(
        groups, tiny_scores(reward), policy_version=3, seed=5, step_rewards=step_rewards
    )
    assert batch is not None
    return recorded(batch, trainer)


def recorded(batch: TrainBatch, trainer: Trainer) -> TrainBatch:
    """The batch as if the tiny model had sampled it: it recorded its own log-probabilities."""
    if "step_map" not in batch.extra:  # no trajectory is looked at
        return batch
    sampler = TrajectoryTrainer(trainer.config, trainer.setting)
    denoiser = tiny_denoiser(block_length=trainer.setting.spec.block_length)
    every = sampler.micro_batches(
        dataclasses.replace(batch, advantage=np.ones(len(batch))), range(len(batch)), WHOLE
    )
    values = cache(sampler, denoiser, batch, every, 0)
    logp = np.stack([values[row].numpy() for row in range(len(batch))])
    return dataclasses.replace(batch, extra={**batch.extra, "rollout_logp": logp})


def perturbed(block_length: int | None = None, seed: int = 0, scale: float = 0.1) -> Denoiser:
    """The tiny model a few updates away."""
    denoiser = tiny_denoiser(block_length=block_length)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in denoiser.model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return denoiser


def cache(trainer, denoiser, batch, micro_batches, inner):
    """By row: estimates without gradient, micro-batches of a row added up."""
    totals: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for micro in micro_batches:
            values = trainer.estimate(denoiser, batch, micro, inner)
            for row, value in zip(micro.rows, values, strict=True):
                totals[row] = totals[row] + value if row in totals else value
    return totals


def step(trainer, denoiser, batch, *, old=None, ref=None, inner=0, budget=WHOLE, num_ranks=1):
    """What the policy worker does for one optimizer step: loss, gradient and metrics over all ranks."""
    denoiser.model.zero_grad()
    total, parts = 0.0, []
    size = trainer.step_size(batch, range(len(batch)))
    for rank in range(num_ranks):
        micro_batches = trainer.micro_batches(batch, range(rank, len(batch), num_ranks), budget, inner)
        caches = {
            kind: None if model is None else cache(trainer, model, batch, micro_batches, inner)
            for kind, model in {"old": old, "ref": ref, "current": denoiser}.items()
        }
        for micro in micro_batches:
            given = {
                kind: None if values is None else torch.stack([values[row] for row in micro.rows])
                for kind, values in caches.items()
            }
            if not trainer.needs_current(micro):
                given["current"] = None
            loss, metrics = trainer.loss(denoiser, batch, micro, inner, **given, step=size)
            loss.backward()
            total += loss.item()
            parts.append(metrics)
    gradient = {name: p.grad.clone() for name, p in denoiser.model.named_parameters() if p.grad is not None}
    return total, gradient, finish_metrics(merge_metrics(parts))


def assert_same_gradient(left, right, tolerance=1e-9):
    assert left.keys() == right.keys() and left
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=tolerance, rtol=0)


def test_every_method_is_held_to_the_laws():
    # An unmasking policy is no likelihood of a language model: tests/unit/trainers/test_unmasking_policy.py.
    assert {settings["type"] for settings in SETTINGS.values()} == set(METHODS) - {"unmasking_policy"}


@models
@cases
def test_the_update_does_not_depend_on_how_the_batch_is_split(name, block_length):
    trainer, denoiser = make(name, block_length), perturbed(block_length)
    batch = batch_of(trainer)
    others = {
        "old": tiny_denoiser(block_length=block_length) if trainer.needs_old else None,
        "ref": perturbed(block_length, seed=1) if trainer.needs_reference else None,
    }
    loss, gradient, metrics = step(trainer, denoiser, batch, inner=2, **others)
    assert any(value.abs().max() > 1e-6 for value in gradient.values())
    for budget, num_ranks in ((1, 1), (30, 1), (WHOLE, 2), (20, 2), (60, 3)):
        again = step(trainer, denoiser, batch, inner=2, budget=budget, num_ranks=num_ranks, **others)
        assert again[0] == pytest.approx(loss, abs=1e-9)
        assert_same_gradient(again[1], gradient)
        assert again[2] == pytest.approx(metrics, abs=1e-8)


@models
@cases
def test_the_first_ratio_is_one_and_the_first_kl_zero(name, block_length):
    trainer = make(name, block_length)
    batch = batch_of(trainer)
    same = tiny_denoiser(block_length=block_length)
    others = {
        "old": same if trainer.needs_old else None,
        "ref": same if trainer.needs_reference else None,
    }
    cached = step(trainer, tiny_denoiser(block_length=block_length), batch, **others)
    for metric, expected in {"ratio/max": 1, "ratio/min": 1, "kl": 0, "clip_ratio/region_mean": 0}.items():
        if metric in cached[2]:
            assert cached[2][metric] == pytest.approx(expected, abs=1e-9)
    # Without a cache the current policy is the old one: the same gradient.
    fresh = step(trainer, tiny_denoiser(block_length=block_length), batch, ref=others["ref"])
    assert_same_gradient(cached[1], fresh[1])


@cases
def test_equal_rewards_give_no_gradient(name):
    trainer, denoiser = make(name), tiny_denoiser()
    groups = tiny_groups()
    equal = [np.full(len(d), 0.3, np.float32) for d in trainer.partial_decodes(groups)]
    batch, _ = trainer.prepare(
        groups,
        tiny_scores([0.3] * 12),
        policy_version=0,
        seed=0,
        step_rewards=equal if trainer.scores_steps else None,
    )
    if batch is None:
        return  # there was nothing to compare
    ref = tiny_denoiser() if trainer.needs_reference else None
    _, gradient, _ = step(trainer, denoiser, batch, ref=ref)
    assert all(value.abs().max() < 1e-12 for value in gradient.values())


@cases
def test_a_shift_of_all_rewards_changes_nothing(name):
    trainer = make(name)
    if trainer.scores_steps:
        pytest.skip("the shift of step rewards is tested with the method")
    ref = tiny_denoiser() if trainer.needs_reference else None
    first, second = (
        step(trainer, perturbed(), batch_of(trainer, [value + shift for value in REWARD]), ref=ref)
        for shift in (0, 4)
    )
    assert first[0] == pytest.approx(second[0], abs=1e-6)
    assert_same_gradient(first[1], second[1], tolerance=1e-6)


@models
@cases
def test_gradient_steps_raise_the_rewarded_completions(name, block_length):
    trainer, denoiser = make(name, block_length, num_iterations=10), tiny_denoiser(block_length=block_length)
    batch = batch_of(trainer)
    probe = make("gdpo", block_length, estimator="stratified", num_nodes=5)
    whole = batch_of(probe)
    advantage = torch.tensor(whole.advantage)

    def likelihood() -> torch.Tensor:
        every = probe.micro_batches(dataclasses.replace(whole, advantage=np.ones(12)), range(12), WHOLE)
        values = cache(probe, denoiser, whole, every, 0)
        return torch.stack([values[row] for row in range(12)])

    before = likelihood()
    optimizer = torch.optim.Adam(denoiser.model.parameters(), lr=0.01)
    for inner in range(10):
        old = tiny_denoiser(block_length=block_length) if trainer.needs_old else None
        ref = tiny_denoiser(block_length=block_length) if trainer.needs_reference else None
        step(trainer, denoiser, batch, old=old, ref=ref, inner=inner)
        optimizer.step()
    assert ((likelihood() - before) * advantage).sum() > 0.2


@cases
def test_a_failed_reward_leaves_the_update(name):
    trainer = make(name)
    batch = batch_of(trainer, [1, float("nan"), 0, 0.5, *REWARD[4:]])
    pairs = SETTINGS[name]["type"] == "vrpo"  # of two groups with unequal rewards
    assert len(batch) == (2 if pairs else 11)

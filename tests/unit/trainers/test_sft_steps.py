"""What each step of a fine-tuning run learns, and what held-out examples are measured by."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import conditional_table, enumerate_elbo, tiny_denoiser

from rl4dlm.data import Example
from rl4dlm.recipe import load_recipe
from rl4dlm.recipe.objectives import ARObjective, BlockObjective, RandomMaskObjective
from rl4dlm.recipe.sections import RolloutConfig
from rl4dlm.trainers.sft import SFTPlan, row_nll
from rl4dlm.trainers.sft_steps import (
    held_out_batch,
    held_out_metrics,
    held_out_plan,
    step_batch,
    step_plan,
    warm_start_plan,
)

FULL = tiny_denoiser().spec
CAUSAL = replace(FULL, attention="block_causal", block_length=4)


class Source:
    """Examples that are numbered through."""

    def batch(self, step: int, n: int) -> list[Example]:
        numbers = range(step * n, (step + 1) * n)
        return [Example(i, np.array([i % 3], np.int32), np.array([1, 2], np.int32)) for i in numbers]


def recipe(*overrides: str) -> Any:
    return load_recipe("sft/tiny_sort", ["trainer.max_steps=6", "trainer.warmup_steps=0", *overrides])


def test_the_warm_start_takes_the_objective_of_the_models_attention():
    rollout = RolloutConfig(max_completion_length=16)
    assert warm_start_plan(rollout, FULL) == SFTPlan(RandomMaskObjective(), "canvas", 16)
    assert warm_start_plan(rollout, CAUSAL) == SFTPlan(BlockObjective(), "canvas", 16, 4)


def test_blocks_grow_over_equal_parts_of_training_and_the_fill_follows_the_attention():
    growing = BlockObjective(growth=[1, 2, 4])
    plans = [step_plan(recipe(), growing, CAUSAL, step) for step in range(6)]
    assert [plan.block_length for plan in plans] == [1, 1, 2, 2, 4, 4]
    assert {plan.fill for plan in plans} == {"block"}
    assert [step_plan(recipe(), BlockObjective(), CAUSAL, step).block_length for step in (0, 5)] == [4, 4]
    assert step_plan(recipe(), RandomMaskObjective(), FULL, 0).fill == "canvas"
    assert step_plan(recipe("sft.fill=none"), RandomMaskObjective(), FULL, 0).fill == "none"


def test_a_steps_batch_is_a_function_of_seed_and_step():
    objective = RandomMaskObjective()
    batch = step_batch(recipe("sft.batch_size=3"), Source(), objective, FULL, 2)
    assert [ids.tolist() for ids in batch.prompt_ids] == [[0], [1], [2]]
    again = step_batch(recipe("sft.batch_size=3"), Source(), objective, FULL, 2)
    other = step_batch(recipe("sft.batch_size=3", "run.seed=1"), Source(), objective, FULL, 2)
    assert np.array_equal(batch.seed, again.seed) and not np.array_equal(batch.seed, other.seed)
    later = step_batch(recipe("sft.batch_size=3"), Source(), objective, FULL, 3)
    assert not np.array_equal(batch.seed, later.seed) and batch.t[0] != later.t[0]


def test_whatever_is_trained_is_measured_by_the_likelihood_of_its_attention():
    for trained in (BlockObjective(weight="none", growth=[1, 4]), BlockObjective(half_life=0.1)):
        plan = held_out_plan(SFTPlan(trained, "block", 8, 1), CAUSAL)
        assert isinstance(plan.objective, BlockObjective) and plan.block_length == 4
        assert (plan.objective.mask_rule, plan.objective.weight) == ("count", "inverse_rate")
        assert plan.objective.half_life is None
    assert held_out_plan(SFTPlan(RandomMaskObjective(cart=0.3), "none", 8), FULL).objective.cart is None
    causal = SFTPlan(ARObjective(), "none", 8)
    assert held_out_plan(causal, FULL) == causal


def test_the_held_out_metric_is_the_elbo_per_token():
    """Many states of two examples against their enumerated ELBOs."""
    model = tiny_denoiser()
    examples = [
        Example(0, np.array([1, 0], np.int32), np.array([2, 0, 1, 1], np.int32), ended=False),
        Example(1, np.array([2], np.int32), np.array([0, 1], np.int32), ended=False),
    ]
    plan = held_out_plan(SFTPlan(RandomMaskObjective(), "none", 4), model.spec)
    batch = held_out_batch(examples, plan, model.spec, 0, 4000)
    with torch.no_grad():
        nll = row_nll(model, batch, range(len(batch))).numpy()
    metrics = held_out_metrics(nll, batch, 2)
    exact = sum(
        enumerate_elbo(conditional_table(model, e.prompt_ids.tolist(), e.completion_ids.tolist()))
        for e in examples
    )
    assert metrics["eval/elbo"] == pytest.approx(exact / 6, rel=0.01)
    assert metrics["eval/perplexity"] == pytest.approx(math.exp(-metrics["eval/elbo"]))
    assert metrics["eval/num_prompts"] == 2


def test_the_states_of_an_example_have_spread_out_mask_rates():
    batch = held_out_batch(Source().batch(0, 3), SFTPlan(RandomMaskObjective(), "none", 4), FULL, 0, 4)
    for example in range(3):
        assert np.diff(np.sort(batch.t[example::3])) == pytest.approx([0.25] * 3)
        assert {tuple(ids) for ids in batch.prompt_ids[example::3]} == {(example,)}


def test_the_interval_is_that_of_a_ratio_of_means():
    examples = Source().batch(0, 2)
    batch = held_out_batch(examples, SFTPlan(RandomMaskObjective(), "none", 4), FULL, 0, 1)
    # 3 tokens each (end-of-text included), 3 and 9 nats: -2 nats per token, residuals -3 and 3.
    metrics = held_out_metrics(np.array([3.0, 9.0]), batch, 2)
    assert metrics["eval/elbo"] == -2.0
    half = 1.96 * math.sqrt(18 * 2 / 1) / 6
    assert metrics["eval/elbo_ci95_low"] == pytest.approx(metrics["eval/elbo"] - half)
    assert metrics["eval/elbo_ci95_high"] == pytest.approx(metrics["eval/elbo"] + half)

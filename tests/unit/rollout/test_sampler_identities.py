"""Samplers at the ends of their settings are other samplers (specs: decoding 17, X1 to X9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rollout_toys import requests, transformer

from rl4dlm.decoding import SamplerSpec
from rl4dlm.rollout import Engine
from rl4dlm.types import Rollout

SPEC = SamplerSpec(16, 8, 16, temperature=0.0, eos_policy="none")


def rollouts(**changes: Any) -> list[Rollout]:
    return Engine(transformer(), replace(SPEC, **changes), 4).generate(requests(6), policy_version=0)


def steps_of(made: Sequence[Rollout]) -> set[int]:
    return {rollout.num_steps for rollout in made}


def assert_same_samples(ours: Sequence[Rollout], theirs: Sequence[Rollout]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one.completion_ids, other.completion_ids)
        np.testing.assert_array_equal(one.trace.step_map, other.trace.step_map)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize(
    "cautious",
    [
        {"remasking": "threshold", "threshold": 1.0},
        {"remasking": "factor", "factor": 0.0},
        {"remasking": "dynamic", "threshold": 1.0},
    ],
)
def test_with_nothing_sure_enough_one_token_is_committed_at_a_time(
    cautious: dict, temperature: float
) -> None:
    ours = rollouts(**cautious, temperature=temperature)
    assert_same_samples(ours, rollouts(remasking="low_confidence", temperature=temperature))
    assert steps_of(ours) == {16}


@pytest.mark.parametrize(
    "bold",
    [
        {"remasking": "threshold", "threshold": 0.0},
        {"remasking": "factor", "factor": 1e9},
        {"remasking": "dynamic", "threshold": 0.0},
        {"remasking": "entropy_bound", "entropy_budget": 1e9},
        {"remasking": "entropy_bound_cumsum", "entropy_budget": 1e9},
        {"remasking": "entropy_threshold", "entropy_budget": 1e9},
    ],
)
def test_with_everything_sure_enough_a_block_takes_one_step(bold: dict) -> None:
    assert steps_of(rollouts(**bold)) == {2}


@pytest.mark.parametrize("remasking", ["entropy_bound", "entropy_bound_cumsum", "entropy_threshold"])
def test_an_entropy_budget_of_zero_commits_one_token_at_a_time_by_entropy(remasking: str) -> None:
    ours = rollouts(remasking=remasking, entropy_budget=0.0)
    assert_same_samples(ours, rollouts(remasking="neg_entropy"))


def test_a_small_order_temperature_is_none() -> None:
    ours = rollouts(remasking="dream_entropy", order_temperature=1e-9)
    assert_same_samples(ours, rollouts(remasking="dream_entropy"))


def test_a_cut_that_keeps_everything_is_none_and_one_that_keeps_one_is_greedy() -> None:
    sampled = rollouts(temperature=0.9)
    assert_same_samples(rollouts(temperature=0.9, top_k=14), sampled)
    one = rollouts(temperature=0.9, top_k=1, remasking="ar")
    assert_same_samples(one, rollouts(remasking="ar"))
    assert_same_samples(rollouts(temperature=0.9, top_p=1e-9, remasking="ar"), one)


def test_rcr_with_the_block_written_in_one_step_is_low_confidence() -> None:
    assert_same_samples(rollouts(remasking="rcr", steps=2), rollouts(steps=2))

"""Drafts change the number of forwards and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_toys import assert_same, block_causal, requests, transformer

from rl4dlm.decoding import SamplerSpec
from rl4dlm.recipe.samplers import SAMPLERS
from rl4dlm.rollout import Engine
from rl4dlm.types import Denoiser, Rollout

STATIC = [name for name, facts in SAMPLERS.items() if facts.is_static]

SPEC = SamplerSpec(16, 8, 16)


def sample(denoiser: Denoiser, spec: SamplerSpec, count: int = 7, slots: int = 3) -> list[Rollout]:
    return Engine(denoiser, spec, slots).generate(requests(count), policy_version=0)


def costless(rollouts: list[Rollout]) -> list[Rollout]:
    return [replace(rollout, num_forwards=0, token_forwards=0) for rollout in rollouts]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("draft_steps", [1, 2, 5])
@pytest.mark.parametrize("changes", [{}, {"steps": 8}, {"eos_policy": "none"}, {"block_length": 16}])
def test_samples_are_those_of_one_step_per_forward(
    changes: dict, draft_steps: int, temperature: float
) -> None:
    denoiser, spec = transformer(), replace(SPEC, temperature=temperature, **changes)
    drafted = sample(denoiser, replace(spec, draft_steps=draft_steps))
    static = sample(denoiser, spec)
    assert_same(costless(drafted), costless(static))
    for ours, theirs in zip(drafted, static, strict=True):
        assert ours.num_forwards <= theirs.num_forwards
        assert draft_steps > 1 or ours.num_forwards == theirs.num_forwards
        assert ours.token_forwards >= theirs.token_forwards * (draft_steps == 1)


@pytest.mark.parametrize("remasking", STATIC)
def test_every_static_sampler_can_be_drafted(remasking: str) -> None:
    denoiser, spec = transformer(), replace(SPEC, remasking=remasking, temperature=0.7)
    drafted, static = sample(denoiser, replace(spec, draft_steps=4)), sample(denoiser, spec)
    assert_same(costless(drafted), costless(static))
    assert sum(r.num_forwards for r in drafted) < sum(r.num_forwards for r in static)


@pytest.mark.parametrize("block_length", [4, 8])
def test_block_causal_models_can_be_drafted_also_in_longer_blocks(block_length: int) -> None:
    denoiser, spec = block_causal(4), replace(SPEC, block_length=block_length, temperature=0.7)
    drafted, static = sample(denoiser, replace(spec, draft_steps=3)), sample(denoiser, spec)
    assert_same(costless(drafted), costless(static))


def test_a_model_that_heeds_no_context_is_guessed_right_to_the_end_of_the_block() -> None:
    # Logits depend on the position only, so every guess is right: rounds of 1, 5, 3 (the rest of the block,
    # and the first step of the next, of which nothing was known), 5 and 2 steps.
    model = transformer().model

    def blind(input_ids: torch.Tensor, mask: Any, select: torch.Tensor) -> torch.Tensor:
        return model(torch.full_like(input_ids, 3), mask, select=select)

    spec = replace(SPEC, draft_steps=5, eos_policy="none", temperature=0.0)
    rollout = sample(Denoiser(blind, transformer().spec), spec, count=1)[0]
    assert (rollout.num_steps, rollout.num_forwards) == (16, 5)


def test_a_round_runs_true_and_guessed_states_in_one_forward() -> None:
    denoiser = transformer()
    rollouts = sample(denoiser, replace(SPEC, draft_steps=4, eos_policy="none"), count=3)
    rows = [call[0] for call in denoiser.model.calls]
    assert len(rows) == max(rollout.num_forwards for rollout in rollouts)
    assert rows[0] == 3 and max(rows) <= 12
    assert sum(rollout.token_forwards for rollout in rollouts) >= sum(rows) * 16


@settings(max_examples=12, deadline=None)
@given(
    remasking=st.sampled_from(STATIC),
    layout=st.sampled_from([(12, 4, 12), (12, 12, 5), (8, 2, 8), (16, 8, 4)]),
    model=st.sampled_from(["full", "causal", "enlarged"]),
    eos_policy=st.sampled_from(["none", "block_eos", "accepted_eos"]),
    prompt_lens=st.lists(st.integers(0, 11), min_size=1, max_size=6),
    slots=st.integers(1, 4),
    draft_steps=st.integers(1, 7),
)
def test_drafts_change_no_sample_whatever_the_rows(
    remasking: str,
    layout: tuple[int, int, int],
    model: str,
    eos_policy: str,
    prompt_lens: list[int],
    slots: int,
    draft_steps: int,
) -> None:
    gen_len, block_length, steps = layout
    made_for = {"full": None, "causal": block_length, "enlarged": block_length // 2}[model]
    denoiser = transformer() if made_for is None else block_causal(made_for)
    spec = SamplerSpec(gen_len, block_length, steps, 0.8, remasking, eos_policy=eos_policy)
    wanted = requests(len(prompt_lens), prompt_lens=tuple(prompt_lens))
    drafted, static = (
        Engine(denoiser, replace(spec, draft_steps=number), slots).generate(wanted, policy_version=0)
        for number in (draft_steps, 0)
    )
    assert_same(costless(drafted), costless(static))

"""Every sampler: equal to the plain loop, independent of its neighbours, and replayed exactly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_toys import MASK, assert_same, block_causal, requests, transformer

from rl4dlm.decoding import STRATEGIES, PolicyFeatures, SamplerSpec, register_policy
from rl4dlm.likelihood.trace import replay_logp
from rl4dlm.recipe.samplers import SAMPLERS
from rl4dlm.rollout import (
    Engine,
    Request,
    check_trace,
    prediction_at,
    state_before,
    step_prediction,
)
from rl4dlm.testing.reference_sampler import generate_reference
from rl4dlm.types import EARLY_COMMIT, FORCED, REMASK, Denoiser, Rollout

# Settings under which a sampler shows what it can do on the toys, whose confidences are mostly small.
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "dynamic": [{"threshold": 0.35}],
    "threshold": [{"threshold": 0.3}],
    "factor": [{"factor": 1.7}],
    "top_dynamic": [{"threshold": 0.35}],
    "top_threshold": [{"threshold": 0.3}],
    "top_factor": [{"factor": 1.7}],
    "entropy_bound": [{"entropy_budget": 2.0}],
    "entropy_bound_cumsum": [{"entropy_budget": 3.5}],
    "entropy_threshold": [{"entropy_budget": 1.4}],
    "neg_entropy": [{}, {"order_temperature": 0.5}],
    "dream_entropy": [{"top_p": 0.8, "order_temperature": 0.3}],
    "dream_maskgit_plus": [{"top_p": 0.8, "top_k": 5}],
    "rcr": [
        *({"rcr_update": update} for update in ("last", "max", "min")),
        {"rcr_confidence": "neg_entropy", "rcr_schedule": "cosine"},
        {"rcr_confidence": "margin", "rcr_schedule": "linear"},
    ],
    "learned": [{"policy": "toy"}, {"policy": "toy", "policy_sharpness": 3.0}],
    "low_confidence": [
        {},
        {"cfg_scale": 0.5},
        {"early_commit": "sched_cosine", "early_commit_high": 3.0, "early_commit_low": 0.3},
        {"early_commit": "prophet", "answer_region": (5, 9), "early_commit_high": 3.0},
    ],
    "saber": [{}, {"early_commit": "sched_exp", "early_commit_high": 3.0, "early_commit_low": 0.3}],
}


def toy_policy(features: PolicyFeatures) -> torch.Tensor:
    """Surer positions more often, later steps more often, even positions more often."""
    even = (torch.arange(features.confidence.shape[1]) % 2 == 0).float()
    return 5 * features.confidence + 2 * features.time[:, None] + even - 3


register_policy("toy", toy_policy)

CASES = [(name, extra) for name in sorted(STRATEGIES) for extra in SETTINGS.get(name, [{}])]
IDS = ["-".join([name, *map(str, extra.values())]) for name, extra in CASES]
BY_NAME = pytest.mark.parametrize(("name", "extra"), CASES, ids=IDS)


def sampler(name: str, extra: dict[str, Any], **kwargs: Any) -> SamplerSpec:
    return SamplerSpec(16, 8, 8, remasking=name, **({"temperature": 0.8} | extra | kwargs))


def sample(denoiser: Denoiser, spec: SamplerSpec, wanted: list[Request], slots: int = 3) -> list[Rollout]:
    return Engine(denoiser, spec, slots).generate(wanted, policy_version=3)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@BY_NAME
def test_the_engine_equals_the_plain_loop(name: str, extra: dict, temperature: float) -> None:
    denoiser, wanted = transformer(), requests(5)
    spec = sampler(name, extra, temperature=temperature, record_predictions=True)
    ours, plain = sample(denoiser, spec, wanted), generate_reference(denoiser, spec, wanted, policy_version=3)
    assert_same(ours, plain)
    for rollout in ours:
        check_trace(rollout, MASK)


@BY_NAME
def test_blocks_of_a_block_causal_model_begin_where_the_prompt_leaves_them(name: str, extra: dict) -> None:
    # Prompts of 3, 0, 5, 9 and 1 tokens: first blocks of 1, 4, 3, 3 and 3 tokens, last ones of 3, 4, 1, 1, 1.
    denoiser, wanted = block_causal(4), requests(5)
    spec = replace(sampler(name, extra), block_length=4, steps=8, eos_policy="none")
    ours = sample(denoiser, spec, wanted)
    assert_same(ours, generate_reference(denoiser, spec, wanted, policy_version=3))
    for request, rollout in zip(wanted, ours, strict=True):
        check_trace(rollout, MASK)
        if rollout.trace.events is None and "early_commit" not in extra:
            block = (np.arange(16) + len(request.prompt_ids) % 4) // 4
            np.testing.assert_array_equal(rollout.trace.step_block[rollout.trace.step_map], block)


@BY_NAME
def test_recording_predictions_changes_no_token_and_shows_every_masked_position(
    name: str, extra: dict
) -> None:
    denoiser, wanted = transformer(), requests(3)
    # An early commit writes the likeliest tokens, which are the predictions of greedy decoding.
    spec = sampler(name, extra, temperature=0.0 if "early_commit" in extra else 0.8)
    plain = sample(denoiser, spec, wanted)
    recorded = sample(denoiser, replace(spec, record_predictions=True), wanted)
    assert_same([replace(r, trace=replace(r.trace, predictions=None)) for r in recorded], plain)
    for rollout in recorded:
        for step in range(rollout.num_steps):
            after, shown = state_before(rollout, step + 1, MASK), prediction_at(rollout, step, MASK)
            hidden = state_before(rollout, step, MASK) == MASK
            assert MASK not in shown
            np.testing.assert_array_equal(
                step_prediction(rollout, step, MASK).position, np.flatnonzero(hidden)
            )
            # What the step committed is what was predicted there; what stood there is shown as it was.
            kept = after != MASK
            np.testing.assert_array_equal(shown[kept], after[kept])


@BY_NAME
def test_the_trainers_replay_of_every_step_gives_the_samplers_log_probabilities(
    name: str, extra: dict
) -> None:
    denoiser = transformer(torch.float32)
    if "cfg_scale" in extra:
        pytest.skip("guided samples are off the model's own law: the replay gap shows it")
    for rollout in sample(denoiser, sampler(name, extra), requests(2)):
        tokens = 0
        for step in range(rollout.num_steps):
            now, recorded = replay_logp(denoiser, [rollout], [step], 0.8)
            torch.testing.assert_close(now, recorded, atol=1e-5, rtol=0)
            tokens += len(now)
        assert tokens >= rollout.completion_len - (rollout.trace.kind == EARLY_COMMIT).sum()


@BY_NAME
def test_a_rollout_does_not_depend_on_its_neighbours(name: str, extra: dict) -> None:
    denoiser, wanted = transformer(), requests(5)
    spec = sampler(name, extra, record_predictions=True)
    together = sample(denoiser, spec, wanted, slots=3)
    assert_same(together, [sample(denoiser, spec, [request])[0] for request in wanted])


@settings(max_examples=30, deadline=None)
@given(
    case=st.sampled_from(CASES),
    layout=st.sampled_from([(12, 4, 6), (12, 12, 5), (8, 2, 8), (6, 6, 6), (16, 8, 2)]),
    model=st.sampled_from(["full", "causal", "enlarged"]),
    eos_policy=st.sampled_from(["none", "block_eos", "block_all_eos", "accepted_eos"]),
    prompt_lens=st.lists(st.integers(0, 11), min_size=1, max_size=4),
    slots=st.integers(1, 4),
    temperature=st.sampled_from([0.0, 0.6, 1.3]),
    record=st.booleans(),
)
def test_engine_and_plain_loop_agree_wherever_a_sampler_can_be_built(
    case: tuple[str, dict],
    layout: tuple[int, int, int],
    model: str,
    eos_policy: str,
    prompt_lens: list[int],
    slots: int,
    temperature: float,
    record: bool,
) -> None:
    (name, extra), (gen_len, block_length, steps) = case, layout
    if "answer_region" in extra:
        extra = extra | {"answer_region": (1, 4)}
    if eos_policy == "accepted_eos" and SAMPLERS[name].revises:
        eos_policy = "block_eos"
    spec = SamplerSpec(gen_len, block_length, steps, temperature, name, eos_policy=eos_policy, **extra)
    spec = replace(spec, record_predictions=record)
    made_for = {"full": None, "causal": block_length, "enlarged": block_length // 2}[model]
    denoiser = transformer() if made_for is None else block_causal(made_for)
    wanted = requests(len(prompt_lens), prompt_lens=tuple(prompt_lens))
    ours = sample(denoiser, spec, wanted, slots)
    assert_same(ours, generate_reference(denoiser, spec, wanted, policy_version=3))
    for rollout in ours:
        check_trace(rollout, MASK)
        assert MASK not in rollout.completion_ids
        assert rollout.num_steps <= gen_len


def test_block_lengths_and_steps_of_one_batch_may_differ_by_request() -> None:
    denoiser, wanted = transformer(), requests(9)
    spec = SamplerSpec(16, 8, 8, record_predictions=True)
    kinds = [(None, None), (16, None), (4, 12)]
    mixed = [
        replace(request, block_length=block, steps=steps)
        for request, (block, steps) in zip(wanted, kinds * 3, strict=True)
    ]
    ours = sample(denoiser, spec, mixed)
    for (block, steps), request, rollout in zip(kinds * 3, wanted, ours, strict=True):
        own = replace(spec, block_length=block or 8, steps=steps or 8)
        assert_same([rollout], sample(denoiser, own, [request]))
    assert len({rollout.spec_hash for rollout in ours}) == 3
    assert_same(ours, generate_reference(denoiser, spec, mixed, policy_version=3))


def test_a_block_causal_model_may_be_sampled_in_longer_blocks() -> None:
    # The model made for blocks of 4 gets the attention of blocks of 8 and is the model made for 8.
    wanted = requests(6)
    spec = SamplerSpec(16, 8, 8, eos_policy="none")
    longer = sample(block_causal(4), spec, wanted)
    assert_same(longer, sample(block_causal(8), spec, wanted))
    assert_same(longer, generate_reference(block_causal(4), spec, wanted, policy_version=3))


def test_rcr_takes_tokens_back_and_keeps_the_schedule() -> None:
    rollouts = sample(transformer(), sampler("rcr", {}, eos_policy="none"), requests(6))
    taken = sum(int((rollout.trace.events.op == REMASK).sum()) for rollout in rollouts)
    assert taken > 5
    for rollout in rollouts:
        # 16 tokens in 8 steps: two fewer masks after each.
        assert rollout.trace.step_masked.tolist() == [16, 14, 12, 10, 8, 6, 4, 2]
    earlier = [
        rollout.trace.events.pos[rollout.trace.events.ptr[step] : rollout.trace.events.ptr[step + 1]].min()
        for rollout in rollouts
        for step in range(4, 7)
    ]
    assert min(earlier) < 8, "tokens of the first block are remasked while the second is active"


def test_dynamic_commits_what_exceeds_the_threshold_and_at_least_the_schedule() -> None:
    rollouts = sample(transformer(scale=5.0), sampler("dynamic", {"threshold": 0.7}), requests(10))
    sizes = [
        (int((rollout.trace.step_map == step).sum()), rollout.trace.score[rollout.trace.step_map == step])
        for rollout in rollouts
        for step in range(rollout.num_steps - 1)
    ]
    assert any(size > 2 for size, _ in sizes)
    for size, score in sizes:
        assert size <= 2 or (score > 0.7).all()
    for rollout in rollouts:
        forced = rollout.trace.kind == FORCED
        assert (rollout.trace.score[forced] <= 0.7).all()

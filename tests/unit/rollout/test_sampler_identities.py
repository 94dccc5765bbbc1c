"""Samplers at the ends of their settings are other samplers (specs: decoding 17, X1 to X9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rollout_toys import MASK, assert_same, block_causal, requests, transformer
from rollout_toys import SPEC as MODEL

from rl4dlm.decoding import PolicyFeatures, SamplerSpec, register_policy
from rl4dlm.decoding.confidence import logit_gap
from rl4dlm.rollout import Engine, check_trace
from rl4dlm.testing.published_loop import generate_plain
from rl4dlm.types import EARLY_COMMIT, FORCED, STOP_EARLY_COMMIT, Denoiser, Rollout

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


@pytest.mark.parametrize("kind", ["prophet", "sched_linear", "sched_cosine", "sched_exp"])
@pytest.mark.parametrize("remasking", ["low_confidence", "dynamic", "rcr"])
def test_an_early_commit_never_comes_or_comes_at_once(kind: str, remasking: str) -> None:
    region = (3, 9) if kind == "prophet" else None
    extra = {"early_commit": kind, "answer_region": region, "remasking": remasking}
    never = rollouts(**extra, early_commit_high=1e9, early_commit_low=1e9)
    assert_same_samples(never, rollouts(remasking=remasking))
    at_once = rollouts(**extra, early_commit_high=1e-9, early_commit_low=0.0)
    assert steps_of(at_once) == {1}
    for rollout in at_once:
        assert rollout.stop_reason == STOP_EARLY_COMMIT
        assert (rollout.trace.kind == EARLY_COMMIT).all()
        check_trace(rollout, MASK)
    # The likeliest tokens of the fully masked canvas.
    one = at_once[0]
    ids = torch.tensor([[*one.prompt_ids.tolist(), *[MASK] * 16]])
    logits = transformer().logits(ids, None, torch.arange(ids.shape[1])[None] >= len(one.prompt_ids))
    np.testing.assert_array_equal(one.completion_ids, logits.argmax(1))


def test_a_row_leaves_when_its_own_mean_gap_reaches_the_threshold() -> None:
    # The threshold lies between the mean gaps of two prompts: one leaves at once, its neighbour does not.
    wanted, gaps = requests(2, prompt_lens=(3, 5)), []
    for request in wanted:
        ids = torch.tensor([[*request.prompt_ids, *[MASK] * 16]])
        logits = transformer().logits(ids, None, torch.arange(ids.shape[1])[None] >= len(request.prompt_ids))
        gaps.append(logit_gap(logits).double().mean().item())
    between = sum(gaps) / 2
    spec = replace(SPEC, early_commit="sched_linear", early_commit_high=between, early_commit_low=between)
    made = Engine(transformer(), spec, 2).generate(wanted, policy_version=0)
    assert [rollout.num_steps == 1 for rollout in made] == [gap > between for gap in gaps]


def test_guidance_without_a_prompt_is_none_and_with_one_it_moves_the_logits() -> None:
    bare, prompted = requests(2, prompt_lens=(0,)), requests(2, prompt_lens=(6,))
    for wanted, same in ((bare, True), (prompted, False)):
        plain = Engine(transformer(), SPEC, 2).generate(wanted, policy_version=0)
        guided = Engine(transformer(), replace(SPEC, cfg_scale=2.0), 2).generate(wanted, policy_version=0)
        equal = all(
            np.array_equal(a.completion_ids, b.completion_ids) for a, b in zip(plain, guided, strict=True)
        )
        assert equal == same
        assert [r.num_forwards for r in guided] == [2 * r.num_steps for r in guided]


@pytest.mark.parametrize(("logit", "steps", "forced"), [(40.0, 2, False), (-40.0, 16, True)])
def test_a_policy_of_one_mind_commits_a_block_or_one_token(logit: float, steps: int, forced: bool) -> None:
    def constant(features: PolicyFeatures) -> torch.Tensor:
        return torch.full_like(features.confidence, logit) + 0.01 * features.confidence

    register_policy("constant", constant)
    for rollout in rollouts(remasking="learned", policy="constant"):
        assert rollout.num_steps == steps
        assert (rollout.trace.kind == FORCED).all() == forced
        assert rollout.trace.actions is not None
        assert rollout.trace.actions.action.all() != forced


def test_a_policys_actions_can_be_scored_again_from_the_record() -> None:
    def surest(features: PolicyFeatures) -> torch.Tensor:
        return 6 * features.confidence + features.time[:, None] - 2

    register_policy("surest", surest)
    for rollout in rollouts(remasking="learned", policy="surest", temperature=0.7):
        record = rollout.trace.actions
        assert record is not None and len(record.logp) == rollout.num_steps
        for step in range(rollout.num_steps):
            inside = slice(record.ptr[step], record.ptr[step + 1])
            chance = 1 / (1 + np.exp(-(6 * record.confidence[inside] + step / 16 - 2)))
            action = record.action[inside].astype(bool)
            logp = np.log(np.where(action, chance, 1 - chance)).sum()
            np.testing.assert_allclose(record.logp[step], logp, atol=1e-4)
            committed = np.flatnonzero(rollout.trace.step_map == step)
            if action.any():
                np.testing.assert_array_equal(committed, record.pos[inside][action])
            else:
                assert len(committed) == 1


def test_the_published_loop_draws_the_same_greedy_tokens() -> None:
    wanted = requests(7)
    for block_length, steps in ((8, 16), (8, 4), (16, 8)):
        spec = replace(SPEC, block_length=block_length, steps=steps)
        plain = generate_plain(transformer(), spec, wanted, 3)
        ours = Engine(transformer(), spec, 4).generate(wanted, policy_version=0)
        np.testing.assert_array_equal(plain, np.stack([rollout.completion_ids for rollout in ours]))


def test_the_published_loop_stops_where_its_last_row_ends_if_asked() -> None:
    denoiser, wanted = transformer(), requests(6)
    spec = replace(SPEC, eos_policy="block_eos")
    generate_plain(denoiser, spec, wanted, 3, until_all_end=True)
    ours = Engine(transformer(), spec, 3).generate(wanted, policy_version=0)
    longest = [max(r.num_steps for r in ours[i : i + 3]) for i in (0, 3)]
    assert len(denoiser.model.calls) == sum(longest)


def test_the_published_loop_samples_from_the_models_law() -> None:
    # One position with p = (.6, .3, .1), 4 000 times.
    def flat(input_ids: torch.Tensor, mask: Any, select: torch.Tensor) -> torch.Tensor:
        return torch.tensor([0.6, 0.3, 0.1]).log().expand(int(select.sum()), -1)

    spec = replace(SPEC, gen_len=1, block_length=1, steps=1, temperature=1.0)
    drawn = generate_plain(Denoiser(flat, MODEL), spec, requests(4_000, prompt_lens=(0,)), 4_000)
    share = np.bincount(drawn[:, 0], minlength=3) / 4_000
    np.testing.assert_allclose(share, [0.6, 0.3, 0.1], atol=0.04)


def test_a_block_causal_model_with_one_block_is_a_full_one() -> None:
    wanted = requests(4, prompt_lens=(0,))
    whole = Engine(block_causal(16), replace(SPEC, block_length=16), 2).generate(wanted, policy_version=0)
    full = Engine(transformer(), replace(SPEC, block_length=16), 2).generate(wanted, policy_version=0)
    assert_same(whole, full)

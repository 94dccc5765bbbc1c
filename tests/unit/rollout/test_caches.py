"""Caches: exact where they should be, counted as they should be, and refused where they do not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_toys import assert_same, block_causal, requests, transformer

from rl4dlm.decoding import SamplerSpec, register_policy
from rl4dlm.errors import RecipeError
from rl4dlm.rollout import CACHES, Engine, Request
from rl4dlm.rollout.caches import pad_columns, size_classes
from rl4dlm.types import Denoiser, Rollout

SPEC = SamplerSpec(16, 4, 8, eos_policy="none")
FULL = [name for name, plan in CACHES.items() if plan.attention == "full"]


def sample(denoiser: Denoiser, spec: SamplerSpec, wanted: list[Request], slots: int = 3) -> list[Rollout]:
    return Engine(denoiser, spec, slots).generate(wanted, policy_version=3)


def without_costs(rollouts: list[Rollout]) -> list[Rollout]:
    """Rollouts stripped of what a cache is meant to change."""
    return [replace(r, num_forwards=0, token_forwards=0, spec_hash=0) for r in rollouts]


def assert_same_samples(ours: list[Rollout], theirs: list[Rollout], atol: float = 1e-6) -> None:
    """Equal tokens, steps and kinds; log-probabilities and scores up to rounding."""
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one.completion_ids, other.completion_ids)
        for name in ("step_map", "rank", "kind"):
            np.testing.assert_array_equal(getattr(one.trace, name), getattr(other.trace, name))
        np.testing.assert_allclose(one.trace.rollout_logp, other.trace.rollout_logp, atol=atol)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.0, "eos_policy": "block_eos"},
        {"block_length": 8, "steps": 16},
        {"remasking": "dynamic", "threshold": 0.4},
        {"remasking": "random", "eos_policy": "block_eos"},
    ],
)
@pytest.mark.parametrize("slots", [1, 3, 12])
def test_block_keys_change_no_sample_of_a_block_causal_model(changes: dict, slots: int) -> None:
    # Prompts of several lengths, in pairs that share one; refilled slots; blocks cut by prompt and canvas.
    denoiser, wanted = block_causal(4), requests(12)
    spec = replace(SPEC, **changes)
    cached = sample(denoiser, replace(spec, cache="block"), wanted, slots)
    assert_same_samples(cached, sample(denoiser, spec, wanted, slots))


@settings(max_examples=12, deadline=None)
@given(
    remasking=st.sampled_from(["low_confidence", "random", "top_dynamic", "learned", "ccd_ds"]),
    layout=st.sampled_from([(12, 4, 12), (12, 12, 5), (8, 2, 8), (16, 8, 4)]),
    enlarged=st.booleans(),
    eos_policy=st.sampled_from(["none", "block_eos", "accepted_eos"]),
    prompt_lens=st.lists(st.integers(0, 11), min_size=1, max_size=6),
    slots=st.integers(1, 5),
)
def test_block_keys_change_no_sample_whatever_the_rows(
    remasking: str,
    layout: tuple[int, int, int],
    enlarged: bool,
    eos_policy: str,
    prompt_lens: list[int],
    slots: int,
) -> None:
    gen_len, block_length, steps = layout
    register_policy("surest", lambda features: 8 * features.confidence - 2)
    extra = {"policy": "surest"} if remasking == "learned" else {}
    extra |= {"threshold": 0.4} if remasking == "top_dynamic" else {}
    spec = SamplerSpec(gen_len, block_length, steps, 0.8, remasking, eos_policy=eos_policy, **extra)
    denoiser = block_causal(block_length // 2 if enlarged else block_length)
    # Two requests per prompt, so that prompts are shared among new rows and with rows under way.
    wanted = [
        replace(request, seed=request.seed + copy)
        for request in requests(len(prompt_lens), prompt_lens=tuple(prompt_lens))
        for copy in range(2)
    ]
    cached = sample(denoiser, replace(spec, cache="block"), wanted, slots)
    assert_same_samples(cached, sample(denoiser, spec, wanted, slots))


def test_block_keys_of_a_float32_model_move_log_probabilities_by_rounding_only() -> None:
    denoiser, wanted = block_causal(4, torch.float32, num_layers=4), requests(6)
    cached = sample(denoiser, replace(SPEC, cache="block"), wanted)
    assert_same_samples(cached, sample(denoiser, SPEC, wanted), atol=1e-5)


def test_a_block_is_committed_in_the_first_forward_of_the_next_one() -> None:
    # Prompt of 9: blocks of 3, 4, 4, 4 and 1 canvas tokens, in 2, 2, 2, 2 and 1 steps: 9 forwards and none
    # besides. Tokens: prompt and first block 12, then 4; each later block 4 + 4 at first, then 4, and the
    # last one, cut to one token, 4 + 1.
    rollout = sample(block_causal(4), replace(SPEC, cache="block"), requests(1, prompt_lens=(9,)))[0]
    assert rollout.num_steps == rollout.num_forwards == 9
    assert rollout.token_forwards == (12 + 4) + 3 * (8 + 4) + 5


def test_a_group_computes_its_prompt_once() -> None:
    # Prompt of 9: 8 tokens in whole blocks. Five samples of it and one of another prompt.
    wanted = [replace(requests(1, prompt_lens=(9,))[0], sample=i, seed=100 + i) for i in range(5)]
    other = replace(wanted[0], prompt_uid=7, prompt_ids=(1, 2, 3))
    denoiser = block_causal(4)
    rollouts = sample(denoiser, replace(SPEC, cache="block"), [*wanted, other], slots=6)
    assert_same_samples(rollouts, sample(denoiser, SPEC, [*wanted, other], slots=6))
    alone = (12 + 4) + 3 * (8 + 4) + 5
    # The first one pays the prompt in a forward of its own; the others find it.
    assert [r.token_forwards for r in rollouts[:5]] == [alone] + [alone - 8] * 4
    assert [r.num_forwards for r in rollouts[:5]] == [10] + [9] * 4
    # A sample that comes later takes the prompt from one that is under way: the first, which is slower.
    slow = [replace(wanted[0], steps=16), *wanted[1:3]]
    late = sample(denoiser, replace(SPEC, cache="block"), slow, slots=2)
    assert_same_samples(late, sample(denoiser, SPEC, slow, slots=2))
    assert [r.token_forwards for r in late[1:]] == [alone - 8] * 2


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_cache_that_is_refreshed_at_every_step_changes_nothing(cache: str) -> None:
    denoiser, wanted = transformer(), requests(7)
    refreshed = sample(denoiser, replace(SPEC, cache=cache, cache_refresh=1), wanted)
    assert_same_samples(refreshed, sample(denoiser, SPEC, wanted))


@pytest.mark.parametrize("cache", FULL)
def test_with_one_layer_every_cache_is_exact(cache: str) -> None:
    # Keys of one layer depend on their own token alone: what is stored is right unless a token that changed
    # was not computed again (specs: decoding X23).
    denoiser, wanted = transformer(num_layers=1), requests(9)
    spec = replace(SPEC, block_length=8, remasking="random", eos_policy="block_eos")
    assert_same_samples(sample(denoiser, replace(spec, cache=cache), wanted), sample(denoiser, spec, wanted))


@pytest.mark.parametrize("cache", FULL)
def test_with_one_layer_every_cache_is_exact_for_shifted_logits(cache: str) -> None:
    # The first token of a window is read off the row before it, which the window must hold (specs: X28).
    denoiser, wanted = transformer(num_layers=1, shift=True), requests(9)
    spec = replace(SPEC, block_length=8, remasking="random", eos_policy="block_eos")
    assert_same_samples(sample(denoiser, replace(spec, cache=cache), wanted), sample(denoiser, spec, wanted))


def test_block_keys_are_exact_for_shifted_logits() -> None:
    denoiser, wanted = block_causal(4, shift=True), requests(8)
    assert_same_samples(
        sample(denoiser, replace(SPEC, cache="block"), wanted), sample(denoiser, SPEC, wanted)
    )


@pytest.mark.parametrize("cache", FULL)
def test_with_more_layers_an_approximate_cache_moves_log_probabilities(cache: str) -> None:
    denoiser, wanted = transformer(), requests(6)
    spec = replace(SPEC, block_length=8, remasking="random", temperature=0.0)
    cached, exact = sample(denoiser, replace(spec, cache=cache), wanted), sample(denoiser, spec, wanted)
    gap = [
        np.abs(a.trace.rollout_logp - b.trace.rollout_logp).max() for a, b in zip(cached, exact, strict=True)
    ]
    assert max(gap) > 1e-3


def test_a_block_stored_before_its_last_tokens_were_written_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    # FreeCache as released: the block before is not computed again, so the store keeps keys of its masks.
    from rl4dlm.rollout import caches

    def released(view: caches.RowView) -> torch.Tensor:
        return view.is_first | (view.column >= view.start)

    denoiser, wanted = transformer(num_layers=1), requests(6)
    spec = replace(SPEC, remasking="random", temperature=0.0)
    monkeypatch.setitem(caches.QUERIES, "free", released)
    wrong = sample(denoiser, replace(spec, cache="free"), wanted)
    right = sample(denoiser, spec, wanted)
    gap = [
        np.abs(a.trace.rollout_logp - b.trace.rollout_logp).max() for a, b in zip(wrong, right, strict=True)
    ]
    assert max(gap) > 0.1


def tokens_of(cache: str, **changes: Any) -> int:
    """Query tokens of a prompt of 9 and a canvas of 16 in 4 blocks of 4 tokens, one token per step."""
    spec = replace(SPEC, steps=16, remasking="ar", cache=cache, **changes)
    return sample(transformer(), spec, requests(1, prompt_lens=(9,)))[0].token_forwards


def test_query_tokens_are_those_of_the_cost_model() -> None:
    # N = 25; block b starts at column 9 + 4 b; 4 steps per block.
    assert tokens_of("none") == 16 * 25
    assert tokens_of("prefix") == 4 * 25 + 3 * (16 + 12 + 8 + 4)
    assert tokens_of("dual") == 4 * (25 + 3 * 4)
    # Refreshed at the third step of each block, too.
    assert tokens_of("dual", cache_refresh=2) == 4 * (2 * 25 + 2 * 4)
    # First step everything; at the start of a block the block before once more.
    assert tokens_of("free") == 25 + 3 * 16 + (16 + 3 * 12) + (12 + 3 * 8) + (8 + 3 * 4)
    # The first two steps of each block everything; else the masked, and the token written last.
    assert tokens_of("dkv_decode") == 8 * 25 + sum(17 - step for step in range(16) if step % 4 > 1)


def test_greedy_dkv_computes_the_neighbourhood_of_what_is_written() -> None:
    # From left to right: the token written last, the one due now, and 2 masked ones after it.
    inner = sum(min(4, 17 - step) for step in range(16) if step % 4 and step != 1)
    assert tokens_of("dkv_greedy") == 5 * 25 + inner


@pytest.mark.parametrize("cache", FULL)
def test_samples_under_a_cache_do_not_depend_on_neighbours(cache: str) -> None:
    denoiser, wanted = transformer(), requests(8)
    spec = replace(SPEC, cache=cache, remasking="random", eos_policy="block_eos")
    together = sample(denoiser, spec, wanted, slots=3)
    alone = [sample(denoiser, spec, [request])[0] for request in wanted]
    assert_same_samples(together, alone)
    assert [r.token_forwards for r in together] == [r.token_forwards for r in alone]


def test_early_commit_and_blocks_of_several_lengths_go_with_a_prefix_cache() -> None:
    denoiser = transformer(num_layers=1)
    spec = replace(SPEC, early_commit="sched_linear", early_commit_high=2.0, early_commit_low=0.5)
    wanted = [replace(r, block_length=(4, 8, 16)[i % 3], steps=16) for i, r in enumerate(requests(6))]
    cached = sample(denoiser, replace(spec, cache="prefix"), wanted)
    assert_same_samples(cached, sample(denoiser, spec, wanted))
    assert without_costs(cached)[0].num_steps < 16


@pytest.mark.parametrize(
    ("changes", "denoiser", "message"),
    [
        ({"cache": "block"}, transformer(), "is for block_causal attention, and the model's is full"),
        ({"cache": "dual"}, block_causal(4), "is for full attention, and the model's is block_causal"),
    ],
)
def test_a_cache_that_does_not_fit_is_refused_before_any_forward(
    changes: dict, denoiser: Denoiser, message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        sample(denoiser, replace(SPEC, **changes), requests(1))
    assert "Fix: " in str(error.value)
    assert not denoiser.model.calls


def test_blocks_that_a_block_causal_model_was_not_made_for_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"block_length = 2 does not fit .* blocks of 4"):
        sample(block_causal(4), replace(SPEC, block_length=2), requests(1))


def test_queries_are_packed_by_row_and_rows_by_size() -> None:
    queries = torch.tensor([[True, False, True, True], [False, True, False, False]])
    columns, real = pad_columns(queries, 3, 4)
    assert columns.tolist() == [[0, 2, 3], [1, 4, 4]]
    assert real.tolist() == [[True, True, True], [True, False, False]]
    # 100 and 60 share a forward, 40 would be padded to more than twice its size; rows of 0 are not run.
    assert size_classes([40, 100, 0, 60, 21]) == [([1, 3], 100), ([0, 4], 40)]


def test_a_cached_rollout_says_so() -> None:
    spec = replace(SPEC, cache="prefix")
    assert spec.describe()["cache"] == "prefix"
    assert_same(sample(transformer(), spec, requests(2)), sample(transformer(), spec, requests(2)))

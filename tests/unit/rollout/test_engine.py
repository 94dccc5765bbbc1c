from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_toys import EOS, MASK, SPEC, STOP, assert_same, requests, transformer

from rl4dlm.decoding import SamplerSpec
from rl4dlm.errors import DataError, RolloutError
from rl4dlm.rollout import Engine, Request, StepView, check_trace
from rl4dlm.testing.reference_sampler import generate_reference
from rl4dlm.types import EOS_FILLER, SAMPLED, STOP_EOS, STOP_LENGTH, Denoiser, Rollout

SAMPLER = SamplerSpec(gen_len=16, block_length=4, steps=8)
STRATEGIES = ["low_confidence", "top_probability", "random"]


def sample(denoiser: Denoiser, spec: SamplerSpec, wanted: Sequence[Request], slots: int = 4) -> list[Rollout]:
    return Engine(denoiser, spec, slots).generate(wanted, policy_version=3)


@pytest.mark.parametrize("eos_policy", ["none", "block_eos"])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("confidence_from", ["raw", "tempered"])
@pytest.mark.parametrize("remasking", STRATEGIES)
def test_engine_equals_the_plain_loop(
    remasking: str, confidence_from: str, temperature: float, eos_policy: str
) -> None:
    spec = SamplerSpec(16, 4, 8, temperature, remasking, confidence_from, eos_policy)
    denoiser, wanted = transformer(), requests(9)
    assert_same(sample(denoiser, spec, wanted), generate_reference(denoiser, spec, wanted, policy_version=3))


@pytest.mark.parametrize(("block_length", "steps"), [(16, 16), (16, 5), (1, 16), (8, 2), (4, 12)])
def test_engine_equals_the_plain_loop_in_every_layout(block_length: int, steps: int) -> None:
    spec = SamplerSpec(16, block_length, steps)
    denoiser, wanted = transformer(), requests(6)
    assert_same(sample(denoiser, spec, wanted), generate_reference(denoiser, spec, wanted, policy_version=3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("remasking", STRATEGIES)
def test_a_rollout_does_not_depend_on_its_neighbours(remasking: str, dtype: torch.dtype) -> None:
    spec, denoiser, wanted = replace(SAMPLER, remasking=remasking), transformer(dtype), requests(10)
    alone = [sample(denoiser, spec, [request])[0] for request in wanted]
    order = [7, 2, 9, 0, 5, 4, 1, 8, 3, 6]
    arrangements = {
        "all at once": sample(denoiser, spec, wanted, slots=10),
        "with refill": sample(denoiser, spec, wanted, slots=3),
        "one slot": sample(denoiser, spec, wanted, slots=1),
        "other neighbours": sample(denoiser, spec, [*requests(5, run=9), *wanted], slots=4)[5:],
        "other order": [
            rollout
            for _, rollout in sorted(
                zip(order, sample(denoiser, spec, [wanted[i] for i in order]), strict=True),
                key=lambda pair: pair[0],
            )
        ],
    }
    for rollouts in arrangements.values():
        if dtype == torch.float64:
            assert_same(rollouts, alone)
        for one, other in zip(rollouts, alone, strict=True):
            np.testing.assert_array_equal(one.completion_ids, other.completion_ids)
            np.testing.assert_array_equal(one.trace.step_map, other.trace.step_map)


def test_samples_differ_by_seed_and_repeat_with_it() -> None:
    request = requests(1)[0]
    twice = sample(transformer(), SAMPLER, [request, request, replace(request, seed=request.seed + 1)])
    assert_same(twice[:1], twice[1:2])
    assert not np.array_equal(twice[0].completion_ids, twice[2].completion_ids)


def test_padding_is_hidden_and_a_model_that_sees_it_gives_other_samples() -> None:
    wanted = requests(6, prompt_lens=(2, 9))
    honest, leaky = transformer(), transformer(heed_mask=False)
    assert_same(
        sample(honest, SAMPLER, wanted), generate_reference(honest, SAMPLER, wanted, policy_version=3)
    )
    padded, alone = (
        sample(leaky, SAMPLER, wanted),
        generate_reference(leaky, SAMPLER, wanted, policy_version=3),
    )
    assert any(
        not np.array_equal(one.completion_ids, other.completion_ids)
        for one, other in zip(padded[::2], alone[::2], strict=True)
    )


def test_forwards_are_trimmed_to_the_longest_prompt_and_unmasked_without_padding() -> None:
    denoiser, spec = transformer(), replace(SAMPLER, eos_policy="none")
    sample(denoiser, spec, requests(4, prompt_lens=(2, 2, 9, 9)), slots=2)
    # Both long prompts leave after 8 steps, then both short ones: never a padded column, never a mask.
    assert denoiser.model.calls == [(2, 25, False)] * 8 + [(2, 18, False)] * 8
    denoiser = transformer()
    sample(denoiser, spec, requests(3, prompt_lens=(2, 9, 4)), slots=2)
    # The two longest share a forward; then the last request alone: rows that are done are not run.
    assert denoiser.model.calls == [(2, 25, True)] * 8 + [(1, 18, False)] * 8


def test_prompts_of_similar_length_are_padded_to_each_other() -> None:
    denoiser = transformer()
    wanted = requests(12, prompt_lens=(1, 12, 1, 12, 1, 12))
    rollouts = sample(denoiser, replace(SAMPLER, eos_policy="none"), wanted, slots=6)
    assert not any(masked for _, _, masked in denoiser.model.calls)
    assert [len(rollout.prompt_ids) for rollout in rollouts] == [len(r.prompt_ids) for r in wanted]


def test_the_head_runs_on_masked_positions_of_active_blocks_only() -> None:
    denoiser = transformer()
    sample(denoiser, replace(SAMPLER, eos_policy="none"), requests(3))
    # Blocks of 4 in 2 steps of 2: 4 + 2 masked positions per block, 4 blocks, 3 rows.
    assert denoiser.model.rows_of_head == (4 + 2) * 4 * 3


def test_a_finished_slot_is_refilled_at_once() -> None:
    denoiser = transformer()
    rollouts = sample(denoiser, SAMPLER, requests(12), slots=4)
    assert len({rollout.num_steps for rollout in rollouts}) > 1
    rows = [call[0] for call in denoiser.model.calls]
    assert sum(rows) == sum(rollout.num_forwards for rollout in rollouts)
    # Full until nothing waits, then only rows under way.
    assert rows == sorted(rows, reverse=True)
    assert rows.count(4) >= sum(rows) // 4 - 8


def test_counters_and_provenance_are_recorded() -> None:
    wanted = requests(8)
    for request, rollout in zip(wanted, sample(transformer(), SAMPLER, wanted), strict=True):
        assert (rollout.prompt_uid, rollout.sample, rollout.seed) == (
            request.prompt_uid,
            request.sample,
            request.seed,
        )
        assert rollout.prompt_ids.tolist() == list(request.prompt_ids)
        assert rollout.num_steps == rollout.num_forwards == len(rollout.trace.step_block)
        assert rollout.token_forwards == rollout.num_forwards * (len(request.prompt_ids) + 16)
        assert (rollout.policy_version, rollout.spec_hash) == (3, SAMPLER.hash())


@pytest.mark.parametrize("policy", ["block_eos", "block_all_eos", "accepted_eos"])
def test_stopping_changes_nothing_up_to_the_first_stop_id_and_saves_steps(policy: str) -> None:
    denoiser, wanted = transformer(), requests(30)
    spec = replace(SAMPLER, steps=16, eos_policy=policy)
    stopping = sample(denoiser, spec, wanted, slots=8)
    whole = sample(denoiser, replace(spec, eos_policy="none"), wanted, slots=8)
    assert_same(stopping, generate_reference(denoiser, spec, wanted, policy_version=3))
    early = 0
    for short, full in zip(stopping, whole, strict=True):
        length = short.completion_len
        assert length == full.completion_len
        assert short.stop_reason == full.stop_reason
        np.testing.assert_array_equal(short.completion_ids[:length], full.completion_ids[:length])
        for name in ("step_map", "rank", "kind", "rollout_logp", "score"):
            ours, theirs = getattr(short.trace, name), getattr(full.trace, name)
            np.testing.assert_array_equal(ours[:length], theirs[:length])
        check_trace(short, MASK)
        assert full.num_steps == 16
        early += short.num_steps < 16
    assert early > 5 or policy == "block_all_eos"


def test_accepted_end_of_text_saves_the_rest_of_its_block() -> None:
    wanted = requests(30)
    spec = replace(SAMPLER, steps=16, remasking="ar")
    by_block = sample(transformer(), spec, wanted, slots=8)
    accepted = sample(transformer(), replace(spec, eos_policy="accepted_eos"), wanted, slots=8)
    # From left to right a row ends with the very token that ends its text.
    assert [r.num_steps for r in accepted] == [r.completion_len for r in accepted]
    assert sum(r.num_steps for r in accepted) < sum(r.num_steps for r in by_block)


def test_an_early_end_is_filled_with_end_of_text_after_the_finished_block() -> None:
    rollouts = sample(transformer(), SAMPLER, requests(30), slots=8)
    ended = [rollout for rollout in rollouts if rollout.num_steps < 8]
    assert ended
    for rollout in ended:
        tokens, trace = rollout.completion_ids, rollout.trace
        assert rollout.stop_reason == STOP_EOS
        assert tokens[rollout.completion_len - 1] in (EOS, STOP)
        assert not np.isin(tokens[: rollout.completion_len - 1], (EOS, STOP)).any()
        end = -(-rollout.completion_len // 4) * 4
        assert rollout.num_steps == end // 2
        np.testing.assert_array_equal(trace.kind, np.where(np.arange(16) < end, SAMPLED, EOS_FILLER))
        assert (tokens[end:] == EOS).all()
        assert (trace.step_map[end:] == rollout.num_steps).all()
        assert not trace.rollout_logp[end:].any()
        assert not trace.score[end:].any()


def test_without_a_stop_id_the_canvas_length_is_the_completion_length() -> None:
    spec = replace(SPEC, stop_ids=(EOS,), eos_id=EOS, forbidden_ids=(*SPEC.forbidden_ids, EOS))
    model = transformer().model

    def endless(
        input_ids: torch.Tensor, attention_mask: torch.Tensor | None, select: torch.Tensor
    ) -> torch.Tensor:
        logits = model(input_ids, attention_mask, select=select)
        logits[:, EOS] = float("-inf")
        return logits

    for rollout in sample(Denoiser(endless, spec), SAMPLER, requests(4)):
        assert (rollout.completion_len, rollout.stop_reason, rollout.num_steps) == (16, STOP_LENGTH, 8)


def test_text_is_what_stands_before_the_first_stop_id() -> None:
    def decode(ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    engine = Engine(transformer(), SAMPLER, 4)
    rollouts = engine.generate(requests(12), policy_version=0, decode=decode)
    assert {rollout.stop_reason for rollout in rollouts} == {STOP_EOS, STOP_LENGTH}
    for rollout in rollouts:
        kept = rollout.completion_len - (rollout.stop_reason == STOP_EOS)
        assert rollout.text == " ".join(map(str, rollout.completion_ids[:kept].tolist()))


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([(4, 2), (6, 3), (8, 8), (12, 4)]),
    st.integers(1, 4),
    st.sampled_from(STRATEGIES),
    st.lists(st.integers(0, 11), min_size=1, max_size=5),
    st.integers(1, 4),
)
def test_every_step_commits_and_the_steps_partition_the_canvas(
    layout: tuple[int, int], steps_per_block: int, remasking: str, prompt_lens: list[int], slots: int
) -> None:
    gen_len, block_length = layout
    steps = gen_len // block_length * min(steps_per_block, block_length)
    spec = SamplerSpec(gen_len, block_length, steps, remasking=remasking)
    wanted = requests(len(prompt_lens), prompt_lens=tuple(prompt_lens))
    for request, rollout in zip(wanted, sample(transformer(), spec, wanted, slots=slots), strict=True):
        trace = rollout.trace
        check_trace(rollout, MASK)
        assert MASK not in rollout.completion_ids
        assert rollout.prompt_ids.tolist() == list(request.prompt_ids)
        assert rollout.num_steps <= steps
        committed = np.bincount(trace.step_map[trace.kind == SAMPLED], minlength=rollout.num_steps)
        assert committed.min() >= 1
        assert committed.sum() + (trace.kind == EOS_FILLER).sum() == gen_len
        for step, block in enumerate(trace.step_block):
            where = np.flatnonzero((trace.step_map == step) & (trace.kind == SAMPLED))
            assert (where // block_length == block).all()


def test_an_onlooker_sees_every_step_without_changing_the_samples() -> None:
    views: list[StepView] = []
    wanted, denoiser = requests(5), transformer()
    watched = Engine(denoiser, SAMPLER, 2).generate(wanted, policy_version=3, on_step=views.append)
    assert_same(watched, sample(transformer(), SAMPLER, wanted))
    assert len(views) == len(denoiser.model.calls)
    seen: dict[int, list[int]] = {}
    for view in views:
        for row, request in enumerate(view.requests):
            index = wanted.index(request)
            done = watched[index].trace.step_map < view.num_steps[row]
            np.testing.assert_array_equal(view.canvas[row][done], watched[index].completion_ids[done])
            np.testing.assert_array_equal(view.score[row][done], watched[index].trace.score[done])
            assert (view.canvas[row][~done] == MASK).all()
            seen.setdefault(index, []).append(int(view.num_steps[row]))
    assert seen == {i: list(range(1, rollout.num_steps + 1)) for i, rollout in enumerate(watched)}


def test_a_prompt_beyond_the_models_positions_is_refused_before_any_forward() -> None:
    denoiser = transformer()
    long = Request(prompt_uid=77, sample=0, seed=1, prompt_ids=(1,) * 49)
    with pytest.raises(
        DataError, match="prompt uid 77: 49 prompt tokens and a canvas of 16 make 65"
    ) as error:
        sample(denoiser, SAMPLER, [requests(1)[0], long])
    assert "data.max_prompt_length to 48" in str(error.value)
    assert not denoiser.model.calls
    sample(denoiser, SAMPLER, [replace(long, prompt_ids=(1,) * 48)])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("remasking", STRATEGIES)
def test_logits_that_are_not_finite_stop_the_run_naming_step_and_prompt(
    remasking: str, temperature: float, bad: float
) -> None:
    model, calls = transformer().model, 0

    def breaking(
        input_ids: torch.Tensor, attention_mask: torch.Tensor | None, select: torch.Tensor
    ) -> torch.Tensor:
        nonlocal calls
        calls += 1
        logits = model(input_ids, attention_mask, select=select)
        if calls == 3:
            logits[len(logits) // 2 :] = bad  # the second of two rows
        return logits

    spec = replace(SAMPLER, remasking=remasking, temperature=temperature)
    wanted = [replace(request, prompt_uid=uid) for uid, request in zip((5, 6), requests(2), strict=True)]
    with pytest.raises(RolloutError, match="prompt uid 6, sample 1, step 2: .*not finite"):
        sample(Denoiser(breaking, SPEC), replace(spec, eos_policy="none"), wanted)


def test_no_requests_give_no_rollouts_and_no_slots_are_an_error() -> None:
    assert sample(transformer(), SAMPLER, []) == []
    with pytest.raises(ValueError, match="at least one slot"):
        Engine(transformer(), SAMPLER, 0)


def test_no_graph_is_kept() -> None:
    denoiser, modes = transformer(), []
    model = denoiser.model

    def watching(*args: object, **kwargs: object) -> torch.Tensor:
        logits = model(*args, **kwargs)
        modes.append((torch.is_inference_mode_enabled(), logits.requires_grad))
        return logits

    sample(Denoiser(watching, SPEC), SAMPLER, requests(1))
    assert set(modes) == {(True, False)}

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rollout_toys import MASK, SPEC, assert_same, requests, transformer

from rl4dlm.decoding import SamplerSpec, StepInput, decide, register_policy
from rl4dlm.diffusion.schedule import commit_counts
from rl4dlm.errors import DataError, RolloutError, StorageError
from rl4dlm.rollout import (
    Engine,
    check_trace,
    commits_of,
    from_table,
    prediction_at,
    record,
    state_before,
    to_table,
    write_parquet,
)
from rl4dlm.types import (
    EARLY_COMMIT,
    EOS_FILLER,
    FILL,
    FORCED,
    REMASK,
    REVEAL,
    SAMPLED,
    STOP_EARLY_COMMIT,
    STOP_EOS,
    STOP_LENGTH,
    Denoiser,
    Events,
    Prompt,
    Rollout,
    RolloutGroup,
    Scores,
    flatten,
)

SAMPLER = SamplerSpec(gen_len=16, block_length=4, steps=8)


def some_groups(count: int = 8, sampler: SamplerSpec = SAMPLER) -> list[RolloutGroup]:
    engine = Engine(transformer(), sampler, 4)
    wanted = requests(count, prompt_lens=(3, 3, 0, 0, 5, 5))
    rollouts = engine.generate(wanted, policy_version=2, decode=lambda ids: "t" + str(list(ids)))
    groups = []
    for first, second in zip(rollouts[::2], rollouts[1::2], strict=True):
        uid, ids = first.prompt_uid, tuple(first.prompt_ids.tolist())
        messages = [{"role": "user", "content": f"ä {uid}"}]
        columns = {"answer": str(uid), "level": np.int64(uid), "nested": {"a": [1, None]}}
        prompt = messages if uid % 2 else f"question {uid}"
        groups.append(RolloutGroup(Prompt(uid, prompt, f"text {uid}", ids, columns), (first, second)))
    return groups


def some_scores(count: int) -> Scores:
    reward = np.linspace(0, 1, count, dtype=np.float32)
    reward[1] = np.nan
    failed = np.zeros(count, dtype=bool)
    failed[1] = True
    return Scores(reward, {"sort": reward * 2, "format": reward + 1}, {}, failed)


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("remasking", ["low_confidence", "top_probability", "random"])
def test_every_recorded_step_can_be_taken_again(remasking: str, temperature: float) -> None:
    # The model is run anew at each replayed state, alone: same positions, tokens and log-probabilities.
    denoiser = transformer(torch.float32)
    spec = replace(SAMPLER, remasking=remasking, temperature=temperature)
    for rollout in Engine(denoiser, spec, 3).generate(requests(5), policy_version=0):
        check_trace(rollout, MASK)
        counts = commit_counts(4, 2) * 4
        for step in range(rollout.num_steps):
            retake(denoiser, spec, rollout, step, counts[step])


@torch.inference_mode()
def retake(denoiser: Denoiser, spec: SamplerSpec, rollout: Rollout, step: int, count: int) -> None:
    trace, canvas = rollout.trace, torch.tensor(state_before(rollout, step, MASK))
    assert int((canvas == MASK).sum()) == trace.step_masked[step]
    position = 4 * int(trace.step_block[step]) + torch.arange(4)
    eligible = canvas[position] == MASK
    ids = torch.cat([torch.tensor(rollout.prompt_ids), canvas]).long()[None]
    select = torch.zeros_like(ids, dtype=torch.bool)
    select[0, len(rollout.prompt_ids) + position[eligible]] = True
    logits = denoiser.logits(ids, None, select)
    index = eligible.nonzero().squeeze(1)
    now = (torch.tensor([number]) for number in (rollout.seed, step, count))
    decision = decide(spec, StepInput(logits, eligible[None], index, position[None], *now))
    where = position[index[decision.picked]].numpy()
    np.testing.assert_array_equal(where, np.flatnonzero(trace.step_map == step))
    np.testing.assert_array_equal(decision.token, rollout.completion_ids[where])
    np.testing.assert_array_equal(decision.rank, trace.rank[where])
    plain = torch.log_softmax(logits.double() / (spec.temperature or 1.0), 1)[decision.picked]
    recomputed = plain[torch.arange(len(where)), torch.tensor(rollout.completion_ids[where]).long()]
    np.testing.assert_allclose(trace.rollout_logp[where], recomputed, atol=1e-5)
    np.testing.assert_allclose(trace.score[where], decision.score, atol=1e-5)


def test_states_run_from_all_masked_to_the_completion_with_fillers_last() -> None:
    rollouts = [rollout for rollout in flatten(some_groups(20)) if rollout.num_steps < 8]
    assert rollouts
    for rollout in rollouts:
        assert (state_before(rollout, 0, MASK) == MASK).all()
        filler = rollout.trace.step_map == rollout.num_steps
        last = state_before(rollout, rollout.num_steps, MASK)
        assert last.dtype == np.int32
        np.testing.assert_array_equal(last, np.where(filler, MASK, rollout.completion_ids))
        np.testing.assert_array_equal(
            state_before(rollout, rollout.num_steps + 1, MASK), rollout.completion_ids
        )


def damaged(name: str, position: int, value: float) -> Rollout:
    """A sound rollout of 8 steps with one entry of its trace overwritten."""
    rollout = next(rollout for rollout in flatten(some_groups(20)) if rollout.num_steps == 8)
    array = getattr(rollout.trace, name).copy()
    array[position] = value
    return replace(rollout, trace=replace(rollout.trace, **{name: array}))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("step_map", 7, "saw .* masked positions"),
        ("step_map", 8, "outside steps 0 to 7"),
        ("rank", 3, "have ranks"),
        ("rollout_logp", 0.5, "log-probability is not a number"),
        ("rollout_logp", np.nan, "log-probability is not a number"),
        ("kind", 3, "a position that the policy did not fill has a log-probability"),
        ("step_masked", 4, "saw 4 masked positions, the replay has 16"),
    ],
)
def test_a_damaged_trace_is_found(name: str, value: float, message: str) -> None:
    with pytest.raises(RolloutError, match=message):
        check_trace(damaged(name, 0, value), MASK)


def test_a_trace_of_the_wrong_length_or_a_mask_in_the_completion_is_found() -> None:
    rollout = some_groups(2)[0].rollouts[0]
    short = replace(rollout, trace=replace(rollout.trace, rank=rollout.trace.rank[:-1]))
    with pytest.raises(RolloutError, match="lengths"):
        check_trace(short, MASK)
    ids = rollout.completion_ids.copy()
    ids[-1] = MASK
    with pytest.raises(RolloutError, match="holds the mask token"):
        check_trace(replace(rollout, completion_ids=ids), MASK)


def test_rollouts_and_rewards_survive_the_table_and_the_file(tmp_path: Path) -> None:
    groups, scores = some_groups(), some_scores(8)
    advantage = np.arange(8, dtype=np.float32)
    table = to_table(groups, scores, update=5, advantage=advantage)
    write_parquet(table, tmp_path / "deep" / "rollouts.parquet")
    stored = pq.read_table(tmp_path / "deep" / "rollouts.parquet")
    again, rewards = from_table(stored)
    assert [group.prompt.uid for group in again] == [group.prompt.uid for group in groups]
    for ours, theirs in zip(again, groups, strict=True):
        assert (ours.prompt.prompt, ours.prompt.text) == (theirs.prompt.prompt, theirs.prompt.text)
        assert ours.prompt.token_ids == theirs.prompt.token_ids
        assert ours.prompt.columns == dict(theirs.prompt.columns)
    for rollout in flatten(again):
        check_trace(rollout, MASK)
    assert_same(flatten(again), flatten(groups))
    assert rewards is not None
    np.testing.assert_array_equal(rewards.reward, scores.reward)
    np.testing.assert_array_equal(rewards.failed, scores.failed)
    assert list(rewards.components) == ["sort", "format"]
    np.testing.assert_array_equal(rewards.components["format"], scores.components["format"])
    assert stored.column("advantage").to_pylist() == advantage.tolist()
    assert set(stored.column("update").to_pylist()) == {5}


def test_predictions_and_events_survive_the_table_beside_rollouts_without_them(tmp_path: Path) -> None:
    register_policy("half", lambda features: torch.zeros_like(features.confidence))
    learned = some_groups(2, replace(SAMPLER, remasking="learned", policy="half"))
    rcr = some_groups(4, replace(SAMPLER, remasking="rcr", record_predictions=True))
    groups = rcr + some_groups(2) + learned
    write_parquet(to_table(groups, None, update=0), tmp_path / "rollouts.parquet")
    again, _ = from_table(pq.read_table(tmp_path / "rollouts.parquet"))
    assert_same(flatten(again), flatten(groups))
    events = [rollout.trace.events for rollout in flatten(again)]
    assert [record is None for record in events] == [False] * 4 + [True] * 4
    assert [r.trace.actions is None for r in flatten(again)] == [True] * 6 + [False] * 2
    assert "events/op" not in to_table(some_groups(2), None, update=0).column_names


def test_predictions_can_be_left_out_of_the_table_and_events_stay() -> None:
    groups = some_groups(2, replace(SAMPLER, remasking="rcr", record_predictions=True))
    columns = to_table(groups, None, update=0, record_predictions=False).column_names
    assert "events/op" in columns and not any(name.startswith("predictions/") for name in columns)


def revised() -> Rollout:
    """A rollout whose sampler took tokens back."""
    groups = some_groups(8, replace(SAMPLER, remasking="rcr", eos_policy="none"))
    return next(r for r in flatten(groups) if (r.trace.events.op == REMASK).any())


def test_events_replay_what_was_taken_back() -> None:
    rollout = revised()
    events = rollout.trace.events
    first = int(np.flatnonzero(events.op == REMASK)[0])
    step, where = int(np.searchsorted(events.ptr, first, side="right")) - 1, int(events.pos[first])
    assert state_before(rollout, step, MASK)[where] != MASK
    assert state_before(rollout, step + 1, MASK)[where] == MASK
    assert where not in commits_of(rollout, step).position
    # It was revealed before, by a commit that the final trace no longer knows, and is revealed again later.
    earlier = [s for s in range(step) if where in commits_of(rollout, s).position]
    assert earlier and rollout.trace.step_map[where] > step


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: replace(e, ptr=e.ptr[:-1]), "do not fit 8 steps and the fillers"),
        (lambda e: replace(e, token=np.where(e.token == MASK, MASK, e.token + 1)), "do not end in the"),
        (lambda e: replace(e, op=np.where(e.op == REMASK, 0, e.op)), "writes where something stands"),
        (lambda e: replace(e, op=np.full_like(e.op, 9)), "committed nothing"),
    ],
)
def test_damaged_events_are_found(change: Callable[[Events], Events], message: str) -> None:
    rollout = revised()
    damaged = replace(rollout, trace=replace(rollout.trace, events=change(rollout.trace.events)))
    with pytest.raises(RolloutError, match=message):
        check_trace(damaged, MASK)


def test_a_prediction_too_few_is_found_and_missing_ones_are_named() -> None:
    rollout = some_groups(2, replace(SAMPLER, record_predictions=True))[0].rollouts[0]
    made = rollout.trace.predictions
    ptr = np.where(made.ptr > 0, made.ptr - 1, 0).astype(np.int32)
    short = replace(rollout, trace=replace(rollout.trace, predictions=replace(made, ptr=ptr)))
    with pytest.raises(RolloutError, match="one prediction per masked position"):
        check_trace(short, MASK)
    with pytest.raises(ValueError, match="record_predictions"):
        prediction_at(some_groups(2)[0].rollouts[0], 0, MASK)


def test_the_groups_of_one_prompt_stay_apart() -> None:
    groups = some_groups(4)
    # One prompt, twice in update 0 and once in update 1.
    tables = [to_table([groups[1], groups[1]], None, update=0), to_table(groups[1:], None, update=1)]
    again, rewards = from_table(pa.concat_tables(tables))
    assert [len(group.rollouts) for group in again] == [2, 2, 2]
    assert rewards is None


def test_no_rollouts_make_an_empty_table() -> None:
    again, rewards = from_table(to_table([], None, update=0))
    assert (again, rewards) == ([], None)


def test_a_table_without_traces_says_how_to_get_them() -> None:
    table = to_table(some_groups(2), None, update=0, record_states=False)
    assert "completion_ids" in table.column_names
    assert "step_map" not in table.column_names
    with pytest.raises(DataError, match="lacks the columns step_map.*\n.*record_states: true"):
        from_table(table)


def test_a_rollout_of_256_tokens_takes_about_6_kilobytes() -> None:
    model = transformer()
    spec = SamplerSpec(gen_len=256, block_length=32, steps=128, eos_policy="none", remasking="random")
    wide = Denoiser(
        lambda ids, mask, select: model.model(ids[:, -60:], None, select=select[:, -60:]).new_zeros(
            int(select.sum()), 12
        ),
        replace(SPEC, max_length=1 << 20),
    )
    rollout = Engine(wide, spec, 1).generate(requests(1), policy_version=0)[0]
    arrays = [rollout.prompt_ids, rollout.completion_ids, *vars(rollout.trace).values()]
    size = sum(array.nbytes for array in arrays if array is not None)
    # 19 bytes per token, 6 per step, 4 per prompt token.
    assert size == 19 * 256 + 6 * 128 + 4 * 3
    group = RolloutGroup(Prompt(rollout.prompt_uid, "", "", tuple(rollout.prompt_ids.tolist())), (rollout,))
    assert to_table([group], None, update=0).nbytes < 7_000


def test_a_refused_write_leaves_the_older_file_and_no_fragment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, table = tmp_path / "rollouts.parquet", to_table(some_groups(2), None, update=0)
    write_parquet(table, path)
    before = path.read_bytes()

    def full(_table: object, file: object, **_: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record.pq, "write_table", full)
    with pytest.raises(StorageError, match=r"rollouts.parquet: .*No space left.*\nFix"):
        write_parquet(table, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["rollouts.parquet"]


def test_the_numbers_in_the_files_of_older_runs_keep_their_meaning() -> None:
    assert (SAMPLED, FORCED, EARLY_COMMIT, EOS_FILLER) == (0, 1, 2, 3)
    assert (REVEAL, REMASK, FILL) == (0, 1, 3)
    assert (STOP_EOS, STOP_LENGTH, STOP_EARLY_COMMIT) == (0, 1, 2)

"""TraceRL: states of the trajectory, aggregations, filters, rewards of tokens, the value model's method."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from method_toys import states_of
from tiny import conditional_table, tiny_denoiser, tiny_groups, tiny_rollout, tiny_scores

from rl4dlm.errors import RecipeError
from rl4dlm.recipe.algorithms import BlockEnlargement, TraceRLConfig, ValueConfig
from rl4dlm.trainers import make_method
from rl4dlm.trainers.method import Setting
from rl4dlm.trainers.passes import estimate_rows, micro_batches, rows_of, step_size
from rl4dlm.trainers.passes import loss as loss_of_rows
from rl4dlm.trainers.prepare import partial_decodes, prepare_batch
from rl4dlm.trainers.trace_value import trace_value
from rl4dlm.trainers.tracerl import share_of
from rl4dlm.types import Prompt, RolloutGroup

WHOLE = 10**6
REWARD = [1, 0, 0.5, 0, 0, 0, 0, 0, 1, 1, 0, 0.25]


def setting(block_length: int | None = None, temperature: float = 1.0) -> Setting:
    return Setting(temperature=temperature, spec=tiny_denoiser(block_length=block_length).spec)


def group_of(*step_maps: list[int], completion=(1, 0, 2, 0), prompt=(2, 0)) -> list[RolloutGroup]:
    """One prompt; every rollout has the same tokens and a step map of its own."""
    rollouts = []
    for sample, steps in enumerate(step_maps):
        rollout = tiny_rollout(prompt, completion, sample=sample)
        trace = dataclasses.replace(rollout.trace, step_map=np.array(steps, dtype=np.int32))
        rollouts.append(dataclasses.replace(rollout, trace=trace, num_steps=max(steps) + 1))
    return [RolloutGroup(Prompt(0, "", "", tuple(prompt)), tuple(rollouts))]


def prepared(trainer, groups=None, reward=REWARD, step_rewards=None):
    groups = tiny_groups() if groups is None else groups
    batch, metrics = prepare_batch(
        trainer, groups, tiny_scores(reward), policy_version=0, seed=0, step_rewards=step_rewards
    )
    return batch, metrics


def estimate(trainer, denoiser, batch, budget=WHOLE):
    rows = range(len(batch))
    every = dataclasses.replace(batch, advantage=np.ones(len(batch), dtype=np.float32))
    value = torch.zeros(len(batch), batch.completion_ids.shape[1], dtype=torch.float64)
    with torch.no_grad():
        for micro in micro_batches(trainer, every, rows, budget):
            value[list(micro.rows)] += estimate_rows(trainer.likelihood, denoiser, every, micro, 0)
    return value


@pytest.mark.parametrize("budget", [1, 20, WHOLE])
def test_the_estimate_is_the_conditional_of_each_visited_state(budget):
    denoiser = tiny_denoiser()
    trainer = make_method(TraceRLConfig(), setting())
    batch, _ = prepared(trainer, group_of([3, 1, 0, 2], [0, 1, 2, 3]), [1, 0])
    table = conditional_table(denoiser, [2, 0], [1, 0, 2, 0])  # [2^4, 4], bit i = position i hidden
    # First row: position 2, then 1, 3, 0: hidden sets 1111, 1011, 1001, 0001.
    expected = [table[0b0001, 0], table[0b1011, 1], table[0b1111, 2], table[0b1001, 3]]
    found = estimate(trainer, denoiser, batch, budget)
    assert found[0].tolist() == pytest.approx([value.item() for value in expected], abs=1e-12)
    left_to_right = [table[0b1111, 0], table[0b1110, 1], table[0b1100, 2], table[0b1000, 3]]
    assert found[1].tolist() == pytest.approx([value.item() for value in left_to_right], abs=1e-12)


def test_merging_all_steps_is_diffu_grpo_without_prompt_masks():
    from rl4dlm.recipe.algorithms import DiffuGRPOConfig

    denoiser = tiny_denoiser()
    shrunk = make_method(TraceRLConfig(shrink=5, completion_scope="canvas"), setting())
    plain = make_method(DiffuGRPOConfig(p_mask_prompt=0.0, beta=0, completion_scope="canvas"), setting())
    left, right = (estimate(t, denoiser, prepared(t)[0]) for t in (shrunk, plain))
    torch.testing.assert_close(left, right, atol=1e-12, rtol=0)


def test_the_doubled_layout_gives_the_sequential_conditionals_of_a_block_model():
    denoiser = tiny_denoiser(block_length=2)
    trainer = make_method(TraceRLConfig(), setting(block_length=2))
    # A prompt of one token: blocks hold (prompt, y0), (y1, y2), (y3).
    groups = group_of([0, 2, 1, 3], [0, 1, 2, 3], prompt=(2,))
    found = estimate(trainer, denoiser, prepared(trainer, groups, [1, 0])[0])
    mask, ids = denoiser.spec.mask_id, [2, 1, 0, 2, 0]
    states = {0: [2, mask], 2: [2, 1, mask, mask], 1: [2, 1, mask, 2], 3: [2, 1, 0, 2, mask]}
    for position, state in states.items():  # position in the completion; the state ends with its block
        tokens = torch.tensor([state])
        logits = denoiser.logits(tokens, None, torch.ones_like(tokens, dtype=torch.bool))
        logp = logits.log_softmax(-1)[position + 1, ids[position + 1]]
        assert found[0, position].item() == pytest.approx(logp.item(), abs=1e-12)


def test_the_doubled_layout_has_the_gradient_of_step_by_step_forwards() -> None:
    denoiser, trainer = tiny_denoiser(block_length=2), make_method(TraceRLConfig(), setting(block_length=2))
    batch, _ = prepared(trainer, group_of([0, 2, 1, 3], [0, 1, 2, 3], prompt=(2,)), [1, 0])
    (micro,) = micro_batches(trainer, batch, [0], WHOLE)
    estimate_rows(trainer.likelihood, denoiser, batch, micro, 0).sum().backward()
    doubled = [p.grad.clone() for p in denoiser.model.parameters()]
    denoiser.model.zero_grad()
    mask, ids = denoiser.spec.mask_id, [2, 1, 0, 2, 0]
    for position, state in {
        0: [2, mask],
        2: [2, 1, mask, mask],
        1: [2, 1, mask, 2],
        3: [*ids[:4], mask],
    }.items():
        tokens = torch.tensor([state])
        logits = denoiser.logits(tokens, None, torch.ones_like(tokens, dtype=torch.bool))
        logits.log_softmax(-1)[position + 1, ids[position + 1]].backward()
    for left, right in zip(doubled, (p.grad for p in denoiser.model.parameters()), strict=True):
        torch.testing.assert_close(left, right, atol=1e-12, rtol=0)


def test_log_probabilities_are_taken_at_the_rollouts_temperature_unless_told_otherwise():
    denoiser, groups = tiny_denoiser(), group_of([0, 1, 2, 3], [0, 1, 2, 3])
    values = {}
    for tempered in (True, False):
        trainer = make_method(TraceRLConfig(tempered=tempered), setting(temperature=0.5))
        values[tempered] = estimate(trainer, denoiser, prepared(trainer, groups, [1, 0])[0])
    plain = make_method(TraceRLConfig(), setting())
    torch.testing.assert_close(values[False], estimate(plain, denoiser, prepared(plain, groups, [1, 0])[0]))
    assert (values[True] - values[False]).abs().max() > 0.1


def test_groups_outside_the_accuracy_range_are_left_out():
    trainer = make_method(TraceRLConfig(accuracy_range=(0.2, 0.5)), setting())
    batch, metrics = prepared(trainer)  # group means .375, 0, .5625
    assert len(batch) == 4 and set(batch.group) == {0}
    assert metrics["reward/filtered"] == 8.0
    nothing, _ = prepared(make_method(TraceRLConfig(accuracy_range=(0.9, 1.0)), setting()))
    assert nothing is None


def test_completions_at_the_end_of_the_canvas_count_as_wrong_on_request():
    groups = group_of([0, 1, 2, 3], [0, 1, 2, 3])
    ended = dataclasses.replace(groups[0].rollouts[0], completion_len=2)
    groups = [RolloutGroup(groups[0].prompt, (ended, groups[0].rollouts[1]))]
    config = TraceRLConfig(overlong_margin=1, scale_rewards="none")
    batch, metrics = prepared(make_method(config, setting()), groups, [1, 1])
    assert batch.advantage.tolist() == [0.5, -0.5]
    assert metrics["reward"] == 1.0  # what was earned is reported as it is
    unchanged, _ = prepared(make_method(TraceRLConfig(), setting()), groups, [1, 1])
    assert not unchanged.advantage.any()


def weights_of(aggregation: str, shrink: int = 1, **changes):
    """The weight of each token of a batch of two rows with step maps [0, 0, 1, 1] and [0, 1, 2, 3]."""
    trainer = make_method(TraceRLConfig(aggregation=aggregation, shrink=shrink, **changes), setting())
    batch, _ = prepared(trainer, group_of([0, 0, 1, 1], [0, 1, 2, 3]), [1, 0])
    (micro,) = micro_batches(trainer, batch, range(2), WHOLE)
    states = states_of(trainer, batch, [0, 1], 0)
    rows = rows_of(trainer, batch, micro, states, torch.zeros(2, 4, dtype=torch.float64))
    return share_of(aggregation)(rows, step_size(trainer, batch, range(2)))


def test_aggregations_by_hand():
    torch.testing.assert_close(weights_of("token_mean"), torch.full((2, 4), 1 / 8).double())
    # 2 + 4 steps; a step of two tokens gives each half of its share.
    by_step = torch.tensor([[1 / 12] * 4, [1 / 6] * 4]).double()
    torch.testing.assert_close(weights_of("step_mean"), by_step)
    # 6 states, canvas of 4.
    torch.testing.assert_close(weights_of("state_mean"), torch.full((2, 4), 1 / 24).double())
    torch.testing.assert_close(weights_of("canvas"), torch.full((2, 4), 1 / 8).double())


def test_the_compared_reward_lies_on_the_last_steps_tokens():
    trainer = make_method(TraceRLConfig(value=ValueConfig(), scale_rewards="none"), setting())
    batch, _ = prepared(trainer, group_of([3, 1, 0, 3], [0, 1, 2, 3]), [1, 0])
    assert batch.record.token_reward.tolist() == [[0.5, 0, 0, 0.5], [0, 0, 0, -0.5]]


def test_process_rewards_lie_where_their_chunks_end():
    config = TraceRLConfig(value=ValueConfig(), process_chunk=2, scale_rewards="none")
    trainer, groups = make_method(config, setting()), group_of([3, 1, 0, 2], [0, 1, 2, 3])
    assert [[text.tolist() for text in row] for row in partial_decodes(trainer, groups)] == [
        [[1, 0], [1, 0, 2, 0]]
    ] * 2
    step_rewards = [np.array([1.0, 0.0]), np.array([0.0, 0.5])]
    batch, _ = prepared(trainer, groups, [0, 0.5], step_rewards)
    assert batch.record.token_reward.tolist() == [[0.5, 0, 0, -0.25], [0, -0.5, 0, 0.25]]


def test_zero_values_give_the_completions_advantage_to_every_token():
    config = TraceRLConfig(value=ValueConfig())
    trainer, method = make_method(config, setting()), trace_value(config, config.value, setting())
    batch, _ = prepared(trainer)
    for row in range(len(batch)):
        credit = method.credit(batch, row, np.zeros(5))
        expected = np.where(batch.loss_mask[row], batch.advantage[row], 0)
        np.testing.assert_allclose(credit.advantage, expected, atol=1e-6)


def test_the_value_models_states_are_the_policys():
    config = TraceRLConfig(value=ValueConfig(), shrink=2)
    trainer, method = make_method(config, setting()), trace_value(config, config.value, setting())
    batch, _ = prepared(trainer)
    left, right = states_of(trainer, batch, range(12), 0), states_of(method.learns, batch, range(12), 0)
    assert torch.equal(left.is_masked, right.is_masked) and torch.equal(left.target, right.target)


def test_enlargement_trains_with_longer_blocks_on_rollouts_of_the_models_own() -> None:
    denoiser, groups = tiny_denoiser(block_length=2), group_of([0, 1, 3, 2], [0, 1, 2, 3], prompt=(2,))
    config = TraceRLConfig(enlarge=BlockEnlargement(block_length=4, rollouts_after=3))
    trainer = make_method(config, setting(block_length=2))
    batch, _ = prepared(trainer, groups, [1, 0])
    # A prompt of one token: (prompt, y0, y1, y2), (y3) instead of (prompt, y0), (y1, y2), (y3).
    assert batch.record.block[0].tolist() == [0, 0, 0, 1]
    own = make_method(TraceRLConfig(), setting(block_length=2))
    assert prepared(own, groups, [1, 0])[0].record.block[0].tolist() == [0, 1, 1, 2]
    longer = tiny_denoiser(block_length=4)
    found = estimate(trainer, denoiser, batch)
    expected = estimate(make_method(TraceRLConfig(), setting(block_length=4)), longer, batch)
    torch.testing.assert_close(found, expected)
    assert (found - estimate(own, denoiser, batch)).abs().max() > 1e-3  # y0 sees y1 and y2
    assert [config.rollout_block_length(update) for update in (3, 4)] == [None, 4]


def test_a_model_without_blocks_cannot_be_enlarged() -> None:
    config = TraceRLConfig(enlarge=BlockEnlargement(block_length=4))
    with pytest.raises(RecipeError, match="no blocks"):
        make_method(config, setting())
    with pytest.raises(RecipeError, match="blocks of 3"):
        make_method(config, setting(block_length=3))


# --- The trust term ---


@pytest.mark.parametrize(
    ("passes", "parts", "trust", "runs"), [(1, 1, 0.5, 0), (2, 1, 0.5, 4), (1, 2, 0.5, 4), (2, 2, 0.0, 0)]
)
def test_rows_without_advantage_are_run_where_the_trust_term_can_act(passes, parts, trust, runs):
    config = TraceRLConfig(num_iterations=passes, trust_beta=trust)
    trainer = make_method(config, dataclasses.replace(setting(), num_minibatches=parts))
    batch, _ = prepared(trainer)  # the second group is all equal
    still = set(np.flatnonzero(batch.advantage == 0).tolist())
    run = {row for micro in micro_batches(trainer, batch, range(len(batch)), WHOLE) for row in micro.rows}
    assert len(still & run) == runs and len(still) == 4
    assert step_size(trainer, batch, range(len(batch))).num_counted == 8 + runs


def test_the_trust_term_of_rows_without_advantage_is_k3_over_all_tokens():
    trainer = make_method(TraceRLConfig(num_iterations=2, trust_beta=0.5), setting())
    batch, _ = prepared(trainer, reward=[0.25] * 12)
    assert not batch.advantage.any()
    now, before = tiny_denoiser(seed=1), tiny_denoiser()
    (micro,) = micro_batches(trainer, batch, range(12), WHOLE)
    old = estimate(trainer, before, batch)
    step = step_size(trainer, batch, range(12))
    kept = list(micro.rows)
    loss, _ = loss_of_rows(trainer, now, batch, micro, 1, old=old[kept], ref=None, current=None, step=step)
    moved = (estimate(trainer, now, batch) - old)[torch.from_numpy(batch.loss_mask)].clamp(-10, 10)
    expected = 0.5 * (torch.exp(-moved) + moved - 1).sum() / batch.loss_mask.sum()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-9) and loss.item() > 1e-3
    loss.backward()
    assert max(p.grad.abs().max() for p in now.model.parameters() if p.grad is not None) > 1e-4

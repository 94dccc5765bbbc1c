from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny import tiny_denoiser, tiny_groups, tiny_rollout, tiny_scores

from rl4dlm.likelihood.elbo import elbo, plan_corruptions
from rl4dlm.loss.reduce import finish_metrics, merge_metrics
from rl4dlm.recipe.algorithms import GDPOConfig, MethodConfig
from rl4dlm.trainers import make_method
from rl4dlm.trainers.elbo_states import elbo_settings
from rl4dlm.trainers.method import Method, MicroBatch
from rl4dlm.trainers.passes import estimate_rows, micro_batches, minibatches, step_size
from rl4dlm.trainers.passes import loss as loss_of_rows
from rl4dlm.trainers.prepare import prepare_batch
from rl4dlm.types import Denoiser, Prompt, RolloutGroup

REWARD = [1, 0, 0.5, 0, 0, 0, 0, 0, 1, 1, 0, 0.25]  # the second of three groups is all equal
WHOLE = 10**6  # a token budget that everything fits in


def prepare(trainer: Method[MethodConfig], reward=REWARD, groups=None):
    groups = tiny_groups() if groups is None else groups
    return prepare_batch(trainer, groups, tiny_scores(reward), policy_version=3, seed=5)


def batch_of(trainer: Method[MethodConfig], reward=REWARD):
    batch, _ = prepare(trainer, reward)
    assert batch is not None
    return batch


def estimate_all(trainer, denoiser, batch, micro_batches, inner):
    """Per row, as the policy worker's caches hold it: micro-batches of a row add up."""
    value = torch.zeros(len(batch), dtype=torch.float64)
    with torch.no_grad():
        for micro in micro_batches:
            value[list(micro.rows)] += estimate_rows(trainer.likelihood, denoiser, batch, micro, inner)
    return value


def step(trainer, denoiser, batch, *, old=None, ref=None, inner=0, budget=WHOLE, num_ranks=1):
    """What the policy worker does for one optimizer step: loss, gradient and metrics over all ranks."""
    denoiser.model.zero_grad()
    total, parts = 0.0, []
    for rank in range(num_ranks):
        work = micro_batches(trainer, batch, range(rank, len(batch), num_ranks), budget)
        caches = {
            name: None if model is None else estimate_all(trainer, model, batch, work, inner)
            for name, model in {"old": old, "ref": ref, "current": denoiser}.items()
        }
        for micro in work:
            given = {name: None if c is None else c[list(micro.rows)] for name, c in caches.items()}
            given["current"] = None if micro.whole else given["current"]
            loss, metrics = loss_of_rows(
                trainer,
                denoiser,
                batch,
                micro,
                inner,
                **given,
                step=step_size(trainer, batch, range(len(batch))),
            )
            loss.backward()
            total += loss.item()
            parts.append(metrics)
    gradient = {name: p.grad.clone() for name, p in denoiser.model.named_parameters() if p.grad is not None}
    return total, gradient, finish_metrics(merge_metrics(parts))


def expected_elbo(trainer, denoiser, batch, inner=0):
    """The whole batch in one pass, with gradient."""
    plan = plan_corruptions(batch.seed, batch.loss_mask, inner, elbo_settings(trainer.config))
    return elbo(denoiser, batch.prompt_ids, batch.completion_ids, plan)


def perturbed(seed: int = 0, scale: float = 0.1) -> Denoiser:
    """The tiny model a few updates away."""
    denoiser = tiny_denoiser()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in denoiser.model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return denoiser


def assert_same_gradient(left, right, tolerance=1e-10):
    assert left.keys() == right.keys() and left
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=tolerance, rtol=0)


# --- prepare ---


def test_advantages_are_centred_in_the_group_and_metrics_have_trls_names():
    batch, metrics = prepare(make_method(GDPOConfig()))
    # Group means .375, 0, .5625.
    expected = [0.625, -0.375, 0.125, -0.375, 0, 0, 0, 0, 0.4375, 0.4375, -0.5625, -0.3125]
    assert batch.advantage.tolist() == expected
    assert batch.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert batch.policy_version == 3
    assert metrics["reward"] == pytest.approx(sum(REWARD) / 12)
    assert metrics["reward_std"] == pytest.approx(np.std(REWARD, ddof=1))
    assert metrics["frac_reward_zero_std"] == pytest.approx(1 / 3)
    assert metrics["advantage/abs_mean"] == pytest.approx(np.abs(expected).mean())
    assert metrics["reward/excluded"] == 0


def test_a_failed_reward_leaves_the_update_and_its_groups_mean():
    nan = float("nan")
    batch, metrics = prepare(make_method(GDPOConfig()), [1, nan, 0, 0.5] + REWARD[4:])
    assert len(batch) == 11
    # The mean over the three rows left is .5.
    assert batch.advantage[:3].tolist() == [0.5, -0.5, 0.0]
    assert metrics["reward/excluded"] == 1
    kept = [r for i, r in enumerate([r for g in tiny_groups() for r in g.rollouts]) if i != 1]
    assert [ids.tolist() for ids in batch.completion_ids] == [r.completion_ids.tolist() for r in kept]


def test_a_reward_marked_failed_is_left_out_even_with_a_number():
    scores = tiny_scores(REWARD)
    failed = scores.failed.copy()
    failed[2] = True
    batch, _ = prepare_batch(
        make_method(GDPOConfig()),
        tiny_groups(),
        dataclasses.replace(scores, failed=failed),
        policy_version=0,
        seed=0,
    )
    assert len(batch) == 11


def test_without_any_reward_there_is_no_batch():
    batch, metrics = prepare(make_method(GDPOConfig()), [float("nan")] * 12)
    assert batch is None
    assert metrics == {"reward/excluded": 12.0}


def test_the_scope_decides_what_counts_as_the_action():
    sampled = tiny_rollout([0], [1, 3, 2, 3, 1])
    trace = dataclasses.replace(sampled.trace, kind=np.array([0, 0, 0, 3, 3], dtype=np.uint8))
    groups = [RolloutGroup(Prompt(0, "", "", (0,)), (dataclasses.replace(sampled, trace=trace),) * 2)]
    for scope, mask in (("canvas", [1, 1, 1, 0, 0]), ("until_eos", [1, 1, 0, 0, 0])):
        batch, _ = prepare(make_method(GDPOConfig(completion_scope=scope)), [0, 1], groups)
        assert batch.loss_mask.astype(int).tolist() == [mask, mask]


def test_group_scaling_is_a_choice():
    batch = batch_of(make_method(GDPOConfig(scale_rewards="group")))
    std = np.std(REWARD[:4], ddof=1)
    np.testing.assert_allclose(batch.advantage[0], 0.625 / (std + 1e-4), rtol=1e-6)
    assert not batch.advantage[4:8].any()


def test_a_rows_masks_follow_its_rollout_and_not_its_company():
    trainer = make_method(GDPOConfig())
    nan = float("nan")
    full, fewer = batch_of(trainer), batch_of(trainer, [nan, nan] + REWARD[2:])
    assert full.seed[2:].tolist() == fewer.seed.tolist()
    assert len(set(full.seed.tolist())) == 12
    other, _ = prepare_batch(trainer, tiny_groups(), tiny_scores(REWARD), policy_version=3, seed=6)
    assert not set(other.seed.tolist()) & set(full.seed.tolist())


# --- minibatches and micro-batches ---


def test_minibatches_hold_whole_groups_and_differ_between_passes():
    trainer = make_method(GDPOConfig())
    groups = tiny_groups(num_groups=8, group_size=2)
    batch, _ = prepare(trainer, list(range(16)), groups)
    passes = [minibatches(batch, inner, 4) for inner in range(4)]
    for parts in passes:
        assert sorted(np.concatenate(parts).tolist()) == list(range(16))
        assert all(len(part) == 4 and len(set(batch.group[part])) == 2 for part in parts)
    assert len({str(parts) for parts in passes}) > 1
    assert str(minibatches(batch, 2, 4)) == str(passes[2])


def test_one_minibatch_is_the_whole_batch():
    trainer = make_method(GDPOConfig())
    (rows,) = minibatches(batch_of(trainer), 0, 1)
    assert rows.tolist() == list(range(12))


@pytest.mark.parametrize("budget", [1, 7, 20, 40, 100, WHOLE])
def test_micro_batches_cover_every_state_of_every_row_with_loss_once_within_the_budget(budget):
    trainer = make_method(GDPOConfig(num_nodes=3, num_masks=2))
    batch = batch_of(trainer)
    found = micro_batches(trainer, batch, range(12), budget)
    work = sorted((row, state) for m in found for row in m.rows for state in m.states)
    assert work == [(row, state) for row in [0, 1, 2, 3, 8, 9, 10, 11] for state in range(6)]
    for micro in found:
        longest = max(len(batch.prompt_ids[row]) for row in micro.rows) + 5
        assert len(micro.rows) * len(micro.states) * longest <= budget or (
            len(micro.rows),
            len(micro.states),
        ) == (1, 1)
        assert micro.whole == (len(micro.states) == 6)


def test_rows_without_advantage_are_run_when_the_kl_needs_them():
    trainer = make_method(GDPOConfig(beta=0.1))
    found = micro_batches(trainer, batch_of(trainer), range(12), WHOLE)
    assert sorted(row for micro in found for row in micro.rows) == list(range(12))


# --- loss ---


@pytest.mark.parametrize("estimator", ["sdmc", "double_mc", "stratified"])
def test_at_ratio_one_the_gradient_is_advantage_times_that_of_the_elbo_per_token(estimator):
    trainer, denoiser = make_method(GDPOConfig(estimator=estimator)), tiny_denoiser()
    batch = batch_of(trainer)
    _, gradient, metrics = step(trainer, denoiser, batch)
    denoiser.model.zero_grad()
    scale = torch.tensor(batch.advantage / batch.loss_mask.sum(1)).double()
    (-(scale * expected_elbo(trainer, denoiser, batch)).sum() / 12).backward()
    assert_same_gradient(gradient, {name: p.grad for name, p in denoiser.model.named_parameters()})
    # Means over the eight rows that are run.
    ran = batch.advantage != 0
    values = (expected_elbo(trainer, denoiser, batch).detach().numpy() / batch.loss_mask.sum(1))[ran]
    assert metrics["elbo/mean"] == pytest.approx(values.mean())
    assert metrics["elbo/std"] == pytest.approx(values.std())
    assert metrics["ratio/mean"] == pytest.approx(1.0)


def test_the_papers_and_the_codes_ratio_have_the_same_gradient_at_ratio_one_and_differ_off_policy():
    gradients, off_policy = [], []
    for level in ("sequence_norm", "sequence"):
        trainer = make_method(GDPOConfig(ratio_level=level))
        batch = batch_of(trainer)
        gradients.append(step(trainer, tiny_denoiser(), batch)[1])
        off_policy.append(step(trainer, perturbed(), batch, old=tiny_denoiser())[2])
    assert_same_gradient(*gradients)
    # The smallest log-ratio is L times as large without the normalisation, L = 1 to 5.
    assert np.log(off_policy[1]["ratio/min"]) < 2 * np.log(off_policy[0]["ratio/min"]) < 0


def test_the_first_ratio_is_exactly_one_with_a_cached_old_estimate_too():
    trainer = make_method(GDPOConfig(beta=0.1))
    batch = batch_of(trainer)
    for budget in (WHOLE, 10):
        loss, gradient, metrics = step(
            trainer, tiny_denoiser(), batch, old=tiny_denoiser(), ref=tiny_denoiser(), budget=budget
        )
        assert metrics["ratio/max"] == metrics["ratio/min"] == 1.0
        assert metrics["kl"] == 0.0
        assert metrics["clip_ratio/region_mean"] == 0.0
        # The gains are the advantages, which sum to zero.
        assert loss == pytest.approx(0.0, abs=1e-12)
        assert_same_gradient(gradient, step(trainer, tiny_denoiser(), batch, ref=tiny_denoiser())[1])


def test_old_current_and_reference_see_the_same_inputs():
    seen = []

    class Spy(type(tiny_denoiser().model)):
        def forward(self, input_ids, *arguments, **named):
            seen.append(input_ids.clone())
            return super().forward(input_ids, *arguments, **named)

    trainer = make_method(GDPOConfig())
    batch = batch_of(trainer)
    (micro,) = micro_batches(trainer, batch, range(12), WHOLE)
    for seed in (0, 1):
        estimate_rows(trainer.likelihood, Denoiser(Spy(seed=seed), tiny_denoiser().spec), batch, micro, 0)
    estimate_rows(trainer.likelihood, Denoiser(Spy(), tiny_denoiser().spec), batch, micro, 1)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_the_loss_by_hand_off_policy_with_kl():
    trainer = make_method(GDPOConfig(beta=0.3, epsilon=0.02, epsilon_high=0.05))
    denoiser, old, ref = perturbed(seed=7), tiny_denoiser(), perturbed(seed=1)
    batch = batch_of(trainer)
    length = batch.loss_mask.sum(1)
    current, before, reference = (
        expected_elbo(trainer, model, batch, inner=1).detach().numpy() for model in (denoiser, old, ref)
    )
    ratio = np.exp((current - before) / length)
    gain = np.minimum(ratio * batch.advantage, np.clip(ratio, 0.98, 1.05) * batch.advantage)
    kl = (((current - reference) / length) ** 2 / 2).mean()
    loss, _, metrics = step(trainer, denoiser, batch, old=old, ref=ref, inner=1)
    assert loss == pytest.approx(-gain.mean() + 0.3 * kl, abs=1e-9)
    assert metrics["loss/policy"] == pytest.approx(-gain.mean(), abs=1e-9)
    assert metrics["kl"] == pytest.approx(kl, abs=1e-9)
    low, high = (ratio < 0.98) & (batch.advantage < 0), (ratio > 1.05) & (batch.advantage > 0)
    assert low.any() and high.any()
    assert metrics["clip_ratio/low_mean"] == pytest.approx(low.mean())
    assert metrics["clip_ratio/high_mean"] == pytest.approx(high.mean())
    assert metrics["clip_ratio/region_mean"] == pytest.approx((low | high).mean())
    assert metrics["ratio/max"] == pytest.approx(ratio.max())
    assert metrics["ratio/min"] == pytest.approx(ratio.min())
    assert metrics["ratio/mean"] == pytest.approx(ratio.mean())


SETTINGS = [
    GDPOConfig(),
    GDPOConfig(num_nodes=2, num_masks=3, beta=0.2),
    GDPOConfig(estimator="stratified", ratio_level="sequence", beta=0.1, kl_estimator="k3"),
    GDPOConfig(estimator="double_mc", count_rule="bernoulli", completion_scope="until_eos", epsilon=0.05),
]


@pytest.mark.parametrize("config", SETTINGS, ids=["default", "masks-k2", "stratified-k3", "bernoulli-clip"])
def test_the_update_does_not_depend_on_how_the_batch_is_split(config):
    trainer, denoiser = make_method(config), perturbed()
    batch = batch_of(trainer)
    models = {"old": tiny_denoiser(), "ref": perturbed(seed=1) if config.beta else None}
    loss, gradient, metrics = step(trainer, denoiser, batch, inner=2, **models)
    # 10 tokens hold one state, 20 two states, 60 a few rows; then over two and three ranks.
    for budget, num_ranks in ((10, 1), (20, 1), (60, 1), (WHOLE, 2), (20, 2), (60, 3)):
        again = step(trainer, denoiser, batch, inner=2, budget=budget, num_ranks=num_ranks, **models)
        assert again[0] == pytest.approx(loss, abs=1e-10)
        assert_same_gradient(again[1], gradient)
        assert again[2] == pytest.approx(metrics, abs=1e-9)


def test_leaving_out_rows_without_loss_changes_neither_loss_nor_gradient():
    trainer, denoiser = make_method(GDPOConfig()), perturbed()
    batch = batch_of(trainer)
    loss, gradient, _ = step(trainer, denoiser, batch, old=tiny_denoiser())
    whole = MicroBatch(tuple(range(12)), (0, 1, 2), whole=True)
    old = estimate_all(trainer, tiny_denoiser(), batch, [whole], 0)
    denoiser.model.zero_grad()
    value, _ = loss_of_rows(
        trainer,
        denoiser,
        batch,
        whole,
        0,
        old=old,
        ref=None,
        current=None,
        step=step_size(trainer, batch, range(12)),
    )
    value.backward()
    assert value.item() == pytest.approx(loss, abs=1e-12)
    assert_same_gradient({n: p.grad for n, p in denoiser.model.named_parameters()}, gradient)


def test_equal_rewards_leave_nothing_to_run():
    trainer = make_method(GDPOConfig())
    batch = batch_of(trainer, [0.3] * 12)
    assert not batch.advantage.any()
    assert micro_batches(trainer, batch, range(12), WHOLE) == []


def test_equal_rewards_give_zero_gradient_when_they_are_run():
    trainer, denoiser = make_method(GDPOConfig(beta=0.5)), tiny_denoiser()
    _, gradient, _ = step(trainer, denoiser, batch_of(trainer, [0.3] * 12), ref=tiny_denoiser())
    assert all(not value.any() for value in gradient.values())


@pytest.mark.parametrize(("direction", "sign"), [(1, 1), (-1, -1)])
def test_a_ratio_beyond_its_range_earns_no_further_gain(direction, sign):
    # Old estimates far from the current ones, on the side that the advantage asks for, clip every row.
    trainer, denoiser = make_method(GDPOConfig(epsilon=0.2)), tiny_denoiser()
    batch = batch_of(trainer)
    rows = tuple(np.flatnonzero(np.sign(batch.advantage) == sign).tolist())
    micro = MicroBatch(rows, (0, 1, 2), whole=True)
    with torch.no_grad():
        old = estimate_rows(trainer.likelihood, denoiser, batch, micro, 0) - direction * 10.0
    loss, metrics = loss_of_rows(
        trainer,
        denoiser,
        batch,
        micro,
        0,
        old=old,
        ref=None,
        current=None,
        step=step_size(trainer, batch, range(12)),
    )
    loss.backward()
    assert all(not p.grad.any() for p in denoiser.model.parameters())
    assert metrics["clip_ratio/region_mean"] == pytest.approx(len(rows) / 12)


@pytest.mark.parametrize("ratio_level", ["sequence", "sequence_norm"])
@pytest.mark.parametrize("distance", [-1000.0, 1000.0])
def test_estimates_a_thousand_nats_apart_keep_everything_finite(ratio_level, distance):
    trainer = make_method(GDPOConfig(ratio_level=ratio_level, beta=0.1, kl_estimator="k3"))
    denoiser, batch = tiny_denoiser(), batch_of(trainer)
    (micro,) = micro_batches(trainer, batch, range(12), WHOLE)
    far = torch.full((12,), distance, dtype=torch.float64)
    loss, metrics = loss_of_rows(
        trainer,
        denoiser,
        batch,
        micro,
        0,
        old=far,
        ref=far,
        current=None,
        step=step_size(trainer, batch, range(12)),
    )
    loss.backward()
    assert all(np.isfinite(value) for value in metrics.values())
    assert all(p.grad.isfinite().all() for p in denoiser.model.parameters())


def test_gradient_steps_raise_the_rewarded_completions():
    trainer, denoiser = make_method(GDPOConfig(num_iterations=10)), tiny_denoiser()
    batch = batch_of(trainer)
    before = expected_elbo(trainer, denoiser, batch).detach()
    optimizer = torch.optim.Adam(denoiser.model.parameters(), lr=0.01)
    for inner in range(10):
        step(trainer, denoiser, batch, old=tiny_denoiser(), inner=inner)
        optimizer.step()
    gain = (expected_elbo(trainer, denoiser, batch).detach() - before) * torch.tensor(batch.advantage)
    assert gain.sum() > 0.5

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from method_toys import runs, with_record
from tiny import all_subsets, tiny_denoiser, tiny_groups, tiny_rollout, tiny_scores

from rl4dlm.advantage.stepwise import choose_steps
from rl4dlm.diffusion.replay import state_before, step_prediction
from rl4dlm.recipe.algorithms import MDPOConfig, MethodConfig
from rl4dlm.rollout.partial import rewarded_steps
from rl4dlm.trainers import make_method
from rl4dlm.trainers.method import Method, Setting
from rl4dlm.trainers.passes import estimate_rows, micro_batches, step_size
from rl4dlm.trainers.passes import loss as loss_of_rows
from rl4dlm.trainers.prepare import partial_decodes, prepare_batch, rewards_by_step
from rl4dlm.types import Predictions, Prompt, RolloutGroup, flatten

WHOLE = 10**6
TEMPERATURE = 0.4


def make(
    temperature: float = TEMPERATURE, block_length: int | None = None, **settings
) -> Method[MethodConfig]:
    spec = tiny_denoiser(block_length=block_length).spec
    return make_method(MDPOConfig(**{"beta": 0.0, **settings}), Setting(temperature=temperature, spec=spec))


def prepare(trainer: Method[MethodConfig], groups, rewards):
    """The batch of some step rewards, one array per rollout; final rewards are the last ones."""
    final = [float(row[-1]) for row in rewards]
    return prepare_batch(trainer, groups, tiny_scores(final), policy_version=0, seed=0, step_rewards=rewards)


def random_rewards(trainer: Method[MethodConfig], groups, seed: int = 0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 2, len(texts)).astype(np.float32) for texts in partial_decodes(trainer, groups)]


def nearby(seed: int):
    """The tiny model a few updates away."""
    denoiser, generator = tiny_denoiser(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in denoiser.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return denoiser


def loss_of(trainer: Method[MethodConfig], denoiser, batch, **cached):
    (micro,) = micro_batches(trainer, batch, range(len(batch)), WHOLE)
    given = {name: None if values is None else values[list(micro.rows)] for name, values in cached.items()}
    none = dict.fromkeys(("old", "ref", "current"))
    size = step_size(trainer, batch, range(len(batch)))
    return loss_of_rows(trainer, denoiser, batch, micro, 0, **{**none, **given}, step=size)


def estimate_of(trainer: Method[MethodConfig], denoiser, batch):
    """By row `[batch, K, completion]`; zeros for rows that are not run."""
    shape = (len(batch), *batch.record.target.shape[1:])
    values = torch.zeros(shape, dtype=torch.float64)
    with torch.no_grad():
        for micro in micro_batches(trainer, batch, range(len(batch)), WHOLE):
            values[list(micro.rows)] = estimate_rows(trainer.likelihood, denoiser, batch, micro, 0)
    return values


def tempered_logp(denoiser, rollout, step: int) -> torch.Tensor:
    """log p(prediction | state) at the masked positions of a step by one forward of its own, `[masked]`."""
    spec, found = denoiser.spec, step_prediction(rollout, step, denoiser.spec.mask_id)
    canvas = state_before(rollout, step, spec.mask_id)
    ids = torch.tensor([*rollout.prompt_ids.tolist(), *canvas.tolist()])[None]
    select = torch.zeros_like(ids, dtype=torch.bool)
    select[0, len(rollout.prompt_ids) + torch.from_numpy(found.position)] = True
    logits = denoiser.logits(ids, None, select) / TEMPERATURE
    return logits.log_softmax(-1).gather(1, torch.from_numpy(found.token).long()[:, None])[:, 0]


def hand_loss(trainer: Method[MethodConfig], denoiser, groups, rewards, old=None, ref=None) -> torch.Tensor:
    """The loss as the method writes it, step by step and token by token."""
    config, rollouts = trainer.config, flatten(groups)
    group = np.repeat(np.arange(len(groups)), [len(g.rollouts) for g in groups])
    choice = choose_steps(rewards, group, config.sample_train_steps, config.adv_kind, keep_zero=True)
    total = torch.zeros((), dtype=torch.float64)
    for row, rollout in enumerate(rollouts):
        steps = rewarded_steps(rollout.num_steps, config.reward_stride)
        for column, advantage, share in zip(
            choice.step[row], choice.advantage[row], choice.share[row], strict=True
        ):
            if column < 0:
                continue
            step = int(steps[column])
            logp = tempered_logp(denoiser, rollout, step)
            found = step_prediction(rollout, step, denoiser.spec.mask_id)
            before = logp.detach() if old is None else tempered_logp(old, rollout, step).detach()
            rate = len(rollout.completion_ids) / (len(logp) + 1e-4)
            for j, (now, then) in enumerate(zip(logp, before, strict=True)):
                ratio = (now - then).exp()
                clipped = ratio.clamp(1 - config.epsilon, 1 + config.epsilon)
                gain = torch.minimum(ratio * float(advantage), clipped * float(advantage))
                token = -rate * gain
                if ref is not None:
                    token = (
                        token + config.beta * (now - tempered_logp(ref, rollout, step)[j].detach()) ** 2 / 2
                    )
                total = total + float(share) * float(found.confidence[j]) * token / (len(logp) + 1e-4)
    return total / len(rollouts)


def gradient(denoiser, value: torch.Tensor) -> list[torch.Tensor]:
    denoiser.model.zero_grad()
    value.backward()
    return [parameter.grad.clone() for parameter in denoiser.model.parameters()]


def assert_close(left, right, tolerance: float = 1e-6) -> None:
    """Weights and advantages are stored in float32."""
    torch.testing.assert_close(left, right, atol=tolerance, rtol=1e-5)


@pytest.mark.parametrize(
    "settings", [{}, {"sample_train_steps": 2}, {"reward_stride": 3}, {"adv_kind": "diff"}]
)
def test_loss_and_gradient_are_those_of_the_formula(settings):
    trainer, groups, denoiser = make(**settings), tiny_groups(), tiny_denoiser(seed=3)
    rewards = random_rewards(trainer, groups)
    batch, _ = prepare(trainer, groups, rewards)
    loss, _ = loss_of(trainer, denoiser, batch)
    expected = hand_loss(trainer, denoiser, groups, rewards)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6) and abs(loss.item()) > 1e-3
    for mine, theirs in zip(gradient(denoiser, loss), gradient(denoiser, expected), strict=True):
        assert_close(mine, theirs)


def test_ratios_are_clipped_and_the_kl_is_weighted_without_lambda():
    trainer, groups = make(beta=0.3, num_iterations=2, epsilon=0.1), tiny_groups()
    now, old, ref = (nearby(seed) for seed in range(3))
    rewards = random_rewards(trainer, groups)
    batch, _ = prepare(trainer, groups, rewards)
    cached = {"old": estimate_of(trainer, old, batch), "ref": estimate_of(trainer, ref, batch)}
    loss, metrics = loss_of(trainer, now, batch, **cached)
    expected = hand_loss(trainer, now, groups, rewards, old, ref)
    assert metrics["clip_ratio/region_mean"] > 0.1
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for mine, theirs in zip(gradient(now, loss), gradient(now, expected), strict=True):
        assert_close(mine, theirs, 1e-5)


def test_at_ratio_one_the_gradient_is_the_advantage_times_that_of_the_log_probability():
    trainer, denoiser, groups = (
        make(token_weights="uniform", lambda_mode="none"),
        tiny_denoiser(),
        tiny_groups(),
    )
    rewards = random_rewards(trainer, groups)
    batch, _ = prepare(trainer, groups, rewards)
    (micro,) = micro_batches(trainer, batch, range(len(batch)), WHOLE)
    mine = gradient(denoiser, loss_of(trainer, denoiser, batch)[0])
    rows = list(micro.rows)
    logp = estimate_rows(trainer.likelihood, denoiser, batch, micro, 0)  # [rows, K, completion]
    target, share = (torch.from_numpy(getattr(batch.record, name)[rows]) for name in ("target", "step_share"))
    advantage = torch.from_numpy(batch.token_advantage[rows])[..., 0]
    per_step = logp.sum(-1) / (target.sum(-1) + 1e-4)
    theirs = gradient(denoiser, -(share * advantage * per_step).sum() / len(batch))
    for left, right in zip(mine, theirs, strict=True):
        assert_close(left, right)


def recorded_by(denoiser, group: RolloutGroup) -> RolloutGroup:
    """The group as a sampler with these weights records it."""
    rollouts = []
    for rollout in group.rollouts:
        logp = [tempered_logp(denoiser, rollout, step).detach().numpy() for step in range(rollout.num_steps)]
        made = replace(rollout.trace.predictions, logp=np.concatenate(logp).astype(np.float32))
        rollouts.append(replace(rollout, trace=replace(rollout.trace, predictions=made)))
    return replace(group, rollouts=tuple(rollouts))


def test_importance_weights_compare_a_prediction_with_its_own_record():
    trainer, denoiser = make(importance_correction="truncated"), tiny_denoiser()
    groups = [recorded_by(denoiser, group) for group in tiny_groups()]
    batch, _ = prepare(trainer, groups, random_rewards(trainer, groups))
    assert trainer.replay is trainer.likelihood
    now, recorded = estimate_of(trainer, denoiser, batch), batch.record.rollout_logp
    assert_close(now, torch.from_numpy(recorded).double(), 1e-5)
    plain, _ = loss_of(trainer, denoiser, batch)
    doubled = replace(batch, importance=np.full_like(recorded, 2))
    assert loss_of(trainer, denoiser, doubled)[0].item() == pytest.approx(2 * plain.item(), rel=1e-6)


def one_step_group(predictions: list[list[int]]) -> RolloutGroup:
    """Completions of two tokens that were drawn in one step: the predictions are the completions."""
    rollouts = []
    for sample, tokens in enumerate(predictions):
        rollout = tiny_rollout([1, 2], tokens, sample=sample)
        made = Predictions(
            np.int32([0, 2]), np.int32(tokens), np.zeros(2, np.float32), np.ones(2, np.float32)
        )
        trace = replace(
            rollout.trace,
            step_map=np.zeros(2, np.int32),
            rank=np.arange(2, dtype=np.int16),
            step_block=np.zeros(1, np.int16),
            step_masked=np.int32([2]),
            predictions=made,
        )
        rollouts.append(replace(rollout, num_steps=1, completion_len=2, trace=trace))
    return RolloutGroup(Prompt(0, "0", "0", (1, 2)), tuple(rollouts))


EVERY_PREDICTION = [[first, second] for first in range(4) for second in range(4)]


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_the_probabilities_of_all_predictions_of_a_state_add_up_to_one(temperature):
    trainer, group = make(temperature, beta=0.1), one_step_group(EVERY_PREDICTION)
    batch, _ = prepare(trainer, [group], [np.float32([i % 3]) for i in range(16)])
    logp = estimate_of(trainer, tiny_denoiser(), batch)[:, 0]
    assert logp.sum(-1).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_the_expected_gradient_is_that_of_the_expected_reward():
    # One step, drawn from p: sum over all predictions of p(x) A(x) grad log p(x) = grad of the mean reward.
    settings = {
        "token_weights": "uniform",
        "lambda_mode": "none",
        "scale_rewards": "none",
        "adv_kind": "reward",
    }
    trainer, denoiser, group = make(1.0, **settings), tiny_denoiser(), one_step_group(EVERY_PREDICTION)
    reward = np.random.default_rng(0).random(16).astype(np.float32)
    batch, _ = prepare(trainer, [group], [np.float32([value]) for value in reward])
    (micro,) = micro_batches(trainer, batch, range(16), WHOLE)
    probability = estimate_rows(trainer.likelihood, denoiser, batch, micro, 0)[:, 0].sum(-1).exp()
    expected = gradient(denoiser, (probability * torch.from_numpy(reward[list(micro.rows)])).sum())
    # The loss is a mean over 16 rows and over 2 (+ 1e-4) tokens; each row is weighed by its probability.
    chance = np.zeros(16, np.float32)
    chance[list(micro.rows)] = probability.detach().numpy()
    weighed = batch.record.token_weight * chance[:, None, None] * 16 * 2.0001
    batch = with_record(batch, token_weight=weighed.astype(np.float32))
    loss, _ = loss_of(trainer, denoiser, batch)
    for mine, theirs in zip(gradient(denoiser, loss), expected, strict=True):
        assert_close(mine, -theirs)


def test_a_shift_of_all_step_rewards_changes_nothing():
    trainer, groups = make(), tiny_groups()
    rewards = random_rewards(trainer, groups)
    first, second = (prepare(trainer, groups, [row + shift for row in rewards])[0] for shift in (0, 4))
    np.testing.assert_allclose(second.token_advantage, first.token_advantage, atol=1e-5)
    for name, array in vars(first.record).items():
        np.testing.assert_allclose(getattr(second.record, name), array, atol=1e-5, err_msg=name)


def test_completions_that_share_their_step_rewards_are_not_run_without_a_kl_term():
    groups = tiny_groups()
    for beta, expected in ((0.0, False), (0.02, True)):
        trainer = make(beta=beta)
        rewards = [np.float32(np.ones(len(texts))) for texts in partial_decodes(trainer, groups)]
        batch, _ = prepare(trainer, groups, rewards)
        assert runs(trainer, batch).any() == expected


def test_a_completion_with_a_failed_step_reward_leaves_the_update():
    trainer, groups = make(), tiny_groups()
    rewards = random_rewards(trainer, groups)
    rewards[5][0] = np.nan
    batch, metrics = prepare(trainer, groups, rewards)
    assert len(batch) == 11 and metrics["reward/excluded"] == 1


def test_backsliding_completions_are_counted():
    trainer, groups = make(), tiny_groups(1, 4)
    lengths = [len(texts) for texts in partial_decodes(trainer, groups)]
    rewards = [np.zeros(length, np.float32) for length in lengths]
    longest = int(np.argmax(lengths))
    rewards[longest][0] = 1
    assert prepare(trainer, groups, rewards)[1]["diffusion/backslide_rate"] == 0.25
    rewards[longest][-1] = 1
    assert prepare(trainer, groups, rewards)[1]["diffusion/backslide_rate"] == 0


def test_states_are_read_as_they_were_visited_also_by_block_causal_models():
    trainer, denoiser = make(block_length=2), tiny_denoiser(block_length=2)
    groups = tiny_groups()
    batch, _ = prepare(trainer, groups, random_rewards(trainer, groups))
    logp = estimate_of(trainer, denoiser, batch)
    rollouts, share = flatten(groups), batch.record.step_share
    for row, place in zip(*np.nonzero(share), strict=True):
        hidden = batch.record.canvas[row, place] == denoiser.spec.mask_id
        step = int(np.flatnonzero(rollouts[row].trace.step_masked == hidden.sum())[0])
        expected = tempered_logp(denoiser, rollouts[row], step).detach()
        torch.testing.assert_close(logp[row, place][torch.from_numpy(hidden)], expected, atol=1e-9, rtol=0)


def test_every_subset_of_revealed_tokens_is_a_state_of_its_own():
    # A state is read from its canvas, not from the final completion: revealed tokens may differ from it.
    trainer, denoiser = make(1.0, beta=0.1), tiny_denoiser()
    group = one_step_group(EVERY_PREDICTION[:2])
    batch, _ = prepare(trainer, [group], [np.float32([0]), np.float32([1])])
    for hidden in all_subsets(2)[1:]:
        canvas = np.where(hidden.numpy(), denoiser.spec.mask_id, 2)
        shown = np.broadcast_to(canvas, batch.record.canvas.shape).astype(np.int32)
        target = np.broadcast_to(hidden.numpy(), canvas.shape) & (shown == denoiser.spec.mask_id)
        logp = estimate_of(trainer, denoiser, with_record(batch, canvas=shown, target=target))[0, 0]
        ids = torch.tensor([[1, 2, *canvas.tolist()]])
        rows = denoiser.logits(ids, None, ids == denoiser.spec.mask_id).log_softmax(-1)
        labels = torch.from_numpy(batch.record.prediction[0, 0]).long()[hidden]
        torch.testing.assert_close(logp[hidden], rows.gather(1, labels[:, None])[:, 0], atol=1e-12, rtol=0)


def test_step_rewards_are_recorded_at_the_steps_that_were_verified():
    trainer, groups = make(reward_stride=3), tiny_groups(num_groups=1, group_size=2)
    rewards = random_rewards(trainer, groups)
    for row, rollout, asked in zip(
        rewards_by_step(trainer, groups, rewards), flatten(groups), rewards, strict=True
    ):
        steps = rewarded_steps(rollout.num_steps, 3)
        assert row.shape == (rollout.num_steps,) and row[steps].tolist() == asked.tolist()
        assert np.isnan(np.delete(row, steps)).all()

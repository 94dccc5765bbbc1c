"""AGRPO: a sample of the steps estimates the trajectory's gradient; ratios against the rollout."""

import numpy as np
import pytest
import torch
from method_toys import batch_of, estimate, gradient, loss_of, make, perturbed, states_of, with_record
from tiny import conditional_table, tiny_denoiser

from rl4dlm.trainers.trajectories import trajectory_likelihood


def recorded(trainer, batch, denoiser):
    """The batch as if `denoiser` had sampled it."""
    sampler = trajectory_likelihood(trainer.setting)
    return with_record(batch, rollout_logp=estimate(sampler, denoiser, batch).numpy())


def test_a_sampled_step_scores_what_it_committed_given_what_the_sampler_saw():
    trainer, denoiser = make(type="agrpo", num_steps=2), tiny_denoiser()
    batch = batch_of(trainer)
    states = states_of(trainer, batch, range(12), 0)
    assert (torch.bincount(states.row) == np.minimum(batch.loss_mask.sum(1), 2)).all()
    values = estimate(trainer, denoiser, batch)
    for row in range(12):
        table = conditional_table(denoiser, batch.prompt_ids[row], batch.completion_ids[row])
        for token in states.target[states.row == row].any(0).nonzero().flatten().tolist():
            # Toy rollouts are written from left to right: hidden are the token and all after it.
            code = sum(1 << position for position in range(token, 5))
            assert values[row, token].item() == pytest.approx(table[code, token].item(), abs=1e-12)


@pytest.mark.parametrize("block_length", [None, 2])
@pytest.mark.parametrize("sampling", ["uniform", "surprisal"])
def test_sampled_steps_stand_for_the_whole_trajectory_on_average(sampling, block_length):
    trainer = make(block_length, type="agrpo", num_steps=2, step_sampling=sampling)
    batch = recorded(trainer, batch_of(trainer), tiny_denoiser(block_length=block_length))
    total, passes = torch.zeros(12, 5, dtype=torch.float64), 200
    for inner in range(passes):
        states = states_of(trainer, batch, range(12), inner)
        total.index_add_(0, states.row, states.stands_for / passes)
    expected = torch.from_numpy(batch.loss_mask).double()
    torch.testing.assert_close(total, expected, atol=0.5, rtol=0)


def test_surprisal_samples_steps_that_could_have_gone_otherwise_more_often():
    trainer = make(type="agrpo", num_steps=1, step_sampling="surprisal")
    batch = batch_of(trainer)
    row = int(np.flatnonzero(batch.loss_mask.sum(1) == 5)[0])
    logp = np.zeros((12, 5), np.float32)
    logp[row, 2] = -3.0
    states = [states_of(trainer, with_record(batch, rollout_logp=logp), [row], inner) for inner in range(300)]
    share = np.mean([bool(state.target[0, 2]) for state in states])
    # Half uniform over five steps, half all on the third.
    assert share == pytest.approx(0.5 / 5 + 0.5, abs=0.09)


def test_the_gradient_is_that_of_the_whole_trajectory_on_average():
    sample, every = make(type="agrpo", num_steps=2), make(type="agrpo", num_steps=99)
    denoiser = tiny_denoiser()
    batch = recorded(sample, batch_of(sample), denoiser)
    expected = gradient(loss_of(every, denoiser, batch)[0], denoiser)
    mean = sum(gradient(loss_of(sample, denoiser, batch, k)[0], denoiser) for k in range(40)) / 40
    cosine = torch.nn.functional.cosine_similarity(mean, expected, dim=0).item()
    assert cosine > 0.95 and mean.norm().item() == pytest.approx(expected.norm().item(), rel=0.2)


def test_the_published_loss_divides_by_steps_and_completions():
    """All steps, ratio 1: - mean over completions of A / n times the tokens = - mean of A (one per step)."""
    trainer, denoiser = make(type="agrpo", num_steps=99), tiny_denoiser()
    batch = recorded(trainer, batch_of(trainer), denoiser)
    batch = type(batch)(**{**vars(batch), "advantage": np.arange(12, dtype=np.float32)})
    loss, _ = loss_of(trainer, denoiser, batch)
    assert loss.item() == pytest.approx(-5.5, abs=1e-5)


def test_ratios_are_against_what_the_sampler_recorded():
    trainer, now = make(type="agrpo", num_steps=99, epsilon=0.2), perturbed()
    batch = recorded(trainer, batch_of(trainer), tiny_denoiser())
    loss, metrics = loss_of(trainer, now, batch)
    new, old, total = estimate(trainer, now, batch).numpy(), batch.record.rollout_logp, 0.0
    for row in range(12):
        actions = batch.loss_mask[row]
        ratio, advantage = np.exp(new[row] - old[row])[actions], batch.advantage[row]
        gain = np.minimum(ratio * advantage, ratio.clip(0.8, 1.2) * advantage)
        total -= gain.sum() / actions.sum() / 12
    assert loss.item() == pytest.approx(total, abs=1e-9)
    assert metrics["ratio/max"] > 1.05 and not trainer.config.needs_old


def test_the_rollout_temperature_is_that_of_the_log_probabilities():
    trainer, cold = (make(temperature=t, type="agrpo", num_steps=99) for t in (1.0, 0.5))
    batch, denoiser = batch_of(trainer), tiny_denoiser()
    assert not torch.allclose(estimate(trainer, denoiser, batch), estimate(cold, denoiser, batch), atol=0.01)


def test_the_kl_is_weighted_by_the_ratio():
    trainer, now = make(type="agrpo", num_steps=99, beta=1.0, aggregation="token_mean"), perturbed()
    batch = recorded(trainer, batch_of(trainer), tiny_denoiser())
    ref = estimate(trainer, perturbed(1), batch)
    _, metrics = loss_of(trainer, now, batch, ref=ref)
    new, actions = estimate(trainer, now, batch), torch.from_numpy(batch.loss_mask)
    d = new - ref
    k3 = ((-d).exp() + d - 1) * (new - torch.from_numpy(batch.record.rollout_logp)).exp()
    assert metrics["kl"] == pytest.approx(k3[actions].mean().item(), abs=1e-9)

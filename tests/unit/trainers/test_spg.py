"""SPG: block-wise states, the two bounds, and the sandwich."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from method_toys import states_of
from tiny import all_subsets, conditional_table, enumerate_elbo, tiny_denoiser, tiny_groups, tiny_scores

from rl4dlm.likelihood.block_random import block_random_masks
from rl4dlm.likelihood.bounds import elbo_per_token, eubo_per_token
from rl4dlm.loss.sandwich import sandwiched
from rl4dlm.recipe.algorithms import MethodConfig, SPGConfig
from rl4dlm.trainers import make_method
from rl4dlm.trainers.method import Method, Setting
from rl4dlm.trainers.passes import estimate_rows, micro_batches, step_size
from rl4dlm.trainers.passes import loss as loss_of_rows
from rl4dlm.trainers.prepare import prepare_batch
from rl4dlm.types import TrainBatch

REWARD = [1, 0, 0.5, 0, 0, 0, 0, 0, 1, 1, 0, 0.25]
WHOLE = 10**6


def make(**settings) -> Method[MethodConfig]:
    return make_method(SPGConfig(**settings), Setting(block_length=2))


def batch_of(trainer: Method[MethodConfig]) -> TrainBatch:
    batch, _ = prepare_batch(trainer, tiny_groups(), tiny_scores(REWARD), policy_version=0, seed=5)
    assert batch is not None
    return batch


def masks_of(trainer: Method[MethodConfig], batch: TrainBatch, count: int):
    """Hidden, scored and prompt masks of all rows, `[rows, states, completion]`."""
    states = states_of(trainer, batch, range(len(batch)), 0)
    shape = (len(batch), count, -1)
    return states.is_masked.view(shape), states.target.view(shape), states.weight.view(shape)


# --- States ---


def block_masks(num_rows=300, num_states=2, **changes):
    settings = {"num_states": num_states, "p_mask_context": 0.0, **changes}
    positions = np.ones((num_rows, 6), dtype=bool)
    positions[:, 5] = False
    block = torch.arange(6).div(2, rounding_mode="floor").expand(num_rows, -1)
    hidden, inside = block_random_masks(np.arange(num_rows), positions, block, 0, **settings)
    return hidden, inside, block


def test_blocks_before_the_chosen_one_are_clean_and_those_after_it_hidden():
    hidden, inside, block = block_masks()
    chosen = (inside * (block[:, None] + 1)).amax(-1, keepdim=True) - 1
    assert not hidden[block[:, None].expand_as(hidden) < chosen].any()
    positions = torch.arange(6) < 5
    later = (block[:, None] > chosen) & positions
    assert torch.equal(hidden & (block[:, None] > chosen), later)
    assert not hidden[..., 5].any()


def test_a_row_takes_other_blocks_before_it_takes_one_again():
    _, inside, block = block_masks(num_states=4)
    chosen = (inside * (block[:, None] + 1)).amax(-1) - 1
    assert all(sorted(row[:3]) == [0, 1, 2] and row[3] == row[0] for row in chosen.tolist())
    assert np.bincount(chosen[:, 0], minlength=3).min() > 70  # of 300: each block is as likely


def test_the_count_within_the_block_is_uniform_from_one_up():
    hidden, inside, block = block_masks(num_rows=1000, num_states=1)
    count, size = (hidden & inside).sum(-1)[:, 0], inside.sum(-1)[:, 0]
    assert set(count[size == 2].tolist()) == {1, 2} and set(count[size == 1].tolist()) == {1}
    assert (count[size == 2] == 1).double().mean().item() == pytest.approx(0.5, abs=0.06)


def test_tokens_of_earlier_blocks_are_hidden_now_and_then():
    hidden, inside, block = block_masks(num_rows=2000, num_states=1, p_mask_context=0.6)
    chosen = (inside * (block[:, None] + 1)).amax(-1, keepdim=True) - 1
    earlier = block[:, None] < chosen
    # The count of the chosen block is left as it is: of two positions one is hidden in half of the states.
    count = (hidden & inside).sum(-1)[inside.sum(-1) == 2]
    assert (count == 1).double().mean().item() == pytest.approx(0.5, abs=0.06)
    assert hidden[earlier].double().mean().item() == pytest.approx(0.6, abs=0.03)


def test_a_completion_without_actions_hides_nothing():
    positions = np.zeros((2, 4), dtype=bool)
    block = torch.zeros(2, 4, dtype=torch.int64)
    hidden, _ = block_random_masks(np.arange(2), positions, block, 0, num_states=2, p_mask_context=0.5)
    assert not hidden.any()


def test_what_follows_the_end_of_text_is_hidden_and_never_scored():
    trainer = make()
    batch = batch_of(trainer)
    ended = np.flatnonzero(~batch.loss_mask.all(1))
    assert len(ended)
    hidden, target, _ = masks_of(trainer, batch, 2)
    kept, _, _ = masks_of(make(after_eos="keep"), batch, 2)
    after = ~torch.from_numpy(batch.loss_mask)[:, None].expand_as(hidden)
    assert hidden[after].all() and not kept[after].any() and not target[after].any()


def test_the_released_code_scores_all_that_is_hidden_and_the_restricted_form_the_block_alone():
    batch = batch_of(make())
    hidden, target, _ = masks_of(make(after_eos="keep", p_mask_prompt=0.0), batch, 2)
    assert torch.equal(hidden, target)
    restricted = masks_of(make(after_eos="keep", p_mask_prompt=0.0, restrict_to_block=True), batch, 2)
    assert torch.equal(restricted[0], hidden)
    assert (restricted[1].sum(-1) <= 2).all() and (restricted[1].sum() < target.sum())


# --- Bounds ---


@pytest.mark.parametrize("settings", [{}, {"mask_scheme": "random", "num_masks": 3}, {"p_mask_prompt": 0.6}])
def test_the_lower_bound_is_the_mean_over_states_of_means_over_hidden_tokens(settings):
    trainer, denoiser = make(after_eos="keep", **settings), tiny_denoiser()
    batch = batch_of(trainer)
    (micro,) = micro_batches(trainer, dataclasses.replace(batch, advantage=np.ones(12)), range(12), WHOLE)
    value = estimate_rows(trainer.likelihood, denoiser, batch, micro, 0)
    count = trainer.config.num_masks
    _, target, weight = (part[list(micro.rows)] for part in masks_of(trainer, batch, count))
    length = torch.tensor(batch.loss_mask[list(micro.rows)].sum(1))
    expected = ((value * target).sum(-1) / target.sum(-1)).mean(1)
    torch.testing.assert_close(elbo_per_token(value, weight, length), expected, atol=1e-9, rtol=0)


def enumerated(length: int, **model):
    """log p of every token in every state, and its weight in the ELBO: uniform counts, then subsets."""
    completion = [(3 * i + 1) % 4 for i in range(length)]
    table = conditional_table(tiny_denoiser(max_length=12, **model), [2, 0, 1], completion)
    subsets = all_subsets(length)
    size = subsets.sum(1)
    alike = torch.bincount(size)[size].double()
    share = torch.where(size > 0, 1 / (alike * size.clamp(min=1)), 0.0)
    return table, share[:, None] * subsets


def random_order_likelihood(table: torch.Tensor) -> float:
    """log of the mean over orders of the probability of the completion, by dynamic programming over sets."""
    length = table.shape[1]
    probability = {0: 1.0}
    for code in range(1, 2**length):
        members = [i for i in range(length) if code >> i & 1]
        parts = [table[code, i].exp().item() * probability[code & ~(1 << i)] for i in members]
        probability[code] = sum(parts) / len(parts)
    return float(np.log(probability[2**length - 1]))


@pytest.mark.parametrize("length", [3, 4, 5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_upper_bound_is_above_the_elbo_and_grows_to_one_of_the_likelihood(length, seed):
    table, weight = enumerated(length, seed=seed)
    lower = enumerate_elbo(table)
    size = torch.tensor([length]).double()
    exact = elbo_per_token(table[None], weight[None], size) * length
    assert exact.item() == pytest.approx(lower, abs=1e-9)
    upper = [
        length * eubo_per_token(table[None], weight[None], exponent=b).item() for b in (1, 1.5, 2, length)
    ]
    assert lower <= upper[0] and upper == sorted(upper)
    assert upper[-1] >= random_order_likelihood(table)


def test_the_upper_bound_by_hand_ignores_tokens_that_no_state_scores():
    # Two states, three tokens; b = 2. Token 0: log((1 x .5^2 + 2 x .25^2) ) / 2, token 1: log(1 x .1^2) / 2.
    logp = torch.tensor([[[0.5, 0.1, 0.9], [0.25, 0.9, 0.9]]], dtype=torch.float64).log().requires_grad_()
    weight = torch.tensor([[[1.0, 1, 0], [2, 0, 0]]], dtype=torch.float64)
    value = eubo_per_token(logp, weight, exponent=2.0)
    expected = (np.log(0.25 + 0.125) / 2 + np.log(0.01) / 2) / 2
    assert value.item() == pytest.approx(expected)
    value.sum().backward()
    # The score is shared by likelihood: .25 / .375 and .125 / .375 of token 0, all of token 1.
    expected_gradient = torch.tensor([[[1 / 3, 0.5, 0], [1 / 6, 0, 0]]], dtype=torch.float64)
    torch.testing.assert_close(logp.grad, expected_gradient)


def test_good_completions_take_the_lower_bound_and_bad_ones_the_mixture():
    lower, upper = torch.tensor([-3.0, -3, -3]), torch.tensor([-1.0, -1, -1])
    assert sandwiched(lower, upper, torch.tensor([1.0, 0, -1]), omega=0.25).tolist() == [-3, -3, -2.5]


# --- The loss ---


def test_the_loss_weighs_completions_by_their_length():
    trainer, denoiser = make(), tiny_denoiser()
    batch = batch_of(trainer)
    (micro,) = micro_batches(trainer, batch, range(12), WHOLE)
    rows = list(micro.rows)
    value = estimate_rows(trainer.likelihood, denoiser, batch, micro, 0)
    _, _, weight = (part[rows] for part in masks_of(trainer, batch, 2))
    length = torch.tensor(batch.loss_mask[rows].sum(1)).double()
    advantage = torch.tensor(batch.advantage[rows])
    lower = elbo_per_token(value, weight, length)
    upper = eubo_per_token(value, weight, exponent=1.5)
    bound = torch.where(advantage >= 0, lower, (lower + upper) / 2)
    expected = -(length * advantage * bound).sum() / batch.loss_mask.sum()
    loss, metrics = loss_of_rows(
        trainer,
        denoiser,
        batch,
        micro,
        0,
        old=None,
        ref=None,
        current=None,
        step=step_size(trainer, batch, range(12)),
    )
    assert loss.item() == pytest.approx(expected.item(), abs=1e-9)
    counted = step_size(trainer, batch, range(12)).num_counted
    assert metrics["eubo/mean"] == pytest.approx(upper.sum().item() / counted)

"""Noise by blocks: counts, weights, times, and the two ways in which positions are made unequal."""

from __future__ import annotations

import math

import pytest
import torch

from rl4dlm.diffusion.block_noise import block_noise, block_times, cart_weights, late_bias
from rl4dlm.diffusion.masking import count_masks, forward_process

SEEDS = torch.arange(400) * 7919 + 3


def one_block(length: int, rows: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(rows, length, dtype=torch.bool), torch.zeros(rows, length, dtype=torch.int64)


def test_one_block_of_bernoulli_noise_is_the_forward_process_of_llada():
    positions, block = one_block(9)
    positions[:, 7:] = False
    t = torch.linspace(0, 0.99, 400, dtype=torch.float64)
    expected, inverse = forward_process(SEEDS, positions, t)
    hidden, weight = block_noise(SEEDS, positions, block, ((1 - 1e-3) * t + 1e-3)[:, None], rule="bernoulli")
    assert torch.equal(hidden, expected) and torch.equal(weight[:, 0], inverse)


def test_counts_are_exact_in_every_block_and_weigh_length_over_count():
    # Blocks of 3, 4 and 1 positions, one of the four not to be hidden: 3, 3 and 1 may be.
    block = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2]).expand(400, -1)
    positions = torch.tensor([1, 1, 1, 1, 0, 1, 1, 1]).bool().expand(400, -1)
    rate = torch.tensor([0.1, 0.6, 0.5], dtype=torch.float64).expand(400, -1)
    hidden, weight = block_noise(SEEDS, positions, block, rate, rule="count")
    # round(.3 + .5) = 1, round(1.8 + .5) = 2, round(.5 + .5) = 1.
    counts = torch.stack([(hidden & (block == b)).sum(1) for b in range(3)], dim=1)
    assert counts.unique(dim=0).tolist() == [[1, 2, 1]]
    assert weight.unique(dim=0).tolist() == [[3.0, 1.5, 1.0]]
    assert not hidden[:, 4].any()
    assert (hidden.double().mean(0)[:3] - 1 / 3).abs().max() < 0.1  # standard error .024


def test_one_block_of_counts_is_count_masks():
    positions, block = one_block(6)
    rate = torch.full((400, 1), 0.5, dtype=torch.float64)
    hidden, _ = block_noise(SEEDS, positions, block, rate, rule="count")
    # round(3 + .5) is half to even: 4.
    assert torch.equal(hidden, count_masks(SEEDS, positions, torch.full((400, 1), 4), 0)[:, 0])


def test_the_block_sees_the_same_noise_whatever_it_is_batched_with():
    positions, block = one_block(8)
    rate = torch.full((400, 1), 0.3, dtype=torch.float64)
    for rule in ("bernoulli", "count"):
        whole, _ = block_noise(SEEDS, positions, block, rate, rule=rule)
        alone, _ = block_noise(SEEDS[5:6], positions[5:6], block[5:6], rate[5:6], rule=rule)
        assert torch.equal(whole[5:6], alone)


def test_late_positions_are_hidden_more_often_at_small_rates_and_none_at_rate_one():
    positions, block = one_block(8)
    index = torch.arange(8).expand(400, -1)

    def hidden_share(rate: float, half_life: float | None) -> torch.Tensor:
        rates = torch.full((400, 8), rate, dtype=torch.float64)
        bias = None if half_life is None else late_bias(index, rates, 8, half_life)
        hidden, _ = block_noise(SEEDS, positions, block, rates[:, :1], rule="count", bias=bias)
        assert (hidden.sum(1) == round(rate * 8 + 0.5)).all()
        return hidden.double().mean(0)

    share = hidden_share(0.3, 0.1)
    assert share[4:].sum() > 3 * share[:4].sum() and share[7] > share[4] > share[1]
    # beta = ln 2 / (1e9 x 8): all weights alike, the same sets as without a bias.
    assert torch.equal(hidden_share(0.3, 1e9), hidden_share(0.3, None))


def test_weights_double_after_a_half_life_at_rate_zero():
    index = torch.tensor([[0, 4]])
    bias = late_bias(index, torch.zeros(1, 2, dtype=torch.float64), 16, 0.25)
    assert (bias[0, 1] - bias[0, 0]).item() == pytest.approx(math.log(2))
    none = late_bias(index, torch.ones(1, 2, dtype=torch.float64), 16, 0.25)
    assert none.tolist() == [[0.0, 0.0]]


def test_every_block_has_a_uniform_time_and_the_first_the_rows_own():
    t = (torch.arange(1000) + 0.5).double() / 1000
    times = block_times(t, 5, per_block=True)
    assert torch.equal(times[:, 0], t)
    for block in range(5):
        assert times[:, block].mean().item() == pytest.approx(0.5, abs=1e-3)
    assert (times[0].sort().values.diff() > 0.1).all()  # five blocks of a row are spread out
    assert torch.equal(block_times(t, 3, per_block=False), t[:, None].expand(-1, 3))


def test_a_token_between_visible_neighbours_weighs_most():
    # Five tokens, the third and fourth hidden, p = 1/2; weights of the last four.
    visible = torch.tensor([[1, 1, 0, 0, 1]]).bool()
    weights = cart_weights(visible, 4, 0.5)
    third = 0.5 * (0.5 + 0.25 + 0.25)  # distances 1, 2 and 2
    fourth = 0.5 * (0.25 + 0.125 + 0.5)  # distances 2, 3 and 1
    second, fifth = 0.5 * (0.5 + 0.125), 0.5 * (0.125 + 0.0625)  # a token is no context of its own
    assert weights.tolist() == [[second, third, fourth, fifth]]


def test_an_unknown_rule_is_refused():
    positions, block = one_block(2)
    with pytest.raises(ValueError, match="mask rule 'half' does not exist"):
        block_noise(SEEDS, positions, block, torch.ones(400, 1, dtype=torch.float64), rule="half")

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import all_subsets, conditional_table, enumerate_elbo, subset_code, tiny_denoiser

from rl4dlm.likelihood.elbo import ElboSettings, elbo, plan_corruptions
from rl4dlm.likelihood.lab import (
    ESTIMATORS,
    Completions,
    Draws,
    Estimator,
    Oracle,
    Reference,
    enumerate_subsets,
    estimates,
    independent,
    read_states,
    references,
    spread,
)

TOKENS = 64
PROMPTS = [np.array([2, 0, 1]), np.array([1])]
IDS = np.array([[0, 3, 1, 2, 0, 1], [2, 1, 3, 3, 3, 3]])
ACTIONS = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]], dtype=bool)
BY_NAME = {estimator.name: estimator for estimator in ESTIMATORS}


def completions_of(denoiser, *, block_length: int = 3) -> Completions:
    return Completions.of(PROMPTS, IDS, ACTIONS, denoiser.spec, block_length)


def oracle_of(denoiser, *, enumerated: bool = True, block_length: int = 3) -> Oracle:
    completions = completions_of(denoiser, block_length=block_length)
    listed = enumerate_subsets(denoiser, completions, TOKENS) if enumerated else None
    return Oracle(denoiser, completions, TOKENS, listed)


def short_row_elbo(denoiser) -> float:
    """The ELBO of the second row's three actions, what follows them hidden."""
    subsets = all_subsets(3)
    hidden = torch.cat([subsets, torch.ones_like(subsets)], dim=1)
    table = conditional_table(denoiser, PROMPTS[1].tolist(), IDS[1].tolist())
    return enumerate_elbo(table[subset_code(hidden)][:, :3])


# --- The reference ---


def test_the_exact_reference_is_the_elbo_by_enumeration_with_the_tail_hidden():
    denoiser = tiny_denoiser()
    (reference,), _ = references([oracle_of(denoiser)], 0, 0)
    whole = enumerate_elbo(conditional_table(denoiser, PROMPTS[0].tolist(), IDS[0].tolist()))
    assert reference.exact
    assert reference.value.tolist() == pytest.approx([whole, short_row_elbo(denoiser)], abs=1e-9)


def test_the_exact_reference_of_a_block_causal_model_is_the_sum_over_its_blocks():
    """Prompts of 3 and 1 tokens, blocks of 4: blocks of 1, 4, 1 and of 3, 3 positions, of which 3 actions."""
    denoiser = tiny_denoiser(block_length=4)
    oracle = oracle_of(denoiser)
    assert oracle.completions.block_actions == 4
    total = 0.0
    for first, last in ((0, 1), (1, 5), (5, 6)):
        context = [*PROMPTS[0].tolist(), *IDS[0, :first].tolist()]
        total += enumerate_elbo(conditional_table(denoiser, context, IDS[0, first:last].tolist()))
    second = enumerate_elbo(conditional_table(denoiser, PROMPTS[1].tolist(), IDS[1, :3].tolist()))
    (reference,), _ = references([oracle], 0, 0)
    assert reference.value.tolist() == pytest.approx([total, second], abs=1e-9)


def test_a_sampled_reference_lies_within_its_error_of_the_exact_one():
    denoiser = tiny_denoiser(seed=1)
    (exact,), _ = references([oracle_of(denoiser)], 0, 0)
    (sampled,), _ = references([oracle_of(denoiser, enumerated=False)], 512, 0)
    assert not sampled.exact
    assert ((sampled.value - exact.value).abs() < 4 * sampled.se).all()
    # 16 parts of 32 states: a few hundredths of the nats themselves.
    assert (sampled.se < 0.03 * exact.value.abs()).all() and (sampled.se > 0).all()


# --- What is measured is what trainers use ---


@pytest.mark.parametrize("enumerated", [True, False])
@pytest.mark.parametrize("block_length", [None, 2])
def test_a_draw_is_the_production_estimate_on_the_same_masks(enumerated, block_length):
    denoiser = tiny_denoiser(block_length=block_length)
    oracle = oracle_of(denoiser, enumerated=enumerated)
    values = estimates([oracle], BY_NAME["stratified"], 3, 2, seed=5)[0]
    draws = Draws.of(oracle.completions, range(2), 5)
    settings = ElboSettings("stratified", 3, 1, "round_half")
    plan = plan_corruptions(draws.seed, draws.loss_mask, 3, settings, draws.block)
    produced = elbo(denoiser, [PROMPTS[row] for row in draws.row], IDS[draws.row], plan)
    torch.testing.assert_close(values.flatten(), produced.detach(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("block_length", [None, 3], ids=["full", "block_causal"])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: estimator.name)
def test_looking_up_equals_asking_the_model(estimator: Estimator, block_length):
    denoiser = tiny_denoiser(block_length=block_length)
    listed = oracle_of(denoiser)
    forwards = next((n for n in (1, 2, 3) if estimator.fits(listed.completions, n)), None)
    if forwards is None:  # a block-causal model goes block by block anyway
        assert estimator.name == "block" and block_length is not None
        return
    looked_up, asked = (
        estimates([oracle], estimator, forwards, 4, seed=1)
        for oracle in (listed, replace(listed, enumeration=None))
    )
    torch.testing.assert_close(looked_up, asked, atol=1e-9, rtol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: estimator.name)
def test_a_draw_takes_as_many_forwards_as_are_stated(estimator: Estimator):
    completions = completions_of(tiny_denoiser())
    draws = Draws.of(completions, range(3), 0)
    for forwards in (1, 2, 4):
        if estimator.fits(completions, forwards):
            states = estimator.states(draws, forwards)
            assert states.row.bincount().tolist() == [forwards] * 6


def test_draws_depend_neither_on_how_many_there_are_nor_on_what_is_done_at_once(monkeypatch):
    denoiser = tiny_denoiser()
    oracle = oracle_of(denoiser, enumerated=False)
    more = estimates([oracle], BY_NAME["coupled"], 4, 5, seed=2)
    monkeypatch.setattr("rl4dlm.likelihood.lab._CHUNK_POSITIONS", 1)  # a draw of each completion at a time
    fewer = estimates([replace(oracle, max_tokens=1)], BY_NAME["coupled"], 4, 3, seed=2)
    torch.testing.assert_close(more[..., :3], fewer, atol=1e-12, rtol=0)


def test_no_forward_exceeds_the_token_budget_and_all_states_are_counted():
    denoiser = tiny_denoiser()
    sizes, told = [], []

    def model(input_ids, *arguments, **options):
        sizes.append(input_ids.numel())
        return denoiser.model(input_ids, *arguments, **options)

    completions = completions_of(denoiser)
    enumerate_subsets(replace(denoiser, model=model), completions, 40, told.append)
    assert sum(told) == 2 * 2**6
    # A state of the first row has 9 tokens, of the second 7: 4 fit.
    assert max(sizes) == 36


# --- Bias and spread ---


@pytest.mark.parametrize(
    ("name", "forwards"),
    [
        ("double_mc/bernoulli", 2),
        ("double_mc/round_half", 2),
        ("stratified", 4),
        ("coupled", 2),
        ("random_order", 1),
        ("random_order", 4),
        ("sdmc/bernoulli", 3),  # exact quadrature: L = 6 <= 2N
    ],
)
@pytest.mark.parametrize("block_length", [None, 3], ids=["full", "block_causal"])
def test_unbiased_estimators_measure_as_unbiased(name, forwards, block_length):
    oracle = oracle_of(tiny_denoiser(seed=2, block_length=block_length))
    (reference,), _ = references([oracle], 0, 0)
    values = estimates([oracle], BY_NAME[name], forwards, 4000, seed=0)[0]
    found = spread(values, reference.value, reference.se)
    assert abs(found.bias) < 4 * found.bias_se
    assert found.bias_se < 0.02 * abs(reference.value.mean().item())


def test_the_released_count_rule_measures_as_biased():
    oracle = oracle_of(tiny_denoiser(seed=2))
    (reference,), _ = references([oracle], 0, 0)
    values = estimates([oracle], BY_NAME["sdmc/floor_release"], 2, 8000, seed=0)[0]
    found = spread(values, reference.value, reference.se)
    assert abs(found.bias) > 6 * found.bias_se


def test_two_positions_have_the_spread_that_is_worked_out_by_hand():
    """Without context log p = a and b. One state of an exact count has the value 2a or 2b, each with
    probability 1/4, or a + b: the mean is a + b, the variance 2/4 (a - b)^2. A coupled pair has (3/4)(a + b)
    where one of its sets is empty (counts 0 and 2), else (3/2)(a + b): the mean is a + b, the variance
    (a + b)^2 / 8."""
    denoiser = tiny_denoiser(context=0.0)
    ids, mask = np.array([[0, 1]]), np.ones((1, 2), dtype=bool)
    completions = Completions.of([np.array([2])], ids, mask, denoiser.spec, 1)
    oracle = Oracle(denoiser, completions, TOKENS, enumerate_subsets(denoiser, completions, TOKENS))
    bias = denoiser.model.bias.log_softmax(-1)
    a, b = bias[1, 0].item(), bias[2, 1].item()
    (reference,), _ = references([oracle], 0, 0)
    assert reference.value.item() == pytest.approx(a + b, abs=1e-9)

    def std(name: str, forwards: int) -> float:
        values = estimates([oracle], BY_NAME[name], forwards, 20000, seed=0)[0]
        return spread(values, reference.value, reference.se).std

    assert std("double_mc/round_half", 1) == pytest.approx(abs(a - b) / math.sqrt(2), rel=0.03)
    assert std("coupled", 2) == pytest.approx(abs(a + b) / math.sqrt(8), rel=0.03)
    # Both counts once: {1} or {2} with weight 2, and both, halved: (2a + a + b) / 2 or (2b + a + b) / 2.
    assert std("stratified", 2) == pytest.approx(abs(a - b) / 2, rel=0.03)


def test_statistics_of_a_few_numbers():
    """Rows 1, 3 and 0, 8 around references 1 and 2: means 2 and 4, variances 2 and 32, errors 0, 4, 4, 36."""
    values = torch.tensor([[1.0, 3.0], [0.0, 8.0]], dtype=torch.float64)
    found = spread(values, torch.tensor([1.0, 2.0]).double(), torch.tensor([0.0, 0.0]).double())
    assert found.bias == pytest.approx(1.5)
    assert found.std == pytest.approx(math.sqrt(17))
    assert found.bias_se == pytest.approx(math.sqrt(2 / 2 + 32 / 2) / 2)
    assert found.rmse == pytest.approx(math.sqrt(44 / 4))
    unsure = spread(values, torch.tensor([1.0, 2.0]).double(), torch.tensor([2.0, 0.0]).double())
    assert unsure.bias_se == pytest.approx(math.sqrt(2 / 2 + 32 / 2 + 4) / 2)


def test_the_error_of_a_standard_deviation_is_what_repetition_shows():
    """Of exponential numbers, whose tails make it twice that of normal ones."""
    values = torch.from_numpy(np.random.default_rng(0).exponential(size=(200, 400)))
    zero = torch.zeros(1, dtype=torch.float64)
    found = [spread(row[None], zero, zero) for row in values]
    shown = np.std([one.std for one in found])
    assert np.mean([one.std_se for one in found]) == pytest.approx(shown, rel=0.2)


# --- Two models ---


def test_a_model_and_itself_differ_by_nothing_on_shared_masks_and_by_twice_the_variance_on_others():
    oracle = oracle_of(tiny_denoiser())
    values = estimates([oracle, oracle], BY_NAME["stratified"], 2, 4000, seed=0)
    zero = torch.zeros(2, dtype=torch.float64)
    assert spread(values[0] - values[1], zero, zero).std == 0.0
    apart, alone = spread(independent(values), zero, zero), spread(values[0], zero, zero)
    assert apart.std == pytest.approx(math.sqrt(2) * alone.std, rel=0.05)


def test_the_reference_of_a_log_ratio_is_surer_than_its_parts_where_they_share_states():
    one, other = (
        oracle_of(tiny_denoiser(seed=3, context=context), enumerated=False) for context in (1.0, 1.02)
    )
    (first, second), se = references([one, other], 256, 0)
    assert isinstance(first, Reference)
    assert (se < 0.2 * torch.minimum(first.se, second.se)).all()


# --- Particular estimators ---


def test_one_step_scores_every_action_with_the_whole_canvas_hidden():
    denoiser = tiny_denoiser()
    oracle = oracle_of(denoiser)
    values = estimates([oracle], BY_NAME["one_step"], 1, 2, seed=0)[0]
    for row in range(2):
        table = conditional_table(denoiser, PROMPTS[row].tolist(), IDS[row].tolist())
        expected = table[-1, ACTIONS[row]].sum().item()  # the last subset hides everything
        assert values[row].tolist() == pytest.approx([expected] * 2, abs=1e-9)


def test_masked_prompts_change_the_one_step_estimate():
    """Also where the canvas holds actions only, whose subsets with a clean prompt were enumerated."""
    denoiser = tiny_denoiser()
    completions = Completions.of(PROMPTS, IDS, np.ones_like(ACTIONS), denoiser.spec, 3)
    oracle = Oracle(denoiser, completions, TOKENS, enumerate_subsets(denoiser, completions, TOKENS))
    values = estimates([oracle], BY_NAME["one_step/prompt_masked"], 1, 60, seed=0)[0]
    plain = estimates([oracle], BY_NAME["one_step"], 1, 2, seed=0)[0, :, :1]
    changed = ((values - plain).abs() > 1e-9).double().mean(1)
    # Some token of 3, or the one, is hidden with probability 1 - .85^3 = .39, or .15.
    assert changed.tolist() == pytest.approx([0.39, 0.15], abs=0.15)


def test_block_by_block_has_the_bound_of_blocks_as_its_mean():
    """Blocks of 3: the first given the rest hidden, the second given the first; the short row has one."""
    denoiser = tiny_denoiser(seed=4)
    oracle = oracle_of(denoiser)
    table = conditional_table(denoiser, PROMPTS[0].tolist(), IDS[0].tolist())
    subsets, none = all_subsets(3), torch.zeros(8, 3, dtype=torch.bool)
    first = enumerate_elbo(table[subset_code(torch.cat([subsets, ~none], 1))][:, :3])
    second = enumerate_elbo(table[subset_code(torch.cat([none, subsets], 1))][:, 3:])
    values = estimates([oracle], BY_NAME["block"], 4, 4000, seed=0)[0]
    target = torch.tensor([first + second, short_row_elbo(denoiser)], dtype=torch.float64)
    found = spread(values, target, torch.zeros_like(target))
    assert abs(found.bias) < 4 * found.bias_se < 0.2


def test_what_an_estimator_cannot_do_is_not_offered():
    full, block_causal = (
        completions_of(tiny_denoiser(block_length=length), block_length=2) for length in (None, 3)
    )

    def offered(name: str, completions: Completions) -> list[int]:
        return [n for n in range(1, 10) if BY_NAME[name].fits(completions, n)]

    assert offered("block", full) == [3, 6, 9]  # three blocks of two
    assert offered("block", block_causal) == []
    assert offered("coupled", full) == [2, 4, 6, 8]
    assert offered("random_order", full) == [1, 2, 3, 4, 5, 6]
    assert offered("random_order", block_causal) == [1, 2, 3]
    assert offered("one_step", full) == [1]


def test_a_completion_without_positions_is_refused():
    spec = tiny_denoiser().spec
    with pytest.raises(ValueError, match="completion 1 has no position"):
        Completions.of(PROMPTS, IDS, ACTIONS & np.array([[True], [False]]), spec, 3)


def test_reading_states_of_rows_with_prompts_of_different_length_keeps_their_order():
    denoiser = tiny_denoiser()
    completions = completions_of(denoiser)
    draws = Draws.of(completions, range(3), 0)
    states = BY_NAME["stratified"].states(draws, 2)
    asked = replace(states, row=torch.from_numpy(draws.row)[states.row])
    together = read_states(denoiser, completions, asked, 1000)
    alone = read_states(denoiser, completions, asked, 1)
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=0)
    assert (together < 0).sum() == states.target.sum() < states.is_masked.sum()

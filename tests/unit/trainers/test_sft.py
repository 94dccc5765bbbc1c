"""Every objective against enumerated or step-by-step values; what a batch holds; who runs which row."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import TinyModel, bernoulli_mean, conditional_table, enumerate_elbo, tiny_denoiser

from rl4dlm.data import Example
from rl4dlm.diffusion.blocks import sequence_layout
from rl4dlm.loss.reduce import merge_metrics
from rl4dlm.models import build_char_tokenizer, create, denoiser
from rl4dlm.recipe.objectives import (
    ARObjective,
    BlockObjective,
    ObjectiveConfig,
    RandomMaskObjective,
    SemiARObjective,
    TraceObjective,
)
from rl4dlm.recipe.sections import ModelInit
from rl4dlm.trainers.sft import (
    SFTBatch,
    SFTPlan,
    padding_tokens,
    row_nll,
    sft_batch,
    sft_loss,
    sft_micro_batches,
    shares,
)
from rl4dlm.types import Denoiser

PROMPTS = [[1, 0], [2], [0, 0, 1], [1, 2], [2, 2]]
ANSWERS = [[0, 1], [2, 1, 0, 2], [], [1, 1, 1], [0]]
SPEC = tiny_denoiser().spec
EXACT = {"mask_rule": "count", "min_rate": 1e-9}


def examples(repeat: int = 1, **changes: object) -> list[Example]:
    pairs = list(zip(PROMPTS, ANSWERS, strict=True)) * repeat
    return [
        Example(uid, np.array(prompt, np.int32), np.array(answer, np.int32), **changes)
        for uid, (prompt, answer) in enumerate(pairs)
    ]


def plan(objective: ObjectiveConfig | None = None, fill: str = "canvas", **changes: object) -> SFTPlan:
    return SFTPlan(objective or RandomMaskObjective(), fill, canvas=4, **changes)


def batch(seed: int = 0, repeat: int = 1, **settings: object) -> SFTBatch:
    return sft_batch(examples(repeat), plan(**settings), SPEC, seed)


def one_row(
    completion: list[int], objective: ObjectiveConfig, *, prompt: list[int], seed: int = 0, **changes: object
) -> SFTBatch:
    """A batch of one whole completion, no fill."""
    example = Example(0, np.array(prompt, np.int32), np.array(completion, np.int32), ended=False)
    steps = changes.pop("steps", None)
    if steps is not None:
        example = replace(example, step_map=np.array(steps, np.int32))
    return sft_batch([example], plan(objective, "none", **changes), SPEC, seed)


def mean_nll(model: Denoiser, make: object, num: int) -> tuple[float, float]:
    """Mean over seeds of a one-row batch's value, and its standard error."""
    with torch.no_grad():
        values = [row_nll(model, make(seed), [0]).item() for seed in range(num)]
    return float(np.mean(values)), float(np.std(values) / math.sqrt(num))


@pytest.fixture(scope="module")
def llada() -> Denoiser:
    """A real network, which takes explicit layouts."""
    init = ModelInit(d_model=32, n_layers=2, n_heads=2, mlp_hidden_size=64, max_sequence_length=64)
    return denoiser(create(init, build_char_tokenizer("0123456789="), seed=3))


# --- Batches ---


def test_a_filled_canvas_is_trained_to_its_end():
    made = batch()
    assert [ids.tolist() for ids in made.completion_ids] == [
        [0, 1, 3, 3],
        [2, 1, 0, 2],
        [3, 3, 3, 3],
        [1, 1, 1, 3],
        [0, 3, 3, 3],
    ]
    assert made.num_trained.tolist() == [4] * 5 and made.denominator == 5


@pytest.mark.parametrize(
    ("fill", "block_length", "lengths"),
    [
        ("none", None, [3, 5, 1, 4, 2]),  # one end-of-text each
        ("batch", None, [5, 5, 5, 5, 5]),
        # Prompts of 2, 1, 3, 2, 2 tokens: ends at 5, 6, 4, 6, 4 go up to multiples of 4.
        ("block", 4, [6, 7, 1, 6, 2]),
    ],
)
def test_other_fills_end_where_they_say(fill, block_length, lengths):
    made = batch(fill=fill, block_length=block_length, average="token")
    assert [len(ids) for ids in made.completion_ids] == lengths
    assert made.num_trained.tolist() == lengths and made.denominator == sum(lengths)


def test_a_completion_that_ends_in_a_stop_id_gets_no_second_one_and_a_cut_one_gets_none():
    stopped = Example(0, np.array([1]), np.array([0, 3], np.int32))
    cut = Example(1, np.array([1]), np.array([0, 1], np.int32), ended=False)
    text = Example(2, np.array([1]), np.array([0], np.int32), filled=False)
    made = sft_batch([stopped, cut, text], plan(), SPEC, 0)
    assert [ids.tolist() for ids in made.completion_ids] == [[0, 3, 3, 3], [0, 1], [0, 3]]
    assert [len(ids) for ids in sft_batch([stopped], plan(fill="none"), SPEC, 0).completion_ids] == [2]


def test_diffusion_times_are_one_uniform_shift_of_an_even_grid():
    np.testing.assert_allclose(np.diff(np.sort(batch().t)), 0.2, atol=1e-12)
    first = [batch(seed).t[0] for seed in range(200)]
    # Uniform on (0, 1): standard error of the mean of 200 is .02.
    assert abs(np.mean(first) - 0.5) < 0.08
    assert min(first) < 0.1 and max(first) > 0.9


# --- Random masks ---


def test_the_random_mask_loss_is_unbiased_for_the_enumerated_one():
    """Mean over seeds of the loss against E over t and masks of (1/p) l(S) / L, integrated on a fine grid."""
    model, eps = tiny_denoiser(), 1e-3
    rates = eps + (1 - eps) * (np.arange(200) + 0.5) / 200
    exact = 0.0
    for prompt, completion in zip(PROMPTS, batch().completion_ids, strict=True):
        table = conditional_table(model, prompt, completion.tolist())
        exact -= np.mean([bernoulli_mean(table, p) for p in rates]) / 4 / 5
    with torch.no_grad():
        sample = [sft_loss(model, batch(seed, repeat=20), range(100))[0].item() for seed in range(100)]
    assert abs(np.mean(sample) - exact) < 4 * np.std(sample) / 10


@pytest.mark.slow
def test_exact_counts_give_the_negative_elbo():
    model, prompt, completion = tiny_denoiser(), [1, 0], [2, 0, 1, 1]
    exact = -enumerate_elbo(conditional_table(model, prompt, completion))
    mean, error = mean_nll(
        model, lambda seed: one_row(completion, RandomMaskObjective(**EXACT), prompt=prompt, seed=seed), 3000
    )
    assert abs(mean - exact) < 4 * error and error < 0.02 * exact


def test_a_constant_cross_entropy_of_one_gives_a_loss_of_one_on_average():
    model = tiny_denoiser(num_tokens=3, context=0.0)
    with torch.no_grad():
        model.model.bias.zero_()  # every token has probability 1/3
    rows = [Example(i, np.array([0]), np.array([1, 0, 1], np.int32), ended=False) for i in range(2000)]
    made = sft_batch(rows, plan(), model.spec, 1)
    with torch.no_grad():
        loss, metrics = sft_loss(model, made, range(2000))
    # Variance per row (1 - p) / (p L) integrates to about 2: standard error about .03.
    assert loss.item() / np.log(3) == pytest.approx(1.0, abs=0.12)
    assert metrics == {"loss": loss.item()}


def test_prompts_are_never_hidden():
    seen = []

    class Spy(TinyModel):
        def forward(self, input_ids, *arguments, **named):
            seen.append((input_ids.clone(), arguments[0]))
            return super().forward(input_ids, *arguments, **named)

    sft_loss(Denoiser(Spy(), SPEC), batch(repeat=10), range(50))
    ((ids, attention_mask),) = seen
    assert (ids[:, 3:] == SPEC.mask_id).any()
    for row in range(50):
        assert ids[row, :3][attention_mask[row, :3]].tolist() == PROMPTS[row % 5]


def test_without_weights_hidden_tokens_count_once():
    model = tiny_denoiser(num_tokens=3, context=0.0)
    with torch.no_grad():
        model.model.bias.zero_()
    objective = RandomMaskObjective(mask_rule="count", min_rate=0.5, max_rate=0.5, weight="none")
    row = one_row([0, 1, 0, 1], objective, prompt=[2])
    # round(.5 x 4 + .5) = 2 (half to even) hidden tokens of log 3 nats.
    assert row_nll(model, row, [0]).item() == pytest.approx(2 * math.log(3))
    weighted = replace(
        row, plan=replace(row.plan, objective=objective.model_copy(update={"weight": "inverse_rate"}))
    )
    assert row_nll(model, weighted, [0]).item() == pytest.approx(4 * math.log(3))


def test_cart_weighs_hidden_tokens_by_their_visible_neighbours():
    model = tiny_denoiser(num_tokens=3, context=0.0)
    with torch.no_grad():
        model.model.bias.zero_()
    objective = RandomMaskObjective(mask_rule="count", min_rate=1.0, weight="none", cart=0.5)
    row = one_row([0, 1], objective, prompt=[2, 2])
    # Both hidden; distances to the prompt 1, 2 and 2, 3: weights (.5 + .25)/2 and (.25 + .125)/2.
    assert row_nll(model, row, [0]).item() == pytest.approx((0.375 + 0.1875) * math.log(3))


# --- Semi-autoregressive ---


def test_semi_ar_with_one_block_is_random_mask():
    model = tiny_denoiser()
    for rule in ("bernoulli", "count"):
        semi = batch(objective=SemiARObjective(block_length=4, mask_rule=rule))
        plain = batch(objective=RandomMaskObjective(mask_rule=rule))
        assert torch.equal(row_nll(model, semi, range(5)), row_nll(model, plain, range(5)))


@pytest.mark.slow
def test_semi_ar_sums_the_elbos_of_blocks_with_later_blocks_hidden():
    model, prompt, completion = tiny_denoiser(), [1, 0], [2, 0, 1, 1, 0]
    table = conditional_table(model, prompt, completion)  # rows by code of the hidden positions
    exact = 0.0
    for block, later in ((0b00011, 0b11100), (0b01100, 0b10000), (0b10000, 0)):
        inside = [i for i in range(5) if block >> i & 1]
        for size in range(1, len(inside) + 1):
            codes = [c for c in range(32) if c & ~block == 0 and bin(c).count("1") == size]
            exact -= np.mean([table[c | later][inside].sum().item() for c in codes]) / size
    objective = SemiARObjective(block_length=2, **EXACT)
    mean, error = mean_nll(model, lambda seed: one_row(completion, objective, prompt=prompt, seed=seed), 4000)
    assert abs(mean - exact) < 4 * error and error < 0.02 * exact


# --- Blocks ---


def sequential_nll(model: Denoiser, made: SFTBatch, hidden: np.ndarray, weight: np.ndarray) -> float:
    """Block by block: a forward over the clean blocks before it and the block with its masks."""
    length = made.plan.block_length
    clean = np.concatenate([made.prompt_ids[0], made.completion_ids[0]])
    first = len(made.prompt_ids[0])
    total = 0.0
    for start in range(first // length * length, len(clean), length):
        ids = torch.tensor(clean[: start + length])[None].long()
        select = torch.zeros_like(ids, dtype=torch.bool)
        mine = range(max(start, first), ids.shape[1])
        for i in mine:
            select[0, i] = bool(hidden[i - first])
        layout = sequence_layout(torch.ones_like(select), length)
        noised = ids.masked_fill(select, model.spec.mask_id)
        logp = model.token_logp(noised, None, select, ids, layout=layout)
        total -= float(
            (logp.detach() * torch.tensor(weight[[i - first for i in mine if select[0, i]]])).sum()
        )
    return total


@pytest.mark.parametrize("prompt", [[1, 2], [1, 2, 3, 4], [5, 6, 7]])
def test_the_doubled_pass_equals_a_forward_per_block(llada, prompt):
    from rl4dlm.trainers.sft import _at_hand
    from rl4dlm.trainers.sft_states import sft_states

    made = one_row([4, 0, 7, 7, 1, 2, 9, 3, 3], BlockObjective(), prompt=prompt, block_length=4)
    states = sft_states(made.plan.objective, _at_hand(made, [0]))
    expected = sequential_nll(llada, made, states.hidden[0].numpy(), states.weight[0].numpy())
    assert row_nll(llada, made, [0]).item() == pytest.approx(expected, abs=1e-4)
    assert states.hidden.any()


def test_blocks_as_long_as_the_row_are_random_mask(llada):
    for rule in ("bernoulli", "count"):
        block = one_row([4, 0, 7, 7, 1], BlockObjective(mask_rule=rule), prompt=[1, 2], block_length=7)
        plain = one_row([4, 0, 7, 7, 1], RandomMaskObjective(mask_rule=rule), prompt=[1, 2])
        assert row_nll(llada, block, [0]).item() == pytest.approx(row_nll(llada, plain, [0]).item(), abs=1e-5)


@pytest.mark.parametrize("rule", ["bernoulli", "count"])
def test_blocks_of_one_token_are_next_token_prediction_without_variance(llada, rule):
    prompt, completion = [1, 2, 3], [4, 0, 7, 7]
    exact = 0.0
    for i in range(len(completion)):  # each token given those before it, its own place a mask
        ids = torch.tensor([[*prompt, *completion[: i + 1]]])
        select = torch.zeros_like(ids, dtype=torch.bool)
        select[0, -1] = True
        layout = sequence_layout(torch.ones_like(select), 1)
        exact -= llada.token_logp(
            ids.masked_fill(select, llada.spec.mask_id), None, select, ids, layout=layout
        ).item()
    for seed in range(5):
        made = one_row(completion, BlockObjective(mask_rule=rule), prompt=prompt, seed=seed, block_length=1)
        assert row_nll(llada, made, [0]).item() == pytest.approx(exact, abs=1e-4)


@pytest.mark.slow
def test_the_block_loss_is_the_mean_over_masks_of_every_block(llada):
    """Blocks [q q | a b] and [c d], each with the exact mean over its two counts and their subsets."""

    def row(seed: int) -> SFTBatch:
        return one_row([4, 0, 7, 1], BlockObjective(**EXACT), prompt=[1, 2], seed=seed, block_length=4)

    # k is 1 or 2: half of 2/1 times the mean over both subsets, and half of 2/2 times the whole block.
    subsets = ([0], [1], [0, 1], [2], [3], [2, 3])
    with torch.no_grad():
        exact = 0.5 * sum(
            sequential_nll(llada, row(0), np.isin(np.arange(4), s), np.ones(4)) for s in subsets
        )
    mean, error = mean_nll(llada, row, 1500)
    assert abs(mean - exact) < 4 * error


# --- Traces ---


def test_a_trace_is_learned_in_its_own_order():
    """Steps 2 0 1 over three tokens: the mean over states is the sum of each token given the earlier ones."""
    model, prompt, completion = tiny_denoiser(), [1, 0], [2, 0, 1]
    table = conditional_table(model, prompt, completion)
    exact = -(table[0b111][1] + table[0b101][2] + table[0b001][0]).item()

    def row(seed: int) -> SFTBatch:
        return one_row(completion, TraceObjective(), prompt=prompt, seed=seed, steps=[2, 0, 1])

    mean, error = mean_nll(model, row, 600)
    assert abs(mean - exact) < 4 * error
    values = {round(row_nll(model, row(seed), [0]).item(), 9) for seed in range(60)}
    assert values == {round(-3 * table[c][i].item(), 9) for c, i in ((7, 1), (5, 2), (1, 0))}


def test_shrinkage_predicts_two_steps_from_one_state_and_what_was_never_filled_stays_hidden():
    model, prompt, completion = tiny_denoiser(), [1, 0], [2, 0, 1, 3]
    table = conditional_table(model, prompt, completion)
    values = {
        round(
            row_nll(
                model,
                one_row(completion, TraceObjective(shrink=2), prompt=prompt, seed=seed, steps=[2, 0, 1, -1]),
                [0],
            ).item(),
            9,
        )
        for seed in range(40)
    }
    # Steps {0, 1} from the fully hidden canvas, step 2 with position 3 hidden beside it.
    first, second = table[0b1111][[1, 2]].sum().item(), table[0b1001][0].item()
    assert values == {round(-2 * first, 9), round(-2 * second, 9)}


def test_a_state_of_a_block_model_holds_one_step_of_every_block(llada):
    """Block [q q | a b] filled b, a; block [c d] filled at once: two rounds, the second without [c d]."""
    steps = [1, 0, 2, 2]
    made = [
        one_row([4, 0, 7, 1], TraceObjective(), prompt=[1, 2], seed=seed, steps=steps, block_length=4)
        for seed in range(20)
    ]
    found = {round(row_nll(llada, row, [0]).item(), 3) for row in made}
    with torch.no_grad():
        both = sequential_nll(llada, made[0], np.array([1, 1, 1, 1], bool), np.array([0.0, 1, 1, 1]))
        last = sequential_nll(llada, made[0], np.array([1, 0, 0, 0], bool), np.ones(4))
    assert sorted(found) == pytest.approx(sorted([2 * both, 2 * last]), abs=2e-3)


def test_fill_after_a_given_trace_is_hidden_and_no_target():
    example = replace(examples()[0], step_map=np.array([0, 1], np.int32))
    made = sft_batch([example], plan(TraceObjective()), SPEC, 0)
    assert made.completion_ids[0].tolist() == [0, 1, 3, 3]
    assert made.step_map is not None and made.step_map[0].tolist() == [0, 1, -1, -1]
    assert made.num_trained.tolist() == [2]


# --- Next token ---


def test_next_token_prediction_scores_every_token_given_those_before_it():
    """Dream, whose output predicts the next position: each token from a forward over what precedes it."""
    init = ModelInit(d_model=32, n_layers=2, n_heads=2, mlp_hidden_size=64, max_sequence_length=64)
    model = denoiser(create(init, build_char_tokenizer("0123456789="), seed=3, family="dream"))
    prompt, completion = [1, 2, 3], [4, 0, 7, 7]
    exact = 0.0
    for i in range(len(completion)):
        ids = torch.tensor([[*prompt, *completion[:i], model.spec.mask_id]])  # what stands there is not seen
        last = torch.zeros_like(ids, dtype=torch.bool)
        last[0, -1] = True
        label = torch.full_like(ids, completion[i])
        layout = sequence_layout(torch.ones_like(last), 1)
        exact -= model.token_logp(ids, None, last, label, layout=layout).item()
    made = one_row(completion, ARObjective(), prompt=prompt)
    assert row_nll(model, made, [0]).item() == pytest.approx(exact, abs=1e-4)
    assert made.tokens(0) == 7


# --- Micro-batches and ranks ---

OBJECTIVES = [
    (RandomMaskObjective(), {}),
    (RandomMaskObjective(cart=0.3, mask_rule="count"), {}),
    (SemiARObjective(block_length=2), {}),
]


def assert_split_does_not_matter(model: Denoiser, made: SFTBatch, budgets: object, atol: float) -> None:
    num_rows = len(made)
    model.model.zero_grad()
    loss, _ = sft_loss(model, made, range(num_rows))
    loss.backward()
    gradient = {name: p.grad.clone() for name, p in model.model.named_parameters() if p.grad is not None}
    assert gradient
    for budget, num_ranks in budgets:
        model.model.zero_grad()
        parts, seen = [], []
        for mine in shares(made, num_ranks):
            for rows in sft_micro_batches(made, mine, budget):
                share, metrics = sft_loss(model, made, rows)
                share.backward()
                parts.append(metrics)
                seen += rows
        assert sorted(seen) == list(range(num_rows))
        assert merge_metrics(parts)["loss"] == pytest.approx(loss.item(), abs=atol)
        for name, parameter in model.model.named_parameters():
            if name in gradient:
                torch.testing.assert_close(parameter.grad, gradient[name], atol=atol, rtol=0)


@pytest.mark.parametrize(("objective", "changes"), OBJECTIVES)
@pytest.mark.parametrize(("fill", "average"), [("canvas", "row"), ("none", "row"), ("none", "token")])
def test_the_loss_does_not_depend_on_micro_batches_or_ranks(objective, changes, fill, average):
    made = batch(repeat=4, objective=objective, fill=fill, average=average, **changes)
    budgets = ((1, 1), (20, 1), (20, 2), (10**6, 3))
    assert_split_does_not_matter(tiny_denoiser(), made, budgets, 1e-10)


@pytest.mark.parametrize("objective", [BlockObjective(), BlockObjective(mask_rule="count", half_life=0.1)])
def test_the_block_loss_does_not_depend_on_micro_batches_or_ranks(llada, objective):
    made = batch(repeat=2, objective=objective, fill="block", average="token", block_length=4)
    assert_split_does_not_matter(llada, made, ((1, 1), (40, 2)), 2e-6)


def test_ranks_get_rows_of_like_length_and_micro_batches_hold_their_budget():
    made = batch(fill="none")  # 5, 6, 4, 6, 4 tokens
    assert [made.tokens(row) for row in range(5)] == [5, 6, 4, 6, 4]
    assert shares(made, 2) == [[1, 0, 4], [3, 2]]
    passes = sft_micro_batches(made, [1, 0, 4], 12)
    assert passes == [[1, 0], [4]] and padding_tokens(made, passes) == 1
    doubled = batch(fill="block", objective=BlockObjective(), block_length=4)
    # Prompt 2, completion 6, and a copy of 6 with a tail of 2.
    assert doubled.tokens(0) == 16


def test_supervised_steps_teach_the_demonstrations():
    model = tiny_denoiser(context=0.0)
    optimizer = torch.optim.Adam(model.model.parameters(), lr=0.1)
    rows = [Example(i, np.array([0]), np.array([2, 1, 0], np.int32)) for i in range(8)]
    for seed in range(60):
        loss, _ = sft_loss(model, sft_batch(rows, plan(), SPEC, seed), range(8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert conditional_table(model, [0], [2, 1, 0, 3])[-1].exp().min() > 0.9

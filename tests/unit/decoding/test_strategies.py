from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rl4dlm.decoding import STRATEGIES, SamplerSpec, StepInput, decide, register_policy
from rl4dlm.diffusion.seeds import derive_seed

# Samplers that commit exactly the number that the schedule gives.
SCHEDULED = ("low_confidence", "top_probability", "random", "ar", "margin", "neg_entropy")
SCHEDULED += ("dream_maskgit_plus", "dream_topk_margin", "dream_entropy", "rcr")


register_policy("surest", lambda features: 8 * features.confidence - 2)


def spec(remasking: str, temperature: float = 1.0, confidence_from: str = "raw") -> SamplerSpec:
    policy = "surest" if remasking == "learned" else ""
    return SamplerSpec(4, 4, 4, temperature, remasking, confidence_from, policy=policy)


def one_step(logits: Tensor, *, count: int = 1, rows: int = 1) -> StepInput:
    """All `width` positions of every row are eligible and have `logits` `[width, vocab]`."""
    width = logits.shape[0]
    eligible = torch.ones(rows, width, dtype=torch.bool)
    return StepInput(
        logits=logits.repeat(rows, 1),
        eligible=eligible,
        index=torch.arange(rows * width),
        position=torch.arange(width).expand(rows, width),
        seed=torch.tensor([derive_seed("row", i) for i in range(rows)]),
        step=torch.zeros(rows, dtype=torch.int64),
        count=torch.full((rows,), count),
    )


@pytest.mark.parametrize(
    ("remasking", "non_top"), [("low_confidence", 0.0256), ("top_probability", 0.4), ("random", 0.4)]
)
def test_four_identical_positions_commit_other_tokens_than_the_top_at_the_known_rate(
    remasking: str, non_top: float
) -> None:
    # p = (.6, .3, .1): keeping the most confident of four draws misses the top token only when all four draws
    # do, .4^4 = .0256; choosing the position first keeps the model's .4.
    rows = 20_000
    decision = decide(spec(remasking), one_step(torch.tensor([0.6, 0.3, 0.1]).log().repeat(4, 1), rows=rows))
    assert len(decision.token) == rows
    rate = (decision.token != 0).double().mean().item()
    assert abs(rate - non_top) < 5 * (non_top * (1 - non_top) / rows) ** 0.5


@pytest.mark.parametrize("remasking", sorted(STRATEGIES))
def test_a_sampler_says_whether_committed_tokens_follow_the_models_law(remasking: str) -> None:
    # The same four positions: under the exact law .4 of all committed tokens are not the top one.
    rows, sampler = 4_000, spec(remasking)
    steps = torch.full((rows,), 4)
    state = {
        name: torch.zeros(rows, *shape, dtype=dtype)
        for name, (shape, dtype) in STRATEGIES[remasking].state(sampler, 3).items()
    }
    more = {"num_steps": steps, "block_steps": steps, "block_step": torch.zeros_like(steps)}
    step = replace(
        one_step(torch.tensor([0.6, 0.3, 0.1]).log().repeat(4, 1), rows=rows),
        block_length=steps,
        state=state,
        **more,
    )
    token = decide(sampler, step).token
    rate = (token != 0).double().mean().item()
    exact = abs(rate - 0.4) < 5 * (0.24 / len(token)) ** 0.5
    assert exact == sampler.facts.exact_law


def test_keeping_the_more_confident_of_two_draws_raises_the_top_token() -> None:
    # p = (.6, .4): the .6-token is kept unless both draws are the other one, 1 - .16.
    rows = 20_000
    decision = decide(spec("low_confidence"), one_step(torch.tensor([[0.6, 0.4]] * 2).log(), rows=rows))
    assert abs((decision.token == 0).double().mean().item() - 0.84) < 5 * (0.84 * 0.16 / rows) ** 0.5


def test_random_selection_is_uniform_over_positions_and_blind_to_the_logits() -> None:
    rows, logits = 8_000, torch.tensor([[9.0, 0.0], [0.0, 0.0], [5.0, 0.0], [0.0, 0.1]])
    decision = decide(spec("random"), one_step(logits, rows=rows))
    counts = torch.bincount(decision.picked % 4, minlength=4).double()
    assert (((counts - rows / 4) ** 2 / (rows / 4)).sum() < 25).item()  # 3 degrees of freedom
    other = decide(spec("random"), one_step(logits.flip(0), rows=rows))
    assert torch.equal(decision.picked, other.picked)


def test_confidence_can_come_from_the_raw_or_the_tempered_distribution() -> None:
    # Position 0 has many small rivals, position 1 one large rival. At temperature 1 tops are .5 and .6; at
    # T = 1/2 the squares count: .25 / (.25 + 50 * .0001) = .980 against .36 / (.36 + .16) = .692.
    logits = torch.zeros(2, 51)
    logits[0] = torch.tensor([0.5] + [0.01] * 50).log()
    logits[1] = torch.tensor([0.6, 0.4] + [1e-9] * 49).log()
    raw = decide(spec("top_probability", 0.5), one_step(logits))
    tempered = decide(spec("top_probability", 0.5, "tempered"), one_step(logits))
    assert (raw.picked.tolist(), raw.score.tolist()) == ([1], pytest.approx([0.6]))
    assert (tempered.picked.tolist(), tempered.score.tolist()) == ([0], pytest.approx([0.25 / 0.255]))


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("confidence_from", ["raw", "tempered"])
def test_low_confidence_scores_are_the_drawn_tokens_probabilities(
    temperature: float, confidence_from: str
) -> None:
    logits = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    sampler = spec("low_confidence", temperature, confidence_from)
    decision = decide(sampler, one_step(logits, count=6))
    law = torch.log_softmax(logits / (temperature or 1.0), 1)
    confidence = torch.softmax(logits / sampler.confidence_law.temperature, 1)
    assert decision.picked.tolist() == list(range(6))
    assert torch.allclose(decision.logp, law[range(6), decision.token], atol=1e-5)
    assert torch.allclose(decision.score, confidence[range(6), decision.token], atol=1e-6)
    assert decision.rank.tolist() == decision.score.sort(descending=True).indices.argsort().tolist()


def test_greedy_low_confidence_and_top_probability_are_the_same() -> None:
    step = one_step(torch.randn(8, 20, generator=torch.Generator().manual_seed(1)), count=3, rows=2)
    ours, other = decide(spec("low_confidence", 0.0), step), decide(spec("top_probability", 0.0), step)
    assert torch.equal(ours.picked, other.picked)
    assert torch.equal(ours.token, other.token)
    assert torch.equal(ours.token, step.logits.argmax(1)[ours.picked])


@pytest.mark.parametrize("remasking", sorted(STRATEGIES))
def test_a_row_decides_the_same_alone_and_beside_rows_in_other_blocks_and_steps(remasking: str) -> None:
    generator = torch.Generator().manual_seed(2)
    eligible = torch.rand(5, 6, generator=generator) < 0.6
    eligible[3] = False
    rows, width, total = 5, 6, int(eligible.sum())
    logits = torch.randn(total, 30, generator=generator)
    position = torch.arange(width) + 6 * torch.tensor([0, 2, 1, 0, 3])[:, None]
    seed, step = torch.arange(rows) * 77, torch.tensor([0, 9, 4, 1, 20])
    count = torch.tensor([2, 1, 9, 3, 2])
    sampler = spec(remasking)
    # State is kept by canvas position, and positions go up to 23 here.
    gen_len = width if sampler.facts.revises else 24
    wide = replace(sampler, gen_len=gen_len, block_length=width, steps=gen_len)

    def run(keep: list[int]) -> list[tuple]:
        part = eligible[keep]
        first = eligible.sum(1).cumsum(0) - eligible.sum(1)
        chosen = torch.cat([torch.arange(int(first[i]), int(first[i] + eligible[i].sum())) for i in keep])
        index = part.flatten().nonzero().squeeze(1)
        numbers = (position[keep], seed[keep], step[keep], count[keep])
        steps = torch.full_like(seed[keep], 4)
        state = {
            name: torch.zeros(len(keep), *shape, dtype=dtype)
            for name, (shape, dtype) in STRATEGIES[remasking].state(wide, 30).items()
        }
        more = {"num_steps": steps, "block_steps": steps, "block_step": step[keep], "block_length": steps}
        decision = decide(sampler, StepInput(logits[chosen], part, index, *numbers, **more, state=state))
        where = index[decision.picked]
        fields = (where // width, where % width, decision.token, decision.rank, decision.logp, decision.score)
        return list(zip(*(field.tolist() for field in fields), strict=True))

    together = run(list(range(rows)))
    adaptive = remasking not in SCHEDULED
    for row in range(rows):
        alone = run([row])
        assert [entry[1:] for entry in together if entry[0] == row] == [entry[1:] for entry in alone]
        wanted = min(int(count[row]), int(eligible[row].sum()))
        assert len(alone) == wanted or (adaptive and len(alone) >= min(1, wanted))
        assert all(eligible[row, entry[1]] for entry in alone)


def golden_rcr(update: str, offered: list[list[float]]) -> tuple[list[set[int]], list[float]]:
    """Masked sets after each of four steps of one token, and the confidences kept at the end."""
    sampler = SamplerSpec(4, 4, 4, remasking="rcr", rcr_update=update)
    masked = torch.ones(1, 4, dtype=torch.bool)
    state = {"running": torch.zeros(1, 4), "touched": torch.zeros(1, 4, dtype=torch.bool)}
    sets = []
    for number, row in enumerate(offered):
        # Token 0 has the offered probability and is drawn by greedy decoding where it is above a half.
        confidence = torch.tensor(row)
        rest = ((1 - confidence) / 10)[:, None].expand(4, 10)
        logits = torch.cat([confidence[:, None], rest], dim=1).log()
        index = masked.flatten().nonzero().squeeze(1)
        numbers = (torch.tensor([0]), torch.tensor([number]), torch.tensor([1]))
        step = StepInput(logits[index], masked, index, torch.arange(4)[None], *numbers, state=state)
        decision = decide(replace(sampler, temperature=0.0), step)
        masked = masked.clone()
        masked[0, index[decision.picked]] = False
        masked = masked | decision.remask
        state = dict(decision.state)
        sets.append(set(masked[0].nonzero().flatten().tolist()))
    return sets, state["running"][0].tolist()


def test_rcr_reproduces_the_golden_vector() -> None:
    # One token stays per step; .5 stands where nothing is offered.
    offered = [[0.9, 0.4, 0.6, 0.3], [0.5, 0.5, 0.2, 0.8], [0.5, 0.7, 0.55, 0.5], [0.5, 0.5, 0.65, 0.5]]
    sets, running = golden_rcr("last", offered)
    assert sets == [{1, 2, 3}, {1, 2}, {2}, set()]
    assert running == pytest.approx([0.9, 0.7, 0.65, 0.8])


def test_rcr_takes_back_a_token_whose_kept_confidence_fell_behind() -> None:
    # Step 0 keeps position 0 with .5; in step 1 positions 1 to 3 are written with .9, .8, .7 and the two
    # least confident of all four, 0 and 3, are hidden: 0 is remasked.
    sets, _ = golden_rcr("last", [[0.5, 0.4, 0.3, 0.2], [0.1, 0.9, 0.8, 0.7]])
    assert sets == [{1, 2, 3}, {0, 3}]
    # The smallest confidence ever: 1 to 3 keep .4, .3, .2 and 0 stays.
    assert golden_rcr("min", [[0.5, 0.4, 0.3, 0.2], [0.1, 0.9, 0.8, 0.7]])[0] == [{1, 2, 3}, {2, 3}]
    # The largest: position 1 was .8 once.
    offered = [[0.9, 0.8, 0.12, 0.1], [0.1, 0.2, 0.3, 0.4]]
    assert golden_rcr("last", offered)[0][1] == {1, 2}
    assert golden_rcr("max", offered)[0][1] == {2, 3}


def test_dream_origin_reveals_each_position_at_a_time_of_its_own() -> None:
    # 4 steps from t = 1 to .001: a position is revealed first with probability (1 - .001) / 4, and in the
    # last step with what is left. The first decision takes all positions of the earliest step that has any.
    rows = 4_000
    step = replace(one_step(torch.zeros(4, 3), rows=rows), block_steps=torch.full((rows,), 4))
    decision = decide(spec("dream_origin"), step)
    when = -decision.score
    share = (1 - 1e-3) / 4
    first = (when == 0).double().sum().item() / (4 * rows)
    assert abs(first - share) < 5 * (share * (1 - share) / (4 * rows)) ** 0.5
    row = decision.picked // 4
    # All committed positions of a row share one step, whatever the number of them.
    for number in range(4):
        assert not set(row[when == number].tolist()) & set(row[when != number].tolist())


def test_a_drawn_order_follows_the_softmax_of_the_scores() -> None:
    # Scores .8 and .4 at temperature .5: the first position leads with probability 1 / (1 + exp(-.8)) = .690.
    rows = 10_000
    logits = torch.tensor([[0.8, 0.1, 0.1], [0.4, 0.3, 0.3]]).log()
    noisy = replace(spec("top_probability"), order_temperature=0.5)
    decision = decide(noisy, one_step(logits, rows=rows))
    share = 1 / (1 + math.exp(-(0.8 - 0.4) / 0.5))
    first = (decision.picked % 2 == 0).double().mean().item()
    assert abs(first - share) < 5 * (share * (1 - share) / rows) ** 0.5
    assert set(decision.score.tolist()) == {logits[0, 0].exp().item(), logits[1, 0].exp().item()}


def test_sabers_first_step_hides_the_least_confident_of_what_it_committed() -> None:
    # Nothing was committed before, so the schedule's two are: .9 and .8. One of them is remasked; in a
    # first step confidences gain on 0, so it is the one of .8, and the one at the left stays.
    confidence = torch.tensor([0.9, 0.6, 0.8, 0.7])
    logits = torch.stack([confidence, 1 - confidence], dim=1).log()
    sampler = spec("saber", 0.0)
    state = {
        name: torch.zeros(1, *shape, dtype=dtype)
        for name, (shape, dtype) in STRATEGIES["saber"].state(sampler, 2).items()
    }
    decision = decide(sampler, replace(one_step(logits, count=2), state=state))
    assert decision.picked.tolist() == [0]
    # Later .8 gained 0 on the step before, .9 gained .5: the former is hidden.
    state |= {"was_seen": torch.ones(1, 4, dtype=torch.bool), "before": torch.tensor([[0.4, 0.6, 0.8, 0.7]])}
    later = replace(one_step(logits, count=2), state=state, step=torch.tensor([3]))
    assert decide(sampler, later).picked.tolist() == [0]
    # Where .9 gained nothing and .8 gained .5 it is the other way round.
    state["before"] = torch.tensor([[0.9, 0.6, 0.3, 0.7]])
    assert decide(sampler, replace(later, state=state)).picked.tolist() == [2]

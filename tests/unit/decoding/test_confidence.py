from __future__ import annotations

import math

import pytest
import torch

from rl4dlm.decoding import proposal
from rl4dlm.decoding.confidence import drawn_probability, logit_gap, margin, neg_entropy, top_probability
from rl4dlm.decoding.proposal import Law

LOGITS = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).log()


def test_confidence_of_the_drawn_token_is_its_probability() -> None:
    token = torch.tensor([1, 2])
    assert drawn_probability(LOGITS, token, Law(1.0)).tolist() == pytest.approx([0.3, 0.8])
    # At temperature 1/2 probabilities are squared: .09 / .38 and .64 / .66.
    assert drawn_probability(LOGITS, token, Law(0.5)).tolist() == pytest.approx([0.09 / 0.38, 0.64 / 0.66])


def test_top_confidence_knows_no_token() -> None:
    assert top_probability(LOGITS, Law(1.0)).tolist() == pytest.approx([0.5, 0.8])
    assert top_probability(LOGITS, Law(0.5)).tolist() == pytest.approx([0.25 / 0.38, 0.64 / 0.66])


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(11, 50, generator=torch.Generator().manual_seed(0))
    token = torch.arange(11)
    whole = drawn_probability(logits, token, Law(0.7)), top_probability(logits, Law(0.7))
    monkeypatch.setitem(proposal._CHUNK_ELEMENTS, "cpu", 150)
    assert torch.equal(whole[0], drawn_probability(logits, token, Law(0.7)))
    assert torch.equal(whole[1], top_probability(logits, Law(0.7)))


def test_margin_and_entropy_know_no_token_and_follow_the_law() -> None:
    assert margin(LOGITS, Law()).tolist() == pytest.approx([0.2, 0.7])
    # Squared: .25, .09, .04 of .38; .01, .01, .64 of .66.
    assert margin(LOGITS, Law(0.5)).tolist() == pytest.approx([0.16 / 0.38, 0.63 / 0.66])
    first = 0.5 * math.log(2) - 0.3 * math.log(0.3) - 0.2 * math.log(0.2)
    second = 0.2 * math.log(10) - 0.8 * math.log(0.8)
    assert neg_entropy(LOGITS, Law()).tolist() == pytest.approx([-first, -second])


def test_a_cut_law_has_the_likeliest_tokens_only() -> None:
    # Two of .5, .3, .2 remain: .625 and .375. The tie of .1 and .1 goes to the lower id.
    assert top_probability(LOGITS, Law(top_k=2)).tolist() == pytest.approx([0.625, 8 / 9])
    assert drawn_probability(LOGITS, torch.tensor([2, 1]), Law(top_k=2)).tolist() == [0.0, 0.0]
    # Mass before the second token is .5 and .8: kept up to .6 in the first row, not in the second.
    assert top_probability(LOGITS, Law(top_p=0.6)).tolist() == pytest.approx([0.625, 1.0])
    assert neg_entropy(LOGITS, Law(top_k=1)).tolist() == [0.0, 0.0]


def test_the_logit_gap_has_no_temperature() -> None:
    gap = logit_gap(LOGITS)
    assert gap.tolist() == pytest.approx([math.log(5 / 3), math.log(8)])
    assert logit_gap(LOGITS[:0]).shape == (0,)

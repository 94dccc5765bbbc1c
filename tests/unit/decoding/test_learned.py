from __future__ import annotations

import itertools

import pytest
import torch

from rl4dlm.decoding import action_logp


def test_the_probabilities_of_all_actions_sum_to_one() -> None:
    # Three eligible positions of four; the empty action counts with its own probability (specs: rl 30).
    logits, eligible = torch.tensor([[0.3, -1.2, 9.0, 2.0]]), torch.tensor([[True, True, False, True]])
    total = 0.0
    for chosen in itertools.product([False, True], repeat=3):
        action = torch.tensor([[chosen[0], chosen[1], True, chosen[2]]])
        total += action_logp(logits, action, eligible).exp().item()
    assert total == pytest.approx(1.0)


def test_an_actions_log_probability_is_that_of_its_decisions_and_has_a_gradient() -> None:
    logits = torch.tensor([[0.0, 1.0]], requires_grad=True)
    logp = action_logp(logits, torch.tensor([[True, False]]), torch.ones(1, 2, dtype=torch.bool))
    # ln(1/2) + ln(1 - sigmoid(1)) = -.6931 - 1.3133.
    assert logp.item() == pytest.approx(-2.0064, abs=1e-4)
    logp.sum().backward()
    # d ln sigmoid(x) = 1 - sigmoid(x); d ln(1 - sigmoid(x)) = -sigmoid(x).
    assert logits.grad[0].tolist() == pytest.approx([0.5, -0.7311], abs=1e-4)

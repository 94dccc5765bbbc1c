from __future__ import annotations

import pytest
import torch

from rl4dlm.likelihood.importance import truncated_weights


def test_weights_are_the_likelihood_ratio_up_to_the_cap():
    logp = torch.tensor([-1.0, -1.0, -3.0, -0.5], requires_grad=True)
    recorded = torch.tensor([-1.0, -1.5, -1.0, -5.0])
    weights = truncated_weights(logp, recorded, cap=2.0)
    # exp(0), exp(.5), exp(-2); exp(4.5) = 90 is cut to 2.
    assert weights.tolist() == pytest.approx([1.0, 1.648721, 0.135335, 2.0], abs=1e-5)
    assert not weights.requires_grad


def test_a_huge_difference_does_not_overflow():
    weights = truncated_weights(torch.tensor([0.0]), torch.tensor([-1e4]), cap=3.0)
    assert weights.item() == pytest.approx(3.0)

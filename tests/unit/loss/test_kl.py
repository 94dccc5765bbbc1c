from __future__ import annotations

import pytest
import torch

from rl4dlm.loss.kl import k1, k2, k3

POLICY_LOGITS = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64)
REFERENCE = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


def on_policy_gradient(estimator):
    """Exact expectation over samples of pi of the gradient of the estimator at fixed samples."""
    logits = POLICY_LOGITS.clone().requires_grad_()
    logp = logits.log_softmax(-1)
    (logp.detach().exp() * estimator(logp - REFERENCE.log())).sum().backward()
    return logits.grad


def true_gradient(divergence):
    logits = POLICY_LOGITS.clone().requires_grad_()
    divergence(logits.log_softmax(-1)).backward()
    return logits.grad


def reverse_kl(logp):
    return (logp.exp() * (logp - REFERENCE.log())).sum()


def forward_kl(logp):
    return (REFERENCE * (REFERENCE.log() - logp)).sum()


@pytest.mark.parametrize("estimator", [k1, k2])
def test_the_gradient_of_k1_and_k2_is_that_of_the_kl_to_the_reference(estimator):
    torch.testing.assert_close(on_policy_gradient(estimator), true_gradient(reverse_kl), atol=1e-12, rtol=0)


def test_the_gradient_of_k3_is_that_of_the_kl_from_the_reference():
    torch.testing.assert_close(on_policy_gradient(k3), true_gradient(forward_kl), atol=1e-12, rtol=0)


@pytest.mark.parametrize("estimator", [k1, k3])
def test_the_expectation_of_k1_and_k3_is_the_kl(estimator):
    logp = POLICY_LOGITS.log_softmax(-1)
    value = (logp.exp() * estimator(logp - REFERENCE.log())).sum().item()
    assert value == pytest.approx(reverse_kl(logp).item())


@pytest.mark.parametrize("estimator", [k2, k3])
def test_equal_policies_have_no_kl_and_no_gradient(estimator):
    d = torch.zeros(3, requires_grad=True)
    value = estimator(d)
    value.sum().backward()
    assert not value.any()
    assert not d.grad.any()


def test_values_by_hand():
    # k2(2) = 4 / 2; k3(1) = 1/e + 1 - 1; k3(-1) = e - 1 - 1.
    assert k2(torch.tensor([2.0, -2.0])).tolist() == [2.0, 2.0]
    torch.testing.assert_close(
        k3(torch.tensor([1.0, -1.0])), torch.tensor([0.367879, 0.718282]), atol=1e-6, rtol=0
    )

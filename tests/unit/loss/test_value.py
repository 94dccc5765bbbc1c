"""The value loss and the share of variance that values explain."""

import pytest
import torch

from rl4dlm.loss.value import clipped_value_error, with_explained_variance


def error(value, old, returns, clip=0.2):
    value = torch.tensor([float(value)], requires_grad=True)
    loss = clipped_value_error(value, torch.tensor([float(old)]), torch.tensor([float(returns)]), clip=clip)
    loss.sum().backward()
    return loss.item(), value.grad.item()


def test_inside_the_clip_range_it_is_half_the_squared_error():
    assert error(0.1, 0.0, 1.0) == pytest.approx((0.405, -0.9))


def test_a_value_that_has_gone_far_enough_is_pushed_no_further():
    # Clipped value .2: error (.2 - 1)^2 / 2 = .32 exceeds (.5 - 1)^2 / 2, so the constant branch counts.
    assert error(0.5, 0.0, 1.0) == pytest.approx((0.32, 0.0))


def test_a_value_on_the_wrong_side_is_pulled_back():
    assert error(-0.5, 0.0, 1.0) == pytest.approx((1.125, -1.5))


def test_a_perfect_value_has_no_gradient():
    assert error(1.0, 1.0, 1.0) == (0.0, 0.0)


def test_explained_variance():
    metrics = {"value/return/std": 2.0, "value/error/std": 1.0}
    assert with_explained_variance(metrics)["value/explained_var"] == pytest.approx(0.75)
    assert "value/explained_var" not in with_explained_variance(
        {"value/return/std": 0.0, "value/error/std": 0.0}
    )
    assert with_explained_variance({"loss": 1.0}) == {"loss": 1.0}

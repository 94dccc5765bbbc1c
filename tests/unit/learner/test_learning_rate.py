"""Learning rates by hand."""

from __future__ import annotations

import pytest

from rl4dlm.learner.learning_rate import learning_rate, schedule_factor, warm_start_rate
from rl4dlm.recipe.sections import TrainerConfig, WarmStartConfig


@pytest.mark.parametrize(
    ("kind", "factors"),
    [
        # Warm-up of 2: 1/3, 2/3, then 6 steps to the end.
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]),
        # (1 + cos(pi k / 6)) / 2 with cos(pi/6) = sqrt(3)/2, cos(pi/3) = 1/2.
        ("cosine", [1 / 3, 2 / 3, 1, 0.5 + 3**0.5 / 4, 0.75, 0.5, 0.25, 0.5 - 3**0.5 / 4, 0]),
    ],
)
def test_factors_after_a_linear_warm_up(kind: str, factors: list[float]) -> None:
    assert [schedule_factor(kind, step, 2, 8) for step in range(9)] == pytest.approx(factors, abs=1e-15)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_rate_never_becomes_negative_after_the_end(kind: str) -> None:
    assert [schedule_factor(kind, step, 0, 4) for step in (4, 5, 9)] == [0, 0, 0]


def test_the_policys_first_update_has_the_first_factor_and_its_last_one_is_not_zero() -> None:
    trainer = TrainerConfig(learning_rate=1e-3, lr_scheduler_type="linear", warmup_steps=1, max_steps=5)
    # Updates 1..5 are steps 0..4: 1/2, then 1, 3/4, 2/4, 1/4.
    rates = [learning_rate(trainer, update) for update in range(1, 6)]
    assert rates == pytest.approx([0.5e-3, 1e-3, 0.75e-3, 0.5e-3, 0.25e-3])


def test_the_rate_of_an_update_does_not_depend_on_the_updates_before() -> None:
    trainer = TrainerConfig(lr_scheduler_type="cosine", warmup_steps=3, max_steps=20)
    forward = [learning_rate(trainer, update) for update in range(1, 21)]
    assert forward == [learning_rate(trainer, update) for update in range(20, 0, -1)][::-1]


def test_the_warm_start_rises_over_a_tenth_of_its_steps() -> None:
    rates = [warm_start_rate(WarmStartConfig(steps=20, learning_rate=3.0), step) for step in range(21)]
    assert rates[:3] == pytest.approx([1.0, 2.0, 3.0])  # 2 steps of warm-up
    assert rates[11] == pytest.approx(1.5) and rates[20] == pytest.approx(0)  # half-way of 18, the end

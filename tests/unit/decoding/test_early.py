from __future__ import annotations

import math

import pytest
import torch

from rl4dlm.decoding.early import gap_threshold


def thresholds(kind: str, *progress: float) -> list[float]:
    return gap_threshold(kind, torch.tensor(progress, dtype=torch.float64), 7.5, 2.5).tolist()


def test_prophet_asks_less_in_each_third() -> None:
    assert thresholds("prophet", 0.0, 0.32, 0.33, 0.66, 0.67, 1.0) == [7.5, 7.5, 5.0, 5.0, 2.5, 2.5]


def test_sched_falls_from_high_to_low() -> None:
    assert thresholds("sched_linear", 0.0, 0.5, 1.0) == [7.5, 5.0, 2.5]
    # Half a cosine: 2.5 + 5 (1 + cos(pi / 3)) / 2 = 6.25 after a third.
    assert thresholds("sched_cosine", 0.0, 1 / 3, 0.5, 1.0) == pytest.approx([7.5, 6.25, 5.0, 2.5])
    assert thresholds("sched_exp", 0.0, 1.0) == pytest.approx([7.5, 2.5 + 5 * math.exp(-4)])

"""What the recorded log-probabilities are: exact where positions are chosen before tokens, not otherwise."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from rollout_toys import table

from rl4dlm.decoding import SamplerSpec
from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.rollout import Engine, Request
from rl4dlm.types import Denoiser, DenoiserSpec

pytestmark = pytest.mark.slow

LENGTH, TOKENS = 3, 2


def context_toy() -> Denoiser:
    """Two tokens, three positions, logits that depend on everything visible; id 2 is the mask."""
    weights = 0.6 * torch.randn(LENGTH, LENGTH, 3, TOKENS, generator=torch.Generator().manual_seed(4))

    def model(ids: torch.Tensor, _mask: torch.Tensor | None, select: torch.Tensor) -> torch.Tensor:
        sources = torch.arange(LENGTH)
        logits = torch.stack([weights[i, sources, ids].sum(1) for i in range(LENGTH)], 1)
        return logits[select]

    spec = DenoiserSpec(2, 3, 4, (4,), TOKENS, ())
    return Denoiser(model, spec)


Trajectory = tuple[tuple[int, ...], tuple[int, ...]]


def trajectories(
    remasking: str, temperature: float, count: int
) -> tuple[Counter[Trajectory], dict[Trajectory, float]]:
    """How often each (tokens, order of commitment) was drawn, and its recorded log-probability."""
    spec = SamplerSpec(LENGTH, LENGTH, LENGTH, temperature, remasking)
    requests = [Request(0, i, derive_seed("law", i), ()) for i in range(count)]
    drawn: Counter[Trajectory] = Counter()
    logp: dict[Trajectory, float] = {}
    for rollout in Engine(context_toy(), spec, count).generate(requests, policy_version=0):
        key = tuple(rollout.completion_ids.tolist()), tuple(rollout.trace.step_map.tolist())
        drawn[key] += 1
        total = float(rollout.trace.rollout_logp.sum())
        assert logp.setdefault(key, total) == pytest.approx(total, abs=1e-6)
    return drawn, logp


@pytest.mark.parametrize("temperature", [1.0, 0.8])
@pytest.mark.parametrize(
    ("remasking", "orders"), [("top_probability", 1), ("random", math.factorial(LENGTH))]
)
def test_recorded_probabilities_of_all_trajectories_sum_to_one_and_are_their_frequencies(
    remasking: str, orders: int, temperature: float
) -> None:
    count = 6_000
    drawn, logp = trajectories(remasking, temperature, count)
    assert len(logp) == TOKENS**LENGTH * orders
    probs = {key: math.exp(value) / orders for key, value in logp.items()}
    assert sum(probs.values()) == pytest.approx(1, abs=1e-5)
    statistic = sum((drawn[key] - count * prob) ** 2 / (count * prob) for key, prob in probs.items())
    freedom = len(probs) - 1
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


def test_under_low_confidence_they_do_not_sum_to_one() -> None:
    _, logp = trajectories("low_confidence", 1.0, 6_000)
    assert abs(sum(math.exp(value) for value in logp.values()) - 1) > 0.05


@pytest.mark.parametrize(("remasking", "non_top"), [("low_confidence", 0.0256), ("top_probability", 0.4)])
def test_first_committed_tokens_of_the_engine_follow_the_known_law(remasking: str, non_top: float) -> None:
    # p = (.6, .3, .1) at four identical positions: .4^4 = .0256 against .4 (specs: rl-algorithms 12.1).
    count = 5_000
    requests = [Request(0, i, derive_seed("golden", i), ()) for i in range(count)]
    spec = SamplerSpec(4, 4, 4, remasking=remasking)
    rollouts = Engine(table([0.6, 0.3, 0.1]), spec, count).generate(requests, policy_version=0)
    others = sum(int(rollout.completion_ids[rollout.trace.step_map == 0][0] != 0) for rollout in rollouts)
    assert abs(others / count - non_top) < 5 * (non_top * (1 - non_top) / count) ** 0.5

"""The inner update loop of one rank, with torch's own optimizer in DeepSpeed's place."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "loop"))

import zero_rank  # noqa: E402

from rl4dlm.errors import UpdateError  # noqa: E402
from rl4dlm.learner.engine import PlainEngine  # noqa: E402
from rl4dlm.learner.update import RankUpdate  # noqa: E402
from rl4dlm.models import build_char_tokenizer, create, denoiser  # noqa: E402
from rl4dlm.recipe.algorithms import GDPOConfig  # noqa: E402
from rl4dlm.trainers import make_method  # noqa: E402


def rank(method: GDPOConfig, token_budget: int, num_minibatches: int = 1) -> RankUpdate:
    loaded = create(zero_rank.INIT, build_char_tokenizer("0123456789=+"), seed=1)
    engine = PlainEngine(loaded.module, zero_rank.settings(0))
    return RankUpdate(
        engine=engine,
        denoiser=denoiser(loaded, model=engine),
        method=make_method(method),
        rank=0,
        world_size=1,
        token_budget=token_budget,
        num_minibatches=num_minibatches,
    )


def weights(part: RankUpdate) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in part.engine.module.parameters()])


@pytest.mark.parametrize("budget", [1, 25, 60])
def test_the_update_does_not_depend_on_the_micro_batches(budget: int) -> None:
    """A budget of 1 splits every state off; 25 splits rows of two states; 60 holds a few rows."""
    method = GDPOConfig(num_nodes=2, num_iterations=2, epsilon=0.2)
    whole, split = rank(method, 10_000, 2), rank(method, budget, 2)
    for update in range(2):
        expected, got = whole.run(zero_rank.fixed_batch(update)), split.run(zero_rank.fixed_batch(update))
        assert got == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(weights(split), weights(whole), atol=1e-5, rtol=1e-4)


def test_the_first_step_has_ratio_one_and_later_passes_do_not() -> None:
    single = rank(GDPOConfig(num_nodes=2), 10_000).run(zero_rank.fixed_batch(0))
    assert single["ratio/max"] == single["ratio/min"] == 1.0
    several = rank(GDPOConfig(num_nodes=2, num_iterations=3), 10_000).run(zero_rank.fixed_batch(0))
    assert several["ratio/min"] < 1.0 < several["ratio/max"]


def test_a_batch_without_signal_takes_no_step() -> None:
    part = rank(GDPOConfig(num_nodes=2), 10_000)
    before = weights(part)
    batch = zero_rank.fixed_batch(0)
    assert part.run(replace(batch, advantage=np.zeros_like(batch.advantage))) == {}
    assert torch.equal(weights(part), before)


def test_a_loss_that_is_not_finite_stops_the_run_naming_the_groups() -> None:
    part = rank(GDPOConfig(num_nodes=2), 10_000)
    batch = zero_rank.fixed_batch(0)
    broken = np.where(batch.group == 2, np.nan, batch.advantage).astype(np.float32)
    with pytest.raises(UpdateError, match=r"loss is nan on groups \[.*2.*\]"):
        part.run(replace(batch, advantage=broken))

"""One rank's share of fine-tuning, with torch's own optimizer in DeepSpeed's place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rl4dlm.data import Example
from rl4dlm.learner.engine import PlainEngine
from rl4dlm.learner.supervised import RankSFT
from rl4dlm.loss.reduce import merge_metrics
from rl4dlm.models import build_char_tokenizer, create, denoiser
from rl4dlm.recipe.objectives import BlockObjective, ObjectiveConfig, RandomMaskObjective
from rl4dlm.recipe.sections import ModelInit, TrainerConfig
from rl4dlm.trainers.sft import SFTBatch, SFTPlan, sft_batch, shares

INIT = ModelInit(d_model=32, n_layers=1, n_heads=2, mlp_hidden_size=64, max_sequence_length=64)
OBJECTIVES = [(RandomMaskObjective(), None), (BlockObjective(), 4)]


def rank(number: int = 0, world_size: int = 1, budget: int = 10_000) -> RankSFT:
    loaded = create(INIT, build_char_tokenizer("0123456789="), seed=1)
    engine = PlainEngine(loaded.module, TrainerConfig(learning_rate=1e-2))
    return RankSFT(engine, denoiser(loaded, model=engine), number, world_size, budget)


def batch(objective: ObjectiveConfig, block_length: int | None, num_rows: int = 7) -> SFTBatch:
    """Rows of many lengths."""
    rng = np.random.default_rng(0)
    rows = [
        Example(i, *(rng.integers(0, 10, rng.integers(1, 9)).astype(np.int32) for _ in range(2)))
        for i in range(num_rows)
    ]
    plan = SFTPlan(objective, "none" if block_length is None else "block", 16, block_length)
    return sft_batch(rows, plan, rank().denoiser.spec, 0)


def weights(part: RankSFT) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in part.engine.module.parameters()])


@pytest.mark.parametrize(("objective", "block_length"), OBJECTIVES)
def test_a_step_does_not_depend_on_the_micro_batches(objective, block_length):
    whole, split = rank(), rank(budget=20)
    made = batch(objective, block_length)
    for _ in range(2):
        expected, got = whole.step(made), split.step(made)
        assert got["loss"] == pytest.approx(expected["loss"], abs=1e-5)
        assert got["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        assert got["sft/padding"] < expected["sft/padding"]
        assert got["sft/tokens"] == expected["sft/tokens"] == sum(map(made.tokens, range(7)))
    torch.testing.assert_close(weights(split), weights(whole), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("objective", "block_length"), OBJECTIVES)
def test_the_shares_of_ranks_add_up_and_all_run_as_many_passes(objective, block_length):
    made = batch(objective, block_length)
    alone = rank(budget=20)
    passes = []

    class Counting(PlainEngine):
        def backward(self, loss):
            passes[-1] += 1
            super().backward(loss)

    parts, gradients = [], []
    for number in range(3):
        part = rank(number, 3, budget=20)
        passes.append(0)
        engine = Counting(part.engine.module, TrainerConfig(learning_rate=0.0 + 1e-9))
        engine.step = lambda: None  # type: ignore[method-assign]
        parts.append(replace(part, engine=engine).step(made))
        gradients.append(torch.cat([p.grad.flatten() for p in engine.module.parameters()]))
    assert len(set(passes)) == 1
    plain = PlainEngine(alone.engine.module, TrainerConfig())
    plain.step = lambda: None  # type: ignore[method-assign]
    expected = replace(alone, engine=plain).step(made)
    merged = merge_metrics(parts)
    assert merged["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    assert merged["sft/tokens"] == expected["sft/tokens"]
    # DeepSpeed averages over ranks.
    whole = torch.cat([p.grad.flatten() for p in plain.module.parameters()])
    torch.testing.assert_close(torch.stack(gradients).mean(0), whole, atol=1e-5, rtol=1e-3)


def test_the_held_out_likelihood_is_that_of_every_row_once():
    made = batch(RandomMaskObjective(), None)
    whole = rank().held_out(made)
    assert whole.shape == (7,) and (whole > 0).any()
    thirds = [rank(number, 3, budget=20).held_out(made) for number in range(3)]
    np.testing.assert_allclose(sum(thirds), whole, atol=1e-4)
    for mine, values in zip(shares(made, 3), thirds, strict=True):
        assert all(values[row] == 0 for row in range(7) if row not in mine)

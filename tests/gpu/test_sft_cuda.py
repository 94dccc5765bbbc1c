"""On a CUDA device: every objective says what it says on the CPU, however rows share a pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rl4dlm.data import Example
from rl4dlm.models import build_char_tokenizer, create, denoiser
from rl4dlm.recipe.objectives import (
    BlockObjective,
    ObjectiveConfig,
    RandomMaskObjective,
    SemiARObjective,
    TraceObjective,
)
from rl4dlm.recipe.sections import ModelInit
from rl4dlm.trainers.sft import SFTPlan, row_nll, sft_batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

INIT = ModelInit(d_model=32, n_layers=2, n_heads=2, mlp_hidden_size=64, max_sequence_length=64)


@pytest.mark.parametrize(
    ("family", "block_length", "objective"),
    [
        ("llada", None, RandomMaskObjective(cart=0.3)),
        ("dream", None, SemiARObjective(block_length=4)),
        ("llada", None, TraceObjective()),
        ("sdar", 4, BlockObjective(mask_rule="count", half_life=0.1)),
        ("sdar", 4, TraceObjective()),
    ],
)
def test_an_objective_does_not_depend_on_the_device(
    family: str, block_length: int | None, objective: ObjectiveConfig
) -> None:
    loaded = create(INIT, build_char_tokenizer("0123456789="), 1, family=family, block_length=block_length)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(6):
        prompt, answer = (rng.integers(0, 10, rng.integers(2, 9)).astype(np.int32) for _ in range(2))
        steps = rng.permutation(len(answer)).astype(np.int32)
        rows.append(Example(number, prompt, answer, step_map=steps))
    plan = SFTPlan(objective, "none" if block_length is None else "block", 16, block_length)
    batch = sft_batch(rows, plan, loaded.spec, 0)
    with torch.no_grad():
        expected = row_nll(denoiser(loaded), batch, range(6))
        model = denoiser(loaded, model=loaded.module.to("cuda"), device="cuda")
        together = row_nll(model, batch, range(6)).cpu()
        alone = torch.cat([row_nll(model, batch, [row]) for row in range(6)]).cpu()
    torch.testing.assert_close(together, expected, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(alone, expected, atol=1e-3, rtol=1e-4)

"""NTK-scaled rotary angles: the published factors, and a model that is loaded, used and saved with them."""

from __future__ import annotations

import json

import pytest
import torch
from family_toys import make_family

from rl4dlm import models
from rl4dlm.errors import ModelError
from rl4dlm.models.rope import ntk_factor


@pytest.mark.parametrize(
    ("trained", "target", "factor"),
    [
        # LLaDA: 64 of 128 dimensions have seen a full period; the authors use 4, 14, 31, 55.
        (4096, 8192, 3.4),
        (4096, 16384, 13.6),
        (4096, 24576, 30.6),
        (4096, 32768, 54.4),
        # Llama 3: 70 of 128.
        (8192, 16384, 3.53),
        (8192, 32768, 12.54),
    ],
)
def test_the_factor_is_the_published_one(trained, target, factor):
    assert ntk_factor(5e5, 128, trained, target) == pytest.approx(factor, rel=5e-3)


@pytest.mark.parametrize("family", ["llada", "dream", "sdar", "llada2"])
def test_a_lengthened_model_turns_more_slowly_and_says_so_when_saved(family, tmp_path):
    block_length = 4 if family in ("sdar", "llada2") else None
    loaded = make_family(family, block_length, rope_theta=1e4)
    folder = models.save(loaded, tmp_path / "m", loaded.tokenizer)
    longer = models.load(folder, max_length=256)
    assert longer.spec.max_length == 256 and models.inspect(folder, max_length=256).max_length == 256
    ids = torch.tensor([[3, 1, 13, 4, 13, 5, 9, 2]])
    assert (longer.module(ids) - loaded.module(ids))[..., :13].abs().max() > 1e-3
    saved = models.save(longer, tmp_path / "longer", longer.tokenizer)
    rotated = 4 if family == "llada2" else 8
    expected = 1e4 * ntk_factor(1e4, rotated, 64, 256)
    assert json.loads((saved / "config.json").read_text())["rope_theta"] == pytest.approx(expected)
    again = models.load(saved)
    assert again.spec.max_length == 256 and torch.equal(again.module(ids), longer.module(ids))


def test_a_length_that_the_positions_reach_anyway_is_refused(tmp_path):
    loaded = make_family("sdar", 4)
    folder = models.save(loaded, tmp_path / "m", loaded.tokenizer)
    with pytest.raises(ModelError, match="reach 64 tokens, and model.max_length = 64. Fix: leave"):
        models.load(folder, max_length=64)


def test_a_model_with_another_kind_of_positions_is_refused(tmp_path):
    loaded = make_family("mdlm", None)
    folder = models.save(loaded, tmp_path / "m", loaded.tokenizer)
    with pytest.raises(ModelError, match="cannot be scaled to model.max_length = 128. Fix: leave"):
        models.load(folder, max_length=128)

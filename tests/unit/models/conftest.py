"""Tiny LLaDA models with every parameter random, so that no bug hides behind norms of 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rl4dlm.models.llada import LLaDA
from rl4dlm.models.network_config import made_config, read_config
from rl4dlm.recipe.sections import ModelInit

INIT = ModelInit(d_model=32, n_layers=2, n_heads=4, mlp_hidden_size=48, max_sequence_length=64)


@pytest.fixture
def published() -> Callable[..., dict[str, Any]]:
    """A config.json object with published fields; keyword arguments replace some of them."""

    def build(**changes: Any) -> dict[str, Any]:
        config = made_config("llada", INIT, vocab_size=24, mask_id=20, eos_id=21, pad_id=21)
        return {**config.to_dict(), **changes}

    return build


@pytest.fixture
def tiny(published: Callable[..., dict[str, Any]]) -> Callable[..., LLaDA]:
    """A model with N(0, 0.2) matrices and U(0.5, 1.5) norms; mask 20 and rows 22, 23 are forbidden."""

    def build(seed: int = 0, **changes: Any) -> LLaDA:
        module = LLaDA(read_config("llada", published(**changes), "test"))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.dim() == 1:
                    parameter.uniform_(0.5, 1.5, generator=generator)
                else:
                    parameter.normal_(0.0, 0.2, generator=generator)
        module.forbid([20, 22, 23])
        return module

    return build


@pytest.fixture
def tokens() -> torch.Tensor:
    """int64 `[3, 12]`, ids below 20 with some masks."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(0, 20, (3, 12), generator=generator)
    return ids.masked_fill(torch.rand(3, 12, generator=generator) < 0.4, 20)

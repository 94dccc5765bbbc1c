"""A tiny model of every family, for the laws that all of them obey."""

from __future__ import annotations

from typing import Any

import torch

from rl4dlm.models import LoadedModel, build_char_tokenizer, create
from rl4dlm.recipe.sections import ModelInit

TEXT, EOS, MASK = 11, 12, 13
"""Ids below TEXT are characters; the mask is the last row and the only forbidden id."""

INIT = ModelInit(d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, mlp_hidden_size=48, max_sequence_length=64)

FAMILY_CASES = [
    ("llada", None),
    ("llada_moe", None),
    ("llada2", 4),
    ("dream", None),
    ("sdar", 4),
    ("a2d", None),
    ("a2d", 4),
    ("mdlm", None),
    ("bd3lm", 4),
]
"""Every family with its block length."""


def make_family(family: str, block_length: int | None, *, seed: int = 0, **sizes: Any) -> LoadedModel:
    """A tiny model of a family, every parameter random."""
    init = INIT.model_copy(update=sizes)
    tokenizer = build_char_tokenizer("0123456789=")
    loaded = create(init, tokenizer, 0, family=family, block_length=block_length)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in loaded.module.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(0.0, 0.3, generator=generator)
            elif parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(0.0, 0.2, generator=generator)
    return loaded

"""Caches with the real network: several heads, shared key heads, rotary positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rl4dlm.decoding import SamplerSpec
from rl4dlm.diffusion.blocks import sequence_layout
from rl4dlm.models.llada import LLaDA, initialise_llada
from rl4dlm.models.network_config import made_config
from rl4dlm.recipe.sections import ModelInit
from rl4dlm.rollout import Engine, Request
from rl4dlm.types import Denoiser, DenoiserSpec

VOCAB, MASK, PAD, EOS = 24, 23, 22, 21


class Blocks(nn.Module):
    """LLaDA with block-causal attention."""

    def __init__(self, network: LLaDA, block_length: int) -> None:
        super().__init__()
        self.network, self.block_length = network, block_length

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, layout: Any = None, **kwargs: Any
    ) -> Tensor:
        if layout is None:
            real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask
            layout = sequence_layout(real, self.block_length)
        return self.network(input_ids, None, layout=layout, **kwargs)


def llada(block_length: int | None, layers: int) -> Denoiser:
    init = ModelInit(
        d_model=32, n_layers=layers, n_heads=4, n_kv_heads=2, mlp_hidden_size=48, max_sequence_length=64,
        rope_theta=1e4,
    )  # fmt: skip
    config = made_config("llada", init, vocab_size=VOCAB, mask_id=MASK, eos_id=EOS, pad_id=PAD)
    network = LLaDA(config).double()
    initialise_llada(network, torch.Generator().manual_seed(3))
    network.model.transformer["ff_out"].weight.data.mul_(3.0)
    network.forbid([MASK, PAD])
    spec = DenoiserSpec(
        mask_id=MASK, pad_id=PAD, eos_id=EOS, stop_ids=(EOS,), vocab_size=VOCAB, forbidden_ids=(MASK, PAD),
        attention="full" if block_length is None else "block_causal", block_length=block_length,
        max_length=64,
    )  # fmt: skip
    return Denoiser(network if block_length is None else Blocks(network, block_length), spec)


@pytest.mark.parametrize(
    ("block_length", "layers", "cache"),
    [(4, 3, "block"), (None, 1, "prefix"), (None, 1, "dual"), (None, 1, "free"), (None, 1, "dkv_decode")],
)
def test_cached_keys_of_llada_change_no_sample(block_length: int | None, layers: int, cache: str) -> None:
    model = llada(block_length, layers)
    wanted = [
        Request(i // 2, i % 2, 50 + i, tuple(range(1, 1 + length)))
        for i, length in enumerate((7, 7, 3, 3, 10, 10))
    ]
    rollouts = []
    for name in ("none", cache):
        spec = SamplerSpec(16, 4, 12, temperature=0.8, eos_policy="none", cache=name)
        rollouts.append(Engine(model, spec, 4).generate(wanted, policy_version=0))
    for plain, cached in zip(*rollouts, strict=True):
        np.testing.assert_array_equal(plain.completion_ids, cached.completion_ids)
        np.testing.assert_array_equal(plain.trace.step_map, cached.trace.step_map)
        np.testing.assert_allclose(plain.trace.rollout_logp, cached.trace.rollout_logp, atol=1e-6)
        assert cached.token_forwards < plain.token_forwards
